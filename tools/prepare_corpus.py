"""Make a corpus from any genomes: stores, curation, splits, shards, and a manifest over all of it.

    python -m tools.prepare_corpus configs/corpus/example.yaml --output corpus/example --jobs 8
    python -m tools.prepare_corpus configs/corpus/example.yaml splits.by=taxon --output corpus/taxa

Killed or failed at any point, the same command goes on where it was; the bytes do not depend on
--jobs. Through Slurm: python -m launch.submit --prepare. All options: docs/corpus.md.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from megatron_hyena.corpus.build import Corpus
    from megatron_hyena.corpus.tasks import Progress

STAGES = ("store", "plan", "shards", "finish")


def main(argv: list[str] | None = None) -> int:
    """Run the tool; 0, 2 after an error the user can mend, 130 after an interruption."""
    arguments = _parser().parse_intermixed_args(argv)
    from megatron_hyena.corpus.build import Corpus, build, build_part
    from megatron_hyena.corpus.options import load_options
    from megatron_hyena.errors import UserError

    try:
        part = _part(arguments)
        options = load_options(arguments.config, arguments.overrides)
        corpus = Corpus.open(arguments.output, options, overwrite=arguments.overwrite)
        if arguments.stage:
            build_part(corpus, arguments.stage, part, _bar, arguments.jobs)
        else:
            build(corpus, _bar, arguments.jobs)
            _report(corpus)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted; the same command goes on where it was", file=sys.stderr)
        return 130
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m tools.prepare_corpus",
        description="Make a corpus: stores, curation, splits, shards and their manifest.",
    )
    add = parser.add_argument
    add("config", type=Path, help="YAML file of the corpus; configs/corpus/ has some")
    add("overrides", nargs="*", metavar="section.key=value", help="overrides of the options")
    add("--output", type=Path, required=True, help="folder of the corpus")
    add("--jobs", type=int, default=1, help="processes on this machine (default 1)")
    add(
        "--stage",
        choices=STAGES,
        help="one stage only, in this order; for batch systems, which start each when the one "
        "before is finished on all machines",
    )
    add("--task", metavar="I/N", help="with --stage: tasks I, I + N, I + 2 N … of it, I from 0 on")
    add(
        "--overwrite",
        action="store_true",
        help="change a finished corpus, made with other options; what stays the same is kept",
    )
    return parser


def _part(arguments: argparse.Namespace) -> tuple[int, int]:
    """(I, N) of --task, (0, 1) without it."""
    from megatron_hyena.errors import UserError

    if arguments.jobs < 1:
        raise UserError(f"--jobs is {arguments.jobs}; give 1 or more")
    if arguments.task is None:
        return 0, 1
    if arguments.stage is None:
        raise UserError(f"--task {arguments.task} is of no stage; add --stage")
    match = re.fullmatch(r"(\d+)/(\d+)", arguments.task)
    if match is None or not int(match[1]) < int(match[2]):
        raise UserError(f"--task {arguments.task} is not I/N with I from 0 to N - 1, such as 0/8")
    return int(match[1]), int(match[2])


@contextmanager
def _bar(stage: str, total: int) -> Iterator[Progress]:
    from tqdm import tqdm

    with tqdm(desc=f"{stage:<6}", total=total, unit="B", unit_scale=True, disable=None) as bar:
        yield bar.update


def _report(corpus: Corpus) -> None:
    """Print what was kept, what was dropped and why, and what the splits share."""
    import json

    from megatron_hyena.corpus.finish import REPORT
    from megatron_hyena.corpus.plan_tasks import LEAKAGE
    from megatron_hyena.corpus.tasks import WORK, read_stamp

    report = json.loads((corpus.root / REPORT).read_text(encoding="utf-8"))
    print(f"{'':<24}{'records':>12}{'bases':>18}")
    print(f"{'read':<24}{report['records']:>12,}{report['bases']:>18,}")
    for reason, told in report["dropped"].items():
        print(f"{'dropped: ' + reason:<24}{told['records']:>12,}{told['bases']:>18,}")
    print(f"{'left out of records':<24}{'':>12}{report['left_out_of_records']:>18,}")
    kept = report["kept"]
    print(f"{'kept':<24}{kept['records']:>12,}{kept['bases']:>18,}")
    for folder, told in report["shards"].items():
        print(f"{'shards/' + folder:<24}{told['shards']:>6,} tar{'':>2}{told['bases']:>18,}")
    if len({told["weight"] for told in report["shards"].values()}) > 1:
        print(f"samples have weights, which data.train={corpus.root}/shards/**/train goes by")
    stamp = read_stamp(corpus.root / WORK / "stamps" / "plan" / "leakage.json")
    if stamp and (corpus.root / LEAKAGE).is_file():
        print(stamp.result["table"])
    print(f"corpus {report['corpus'][:12]} in {corpus.root}; tools.verify_corpus checks it")


if __name__ == "__main__":
    sys.exit(main())

"""From the genome that comes with the repository to a trained, evaluated, exported model.

    make quickstart

Runs the commands a user would type, one after the other, and shows each. A part that is finished
is not done again; an interrupted one goes on where it was. Nothing is downloaded.
"""

from __future__ import annotations

import argparse
import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from megatron_hyena.errors import UserError
from megatron_hyena.runtime.lock import only_process_in
from megatron_hyena.runtime.parent import end_with_parent

CONFIG = "configs/run/quickstart.yaml"
EXAMPLE = Path("examples/chlamydia")
CORPUS = Path("corpus/quickstart")
RUN = Path("runs/quickstart")


@dataclass(frozen=True)
class Part:
    """One command, what it is for, and the file that is there when it is done."""

    title: str
    command: list[str]
    result: Path
    after: Path | None = None
    """A file this part depends on: an older result is made anew."""

    def done(self) -> bool:
        """Whether the result is there and not older than what it is made from."""
        if not self.result.exists():
            return False
        return self.after is None or self.result.stat().st_mtime >= self.after.stat().st_mtime


def parts(overrides: list[str]) -> list[Part]:
    """The quickstart, in order."""
    python = [sys.executable, "-m"]
    torchrun = [*python, "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    store, shards, summary = CORPUS / "genome.zarr", CORPUS / "shards", RUN / "summary.json"
    return [
        Part(
            "genome store (Zarr) from FASTA and GenBank",
            [
                *python,
                "tools.prepare_genome",
                *_options(fasta=EXAMPLE / "ct.fasta.gz"),
                *_options(annotation=EXAMPLE / "ct.gbk.gz", output=CORPUS),
            ],
            store / "zarr.json",
        ),
        Part(
            "WebDataset shards, split by position",
            [*python, "tools.make_shards", *_options(store=store, output=shards)],
            shards / "test" / "index.json",
        ),
        Part(
            "pretraining on two ranks: tensor and sequence parallel, ZeRO 1, recomputation",
            [*torchrun, "-m", "pretrain.train", CONFIG, *overrides],
            summary,
        ),
        Part(
            "evaluation on the held-out part, beside Markov models",
            [*python, "pretrain.evaluate", str(RUN), *_options(store=store)],
            RUN / "evaluation.json",
            summary,
        ),
        Part(
            "export for Hugging Face transformers",
            [
                *python,
                "tools.convert_checkpoint",
                "--from",
                str(RUN),
                *_options(to="hf", output=RUN / "hf"),
            ],
            RUN / "hf" / "config.json",
            summary,
        ),
    ]


def _options(**values: object) -> list[str]:
    return [word for name, value in values.items() for word in (f"--{name}", str(value))]


def main(argv: list[str] | None = None) -> int:
    """Run what is not done yet; 0 if the model beats the best Markov model and exports well."""
    parser = argparse.ArgumentParser(prog="tools.quickstart", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("overrides", nargs="*", metavar="section.key=value", help="for training")
    arguments = parser.parse_args(argv)
    if "MAKELEVEL" in os.environ:
        end_with_parent()
    started = time.monotonic()
    try:
        with only_process_in(CORPUS):
            status = _run_all(parts(arguments.overrides))
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    if status == 0:
        status = _finish(started)
    return status


def _run_all(todo: list[Part]) -> int:
    for number, part in enumerate(todo, 1):
        print(f"\n[{number}/{len(todo) + 1}] {part.title}", flush=True)
        if part.done():
            print(f"    already done: {part.result}", flush=True)
            continue
        status = _run(part.command)
        if status:
            print(f"\nstopped in part {number}; `make quickstart` again goes on from here")
            return status
    return 0


def _run(command: list[str]) -> int:
    """Run one command in this folder, showing it; signals are passed on and waited for."""
    shown = ["python" if word == sys.executable else word for word in command]
    print(f"    $ {' '.join(shown)}", flush=True)
    environment = os.environ | {"OMP_NUM_THREADS": "1"} if "-m" in command[3:] else os.environ
    child = subprocess.Popen(command, env=environment, preexec_fn=end_with_parent)

    def pass_on(number: int, frame: object) -> None:
        # A terminal sends Ctrl-C to the child as well; other senders know this process only.
        if number == signal.SIGTERM:
            child.send_signal(number)

    before = [signal.signal(n, pass_on) for n in (signal.SIGINT, signal.SIGTERM)]
    try:
        return child.wait()
    finally:
        for number, handler in zip((signal.SIGINT, signal.SIGTERM), before, strict=True):
            signal.signal(number, handler)


def _finish(started: float) -> int:
    """Check the export in a fresh process and say what there is."""
    from megatron_hyena.evaluation.report import read_report, verdict

    print("\n[6/6] the export in a fresh process", flush=True)
    verify = [sys.executable, "-m", "tools.verify_export"]
    status = _run([*verify, *_options(run=RUN, export=RUN / "hf")])
    if status:
        return status
    report = read_report(RUN / "evaluation.json")
    made = {
        "genome store": CORPUS / "genome.zarr",
        "shards": CORPUS / "shards",
        "run folder": RUN,
        "checkpoints": RUN / "checkpoints",
        "figures of each step": RUN / "metrics.jsonl",
        "evaluation": RUN / "evaluation.json",
        "plots": RUN / "plots",
        "Hugging Face model": RUN / "hf",
    }
    print(f"\n{verdict(report)}\n\nDone in {time.monotonic() - started:.0f} s. What was made:\n")
    print("\n".join(f"    {name:<22} {path}" for name, path in made.items()))
    print(
        "\nNext:\n\n"
        f"    .venv/bin/tensorboard --logdir {RUN}\n"
        f"    .venv/bin/python -m pretrain.train {CONFIG} --dry-run\n"
        "    .venv/bin/python -m tools.prepare_genome --fasta YOUR.fa.gz --output corpus/yours\n"
    )
    return 0 if report.margin > 0 else 1


if __name__ == "__main__":
    sys.exit(main())

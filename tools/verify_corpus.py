"""Compare every byte of a corpus with the checksums that were taken when it was written.

    python -m tools.verify_corpus corpus/bacteria
    python -m tools.verify_corpus corpus/bacteria/shards/train --quick

names every changed, missing or foreign file and every part of another version, one a line. A
corpus, a part of one, or shards of tools.make_shards. docs/corpus.md tells how to mend it.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path


def main(argv: list[str] | None = None) -> int:
    """Run the tool; 0 where all is well, 1 with findings, 2 where there is nothing to go by."""
    arguments = _parser().parse_args(argv)
    from tqdm import tqdm

    from megatron_hyena.corpus.verify import findings_of, open_check
    from megatron_hyena.errors import UserError

    findings = 0
    try:
        checks = open_check(arguments.folder)
        total = sum(check.total for check in checks)
        with tqdm(desc="verify", total=total, unit="B", unit_scale=True, disable=None) as bar:
            for check in checks:
                for line in findings_of(check, quick=arguments.quick, progress=bar.update):
                    bar.write(line, file=sys.stdout)
                    findings += 1
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    files = sum(len(check.expected) for check in checks)
    looked = "sizes" if arguments.quick else "contents"
    verdict = f"{findings} findings" if findings else "all is well"
    print(f"{arguments.folder}: {looked} of {files:,} files, {total:,} bytes: {verdict}")
    return 1 if findings else 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m tools.verify_corpus",
        description="Compare a corpus, a part of one or shards with their checksums.",
    )
    parser.add_argument(
        "folder", type=Path, help="a corpus, a folder in one, or a folder of tools.make_shards"
    )
    parser.add_argument("--quick", action="store_true", help="compare names and sizes only")
    return parser


if __name__ == "__main__":
    sys.exit(main())

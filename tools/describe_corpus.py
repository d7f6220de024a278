"""Print and draw what a corpus, a folder of shards or a genome store holds.

    python -m tools.describe_corpus corpus/example
    python -m tools.describe_corpus corpus/genome.zarr --output report/

writes description.json and description.png: lengths, GC, N, soft-masking, the spectrum of k-mers,
totals by split, type and taxon, and what curation left out.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from megatron_hyena.corpus.describe import Description

TAXA = 20
"""Taxa that are printed."""


def main(argv: list[str] | None = None) -> int:
    """Run the tool; returns 0, or 2 after an error the user can mend."""
    parser = argparse.ArgumentParser(
        prog="python -m tools.describe_corpus", description=__doc__.splitlines()[0]
    )
    parser.add_argument("path", type=Path, help="folder of a corpus, of shards, or genome.zarr")
    parser.add_argument(
        "--output", type=Path, default=None, help="folder for the report (default: runs/NAME)"
    )
    arguments = parser.parse_args(argv)
    from tqdm import tqdm

    from megatron_hyena.corpus.describe import describe
    from megatron_hyena.errors import UserError
    from megatron_hyena.observe.plots import plot_corpus

    output = arguments.output or Path("runs") / f"description_{arguments.path.resolve().name}"
    try:
        with tqdm(desc="bases", unit="b", unit_scale=True, disable=None) as bar:
            found = describe(arguments.path, bar.update)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    _print(found)
    output.mkdir(parents=True, exist_ok=True)
    temporary = output / f".description.{os.getpid()}"
    temporary.write_text(json.dumps(found.as_dict(), indent=1) + "\n", encoding="utf-8")
    os.replace(temporary, output / "description.json")
    plot_corpus(found, output / "description.png")
    print(f"\n{output / 'description.json'}\n{output / 'description.png'}")
    return 0


def _print(found: Description) -> None:
    print(f"{'':<20}{'stretches':>11}{'bases':>16}{'GC':>9}{'N, X':>9}{'lower':>9}{'IUPAC':>9}")
    for part in found.parts:
        counts = part.counts
        known = max(1, counts.bases - counts.unknown)
        gc = f"{counts.gc / known:.2%}" if part.nucleic else ""
        shares = (counts.unknown, counts.lower, counts.ambiguous)
        cells = "".join(f"{count / max(1, counts.bases):>9.2%}" for count in shares)
        print(f"{part.name:<20}{part.stretches:>11,}{counts.bases:>16,}{gc:>9}{cells}")
    if found.entries:
        _print_records(found)
    repeated = sum(n for times, n in found.spectrum.items() if times > 1)
    distinct = max(1, sum(found.spectrum.values()))
    share = f"{distinct * found.scaled:,} distinct, {repeated / distinct:.2%} of them repeated"
    print(f"\nk-mers of {found.k}: {share}")


def _print_records(found: Description) -> None:
    lengths = found.lengths
    for title, key in (
        ("curation", lambda entry: entry.decision),
        ("type", lambda entry: entry.type),
        ("taxon", lambda entry: entry.taxon or "untold"),
    ):
        print(f"\n{title:<44}{'records':>11}{'bases':>16}")
        rows = list(found.by(key).items())
        for name, (records, bases) in rows[:TAXA]:
            shown = name if len(name) < 44 else f"…{name[-42:]}"
            print(f"{shown:<44}{records:>11,}{bases:>16,}")
        if len(rows) > TAXA:
            print(f"and {len(rows) - TAXA} more")
    if len(lengths):
        print(
            f"\nlengths of those kept: {lengths[-1]:,} to {lengths[0]:,}, median "
            f"{int(lengths[len(lengths) // 2]):,}, N50 {found.n50():,}"
        )


if __name__ == "__main__":
    sys.exit(main())

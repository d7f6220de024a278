"""The same variants scored in many ways, which all must give the same scores.

Alone, in small and large batches, with padding behind the windows, in pieces of the chromosome at
several strides, by two ranks, and from the other strand.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterable, Iterator
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from megatron_hyena.model.hyena_glt import HyenaGLT
from megatron_hyena.variants import ScoreOptions, score_variants
from megatron_hyena.variants.rows import DELTAS
from tests.oracles.chr22 import CONTIG, Chr22, cut_in_pieces, turned
from tests.oracles.variants import Line, mirrored, score, write_fasta, write_vcf

STRIDES = (777, 10_000, 131_072)
PADDINGS = (0, 1, 63)
ROOT = Path(__file__).parents[2]
Rows = list[dict[str, Any]]
SWAPPED = {
    "ref_ll_forward": "ref_ll_reverse",
    "alt_ll_forward": "alt_ll_reverse",
    "ref_ll_reverse": "ref_ll_forward",
    "alt_ll_reverse": "alt_ll_forward",
}
"""Sums of a strand, and which they are seen from the other."""


@dataclass(frozen=True, eq=False)
class Ways:
    """One sample and what it is scored by.

    Attributes:
        store: of the chromosome.
        sample: numbers of the records.
        folder: for files.
    """

    chromosome: Chr22
    store: Path
    sample: list[int]
    model: HyenaGLT
    window: int
    dtype: str
    folder: Path

    def wanted(self) -> Rows:
        """All in one call."""
        return self._scored("whole", self._vcf("whole"), self.store)

    def all(self) -> Iterator[tuple[str, Rows]]:
        """(way, rows in the order of the sample) of those whose rows are of the same kind."""
        yield "each alone", self._alone()
        vcf = self._vcf("whole")
        for tokens in (1, 5 * self.window, 1 << 20):
            name = f"batches of {tokens:,} bases"
            yield name, self._scored(f"b{tokens}", vcf, self.store, batch_tokens=tokens)
        yield "parts of 7 records", self._scored("p7", vcf, self.store, part=7)
        for stride in STRIDES:
            yield f"chromosome in pieces, {stride:,} apart", self._in_pieces(stride)
        yield "two ranks", self._on_two_ranks(vcf)
        yield "the other strand", self._turned()

    def _vcf(self, name: str) -> Path:
        path = self.folder / f"{name}.vcf"
        return path if path.exists() else self.chromosome.write_vcf(path, self.sample)

    def _scored(self, name: str, vcf: Path, reference: Path, **options: Any) -> Rows:
        import pyarrow.parquet as parquet

        output = self.folder / f"{name}.parquet"
        chosen = ScoreOptions(window=self.window, dtype=self.dtype, max_mismatch=0, **options)
        report = score_variants(self.model, vcf, reference, output, chosen)
        assert report.survey.match_rate == 1
        rows: Rows = parquet.read_table(output).to_pylist()
        return rows

    def _alone(self) -> Rows:
        found: Rows = []
        for number in self.sample:
            vcf = self.chromosome.write_vcf(self.folder / f"one{number}.vcf", [number])
            found += self._scored(f"one{number}", vcf, self.store)
        return found

    def _in_pieces(self, stride: int) -> Rows:
        changes = self.chromosome.changes(self.sample)
        pieces, moved = cut_in_pieces(self.chromosome, changes, stride, self.window)
        vcf = write_vcf(self.folder / f"s{stride}.vcf", moved)
        fasta = write_fasta(self.folder / f"s{stride}.fa", pieces)
        return self._scored(f"s{stride}", vcf, fasta)

    def _on_two_ranks(self, vcf: Path) -> Rows:
        """By the command, under torchrun; each rank has half of the parts."""
        import pyarrow.parquet as parquet

        source, output = self.folder / "model", self.folder / "ranks.parquet"
        self.model.save_pretrained(source)
        named: dict[str, object] = {"from": source, "vcf": vcf, "reference": self.store}
        named |= {"output": output, "max-mismatch": 0, "part": 8}
        named |= {"window": self.window, "dtype": self.dtype}
        words = [word for name, value in named.items() for word in (f"--{name}", str(value))]
        torchrun = ["torch.distributed.run", "--standalone", "--nproc-per-node=2"]
        subprocess.run(
            [sys.executable, "-m", *torchrun, "-m", "tools.score_variants", *words],
            env=os.environ | {"OMP_NUM_THREADS": "1"},
            cwd=ROOT,
            check=True,
            capture_output=True,
        )
        rows: Rows = parquet.read_table(output).to_pylist()
        return rows

    def _turned(self) -> Rows:
        """From the other strand, in the order and with the strands' names of this one."""
        changes = self.chromosome.changes(self.sample)
        contigs, lines = turned(self.chromosome, changes)
        vcf = write_vcf(self.folder / "turned.vcf", lines)
        table = self._scored("turned", vcf, write_fasta(self.folder / "turned.fa", contigs))
        rows = {(row["position"], row["ref"], row["alt"]): row for row in table}
        whole = {CONTIG: self.chromosome.letters}
        places = [mirrored(line, whole) for line in changes]
        found = [rows[line[1:]] for line in places]
        return [row | {n: row[other] for n, other in SWAPPED.items()} for row in found]


def furthest(found: Rows, wanted: Rows, names: Iterable[str] = (*DELTAS, *SWAPPED)) -> float:
    """The largest difference of any score; statuses and numbers of rows must be equal."""
    assert [row["status"] for row in found] == [row["status"] for row in wanted]
    pairs = [(one[n], two[n]) for one, two in zip(found, wanted, strict=True) for n in names]
    assert all((one is None) == (two is None) for one, two in pairs)
    return max(abs(one - two) for one, two in pairs if one is not None)


def plainly(ways: Ways, wanted: Rows, padding: int) -> tuple[int, float]:
    """One call of the model per allele and strand, with padding behind each.

    Only where all bases around a change are of one case, which ALT then has, too.

    Returns:
        Number of changes compared, and the largest difference of any of the three scores.
    """
    furthest, compared = 0.0, 0
    model = deepcopy(ways.model).to(getattr(torch, ways.dtype))
    for row, line in zip(wanted, ways.chromosome.changes(ways.sample), strict=True):
        around = _around(ways, line)
        if row["status"] != "scored" or around is None:
            continue
        text, place, alt = around
        ref = text[place - 1 : place - 1 + len(line[2])].decode()
        strands = score(model, text, place, ref, alt, ways.window, padding)
        means = [sum(pair) / 2 for pair in zip(*strands, strict=True)]
        compared += 1
        furthest = max(furthest, *(abs(m - row[n]) for m, n in zip(means, DELTAS, strict=True)))
    return compared, furthest


def _around(ways: Ways, line: Line) -> tuple[bytes, int, str] | None:
    """The bases that windows of a change may hold, its place in them from 1, and ALT in case."""
    _, position, ref, alt = line
    low = position - 1 - 2 * ways.window
    text = ways.chromosome.letters[low : position - 1 + len(ref) + 2 * ways.window]
    near = text[2 * ways.window - 100 : 2 * ways.window + len(ref) + 100]
    if not (near.isupper() or near.islower()):
        return None
    return text, 2 * ways.window + 1, alt.lower() if near.islower() else alt

"""Human chromosome 22 (GRCh37) out of an alignment, and variants of the 1000 Genomes on it.

Alignment and variants are read here by plain loops. What the project makes of the same files is
compared with that.
"""

from __future__ import annotations

import gzip
import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from tests.oracles.debian_files import file_of
from tests.oracles.small_corpus import reverse
from tests.oracles.variants import Line, mirrored

CONTIG, LENGTH = "22", 51_304_566
ALIGNMENT = (
    "maffilter-examples",
    "usr/share/doc/maffilter/examples/Gorilla/"
    "Compara.epo_5_catarrhini_hsap-projected.chr22.subset.nogap.cleaned_aln.maf.gz",
)
VARIANTS = (
    "r-bioc-variantannotation",
    "usr/lib/R/site-library/VariantAnnotation/extdata/chr22.vcf.gz",
)
HUMAN = b"s Hsap.22 "


@dataclass(frozen=True, eq=False)
class Chr22:
    """The chromosome, N where the alignment has no block, and its records as text.

    Attributes:
        alignment: the MAF file.
        letters: all bases.
        covered: how many lie in blocks.
        lines: what stands in the variants' file before the first record.
        records: those whose REF lies in blocks, in order; the line as it is in the file.
        matching: how many of these have the bases of the chromosome as REF.
        all_records: how many the file has.
    """

    alignment: Path
    letters: bytes
    covered: int
    lines: list[str]
    records: list[str]
    matching: int
    all_records: int

    def changes(self, wanted: list[int] | None = None) -> list[Line]:
        """Contig, position, REF, ALT of the records."""
        chosen = self.records if wanted is None else [self.records[i] for i in wanted]
        cells = [line.split("\t") for line in chosen]
        return [(c[0], int(c[1]), c[3], c[4]) for c in cells]

    def write_vcf(self, path: Path, wanted: list[int] | None = None) -> Path:
        """The records as a file, without samples."""
        chosen = self.records if wanted is None else [self.records[i] for i in wanted]
        head = [*self.lines[:-1], "\t".join(self.lines[-1].split("\t")[:8])]
        rows = ["\t".join(line.split("\t")[:8]) for line in chosen]
        path.write_text("\n".join([*head, *rows]) + "\n")
        return path


def read_chr22(folder: Path) -> Chr22:
    """Fetch both files and read them; raises UserError where they cannot be had."""
    alignment, variants = (file_of(*one, folder) for one in (ALIGNMENT, VARIANTS))
    letters = np.zeros(LENGTH, dtype=np.uint8)
    with gzip.open(alignment, "rb") as file:
        for line in file:
            if line.startswith(HUMAN):
                _, _, start, size, strand, total, text = line.split()
                bases = np.frombuffer(text.replace(b"-", b""), dtype=np.uint8)
                assert strand == b"+" and int(total) == LENGTH and int(size) == len(bases)
                letters[int(start) : int(start) + len(bases)] = bases
    with gzip.open(variants, "rt") as file:
        lines = file.read().splitlines()
    rows = [line for line in lines if not line.startswith("#")]
    covered, matching, records = letters > 0, 0, []
    letters[~covered] = ord("N")
    for row in rows:
        _, position, _, ref = row.split("\t", 4)[:4]
        place = slice(int(position) - 1, int(position) - 1 + len(ref))
        if covered[place].all():
            records.append(row)
            matching += letters[place].tobytes().upper() == ref.encode()
    head = [line for line in lines if line.startswith("#")]
    told = int(covered.sum()), head, records, matching, len(rows)
    return Chr22(alignment, letters.tobytes(), *told)


def kind_of(record: str) -> str:
    """What a change is; of single bases with the share of chromosomes that carry it."""
    cells = record.split("\t")
    ref, alt = cells[3], cells[4]
    if alt.startswith("<"):
        return "symbolic"
    if len(ref) != len(alt) or len(ref) > 1:
        return "insertion" if len(alt) > len(ref) else "deletion"
    found = re.search(r"(?:^|;)AF=([^;]+)", cells[7])
    assert found is not None
    share = float(found[1])
    carried = "under 1 %" if share < 0.01 else "1 to 5 %" if share <= 0.05 else "over 5 %"
    return f"single base, {carried}"


def sample_of(chromosome: Chr22, count: int, seed: int) -> list[int]:
    """Records in order, half of them single bases, drawn by `seed`."""
    draw = np.random.default_rng(seed)
    lots: dict[bool, list[int]] = {True: [], False: []}
    for number, record in enumerate(chromosome.records):
        lots[kind_of(record).startswith("single")].append(number)
    other = min(count // 2, len(lots[False]))
    chosen = (
        draw.choice(lots[False], other, replace=False),
        draw.choice(lots[True], count - other, replace=False),
    )
    return sorted(int(i) for part in chosen for i in part)


def cut_in_pieces(
    chromosome: Chr22, changes: list[Line], stride: int, reach: int
) -> tuple[dict[str, bytes], list[Line]]:
    """Pieces `stride` apart, long enough that each change has `reach` bases on either side.

    Returns:
        name → bases of the pieces that are needed, in order; the changes in their coordinates.
    """
    pieces: dict[str, bytes] = {}
    moved: list[Line] = []
    for _, position, ref, alt in changes:
        start = max(0, position - 1 - reach) // stride * stride
        name = f"{CONTIG}.{start}"
        end = start + stride + 2 * reach + max(len(r) for _, _, r, _ in changes)
        pieces[name] = chromosome.letters[start:end]
        moved.append((name, position - start, ref, alt))
    return pieces, moved


def turned(chromosome: Chr22, changes: list[Line]) -> tuple[dict[str, bytes], list[Line]]:
    """The other strand of the chromosome and the same changes on it, in its order."""
    whole = {CONTIG: chromosome.letters}
    lines = sorted((mirrored(line, whole) for line in changes), key=lambda line: line[1])
    return {CONTIG: reverse(chromosome.letters)}, lines

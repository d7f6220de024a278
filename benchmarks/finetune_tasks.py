"""Labelled sequences of the fine-tuning records, from published files.

    python -m benchmarks.finetune_tasks --downloads corpus/tasks/downloads \\
        --alignment corpus/tasks/alignment/genome.zarr --output corpus/tasks

Splits are functions of the letters alone: the same on every machine. `splice.tsv`: UCI splice
junctions (`DNA.rda` of R's mlbench), equal sequences taken out before the split. `promoters_R_F`:
UCI E. coli promoters (`promotergene.rda` of kernlab), fold F of deal R. `psi.tsv`: 5' splice sites
and their use (`mpsa_data.csv.gz` of mavenn), split as published. `fungus.fa`, `coding.fa` and
`coding.gff`: Zymoseptoria tritici's contigs to pretrain on, and the others with their genes.
`benchmarks/finetune/prepare.sh` downloads, calls this and makes the stores.
"""

from __future__ import annotations

import argparse
import csv
import gzip
import hashlib
import io
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from megatron_hyena.data.atomic import atomic_files
from megatron_hyena.errors import UserError

if TYPE_CHECKING:
    from megatron_hyena.data.store import GenomeStore

Labelled = Sequence[tuple[str, str]]
"""Letters and label of each sequence."""
VALID, TEST = 0.2, 0.4
"""Shares of the splice junctions: with fewer tested, chance would be larger than differences."""
DEALS, FOLDS = 3, 5
"""Of promoters: how often the folds are dealt anew, and how many they are."""
INDICATORS = {("1", "0", "0"): "A", ("0", "1", "0"): "C", ("0", "0", "1"): "G",
              ("0", "0", "0"): "T"}  # fmt: skip
SETS = {"training": "train", "validation": "valid", "test": "test"}
TRAIN_CONTIGS = {"chr_8": 0}
"""Contigs with genes, and how many of their bases are labelled (0: all)."""
VALID_CONTIGS = {"chr_9": 150_000}
TEST_CONTIGS = {"chr_10": 200_000, "chr_11": 200_000, "chr_12": 200_000, "chr_13": 200_000}


def main(argv: list[str] | None = None) -> int:
    """Write all tables and files; 2 after a user's mistake."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--downloads", type=Path, required=True)
    parser.add_argument("--alignment", type=Path, required=True, help="store made from the MAF")
    parser.add_argument("--output", type=Path, required=True)
    options = parser.parse_args(argv)
    try:
        build(options.downloads, options.alignment, options.output)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


def build(downloads: Path, alignment: Path, output: Path) -> None:
    """All of it."""
    from megatron_hyena.data.store import GenomeStore

    output.mkdir(parents=True, exist_ok=True)
    splice = read_rda(downloads / "DNA.rda", "DNA")
    rows = distinct(zip(splice_letters(splice), splice["Class"], strict=True))
    write_table(output / "splice.tsv", in_the_middle(rows), deal(rows))
    promoters = read_rda(downloads / "promotergene.rda", "promotergene")
    letters = ["".join(row).upper() for row in zip(*list(promoters.values())[1:], strict=True)]
    rows = distinct(zip(letters, promoters["Class"], strict=True))
    for repeat in range(DEALS):
        for fold in range(FOLDS):
            split = folds(rows, fold, f"deal {repeat}")
            write_table(output / f"promoters_{repeat}_{fold}.tsv", rows, split)
    with gzip.open(downloads / "mpsa_data.csv.gz", "rt", encoding="utf-8") as file:
        sites, published = splice_sites(csv.DictReader(file))
    write_table(output / "psi.tsv", sites, published)
    store = GenomeStore.open(alignment)
    held_out = VALID_CONTIGS | TEST_CONTIGS
    seen = {contig.name: 0 for contig in store.contigs if contig.name not in held_out}
    write_fasta(output / "fungus.fa", store, seen)
    labelled = TRAIN_CONTIGS | held_out
    write_fasta(output / "coding.fa", store, labelled)
    with gzip.open(downloads / "genes.gff.gz", "rt", encoding="utf-8") as file:
        write_text(output / "coding.gff", "".join(rows_within(file, labelled)))


def read_rda(path: Path, name: str) -> dict[str, list[str]]:
    """Columns of a data frame in a file of R's `save`, as text."""
    if not path.is_file():
        raise UserError(f"{path}: no such file; benchmarks/finetune/prepare.sh fetches it")
    try:
        import rdata
    except ImportError:
        raise UserError(f"{path} is read with rdata; install it with: pip install rdata") from None
    frame: Any = rdata.read_rda(path, default_encoding="ascii")[name]
    return {column: [str(value) for value in frame[column]] for column in frame.columns}


def splice_letters(columns: Mapping[str, Sequence[str]]) -> list[str]:
    """Sequences of a table with three indicators for each base: A, C, G, and T where all are 0."""
    indicators = [column for name, column in columns.items() if name != "Class"]
    triples = [zip(*indicators[i : i + 3], strict=True) for i in range(0, len(indicators), 3)]
    return ["".join(INDICATORS[base] for base in row) for row in zip(*triples, strict=True)]


def in_the_middle(rows: Labelled) -> list[tuple[str, str]]:
    """Labels of the first base behind the middle, where a junction is: n, d (ei) or a (ie)."""
    found = []
    for letters, label in rows:
        half = len(letters) // 2
        sign = {"n": "n", "ei": "d", "ie": "a"}[label]
        found.append((letters, "." * half + sign + "." * (len(letters) - half - 1)))
    return found


def splice_sites(rows: Iterable[Mapping[str, str]]) -> tuple[list[tuple[str, str]], list[str]]:
    """Distinct 5' splice sites as DNA with their measurements, and the published splits.

    Raises:
        UserError: one site is in two rows.
    """
    found, splits = [], []
    for row in rows:
        found.append((row["x"].upper().replace("U", "T"), row["y"]))
        splits.append(SETS[row["set"]])
    sites = [letters for letters, _ in found]
    if len(set(sites)) < len(sites):
        twice = next(s for n, s in enumerate(sites) if s in sites[:n])
        raise UserError(f"the splice site {twice} has two rows, perhaps in two splits; merge them")
    return found, splits


def distinct(rows: Iterable[tuple[str, str]]) -> list[tuple[str, str]]:
    """One row for each sequence, in the order of the first; none of those with two labels."""
    labels: dict[str, set[str]] = {}
    for letters, label in rows:
        labels.setdefault(letters, set()).add(label)
    return [(letters, min(found)) for letters, found in labels.items() if len(found) == 1]


def deal(rows: Labelled, salt: str = "splits") -> list[str]:
    """The split of each row: of every class, the same shares are held out."""
    splits = [""] * len(rows)
    for numbers in shuffled_classes(rows, salt):
        tested, held_out = (round(share * len(numbers)) for share in (TEST, TEST + VALID))
        for place, number in enumerate(numbers):
            later = "valid" if place < held_out else "train"
            splits[number] = "test" if place < tested else later
    return splits


def folds(rows: Labelled, fold: int, salt: str) -> list[str]:
    """The split of each row where `fold` is tested and the one after it validates."""
    splits = ["train"] * len(rows)
    for numbers in shuffled_classes(rows, salt):
        for place, number in enumerate(numbers):
            if place % FOLDS in (fold, (fold + 1) % FOLDS):
                splits[number] = "test" if place % FOLDS == fold else "valid"
    return splits


def shuffled_classes(rows: Labelled, salt: str) -> list[list[int]]:
    """Numbers of the rows of each class, in the order of a hash of salt and letters."""
    found: dict[str, list[int]] = {}
    for number, (_, label) in enumerate(rows):
        found.setdefault(label, []).append(number)

    def key(number: int) -> bytes:
        return hashlib.sha256(f"{salt} {rows[number][0]}".encode()).digest()

    return [sorted(numbers, key=key) for _, numbers in sorted(found.items())]


def write_table(path: Path, rows: Labelled, splits: Sequence[str]) -> None:
    """What `task.table` reads."""
    text = io.StringIO()
    writer = csv.writer(text, delimiter="\t", lineterminator="\n")
    writer.writerow(["sequence", "label", "split"])
    for (letters, label), split in zip(rows, splits, strict=True):
        writer.writerow([letters, label, split])
    write_text(path, text.getvalue())
    counts = ", ".join(f"{splits.count(name):,} {name}" for name in ("train", "valid", "test"))
    print(f"{path}: {counts}")


def write_fasta(path: Path, store: GenomeStore, contigs: Mapping[str, int]) -> None:
    """The contigs, or as many of their first bases, in lines of 100."""
    lines = []
    for contig in store.contigs:
        if contig.name in contigs:
            length = contigs[contig.name] or contig.length
            letters = store.read(contig.name, 0, length).tobytes().decode("ascii")
            lines += [f">{contig.name}", *(letters[i : i + 100] for i in range(0, length, 100))]
    write_text(path, "\n".join(lines) + "\n")
    print(f"{path}: {', '.join(contigs)}")


def rows_within(lines: Iterable[str], contigs: Mapping[str, int]) -> list[str]:
    """Rows of a GFF file on the contigs, none that ends behind the bases that are kept."""
    kept = []
    for line in lines:
        cells = line.split("\t")
        if cells[0] in contigs and int(cells[4]) <= (contigs[cells[0]] or int(cells[4])):
            kept.append(line)
    return kept


def write_text(path: Path, text: str) -> None:
    """The whole file or none."""
    with atomic_files(path) as (partial,):
        partial.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main())

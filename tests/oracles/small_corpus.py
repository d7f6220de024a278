"""A corpus of three small samples, its inputs as files, and what must come of it by brute force."""

from __future__ import annotations

import gzip
import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np

LETTERS = {"dna": b"ACGT", "protein": b"ACDEFGHIKLMNPQRSTVWY"}
_SWAP = bytes.maketrans(b"ACGTacgtRYNn", b"TGCAtgcaYRNn")


def reverse(sequence: bytes) -> bytes:
    """The other strand."""
    return sequence.translate(_SWAP)[::-1]


def draw(generator: np.random.Generator, length: int, kind: str = "dna") -> bytes:
    """Random letters."""
    return generator.choice(np.frombuffer(LETTERS[kind], np.uint8), length).tobytes()


def sequences() -> dict[str, dict[str, bytes]]:
    """Sample → contig → letters: lower case, runs of N, IUPAC codes, a duplicate, proteins."""
    generator = np.random.default_rng(8)
    alpha = {f"a{i}": bytearray(draw(generator, 1500 + 100 * i)) for i in range(6)}
    alpha["a0"][200:260] = b"N" * 60
    alpha["a0"][700:705] = b"NNNNN"
    alpha["a1"][0:30] = b"n" * 30
    alpha["a2"][400:403] = b"RYr"
    alpha["a3"][100:600] = bytes(alpha["a3"][100:600]).lower()
    beta = {f"b{i}": draw(generator, 1200 + 100 * i) for i in range(6)}
    beta["b0"] = reverse(bytes(alpha["a3"]).upper())  # in lower case partly there: a duplicate
    gamma = {f"p{i}": draw(generator, 60 + 10 * i, "protein") for i in range(24)}
    return {
        "alpha": {name: bytes(letters) for name, letters in alpha.items()},
        "beta": beta,
        "gamma": gamma,
    }


def write_inputs(folder: Path) -> Path:
    """The files and the sample sheet over them, which is returned."""
    folder.mkdir(parents=True, exist_ok=True)
    for sample, contigs in sequences().items():
        text = b"".join(b">%s\n%s\n" % (n.encode(), letters) for n, letters in contigs.items())
        (folder / f"{sample}.fa.gz").write_bytes(gzip.compress(text, mtime=0))
    sheet = folder / "samples.tsv"
    sheet.write_text(
        "path\ttaxon\ttype\tweight\n"
        "alpha.fa.gz\tBacteria;Alpha\tdna\t1\n"
        "beta.fa.gz\tBacteria;Beta\tdna\t1\n"
        "gamma.fa.gz\tEukaryota;Gamma\tprotein\t2\n"
    )
    return sheet


OVERRIDES = (
    "splits.by=contig",
    "splits.valid_fraction=0.15",
    "splits.test_fraction=0.15",
    "curation.iupac=unknown",
    "shards.piece_length=400",
    "shards.shard_size=4000",
)
"""Options with which the corpus has several shards and splits."""


def kept_stretches() -> Iterator[tuple[str, int, bytes]]:
    """(SAMPLE/CONTIG, start, letters) of what `OVERRIDES` leave, by the plainest means.

    Runs of ten N part a record, IUPAC codes become N before that, and of a sequence that occurs
    twice, on whichever strand and in whichever case, the first by name is kept.
    """
    seen: set[bytes] = set()
    for sample, contigs in sequences().items():
        for name, letters in contigs.items():
            upper = letters.upper()
            if sample != "gamma":
                same = min(upper, reverse(upper))
                if same in seen:
                    continue
                seen.add(same)
                letters = re.sub(rb"[RYSWKMBDHV]", b"N", letters)
                letters = re.sub(rb"[ryswkmbdhv]", b"n", letters)
            unknown = b"[Xx]{10,}" if sample == "gamma" else b"[Nn]{10,}"
            start = 0
            for gap in [*re.finditer(unknown, letters), None]:
                end = gap.start() if gap else len(letters)
                if end > start:
                    yield f"{sample}/{name}", start, letters[start:end]
                start = gap.end() if gap else end


def tree(folder: Path) -> dict[str, bytes]:
    """Path → content of every file, but for the lock."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name != ".lock"
    }


def identities(folder: Path) -> dict[str, tuple[int, int]]:
    """Path → inode and time of change of every file outside the folder of work."""
    return {
        str(path.relative_to(folder)): (path.stat().st_ino, path.stat().st_mtime_ns)
        for path in sorted(folder.rglob("*"))
        if path.is_file() and ".work" not in path.relative_to(folder).parts
    }

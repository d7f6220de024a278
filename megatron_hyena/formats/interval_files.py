"""Intervals and numbers of one contig as files that genome browsers open: BED, bedGraph, bigWig.

All are 0-based and half-open (UCSC). bigWig (Kent et al. 2010) needs the library pyBigWig, which
the extra `bigwig` installs.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path

import numpy as np
import numpy.typing as npt

Places = npt.NDArray[np.int64]
Numbers = npt.NDArray[np.float64]
LARGEST_SCORE = 1000
"""Of BED's score column, an integer from 0 on."""


def write_bed(
    path: Path, contig: str, starts: Places, ends: Places, name: str, values: Numbers
) -> None:
    """Five columns: contig, start, end, `name`, and the value in [0, 1] times 1000, rounded."""
    scores = np.rint(np.clip(values, 0, 1) * LARGEST_SCORE).astype(np.int64)
    rows = zip(starts.tolist(), ends.tolist(), scores.tolist(), strict=True)
    with path.open("w", encoding="utf-8") as file:
        file.writelines(f"{contig}\t{a}\t{b}\t{name}\t{score}\n" for a, b, score in rows)


def has_bigwig() -> bool:
    """Whether bigWig files can be written."""
    return importlib.util.find_spec("pyBigWig") is not None


def write_values(
    stem: Path, contig: str, contig_length: int, places: Places, values: Numbers
) -> Path:
    """One number for each of some bases, as `stem`.bw where pyBigWig is there, else .bedgraph.

    Args:
        stem: the path without its ending.
        contig_length: in bases.
        places: int64 [n], 0-based, ascending.
        values: [n]; four digits are written in text.
    Returns:
        What was written.
    """
    if has_bigwig():
        return _write_bigwig(
            stem.with_name(stem.name + ".bw"), contig, contig_length, places, values
        )
    path = stem.with_name(stem.name + ".bedgraph")
    with path.open("w", encoding="utf-8") as file:
        for place, value in zip(places.tolist(), values.tolist(), strict=True):
            file.write(f"{contig}\t{place}\t{place + 1}\t{value:.4f}\n")
    return path


def _write_bigwig(
    path: Path, contig: str, contig_length: int, places: Places, values: Numbers
) -> Path:
    import pyBigWig

    file = pyBigWig.open(str(path), "w")
    file.addHeader([(contig, contig_length)])
    starts = places.tolist()
    if starts:
        file.addEntries(
            [contig] * len(starts),
            starts,
            ends=[start + 1 for start in starts],
            values=values.astype(np.float64).tolist(),
        )
    file.close()
    return path

"""Embeddings as a Parquet file: a row for each base, chunk or sequence.

Columns: `name`, `contig`, `start` and `end` (0-based, half-open, of the row's own bases), `strand`
(1 or -1), and `embedding`, a list of h numbers.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from megatron_hyena.embeddings.options import EmbedOptions
from megatron_hyena.embeddings.pooling import Rows
from megatron_hyena.embeddings.stretches import Stretch
from megatron_hyena.formats.parquet_parts import Parts, needed

TOGETHER = 1 << 20
"""Bases of the sequences that share a part; a longer sequence has one for itself."""


class ParquetOutput:
    """One output; see `Parts`."""

    def __init__(
        self,
        output: Path,
        settings: Mapping[str, Any],
        stretches: Sequence[Stretch],
        options: EmbedOptions,
        overwrite: bool = False,
    ) -> None:
        needed("pyarrow")
        self.options, self.stretches, self.settings = options, stretches, settings
        self.groups = _groups(stretches)
        self.parts = Parts(output, settings, len(self.groups), overwrite)

    def missing(self) -> list[tuple[int, range]]:
        """Number and sequences of each part that is to be made."""
        return [(number, self.groups[number]) for number in self.parts.missing()]

    def write(self, number: int, pieces: Iterable[tuple[Stretch, int, Rows]]) -> None:
        """A part: of its sequences in order, (sequence, number of the first row, rows)."""
        self.parts.write(number, (self._table(*piece) for piece in pieces if len(piece[2])))

    def _table(self, stretch: Stretch, first: int, rows: Rows) -> Any:
        arrow = needed("pyarrow")
        size = self.options.bases or stretch.length
        low = np.arange(first, first + len(rows), dtype=np.int64) * size
        high = np.minimum(low + size, stretch.length)
        if stretch.reverse:
            low, high = stretch.end - high, stretch.end - low
        else:
            low, high = stretch.start + low, stretch.start + high
        flat = arrow.array(np.ascontiguousarray(rows, dtype=self.options.dtype).reshape(-1))
        strand = np.full(len(rows), -1 if stretch.reverse else 1, dtype=np.int8)
        columns = {
            "name": arrow.array([stretch.name] * len(rows)),
            "contig": arrow.array([stretch.contig] * len(rows)),
            "start": arrow.array(low),
            "end": arrow.array(high),
            "strand": arrow.array(strand),
            "embedding": arrow.FixedSizeListArray.from_arrays(flat, rows.shape[1]),
        }
        return arrow.table(columns)

    def finish(self, metadata: Mapping[str, Any]) -> None:
        """Join the parts."""
        self.parts.join(metadata)


def _groups(stretches: Sequence[Stretch]) -> list[range]:
    """Numbers of neighbouring sequences that share a part."""
    found, begin, bases = list[range](), 0, 0
    for number, stretch in enumerate(stretches):
        bases += stretch.length
        if bases >= TOGETHER or number + 1 == len(stretches):
            found.append(range(begin, number + 1))
            begin, bases = number + 1, 0
    return found


def numbered(stretch: Stretch, pieces: Iterable[Rows]) -> Iterator[tuple[Stretch, int, Rows]]:
    """Pieces of one sequence with the number of their first row."""
    first = 0
    for rows in pieces:
        yield stretch, first, rows
        first += len(rows)

"""What a run reads its pieces from: memory maps, shards of a store, and shards that are left out.

All answer to `len`, `dtype` and a slice; a memory map is an array and is asked directly.
"""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np

from megatron_hyena.data.alphabet import PAD
from megatron_hyena.data.shard_cache import ShardFile
from megatron_hyena.data.tracks import Values, unknown_values


class Piece(Protocol):
    """The bases of one sample, or its values of one track."""

    @property
    def dtype(self) -> np.dtype[Any]:
        """Of its values."""

    def __len__(self) -> int: ...

    def __getitem__(self, span: slice, /) -> Values: ...


class AbsentPiece:
    """A piece of a shard that is left out: PAD for bases, else values that say nothing."""

    absent = True

    def __init__(self, offset: int, length: int, dtype: np.dtype[Any], bases: bool) -> None:
        """As `StoredPiece` without its shard."""
        self.dtype, self._length, self._bases = dtype, length, bases

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, span: slice) -> Values:
        count = len(range(*span.indices(self._length)))
        if self._bases:
            return np.full(count, PAD, dtype=self.dtype)
        return unknown_values(self.dtype, count)


class StoredPiece:
    """A piece of a store's shard, which is fetched and mapped when a slice is first asked for."""

    def __init__(
        self, file: ShardFile, offset: int, length: int, dtype: np.dtype[Any], bases: bool
    ) -> None:
        """`offset` in bytes from the start of the shard, `length` in values of `dtype`."""
        self.file, self.dtype = file, dtype
        self._offset, self._length, self._size = offset, length, dtype.itemsize
        self._plain = dtype == np.uint8
        self._instead = AbsentPiece(offset, length, dtype, bases)

    @property
    def absent(self) -> bool:
        """Whether its shard was asked for, not had, and is left out."""
        return self.file.absent

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, span: slice) -> Values:
        """Values [start, stop): both are given, and 0 ≤ start ≤ stop ≤ length."""
        content = self.file.content
        if content is None:
            return self._instead[span]
        size, offset = self._size, self._offset
        found = content[offset + span.start * size : offset + span.stop * size]
        return found if self._plain else found.view(self.dtype)

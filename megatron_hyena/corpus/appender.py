"""Arrays of a store written from first to last, while other cores compress what is complete."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    import zarr

_THREADS = 2


class Appender:
    """A context that appends to a one-dimensional array; the array is whole when it ends.

    Chunks are compressed in threads (the library does so without Python's lock), of which a few
    at most wait, so memory does not grow. The bytes written do not depend on the threads.

    `frame` compresses a whole chunk in a way of its own that the array's codec reads. Such chunks
    are written as files, past the library, whose way to a file costs a sixth of all that preparing
    a genome does.
    """

    def __init__(
        self, array: zarr.Array[Any], frame: Callable[[npt.NDArray[Any]], bytes] | None = None
    ) -> None:
        self.array = array
        self.frame = frame
        self.length = 0
        """Values taken so far."""
        self._size = int(array.chunks[0])
        self._filled = 0
        self._free: deque[npt.NDArray[Any]] = deque()  # memory used before costs half as much
        self._chunk = self._empty()
        self._threads = ThreadPoolExecutor(_THREADS)
        self._pending: deque[Future[None]] = deque()

    def add(self, values: npt.NDArray[Any]) -> None:
        """Append `values` [n], of the array's dtype."""
        while len(values):
            taken = min(len(values), self._size - self._filled)
            self._chunk[self._filled : self._filled + taken] = values[:taken]
            self._filled, values = self._filled + taken, values[taken:]
            self.length += taken
            if self._filled == self._size:
                self._write()

    def __enter__(self) -> Appender:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        try:
            if error is None:
                self._write()
                while self._pending:
                    self._pending.popleft().result()
                if self.array.shape != (self.length,):
                    self.array.resize((self.length,))
        finally:
            self._threads.shutdown(cancel_futures=True)

    def _empty(self) -> npt.NDArray[Any]:
        return self._free.pop() if self._free else np.empty(self._size, dtype=self.array.dtype)

    def _write(self) -> None:
        start = self.length - self._filled
        if not self._filled:
            return
        while len(self._pending) > _THREADS:
            self._pending.popleft().result()
        if self.frame is None:
            self.array.resize((self.length,))
        self._pending.append(self._threads.submit(self._store, start, self._chunk, self._filled))
        self._chunk, self._filled = self._empty(), 0

    def _store(self, start: int, chunk: npt.NDArray[Any], filled: int) -> None:
        if self.frame is None:
            self.array[start : start + filled] = chunk[:filled]
        else:
            chunk[filled:] = self.array.fill_value
            file = self._file(start // self._size)
            file.parent.mkdir(exist_ok=True)
            file.write_bytes(self.frame(chunk))
        self._free.append(chunk)

    def _file(self, number: int) -> Path:
        """Where a chunk lies: in a store that is a folder."""
        store: Any = self.array.store
        return Path(store.root, self.array.path, self.array.metadata.encode_chunk_key((number,)))

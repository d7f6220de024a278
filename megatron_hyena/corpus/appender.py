"""Arrays of a store written from first to last, while other cores compress what is complete."""

from __future__ import annotations

from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor
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
    """

    def __init__(self, array: zarr.Array[Any]) -> None:
        self.array = array
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
        self.array.resize((self.length,))
        self._pending.append(self._threads.submit(self._store, start, self._chunk, self._filled))
        self._chunk, self._filled = self._empty(), 0

    def _store(self, start: int, chunk: npt.NDArray[Any], filled: int) -> None:
        self.array[start : start + filled] = chunk[:filled]
        self._free.append(chunk)

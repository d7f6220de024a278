"""The micro-batches of a step, one share per data rank, prepared ahead by threads.

Step s of global batch size G shows positions [s G, (s + 1) G) of the window stream. Data rank r
of R takes the r-th block of G / R of them, cut into micro-batches: together the ranks see the
same windows whatever the layout.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType

import numpy as np

from megatron_hyena.data.batch import Batch, Case, batch_of, masked_batch
from megatron_hyena.data.masking import Masking
from megatron_hyena.data.stream import TrainingStream
from megatron_hyena.data.window import blank_like, stack_windows
from megatron_hyena.data.windows import ChosenWindows, SequentialWindows
from megatron_hyena.errors import UserError


def micro_batches(
    stream: TrainingStream,
    step: int,
    global_batch_size: int,
    micro_batch_size: int,
    data_rank: int,
    data_size: int,
    masking: Masking | None = None,
    case: Case | None = None,
) -> list[Batch]:
    """The micro-batches of `data_rank` in `step` (from 0), in order; masked by `masking`.

    Raises UserError where `global_batch_size` is not a multiple of micro-batch × data ranks.
    """
    _check_division(global_batch_size, micro_batch_size, data_size)
    share = global_batch_size // data_size
    first = step * global_batch_size + data_rank * share
    batches = []
    for at in range(first, first + share, micro_batch_size):
        positions = range(at, at + micro_batch_size)
        windows = stream.windows(positions)
        batches.append(
            masked_batch(windows, positions, masking, case)
            if masking
            else batch_of(windows, case=case)
        )
    return batches


def evaluation_batches(
    windows: SequentialWindows | ChosenWindows,
    micro_batch_size: int,
    data_rank: int = 0,
    data_size: int = 1,
    masking: Masking | None = None,
    case: Case | None = None,
) -> Iterator[Batch]:
    """Batches of `data_rank` over all windows, each window on one rank; masked by `masking`.

    Every rank gets the same number of batches of the same shape: the last ones are filled up with
    sequences of PAD, of weight 0.
    """
    unscored = np.zeros(windows.sequence_length, dtype=np.float32)
    stride = micro_batch_size * data_size
    for begin in range(0, len(windows), stride):
        first = begin + data_rank * micro_batch_size
        chosen = range(first, min(first + micro_batch_size, len(windows)))
        missing = micro_batch_size - len(chosen)
        filler = [blank_like(windows.window(0))] * missing if missing else []
        rows = stack_windows([windows.window(i) for i in chosen] + filler)
        if masking:
            yield masked_batch(rows, range(first, first + micro_batch_size), masking, case)
            continue
        weights = [windows.weights(i) for i in chosen] + [unscored] * missing
        yield batch_of(rows, weights, case)


class BatchIterator:
    """Yields (step, micro-batches) from `start_step` on, prepared ahead by threads, in order.

    Use it in a `with` statement, or call `close`. An exception in a thread is raised by `next`.
    """

    def __init__(
        self,
        stream: TrainingStream,
        start_step: int,
        *,
        global_batch_size: int,
        micro_batch_size: int,
        data_rank: int = 0,
        data_size: int = 1,
        stop_step: int | None = None,
        workers: int = 1,
        ahead: int = 2,
        length_at: Callable[[int], int] | None = None,
        masking: Masking | None = None,
        case: Case | None = None,
    ) -> None:
        """`stop_step`: the first step not to yield (None: without end); `workers`: threads (0: the
        caller's own); `ahead`: steps in hand for each; `length_at`: the length of a step's
        sequences (None: the stream's), which it must divide; `masking`: for a masked model.

        Raises UserError as `micro_batches` and `TrainingStream.check_global_batch` do.
        """
        _check_division(global_batch_size, micro_batch_size, data_size)
        stream.check_global_batch(global_batch_size)
        self._stream = stream
        self._sizes = (global_batch_size, micro_batch_size, data_rank, data_size)
        self._masking, self._case = masking, case
        self._step, self._stop = start_step, stop_step
        self._length_at = length_at or (lambda step: stream.sequence_length)
        self._ended = False
        self._failure: BaseException | None = None
        self._in_hand: deque[tuple[int, Future[list[Batch]]]] = deque()
        self._ahead = workers * ahead
        self._pool = ThreadPoolExecutor(workers, "batches") if workers else None
        self._submit()

    def __iter__(self) -> BatchIterator:
        return self

    def __next__(self) -> tuple[int, list[Batch]]:
        if self._failure is not None:
            raise self._failure
        if self._ended or (not self._in_hand and self._is_last(self._step)):
            raise StopIteration
        try:
            if self._pool is None:
                self._step += 1
                return self._step - 1, self._prepare(self._step - 1)
            step, future = self._in_hand.popleft()
            batches = future.result()
        except BaseException as error:
            self._failure = error
            self.close()
            raise
        self._submit()
        return step, batches

    def __enter__(self) -> BatchIterator:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """End the threads and forget what they prepared; may be called twice."""
        self._ended = True
        self._in_hand.clear()
        if self._pool is not None:
            self._pool.shutdown(wait=True, cancel_futures=True)

    def _submit(self) -> None:
        """Have the next steps prepared."""
        while self._pool and len(self._in_hand) < self._ahead and not self._is_last(self._step):
            self._stream.prefetch(self._positions(self._step + self._ahead))
            self._in_hand.append((self._step, self._pool.submit(self._prepare, self._step)))
            self._step += 1

    def _positions(self, step: int) -> range:
        """Of this rank's windows in `step`."""
        size, _, rank, ranks = self._sizes
        first = step * size + rank * (size // ranks)
        return range(first, first + size // ranks)

    def _is_last(self, step: int) -> bool:
        return self._stop is not None and step >= self._stop

    def _prepare(self, step: int) -> list[Batch]:
        length = self._length_at(step)
        whole = micro_batches(self._stream, step, *self._sizes, self._masking, self._case)
        return [batch.in_pieces(length) for batch in whole]


def _check_division(global_batch_size: int, micro_batch_size: int, data_size: int) -> None:
    if global_batch_size % (micro_batch_size * data_size):
        raise UserError(
            f"train.global_batch_size {global_batch_size} is not a multiple of "
            f"train.micro_batch_size {micro_batch_size} x {data_size} data ranks; change one of "
            "them"
        )

"""From windows to tensors: the micro-batches of a step, one share per data rank.

Step s of global batch size G shows positions [s G, (s + 1) G) of the window stream. Data rank r
of R takes the r-th block of G / R of them, cut into micro-batches: together the ranks see the
same windows whatever the layout. This is the only file of the data room that needs torch.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from queue import Empty, Full, Queue
from types import MappingProxyType, TracebackType
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
import torch

from megatron_hyena.data.alphabet import EOD, MASK, PAD, Bases, SequenceType, unknown_letters
from megatron_hyena.data.masking import Masking
from megatron_hyena.data.stream import TrainingStream
from megatron_hyena.data.tracks import Values
from megatron_hyena.data.window import Window, blank_like
from megatron_hyena.data.windows import ChosenWindows, SequentialWindows
from megatron_hyena.errors import UserError

_SPECIAL = np.isin(np.arange(256), [EOD, PAD, MASK])


@dataclass(frozen=True)
class Batch:
    """B sequences of L bytes; `targets` are `input_ids` one position on (or see `masked_batch`).

    A weight is 0 where the target is PAD, EOD, MASK or N (of protein: X, for its N is asparagine):
    an unknown base is not to be learnt. So it is where the target begins another document than
    its input's: nothing foretells it.
    """

    input_ids: torch.Tensor
    """int64 [B, L]"""
    targets: torch.Tensor
    """int64 [B, L]"""
    weights: torch.Tensor
    """float32 [B, L]"""
    documents: torch.Tensor | None = None
    """int64 [B, L], the number of each input's document, of which a row may hold several; None
    where every sequence is of one document."""
    tracks: Mapping[str, torch.Tensor] = field(default_factory=dict)
    """[B, L] each, one value per input: those of `data.tracks`. `type` is int64 `SequenceType`,
    numbers are float32 and NaN where unknown, marks are bool or uint8."""

    def to(self, device: torch.device | str) -> Batch:
        """The same batch on `device`."""

        def move(tensor: torch.Tensor) -> torch.Tensor:
            return tensor.to(device, non_blocking=True)

        documents = None if self.documents is None else move(self.documents)
        tracks = {name: move(values) for name, values in self.tracks.items()}
        moved = move(self.input_ids), move(self.targets), move(self.weights)
        return Batch(*moved, documents, tracks)


def make_batch(
    windows: Sequence[Bases],
    weights: Sequence[npt.NDArray[np.float32]] | None = None,
    documents: Sequence[npt.NDArray[np.int64]] | None = None,
    types: npt.NDArray[np.uint8] | SequenceType = SequenceType.DNA,
    tracks: Mapping[str, Sequence[Values]] = MappingProxyType({}),
) -> Batch:
    """Stack B windows uint8 [L + 1]; `weights` float32 [L] each, on top of the rule above.

    `documents` int64 [L + 1] each: the document of every byte, where windows hold several.
    `types`: the `SequenceType` of every byte, uint8 [B, L + 1], or of all. `tracks`: name → values
    [L + 1] of each window.
    """
    content = np.stack(windows)
    unscored = _SPECIAL[content] | unknown_letters(types, content)
    scored = (~unscored[:, 1:]).astype(np.float32)
    if weights is not None:
        scored *= np.stack(weights)
    of_input: torch.Tensor | None = None
    if documents is not None:
        numbers = np.stack(documents).astype(np.int64, copy=False)
        scored *= numbers[:, 1:] == numbers[:, :-1]
        of_input = torch.from_numpy(numbers)[:, :-1].contiguous()
    tokens = torch.from_numpy(content.astype(np.int64))
    inputs, targets = tokens[:, :-1].contiguous(), tokens[:, 1:].contiguous()
    beside = {
        name: torch.from_numpy(np.stack(values)[:, :-1].copy()) for name, values in tracks.items()
    }
    return Batch(inputs, targets, torch.from_numpy(scored), of_input, beside)


def batch_of(
    windows: Sequence[Window], weights: Sequence[npt.NDArray[np.float32]] | None = None
) -> Batch:
    """`make_batch` of windows with all that belongs to them."""
    documents = [window.documents for window in windows if window.documents is not None]
    return make_batch(
        [window.bases for window in windows],
        weights,
        documents or None,
        np.stack([window.types for window in windows]),
        {name: [window.tracks[name] for window in windows] for name in windows[0].tracks},
    )


def masked_batch(windows: Sequence[Window], positions: Sequence[int], masking: Masking) -> Batch:
    """`batch_of` for a masked model: targets are the bytes at their own places.

    Inputs are what `masking` shows of the windows numbered `positions`; a weight is 1 where a base
    was chosen, else 0.
    """
    plain = batch_of(windows)
    drawn = [
        masking.draw(window.bases[:-1], window.types[:-1], position)
        for window, position in zip(windows, positions, strict=True)
    ]
    shown = torch.from_numpy(np.stack([one for one, _ in drawn]).astype(np.int64))
    chosen = torch.from_numpy(np.stack([one for _, one in drawn]).astype(np.float32))
    return replace(plain, input_ids=shown, targets=plain.input_ids, weights=chosen)


AnyBatch = TypeVar("AnyBatch", bound=Batch)


def in_pieces(batch: AnyBatch, length: int) -> AnyBatch:
    """The same bytes, targets and weights as more, shorter sequences: [B, L] -> [B L / l, l].

    The k = L / l pieces of a sequence lie in its order, each a sequence of its own, which sees
    nothing of the others: only context is cut, and with it all that one batch holds per position.
    A piece's last target is the first byte of the next piece, so no byte goes unpredicted.
    """
    full = batch.input_ids.shape[1]
    if length < 1 or full % length:
        raise ValueError(f"sequences of {full} do not fall into pieces of {length}")

    def cut(value: Any) -> Any:
        if isinstance(value, Mapping):
            return {name: cut(one) for name, one in value.items()}
        return None if value is None else value.reshape(-1, length)

    return replace(batch, **{f.name: cut(getattr(batch, f.name)) for f in fields(batch)})


def micro_batches(
    stream: TrainingStream,
    step: int,
    global_batch_size: int,
    micro_batch_size: int,
    data_rank: int,
    data_size: int,
    masking: Masking | None = None,
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
        windows = [stream.window(position) for position in positions]
        batches.append(masked_batch(windows, positions, masking) if masking else batch_of(windows))
    return batches


def evaluation_batches(
    windows: SequentialWindows | ChosenWindows,
    micro_batch_size: int,
    data_rank: int = 0,
    data_size: int = 1,
    masking: Masking | None = None,
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
        if masking:
            masked = [windows.window(i) for i in chosen] + filler
            yield masked_batch(masked, range(first, first + micro_batch_size), masking)
            continue
        yield batch_of(
            [windows.window(i) for i in chosen] + filler,
            [windows.weights(i) for i in chosen] + [unscored] * missing,
        )


class BatchIterator:
    """Yields (step, micro-batches) from `start_step` on, prepared ahead by one thread.

    Use it in a `with` statement, or call `close`. An exception in the thread is raised by `next`.
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
        ahead: int = 2,
        length_at: Callable[[int], int] | None = None,
        masking: Masking | None = None,
    ) -> None:
        """`stop_step`: the first step not to yield (None: without end); `ahead`: steps in hand;
        `length_at`: the length of a step's sequences (None: the stream's), which it must divide;
        `masking`: for a masked model.

        Raises UserError as `micro_batches` and `TrainingStream.check_global_batch` do.
        """
        _check_division(global_batch_size, micro_batch_size, data_size)
        stream.check_global_batch(global_batch_size)
        self._stream = stream
        self._sizes = (global_batch_size, micro_batch_size, data_rank, data_size)
        self._masking = masking
        self._steps = (start_step, stop_step)
        self._length_at = length_at or (lambda step: stream.sequence_length)
        self._queue: Queue[tuple[int, list[Batch]] | BaseException] = Queue(maxsize=ahead)
        self._closing = threading.Event()
        self._ended: BaseException | None = None
        self._thread = threading.Thread(target=self._fill, name="batches", daemon=True)
        self._thread.start()

    def __iter__(self) -> BatchIterator:
        return self

    def __next__(self) -> tuple[int, list[Batch]]:
        if self._ended is not None:
            raise self._ended
        if self._closing.is_set():
            raise StopIteration
        item = self._queue.get()
        if isinstance(item, BaseException):
            self._ended = item
            raise item
        return item

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
        """End the thread and forget what it prepared; may be called twice."""
        self._closing.set()
        while self._thread.is_alive():
            try:
                self._queue.get(timeout=0.05)
            except Empty:
                continue
        self._thread.join()

    def _fill(self) -> None:
        step, stop = self._steps
        try:
            while not self._closing.is_set() and (stop is None or step < stop):
                whole, length = (
                    micro_batches(self._stream, step, *self._sizes, self._masking),
                    self._length_at(step),
                )
                self._put((step, [in_pieces(batch, length) for batch in whole]))
                step += 1
            self._put(StopIteration())
        except BaseException as error:
            self._put(error)

    def _put(self, item: tuple[int, list[Batch]] | BaseException) -> None:
        while not self._closing.is_set():
            try:
                self._queue.put(item, timeout=0.1)
                return
            except Full:
                continue


def _check_division(global_batch_size: int, micro_batch_size: int, data_size: int) -> None:
    if global_batch_size % (micro_batch_size * data_size):
        raise UserError(
            f"train.global_batch_size {global_batch_size} is not a multiple of "
            f"train.micro_batch_size {micro_batch_size} x {data_size} data ranks; change one of "
            "them"
        )

"""A micro-batch: bytes on the host, and the ids and weights that they make where they are used."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from functools import cached_property, lru_cache
from types import MappingProxyType
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from megatron_hyena.data.alphabet import EOD, MASK, PAD, Bases, SequenceType, unknown_letters
from megatron_hyena.data.masking import Masking
from megatron_hyena.data.tracks import Values
from megatron_hyena.data.window import Window, stack_windows


@dataclass(frozen=True)
class Case:
    """What lower case, which marks repeats (soft-masking), means."""

    weight: float = 1.0
    """Of a target in lower case; 0.1 in Evo 2 (Brixi et al. 2025)."""
    fold: bool = False
    """Whether the model is shown upper case alone."""


@dataclass(frozen=True)
class Batch:
    """B sequences of L bytes; `targets` are `input_ids` one position on (or see `masked_batch`).

    A weight is 0 where the target is PAD, EOD, MASK or N (of protein: X, for its N is asparagine):
    an unknown base is not to be learnt. So it is where the target begins another document than
    its input's: nothing foretells it.
    """

    inputs: torch.Tensor
    """uint8 [B, L]"""
    outputs: torch.Tensor
    """uint8 [B, L], what is predicted, case kept."""
    types: torch.Tensor
    """uint8 [B, L], the `SequenceType` of each output."""
    scored: torch.Tensor | None = None
    """float32 [B, L], factors on the weights; None for 1."""
    numbers: torch.Tensor | None = None
    """[B, L], see `documents`."""
    tracks: Mapping[str, torch.Tensor] = field(default_factory=dict)
    """[B, L] each, one value per input: those of `data.tracks`. `type` is int64 `SequenceType`,
    numbers are float32 and NaN where unknown, marks are bool or uint8."""
    case: Case = field(default_factory=Case)

    @cached_property
    def input_ids(self) -> torch.Tensor:
        """int64 [B, L]"""
        return self._ids(self.inputs)

    @cached_property
    def targets(self) -> torch.Tensor:
        """int64 [B, L]"""
        return self._ids(self.outputs)

    @cached_property
    def weights(self) -> torch.Tensor:
        """float32 [B, L]"""
        table = _weight_table(self.case.weight, self.outputs.device)
        weights = table[self.types.long(), self.outputs.long()]
        return weights if self.scored is None else weights * self.scored

    @cached_property
    def documents(self) -> torch.Tensor | None:
        """int64 [B, L], the number of each input's document, of which a row may hold several;
        None where every sequence is of one document."""
        return None if self.numbers is None else self.numbers.long()

    def to(self, device: torch.device | str) -> Batch:
        """The same batch on `device`."""

        def move(value: Any) -> Any:
            if isinstance(value, Mapping):
                return {name: move(one) for name, one in value.items()}
            return value.to(device, non_blocking=True) if torch.is_tensor(value) else value

        return replace(self, **{f.name: move(getattr(self, f.name)) for f in fields(self)})

    def in_pieces(self, length: int) -> Batch:
        """The same bytes and weights as more, shorter sequences: [B, L] -> [B L / l, l].

        The k = L / l pieces of a sequence lie in its order, each a sequence of its own, which sees
        nothing of the others: only context is cut, and with it all that one batch holds per
        position. A piece's last target is the first byte of the next piece, so no byte goes
        unpredicted.
        """
        full = self.inputs.shape[1]
        if length < 1 or full % length:
            raise ValueError(f"sequences of {full} do not fall into pieces of {length}")

        def cut(value: Any) -> Any:
            if isinstance(value, Mapping):
                return {name: cut(one) for name, one in value.items()}
            return value.reshape(-1, length) if torch.is_tensor(value) else value

        return replace(self, **{f.name: cut(getattr(self, f.name)) for f in fields(self)})

    def _ids(self, content: torch.Tensor) -> torch.Tensor:
        if not self.case.fold:
            return content.long()
        lower = (content >= ord("a")) & (content <= ord("z"))
        return (content - (lower.to(torch.uint8) << 5)).long()


@lru_cache(maxsize=8)
def _weight_table(lower: float, device: torch.device) -> torch.Tensor:
    """[types, 256] weight of each byte as a target."""
    content = np.arange(256, dtype=np.uint8)
    case = np.where((content >= ord("a")) & (content <= ord("z")), lower, 1.0)
    known = np.stack([~unknown_letters(kind, content) for kind in SequenceType])
    table = known * case * ~np.isin(content, (EOD, PAD, MASK))
    return torch.from_numpy(table.astype(np.float32)).to(device)


def make_batch(
    windows: Sequence[Bases] | Bases,
    weights: Sequence[npt.NDArray[np.float32]] | None = None,
    documents: Sequence[npt.NDArray[np.int64]] | npt.NDArray[np.int64] | None = None,
    types: npt.NDArray[np.uint8] | SequenceType = SequenceType.DNA,
    tracks: Mapping[str, Sequence[Values] | Values] = MappingProxyType({}),
    case: Case | None = None,
) -> Batch:
    """Stack B windows uint8 [L + 1]; `weights` float32 [L] each, on top of `Batch`'s rule.

    `documents` int64 [L + 1] each: the document of every byte, where windows hold several.
    `types`: the `SequenceType` of every byte, uint8 [B, L + 1], or of all. `tracks`: name → values
    [L + 1] of each window.
    """
    content = torch.from_numpy(np.asarray(windows))
    if isinstance(types, SequenceType):
        kinds = torch.tensor(int(types), dtype=torch.uint8).expand(content.shape)
    else:
        # A row of one type comes as a view of one number, which torch is to keep one.
        kinds = torch.from_numpy(types.copy() if types.strides[-1] else types[:, :1].copy())
        kinds = kinds.expand(content.shape)
    scored = None if weights is None else torch.from_numpy(np.stack(weights))
    numbers = None
    if documents is not None:
        every = np.asarray(documents)
        inside = torch.from_numpy((every[:, 1:] == every[:, :-1]).astype(np.float32))
        scored = inside if scored is None else scored * inside
        numbers = torch.from_numpy(every[:, :-1].copy())
    beside = {
        name: torch.from_numpy(np.asarray(values)[:, :-1].copy()) for name, values in tracks.items()
    }
    return Batch(
        content[:, :-1], content[:, 1:], kinds[:, 1:], scored, numbers, beside, case or Case()
    )


def batch_of(
    windows: Window,
    weights: Sequence[npt.NDArray[np.float32]] | None = None,
    case: Case | None = None,
) -> Batch:
    """`make_batch` of stacked windows with all that belongs to them."""
    return make_batch(
        windows.bases, weights, windows.documents, windows.types, windows.tracks, case
    )


def masked_batch(
    windows: Window, positions: Sequence[int], masking: Masking, case: Case | None = None
) -> Batch:
    """`batch_of` for a masked model: targets are the bytes at their own places.

    Inputs are what `masking` shows of the windows numbered `positions`; a weight is 0 but where a
    base was chosen.
    """
    plain = batch_of(windows, case=case)
    drawn = [
        masking.draw(bases[:-1], types[:-1], position)
        for bases, types, position in zip(windows.bases, windows.types, positions, strict=True)
    ]
    shown = torch.from_numpy(np.stack([one for one, _ in drawn]))
    chosen = torch.from_numpy(np.stack([one for _, one in drawn]).astype(np.float32))
    types = torch.from_numpy(np.ascontiguousarray(windows.types[:, :-1]))
    return replace(plain, inputs=shown, outputs=plain.inputs, types=types, scored=chosen)


def stacked_batch(
    windows: Sequence[Window],
    weights: Sequence[npt.NDArray[np.float32]] | None = None,
    case: Case | None = None,
) -> Batch:
    """`batch_of` of windows that come one by one."""
    return batch_of(stack_windows(windows), weights, case)

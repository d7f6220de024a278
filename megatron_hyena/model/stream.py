"""Reading sequences piece by piece, with the results of reading them whole.

    stream = Stream(model)
    for piece in pieces:                # ids [B, l], any l
        output = stream.feed(piece)     # logits [B, l, V] of these bytes

What the model has to know of the past is remembered (`layers.memory`), so a chromosome can pass in
pieces that fit in memory, and the logits of the next byte cost one byte. Merged stages decide in
windows: the bytes behind the last whole window are kept and run again with the next piece, and only
whole windows are remembered. Their outputs are final all the same, since no byte sees a later one.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from megatron_hyena.errors import UserError
from megatron_hyena.layers.memory import Memory, Remembering, State
from megatron_hyena.layers.merging.axis import neutral
from megatron_hyena.layers.span import Span
from megatron_hyena.model.byte_axis import HISTORY
from megatron_hyena.model.hyena_glt import HyenaGLT, Tracks
from megatron_hyena.model.inputs import check_inputs, check_length
from megatron_hyena.model.states import Tap


@dataclass(frozen=True)
class Piece:
    """What a model says of a piece.

    Attributes:
        logits: [B, l, V], of the byte behind each.
        last_hidden_state: after the final norm, [B, l, h].
        layer_state: of the layer that was asked for, [B, l, h]; None without one.
    """

    logits: Tensor
    last_hidden_state: Tensor
    layer_state: Tensor | None = None


@dataclass(frozen=True)
class _Past:
    """All that was fed: `length` bytes that are remembered, and those behind the last window.

    Attributes:
        state: of the layers, behind the `length` bytes.
        recent_BH: the last of them (0 where there are fewer), as far as byte features reach.
        open_BP: bytes that are to be run again, fewer than a window.
        tracks: numbers beside them, [B, P] each.
    """

    length: int
    state: State
    recent_BH: Tensor
    open_BP: Tensor
    tracks: dict[str, Tensor]


class Stream:
    """One batch of sequences that arrive in pieces, each row one document.

    Inference: no gradient passes. Weights are shared with the model, not copied: training in
    place is seen, but a model that was cast or moved to a device needs a new stream.

    Args:
        model: causal, on any layout that does not share a sequence between ranks.
        layer: also give the states of this layer; see `model.states`.

    Raises:
        UserError: the model is not causal, its ranks share each sequence, or it has no such layer.
    """

    def __init__(self, model: HyenaGLT, layer: str | int | None = None) -> None:
        if not model.config.causal:
            raise UserError(
                "model.causal is false: bytes see those behind them, so a sequence cannot be read "
                "in pieces; give it whole, or train with model.causal=true"
            )
        provider = model.provider
        if provider.stream.size > 1:
            raise UserError(
                f"the model's layout shares each sequence between {provider.stream.size} ranks; "
                "read pieces with parallel.context=1 and parallel.sequence=false"
            )
        self._memory = Memory()
        with torch.device("meta"):
            self._model = HyenaGLT(model.config, Remembering(provider, self._memory))
        self._model.load_state_dict(model.state_dict(), assign=True)
        self._model.eval()
        self._tap = None if layer is None else Tap(self._model, layer)
        self._past: _Past | None = None

    @property
    def length(self) -> int:
        """Bytes fed until now."""
        return 0 if self._past is None else self._past.length + self._past.open_BP.shape[1]

    @property
    def memory_bytes(self) -> int:
        """Size of what is remembered; grows with the length if the pattern has `A`, `H` or `G`."""
        return 0 if self._past is None else sum(x.nbytes for x in self._past.state)

    @property
    def remembered(self) -> State:
        """What layers know of all whole windows, in the order of their calls; never written to."""
        return () if self._past is None else self._past.state

    def fork(self) -> Stream:
        """A second stream with the same past, which goes on by itself; nothing is copied."""
        other = object.__new__(type(self))
        other.__dict__.update(self.__dict__)
        return other

    @torch.no_grad()
    def feed(self, input_ids: Tensor, tracks: Tracks | None = None) -> Piece:
        """Go on by a piece: ids [B, l], l at least 1; `tracks` as the model's, [B, l] each.

        Raises:
            UserError: other rows or other tracks than before, no bytes, or more in all than the
                filters of `H` and `G` are made for.
        """
        check_inputs(input_ids, None, tracks)
        check_length(self.length + input_ids.shape[1], self._model.longest)
        past = self._past or self._nothing(input_ids)
        ids, tracks = self._with_open(past, input_ids, dict(tracks or {}))
        window, fed = self._model.merging_multiple, past.open_BP.shape[1]
        closed, total = ids.shape[1] // window * window, ids.shape[1]
        hidden: list[Tensor] = []
        if closed:
            piece = {name: track[:, :closed] for name, track in tracks.items()}
            hidden.append(self._run(past, ids[:, :closed], piece)[fed:])
            past = self._behind(past, ids, tracks, closed)
        if closed < total:
            missing = closed + window - total
            piece = {
                name: F.pad(track[:, closed:], (0, missing), value=neutral(track))
                for name, track in tracks.items()
            }
            open_ids = F.pad(ids[:, closed:], (0, missing), value=self._model.filler)
            hidden.append(self._run(past, open_ids, piece)[max(0, fed - closed) : total - closed])
        left = {name: track[:, closed:] for name, track in tracks.items()}
        self._past = _Past(past.length, past.state, past.recent_BH, ids[:, closed:], left)
        x = torch.cat(hidden)
        x, *tapped = x.split(self._model.config.hidden_size, dim=-1)
        logits = self._model.ends.gather_vocabulary(self._model.head(self._model.ends.enter(x)))
        state = tapped[0].transpose(0, 1) if tapped else None
        return Piece(logits.transpose(0, 1), x.transpose(0, 1), state)

    def _nothing(self, ids: Tensor) -> _Past:
        rows = len(ids)
        return _Past(0, (), ids.new_zeros(rows, HISTORY), ids.new_zeros(rows, 0), {})

    def _with_open(
        self, past: _Past, ids: Tensor, tracks: dict[str, Tensor]
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """The piece, behind the bytes that are run again."""
        if len(ids) != len(past.open_BP):
            raise UserError(
                f"this piece has {len(ids)} rows, the ones before had {len(past.open_BP)}; give "
                "the same with every piece"
            )
        if self.length and tracks.keys() != past.tracks.keys():
            raise UserError(
                f"this piece has the tracks {sorted(tracks)}, the ones before had "
                f"{sorted(past.tracks)}; give the same with every piece"
            )
        if not past.open_BP.shape[1]:
            return ids, tracks
        joined = {n: torch.cat([past.tracks[n], track], dim=1) for n, track in tracks.items()}
        return torch.cat([past.open_BP, ids], dim=1), joined

    def _run(self, past: _Past, ids: Tensor, tracks: Tracks) -> Tensor:
        """Final states [l, B, h] of whole windows behind the past; a layer's beside them: 2 h."""
        self._memory.recall(past.state)
        length, axis = ids.shape[1], None
        if self._model.stages:
            with_recent = torch.cat([past.recent_BH, ids], dim=1)
            held = slice(HISTORY, HISTORY + length)
            shifted = {name: F.pad(track, (HISTORY, 0)) for name, track in tracks.items()}
            axis = self._model.byte_axis(
                with_recent, None, shifted, held, first=past.length - HISTORY
            )
        span = Span(past.length, length, tracks=tracks)
        x, walk = self._model.walk_span(ids, tracks.get("type"), span, axis)
        return x if self._tap is None else torch.cat([x, self._tap.take(walk.merges)], dim=-1)

    def _behind(self, past: _Past, ids: Tensor, tracks: Tracks, closed: int) -> _Past:
        """The past once the first `closed` bytes of `ids` belong to it, which were just run."""
        recent = torch.cat([past.recent_BH, ids[:, :closed]], dim=1)[:, -HISTORY:].clone()
        return _Past(past.length + closed, self._memory.state, recent, ids[:, :0], dict(tracks))


def in_pieces(
    model: HyenaGLT, input_ids: Tensor, size: int, tracks: Tracks | None = None
) -> Iterator[Piece]:
    """What `model` says of ids [B, L], `size` bytes at a time.

    Raises:
        UserError: as `Stream`, or `size` is below 1.
    """
    if size < 1:
        raise UserError(f"pieces of {size} bytes; give a size from 1 up")
    stream = Stream(model)
    for start in range(0, input_ids.shape[1], size):
        held = slice(start, start + size)
        part = {name: track[:, held] for name, track in (tracks or {}).items()}
        yield stream.feed(input_ids[:, held], part)

"""The way of the data through blocks and merged stages, in the order of the pattern."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from megatron_hyena.config.pattern import Stage
from megatron_hyena.layers.merging.axis import Axis, slot_documents
from megatron_hyena.layers.merging.stage import Merge, MergedStage
from megatron_hyena.layers.mixer import Mixer
from megatron_hyena.layers.provider import Provider
from megatron_hyena.layers.span import Span


class Walk:
    """One forward pass.

    Args:
        blocks: all blocks, by number.
        recomputed: of which to keep only the inputs for the backward pass.
        stages: all merged stages, by number.
        provider: the layout.

    Attributes:
        merges: what each stage decided, by number.
        penalty_LB: nats of each position of this rank's slice of the stream, for the rates of
            merging; 0 for none.
    """

    def __init__(
        self,
        blocks: nn.ModuleList,
        recomputed: Sequence[bool],
        stages: nn.ModuleList,
        provider: Provider,
    ) -> None:
        self.blocks, self.recomputed, self.stages = blocks, recomputed, stages
        self.provider = provider
        self.merges: dict[int, Merge] = {}
        self.penalty_LB: Tensor | float = 0.0

    def run(
        self, items: tuple[int | Stage, ...], x_LBH: Tensor, span: Span, axis: Axis | None
    ) -> Tensor:
        """All of the model's blocks and stages: [l, B, h] -> [l, B, h]; `axis` if it has stages."""
        x, self.penalty_LB = self._through_all(items, x_LBH, span, axis)
        return x

    def _through_all(
        self, items: tuple[int | Stage, ...], x_LBH: Tensor, span: Span, axis: Axis | None
    ) -> tuple[Tensor, Tensor | float]:
        """The outputs, and the penalty of each position."""
        penalty: Tensor | float = 0.0
        for item in items:
            if isinstance(item, Stage):
                assert axis is not None
                x_LBH, more = self._through(item, x_LBH, span, axis)
                penalty = penalty + more
            elif self.recomputed[item]:
                x_LBH = checkpoint(self.blocks[item], x_LBH, span, use_reentrant=False)
            else:
                x_LBH = self.blocks[item](x_LBH, span)
        return x_LBH, penalty

    def _through(
        self, item: Stage, x_LBH: Tensor, span: Span, axis: Axis
    ) -> tuple[Tensor, Tensor | float]:
        """A merged stage. Its decisions are made here, outside of what is recomputed."""
        stage = self.stages[item.number]
        assert isinstance(stage, MergedStage)
        u, merge = stage.merge(x_LBH, axis)
        self.merges[item.number] = merge
        whole, window, per_window = span.whole, stage.shape.window, stage.shape.slots
        if whole is not None:
            whole = slot_documents(whole, window, per_window)
        ends = (end // window * per_window for end in (span.start, span.start + span.length))
        mixers = [self.blocks[i].mixer for i in item.items if isinstance(i, int)]
        read = {name for mixer in mixers if isinstance(mixer, Mixer) for name in mixer.tracks}
        slots = merge.axis.span(self.provider.stream, slice(*ends), whole, sorted(read))
        z, inside = self._through_all(item.items, u, slots, merge.axis)
        penalty: Tensor | float = 0.0 if merge.penalty_LB is None else merge.penalty_LB
        if isinstance(inside, Tensor):
            penalty = penalty + stage.spread(inside, merge)
        return stage.unmerge(z, merge, x_LBH), penalty

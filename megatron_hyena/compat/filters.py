"""The long filters of one Hyena operator, to build and look at by hand."""

from __future__ import annotations

from torch import Tensor, nn

from megatron_hyena.compat.operators import operator_config
from megatron_hyena.config.model import HyenaGLTConfig
from megatron_hyena.errors import UserError
from megatron_hyena.layers import filters as layer_filters
from megatron_hyena.layers import hyena_order
from megatron_hyena.layers.filters import LongFilter
from megatron_hyena.layers.parameter import drawn_seed, initialise
from megatron_hyena.layers.provider import DenseProvider

LONGEST = HyenaGLTConfig.max_sequence_length
"""Length that filters are made for where none is given."""


class HyenaFilter(nn.Module):
    """The implicit filters of one order: Linear-sin-Linear-sin-Linear of the position, windowed.

    Args:
        d_model: channels, one filter each; or a `HyenaGLTConfig`, whose fields then decide.
        filter_order: width of the network.
        l_max: longest filter; values are functions of position / l_max, never of the length asked.
    """

    kind: type[LongFilter] = hyena_order.HyenaFilter

    def __init__(
        self, d_model: int | HyenaGLTConfig, filter_order: int = 64, l_max: int = LONGEST
    ) -> None:
        super().__init__()
        if isinstance(d_model, HyenaGLTConfig):
            self.config = d_model
        else:
            self.config = operator_config(d_model, l_max, 1, filter_order)
        self.network = self.kind(self.config, DenseProvider())
        initialise(self.network, drawn_seed(), rank=0, size=1)

    def forward(self, seq_len: int) -> Tensor:
        """The first `seq_len` taps, [d, seq_len] in the dtype of the weights, lag 0 first.

        Raises:
            UserError: more taps than the filter has.
        """
        if not 0 <= seq_len <= self.filter_size:
            raise UserError(
                f"a filter of {self.filter_size} taps has no {seq_len}; make it with a larger l_max"
            )
        taps: Tensor = self.network(seq_len, next(self.network.parameters()).dtype)
        return taps

    @property
    def filter_size(self) -> int:
        """Taps of each filter."""
        return self.config.hyena_filter_size or self.config.max_sequence_length

    @property
    def filters(self) -> Tensor:
        """All taps, [d, filter_size]."""
        return self(self.filter_size)


class GenomicHyenaFilter(HyenaFilter):
    """An explicit bank of filters that starts from motifs (see `layers.motifs`).

    Args:
        config: its `hidden_size`, `hyena_filter_size` (128 taps if 0) and `motifs` count; in a
            model, `hyena_filter="genomic"` takes this bank.
    """

    kind = layer_filters.GenomicHyenaFilter

    def __init__(self, config: HyenaGLTConfig) -> None:
        super().__init__(config)

    @property
    def filter_size(self) -> int:
        """Taps of each filter."""
        return self.config.bank_taps

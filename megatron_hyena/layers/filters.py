"""Long filters of `H` and `G` by name, and the explicit bank that starts from motifs.

`model.hyena_filter` names one: `implicit` (`layers.hyena_order`), `genomic`, or what a program
registers:

    class Echo(LongFilter):
        def __init__(self, config, provider):
            super().__init__(config, provider)
            self.taps = filter_parameter((config.hidden_size, 9), constant(0.1), provider)

        def forward(self, length, dtype, channels=ALL_CHANNELS):
            return self.taps[channels, :length].to(dtype)

    register_hyena_filter("echo", Echo)
    HyenaGLTConfig(pattern="[HA]2", hyena_filter="echo")
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from megatron_hyena.config.filters import HYENA_FILTERS, check_hyena_filter
from megatron_hyena.config.model import HyenaGLTConfig
from megatron_hyena.errors import UserError
from megatron_hyena.layers.exchange import ALL_CHANNELS
from megatron_hyena.layers.hyena import filter_parameter
from megatron_hyena.layers.motifs import motif_filters
from megatron_hyena.layers.provider import Provider


class LongFilter(nn.Module):
    """Base of all: `LongFilter(config, provider)`, one for each order of each layer.

    Parameters are made by `filter_parameter` (cut by channel) or `cut_parameter`.
    """

    def __init__(self, config: HyenaGLTConfig, provider: Provider) -> None:
        super().__init__()
        self.provider = provider

    def forward(self, length: int, dtype: torch.dtype, channels: slice = ALL_CHANNELS) -> Tensor:
        """Taps [D', K], lag 0 first, of some of this rank's channels, in `dtype`; K <= length."""
        raise NotImplementedError

    @staticmethod
    def copied_numbers(config: HyenaGLTConfig, length: int) -> int:
        """Numbers that pass `Provider.copy` to make `length` taps; their gradients are summed over
        the tensor ranks."""
        return 0


class GenomicHyenaFilter(LongFilter):
    """An explicit filter bank that starts from `model.motifs`; see `layers.motifs`.

    Attributes:
        filters: taps of this rank's channels [D, K], lag 0 first.
        filter_size: taps, K = `model.hyena_filter_size`, 128 if that is 0.
    """

    def __init__(self, config: HyenaGLTConfig, provider: Provider) -> None:
        super().__init__(config, provider)
        self.filter_size = config.bank_taps
        shape = (config.hidden_size, self.filter_size)
        self.filters = filter_parameter(shape, motif_filters(config.motifs), provider)

    def forward(self, length: int, dtype: torch.dtype, channels: slice = ALL_CHANNELS) -> Tensor:
        """See `LongFilter.forward`."""
        return self.filters[channels, :length].to(dtype)


_CLASSES: dict[str, type[LongFilter]] = {"genomic": GenomicHyenaFilter}


def register_hyena_filter(name: str, filter_class: type[LongFilter]) -> None:
    """Let `model.hyena_filter` be `name`, in this process.

    A program that trains with it registers it before it reads the configuration.

    Raises:
        UserError: the name is taken by another class, or the class is no `LongFilter`.
    """
    if not (isinstance(filter_class, type) and issubclass(filter_class, LongFilter)):
        raise UserError(f"the filter registered as {name!r} is {filter_class!r}; make a LongFilter")
    if _CLASSES.setdefault(name, filter_class) is not filter_class:
        raise UserError(
            f"a Hyena filter {name!r} is registered already ({_CLASSES[name].__qualname__}); "
            f"give {filter_class.__qualname__} another name"
        )
    if name not in HYENA_FILTERS:
        HYENA_FILTERS.append(name)


def filter_class(name: str) -> type[LongFilter]:
    """The class behind a name.

    Raises:
        UserError: no filter has that name.
    """
    check_hyena_filter(name)
    return _CLASSES[name]

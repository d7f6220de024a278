"""How far rows may come, and with it the long filters of `H` and `G`, made once for all rows."""

from __future__ import annotations

import torch
from torch import Tensor

from megatron_hyena.generation.fitting import Fit, fitted
from megatron_hyena.layers.hyena_order import HyenaOperator

Fitted = tuple[Tensor, Tensor, Tensor]


class Plan:
    """What decoders of the same model share.

    Args:
        room: bytes that will be written to each row, at most.
        longest: bytes that a row may have in all.
        fit: replaces the long filters of `H` and `G` by modes; None leaves them exact.
    """

    def __init__(self, room: int, longest: int, fit: Fit | None = None) -> None:
        self.room, self.longest, self.fit = room, longest, fit
        self._taps: dict[tuple[HyenaOperator, int], Tensor] = {}
        self._modes: dict[tuple[HyenaOperator, int], Fitted] = {}

    def taps(self, mixer: HyenaOperator, order: int, wide: torch.dtype) -> Tensor:
        """Of one order, as far as rows come, the skip in lag 0: [D, K]."""
        key = mixer, order
        if key not in self._taps:
            taps = mixer.filters[order](min(self.longest, mixer.taps), wide)
            first = taps[:, :1] + mixer.skip[:, order, None].to(wide)
            self._taps[key] = torch.cat([first, taps[:, 1:]], dim=1)
        return self._taps[key]

    def modes(self, mixer: HyenaOperator, order: int, wide: torch.dtype) -> Fitted | None:
        """The same as modes, see `fitted`; None where the taps are to be used.

        Explicit taps that end before rows do are: modes would go on, and the taps cost no more.
        """
        if self.fit is None or mixer.taps < self.longest:
            return None
        key = mixer, order
        if key not in self._modes:
            self._modes[key] = fitted(self.taps(mixer, order, wide), self.fit)
        return self._modes[key]

"""Which bases a masked model is to predict, and what it is shown instead.

Of the known bases a share is chosen, alone or in spans; of the chosen, as in BERT
(arXiv:1810.04805), 80 % are shown as MASK, 10 % as a base drawn from the window, which may be the
same again, and 10 % as they are. All of it is
a function of the seed and the window's position, so every layout hides the same bases.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from megatron_hyena.data.alphabet import EOD, MASK, PAD, Bases, Mask, unknown_letters

TRAINING, VALIDATION = 4, 5
"""What a draw is for; the numbers go on from those of `data.stream`. Never change one."""
HIDDEN, REPLACED = 0.8, 0.1
"""Shares of the chosen bases; the rest is shown as it is."""


@dataclass(frozen=True)
class Masking:
    """How windows are masked.

    Attributes:
        fraction: expected share of the known bases that is chosen, in (0, 1).
        span: bases that are chosen together, 1 or more; spans may overlap.
        seed: of all draws.
        purpose: `TRAINING` or `VALIDATION`, whose windows are numbered separately.
    """

    fraction: float
    span: int
    seed: int
    purpose: int = TRAINING

    def draw(self, bases: Bases, types: npt.NDArray[np.uint8], position: int) -> tuple[Bases, Mask]:
        """What is shown of a window, and which of its bases are to be predicted.

        A span begins at each place with chance 1 - (1 - fraction)^(1 / span), places before the
        window too, so each base is in none with chance 1 - fraction. Unknown letters and special
        bytes are never chosen.

        Args:
            bases: uint8 [L].
            types: `SequenceType` of each, uint8 [L].
            position: number of the window.
        Returns:
            (shown uint8 [L], chosen bool [L]).
        """
        length = len(bases)
        begins, kinds, others = np.split(
            self._uniform(position, 3 * length + self.span - 1),
            [length + self.span - 1, 2 * length + self.span - 1],
        )
        begun = np.cumsum(begins < -np.expm1(np.log1p(-self.fraction) / self.span))
        before = np.concatenate([[0], begun[: length - 1]])
        known = ~(np.isin(bases, (EOD, PAD, MASK)) | unknown_letters(types, bases))
        chosen = (begun[self.span - 1 :] > before) & known
        shown = bases.copy()
        shown[chosen & (kinds < HIDDEN)] = MASK
        replaced = chosen & (kinds >= HIDDEN) & (kinds < HIDDEN + REPLACED)
        for kind in np.unique(types[replaced]):
            pool = bases[known & (types == kind)]
            places = replaced & (types == kind)
            shown[places] = pool[(others[places] * len(pool)).astype(np.int64)]
        return shown, chosen

    def _uniform(self, position: int, count: int) -> npt.NDArray[np.float64]:
        """[count] in [0, 1), from raw 64-bit words of Philox as in `data.stream`."""
        seeds = np.random.SeedSequence(self.seed, spawn_key=(position, self.purpose))
        words = np.random.Philox(seeds).random_raw(count)
        return (words >> np.uint64(11)).astype(np.float64) * 2.0**-53

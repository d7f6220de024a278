"""Where chunks open, decided from a number per base: the entropy of a model, or conservation.

Of a series s, s_t known once base t is read, and thresholds θ_1 < θ_2 < …:

    global       base t + 1 opens a chunk of level i where s_t > θ_i
    monotonic    … where s_t - s_{t-1} > θ_i

(Pagnoni et al., Byte Latent Transformer, arXiv:2412.09871). The shift by one keeps it causal: what
opens at a base depends on the bases before it alone. The first base of a record opens a chunk of
every level; where nothing is known (NaN) none opens.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from megatron_hyena.errors import UserError

RULES = ("global", "monotonic")
QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)
"""Of the chunks' lengths, those that are reported."""
MOST_LEVELS = 255
_AT_ONCE = 1 << 22

Series = npt.NDArray[np.float32]


def scores(series: Series, rule: str) -> Series:
    """What is compared with the thresholds, float32 [n], of one record's series [n].

    The last is NaN: no base follows it.
    """
    found = series.astype(np.float32, copy=True)
    if rule == "monotonic":
        found[1:] -= series[:-1]
        found[:1] = np.nan
    found[-1:] = np.nan
    return found


def levels(scored: Series, thresholds: Sequence[float]) -> npt.NDArray[np.uint8]:
    """How many levels open at each base, uint8 [n], of one record's `scores` [n]."""
    found = np.zeros(len(scored), dtype=np.uint8)
    found[:1] = len(thresholds)
    for threshold in thresholds:
        found[1:] += scored[:-1] > np.float32(threshold)
    return found


def quantile_thresholds(scored: Series, keep: Sequence[float]) -> list[float]:
    """The θ above which the fraction `keep` of the known scores lies, for each of `keep`.

    The exact order statistic, in two counts of 16 bits each; `scored` may be a memory map. Where
    scores are equal to it, θ puts all of them above or none, whichever is nearer to `keep`.

    Raises:
        UserError: fewer than two scores are known.
    """
    counts = np.zeros(1 << 16, dtype=np.int64)
    for keys in _keys(scored):
        counts += np.bincount(keys >> 16, minlength=1 << 16)
    known = int(counts.sum())
    if known < 2:
        raise UserError(
            f"{known} of {len(scored)} bases have a number to decide by, and 2 are needed; give "
            "another track or a longer genome"
        )
    kept = [min(known - 1, max(1, round(part * known))) for part in keep]
    upper = [int(np.searchsorted(counts.cumsum(), known - k, side="left")) for k in kept]
    lower = {one: np.zeros(1 << 16, dtype=np.int64) for one in upper}
    for keys in _keys(scored):
        for one, inside in lower.items():
            inside += np.bincount(keys[keys >> 16 == one] & 0xFFFF, minlength=1 << 16)
    found = []
    for k, one in zip(kept, upper, strict=True):
        up_to = int(counts[:one].sum()) + lower[one].cumsum()  # scores that are no greater, by key
        low = int(np.searchsorted(up_to, known - k, side="left"))
        equal, above = int(lower[one][low]), known - int(up_to[low])
        threshold = _number(one << 16 | low)
        found.append(_below(threshold) if above + equal - k < k - above else threshold)
    return found


def _below(number: float) -> float:
    return float(np.nextafter(np.float32(number), np.float32(-np.inf)))


def _keys(scored: Series) -> Iterator[npt.NDArray[np.int64]]:
    """Known scores, a piece at a time, as integers of 32 bits in the same order."""
    for start in range(0, len(scored), _AT_ONCE):
        piece = np.asarray(scored[start : start + _AT_ONCE])
        bits = piece[~np.isnan(piece)].view(np.uint32)
        sign = np.uint32(1 << 31)
        yield np.where(bits & sign, ~bits, bits | sign).astype(np.int64)


def _number(key: int) -> float:
    sign = 1 << 31
    bits = key ^ sign if key & sign else key ^ 0xFFFFFFFF
    return float(np.array([bits], dtype=np.uint32).view(np.float32)[0])


@dataclass
class LevelCount:
    """Counts of one level over records."""

    bases: int = 0
    chunks: int = 0
    lengths: Counter[int] = field(default_factory=Counter)
    """Chunks of each length in bases."""

    def add(self, opens: npt.NDArray[np.bool_]) -> None:
        """Count a record: where chunks of the level open, [n], its first base among them."""
        places = np.flatnonzero(opens)
        found, counts = np.unique(np.diff(places, append=len(opens)), return_counts=True)
        self.lengths.update(dict(zip(found.tolist(), counts.tolist(), strict=True)))
        self.bases += len(opens)
        self.chunks += len(places)

    @property
    def kept(self) -> float:
        """Chunks per base."""
        return self.chunks / self.bases

    def length_quantiles(self) -> dict[float, int]:
        """The least length in bases that the fraction q of the chunks does not exceed, by q."""
        lengths = sorted(self.lengths)
        up_to = np.cumsum([self.lengths[one] for one in lengths])
        return {
            q: lengths[int(np.searchsorted(up_to, q * self.chunks, side="left"))] for q in QUANTILES
        }

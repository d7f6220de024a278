"""Running means of curves with gaps."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def running_mean(values: NDArray[np.float64], window: int) -> NDArray[np.float64]:
    """Centred mean over `window` values, NaN left out; shorter windows at both ends."""
    if window <= 1:
        return values
    finite = np.isfinite(values)
    sums, counts = (
        np.concatenate([[0.0], np.cumsum(part)])
        for part in (np.where(finite, values, 0.0), finite.astype(np.float64))
    )
    centre = np.arange(len(values))
    low = np.maximum(0, centre - (window - 1) // 2)
    high = np.minimum(len(values), centre + window // 2 + 1)
    with np.errstate(invalid="ignore"):
        return (sums[high] - sums[low]) / (counts[high] - counts[low])

"""Learning rate: linear warm-up, then cosine decay; a pure function of the step."""

from __future__ import annotations

import math

from megatron_hyena.config.sections import OptimSection


def learning_rate(step: int, steps: int, optim: OptimSection) -> float:
    """Rate of optimizer step `step` (from 0) of a schedule of `steps`.

    (step + 1) / warmup of the peak during warm-up; then `min_lr` plus half a cosine from the peak
    down to it, reached at the last step.
    """
    if step < optim.warmup_steps:
        return optim.lr * (step + 1) / optim.warmup_steps
    span = max(1, steps - 1 - optim.warmup_steps)
    progress = min(1.0, (step - optim.warmup_steps) / span)
    return optim.min_lr + 0.5 * (optim.lr - optim.min_lr) * (1 + math.cos(math.pi * progress))

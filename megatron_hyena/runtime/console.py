"""A console that shows what a user can act on.

The libraries under a run announce optional parts that are absent (Transformer Engine, Apex) and
their own deprecations, once per rank. Those messages are muted by their text; others still show.
"""

from __future__ import annotations

import logging
import os
import warnings

import torch

_MUTED = (
    "Transformer Engine and Apex are not installed",
    ".*is deprecated. Please use.*_single",
)


def quiet_libraries() -> None:
    """Mute the known messages; call before Megatron-core and DeepSpeed are imported."""
    os.environ.setdefault("DS_BUILD_OPS", "0")
    for text in _MUTED:
        warnings.filterwarnings("ignore", message=text)
    os.environ.setdefault("DS_ACCELERATOR", "cuda" if torch.cuda.is_available() else "cpu")
    for name in ("DeepSpeed", "megatron", "torch.distributed.elastic"):
        logging.getLogger(name).setLevel(logging.WARNING)

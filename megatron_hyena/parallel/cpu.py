"""The one concession to machines without a GPU.

Megatron-core's collectives allocate their results on `torch.cuda.current_device()`, whatever the
device of their input. Where there is no GPU that call raises; answering it with the CPU makes the
same code run on gloo. Nothing else in the project asks for the current CUDA device.
"""

from __future__ import annotations

import torch


def enable_megatron_on_cpu() -> None:
    """Let `torch.cuda.current_device()` answer the CPU device, only where there is no GPU."""
    if not torch.cuda.is_available():
        torch.cuda.current_device = _cpu_device  # type: ignore[assignment]


def _cpu_device() -> torch.device:
    return torch.device("cpu")

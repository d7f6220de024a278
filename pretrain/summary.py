"""`summary.json`: what every run says of itself at its end, and the file appearing whole."""

from __future__ import annotations

import json
import math
import os
from pathlib import Path
from typing import Any

import torch.distributed as dist

from megatron_hyena.config.sections import ParallelSection
from megatron_hyena.observe.profiler import peak_memory_gb

SUMMARY = "summary.json"


def write_summary(folder: Path, parallel: ParallelSection, figures: dict[str, Any]) -> None:
    """Write `figures`, this rank's peak memory and the layout; what is not finite becomes null."""
    layout = {
        "world_size": dist.get_world_size(),
        "tensor": parallel.tensor,
        "sequence": parallel.sequence,
        "context": parallel.context,
        "zero_stage": parallel.zero_stage,
        "recompute": parallel.recompute,
    }
    summary = {**figures, "peak_memory_gb": peak_memory_gb(), "layout": layout}
    text = json.dumps(_plain(summary), indent=2, allow_nan=False) + "\n"
    temporary = folder / f".{SUMMARY}"
    temporary.write_text(text, encoding="utf-8")
    os.replace(temporary, folder / SUMMARY)


def _plain(value: Any) -> Any:
    """JSON has no NaN."""
    if isinstance(value, dict):
        return {key: _plain(inner) for key, inner in value.items()}
    return None if isinstance(value, float) and not math.isfinite(value) else value

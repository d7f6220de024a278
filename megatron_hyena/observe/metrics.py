"""Where the figures of a run go: `metrics.jsonl`, `validation.jsonl`, TensorBoard, the console.

`metrics.jsonl` holds one object per logged training step, in order of steps; `validation.jsonl` the
same for each evaluation during training. Every line is flushed when written, so that `kill -9` can
tear the last line at most. JSON has no NaN and no infinity: such a value is written as null (the
console line and TensorBoard show it as it is).

A run that resumes behind step s drops what was logged of later steps, here and in TensorBoard, and
logs them anew: the files read as if nothing had happened. A fresh run is one that resumes behind
step 0.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, TextIO

from megatron_hyena.errors import UserError
from megatron_hyena.observe.progress import write_line

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

METRICS_FILE = "metrics.jsonl"
VALIDATION_FILE = "validation.jsonl"
TENSORBOARD_FOLDER = "tensorboard"


def bits_per_base(nats: float) -> float:
    """Loss in nats per byte to bits per base (one byte is one base)."""
    return nats / math.log(2)


class MetricsLog:
    """Writes the figures of one run directory; with `enabled=False` (ranks > 0) it does nothing.

    `resume_step` is the last step that the run need not repeat (0: fresh start). `total_steps`
    appears in console lines and gives the remaining time. Raises UserError if TensorBoard is not
    installed or an existing file is damaged. Use as a context manager or call `close`.
    """

    def __init__(
        self, run_dir: Path, *, total_steps: int, resume_step: int = 0, enabled: bool = True
    ) -> None:
        self._enabled = enabled
        self._total_steps = total_steps
        self._files: dict[str, TextIO] = {}
        if not enabled:
            return
        run_dir.mkdir(parents=True, exist_ok=True)
        for name in (METRICS_FILE, VALIDATION_FILE):
            _drop_later_steps(run_dir / name, resume_step)
            self._files[name] = (run_dir / name).open("a", encoding="utf-8")
        self._tensorboard = _open_tensorboard(run_dir / TENSORBOARD_FOLDER, resume_step + 1)

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Logs training figures of `step`, counted from 1.

        Usual keys: `loss` (nats per byte), `bits_per_base`, `grad_norm`, `lr`, `tokens` (seen in
        all), `tokens_per_second`; further ones are stored as well. TensorBoard's tags are
        `train/KEY`, and a key with a `/` is its own tag.
        """
        self._write(METRICS_FILE, "train", step, values)
        if self._enabled:
            write_line(console_line(step, self._total_steps, values))

    def log_validation(self, step: int, values: Mapping[str, float]) -> None:
        """Logs validation figures after `step`: `valid_loss`, `valid_bits_per_base`, `tokens`."""
        self._write(VALIDATION_FILE, "valid", step, values)
        if self._enabled:
            write_line(validation_line(step, self._total_steps, values))

    def close(self) -> None:
        """Closes the files; nothing can be logged afterwards. May be called twice."""
        if self._files:
            self._tensorboard.close()
        for file in self._files.values():
            file.close()
        self._files = {}
        self._enabled = False

    def __enter__(self) -> MetricsLog:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _write(self, name: str, group: str, step: int, values: Mapping[str, float]) -> None:
        if not self._enabled:
            return
        figures = {key: _plain_number(value) for key, value in values.items()}
        record = {key: value if math.isfinite(value) else None for key, value in figures.items()}
        file = self._files[name]
        file.write(json.dumps({"step": step, **record}, allow_nan=False) + "\n")
        file.flush()
        for key, value in figures.items():
            # A key with a group of its own, such as `merge/0/kept`, keeps it.
            tag = key if "/" in key else f"{group}/{key.removeprefix('valid_')}"
            self._tensorboard.add_scalar(tag, value, step)
        self._tensorboard.flush()


def console_line(step: int, total_steps: int, values: Mapping[str, float]) -> str:
    """`step  120/600  loss 1.3312  bits/base 1.9205  grad 0.41  lr 2.0e-03  31.2k tok/s  eta 1:23`

    Figures that are not in `values` are left out; the remaining time needs `tokens` and
    `tokens_per_second` and assumes that all steps have equally many tokens.
    """
    parts = [_step_of(step, total_steps)]
    formats = {
        "loss": "loss {:.4f}",
        "bits_per_base": "bits/base {:.4f}",
        "grad_norm": "grad {:.2f}",
        "lr": "lr {:.1e}",
    }
    parts += [text.format(values[key]) for key, text in formats.items() if key in values]
    speed = values.get("tokens_per_second", math.nan)
    if math.isfinite(speed):
        parts.append(f"{_short(speed)} tok/s")
    if speed > 0 and "tokens" in values:
        tokens_left = (total_steps - step) * values["tokens"] / step
        parts.append(f"eta {_clock(tokens_left / speed)}")
    return "  ".join(parts)


def validation_line(step: int, total_steps: int, values: Mapping[str, float]) -> str:
    """`step  120/600  loss 1.3312  bits/base 1.9205  (validation)`"""
    formats = {"valid_loss": "loss {:.4f}", "valid_bits_per_base": "bits/base {:.4f}"}
    parts = [_step_of(step, total_steps)]
    parts += [text.format(values[key]) for key, text in formats.items() if key in values]
    return "  ".join([*parts, "(validation)"])


def read_metrics(path: Path) -> list[dict[str, float]]:
    """The records of a metrics file in order of steps, null as NaN; a torn last line is left out.

    Raises UserError if the file is missing or damaged elsewhere.
    """
    if not path.exists():
        raise UserError(f"{path} does not exist; name a run directory that has logged a step")
    return [
        {key: math.nan if value is None else value for key, value in record.items()}
        for record in _records(path)
    ]


def _records(path: Path) -> list[dict[str, float | None]]:
    records = []
    lines = path.read_bytes().splitlines()
    for number, line in enumerate(lines, start=1):
        try:
            record = json.loads(line)
            record["step"]
        except (ValueError, TypeError, KeyError) as error:
            if number == len(lines):
                break
            raise UserError(
                f"{path}, line {number} is not a record of metrics; remove that line or the file"
            ) from error
        records.append(record)
    return records


def _drop_later_steps(path: Path, resume_step: int) -> None:
    """Keeps the records up to `resume_step`; also ends a last line that lacks its newline."""
    if not path.exists():
        return
    kept = [record for record in _records(path) if (record["step"] or 0) <= resume_step]
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_text("".join(json.dumps(record) + "\n" for record in kept), encoding="utf-8")
    os.replace(temporary, path)


def _open_tensorboard(folder: Path, purge_step: int) -> SummaryWriter:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise UserError(
            "TensorBoard is not installed; install it with: pip install 'megatron-hyena[train]'"
        ) from error
    return SummaryWriter(log_dir=str(folder), purge_step=purge_step)


def _plain_number(value: float) -> float:
    """Python's own int or float, for JSON; tensors and numpy numbers of one element convert."""
    return value if isinstance(value, int) else float(value)


def _step_of(step: int, total_steps: int) -> str:
    width = len(str(total_steps))
    return f"step {step:>{width + 1}}/{total_steps}"


def _short(number: float) -> str:
    for limit, suffix in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if number >= limit:
            return f"{number / limit:.1f}{suffix}"
    return f"{number:.0f}"


def _clock(seconds: float) -> str:
    minutes, second = divmod(round(seconds), 60)
    hours, minute = divmod(minutes, 60)
    return f"{hours}:{minute:02}:{second:02}" if hours else f"{minute}:{second:02}"

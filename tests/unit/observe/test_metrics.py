"""Metrics on disk, in TensorBoard and on the console, through resumes and crashes."""

from __future__ import annotations

import json
import math
from typing import Any

import numpy as np
import pytest

from megatron_hyena.errors import UserError
from megatron_hyena.observe.metrics import (
    MetricsLog,
    bits_per_base,
    console_line,
    read_metrics,
)

STEP = {
    "loss": 1.3312,
    "bits_per_base": 1.92053,
    "grad_norm": 0.4123,
    "lr": 2e-3,
    "tokens": 120 * 5400,
    "tokens_per_second": 31_230.0,
}


def log_steps(run_dir, steps, resume_step=0, loss=1.0):
    with MetricsLog(run_dir, total_steps=10, resume_step=resume_step) as log:
        for step in steps:
            log.log(step, {"loss": loss, "lr": 1e-3})


def logged(run_dir):
    return [(record["step"], record["loss"]) for record in read_metrics(run_dir / "metrics.jsonl")]


def test_each_step_is_one_object_and_one_console_line(tmp_path, capsys):
    not_a_float: Any = np.float32(1.25)
    with MetricsLog(tmp_path, total_steps=600) as log:
        log.log(120, STEP)
        on_disk = (tmp_path / "metrics.jsonl").read_text()  # flushed, not only when closed
        log.log(240, STEP | {"loss": not_a_float})
    assert json.loads(on_disk) == {"step": 120, **STEP}
    assert [record["loss"] for record in read_metrics(tmp_path / "metrics.jsonl")] == [1.3312, 1.25]
    output = capsys.readouterr().out.splitlines()
    assert output[0] == (
        "step  120/600  loss 1.3312  bits/base 1.9205  grad 0.41  lr 2.0e-03  31.2k tok/s  eta 1:23"
    )
    assert len(output) == 2


def test_validation_has_its_own_file(tmp_path, capsys):
    with MetricsLog(tmp_path, total_steps=600) as log:
        log.log(100, STEP)
        log.log_validation(100, {"valid_loss": 1.34, "valid_bits_per_base": 1.9332})
    assert [record["step"] for record in read_metrics(tmp_path / "metrics.jsonl")] == [100]
    (record,) = read_metrics(tmp_path / "validation.jsonl")
    assert record == {"step": 100, "valid_loss": 1.34, "valid_bits_per_base": 1.9332}
    last = capsys.readouterr().out.splitlines()[-1]
    assert last == "step  100/600  loss 1.3400  bits/base 1.9332  (validation)"


def test_a_disabled_log_touches_nothing(tmp_path, capsys):
    with MetricsLog(tmp_path / "run", total_steps=10, enabled=False) as log:
        log.log(1, STEP)
        log.log_validation(1, STEP)
    assert not (tmp_path / "run").exists()
    assert capsys.readouterr().out == ""


def test_resume_drops_what_came_later(tmp_path):
    log_steps(tmp_path, range(1, 8))
    log_steps(tmp_path, range(6, 9), resume_step=5, loss=2.0)
    assert logged(tmp_path) == [(s, 1.0) for s in range(1, 6)] + [(s, 2.0) for s in range(6, 9)]
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "metrics.jsonl",
        "tensorboard",
        "validation.jsonl",
    ]


def test_a_fresh_start_in_an_old_directory_forgets_it(tmp_path):
    log_steps(tmp_path, range(1, 8))
    log_steps(tmp_path, [1], loss=3.0)
    assert logged(tmp_path) == [(1, 3.0)]


@pytest.mark.parametrize("torn", ['{"step": 4, "lo', '{"step": 4, "loss": 1.0}', "\x00\x00", "{}"])
def test_a_torn_last_line_is_tolerated(tmp_path, torn):
    log_steps(tmp_path, [1, 2, 3])
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write(torn)
    whole = [4] if torn.endswith("1.0}") else []  # only its newline was lost
    assert [step for step, _ in logged(tmp_path)] == [1, 2, 3, *whole]
    log_steps(tmp_path, [5], resume_step=4)
    assert [step for step, _ in logged(tmp_path)] == [1, 2, 3, *whole, 5]


def test_damage_before_the_last_line_is_an_error_that_names_it(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1, "loss": 1.0}\nrubbish\n{"step": 3, "loss": 1.0}\n')
    with pytest.raises(UserError, match=r"metrics.jsonl, line 2 is not a record"):
        read_metrics(path)
    with pytest.raises(UserError, match="line 2"):
        MetricsLog(tmp_path, total_steps=10, resume_step=3)
    assert "rubbish" in path.read_text()
    with pytest.raises(UserError, match="does not exist"):
        read_metrics(tmp_path / "other.jsonl")


def test_values_that_json_lacks_become_null_and_read_as_nan(tmp_path, capsys):
    with MetricsLog(tmp_path, total_steps=10) as log:
        log.log(1, {"loss": math.nan, "grad_norm": math.inf, "lr": 1e-3})
    record = json.loads((tmp_path / "metrics.jsonl").read_text())
    assert record == {"step": 1, "loss": None, "grad_norm": None, "lr": 1e-3}
    assert math.isnan(read_metrics(tmp_path / "metrics.jsonl")[0]["loss"])
    assert "loss nan  grad inf" in capsys.readouterr().out
    log_steps(tmp_path, [2], resume_step=1)  # the rewrite keeps nulls valid JSON
    assert json.loads((tmp_path / "metrics.jsonl").read_text().splitlines()[0])["loss"] is None


def test_tensorboard_shows_each_step_once_after_a_resume(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    log_steps(tmp_path, range(1, 8))
    log_steps(tmp_path, range(6, 9), resume_step=5, loss=2.0)
    with MetricsLog(tmp_path, total_steps=10, resume_step=8) as log:
        log.log_validation(8, {"valid_loss": 1.5})
    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    scalars = [(event.step, event.value) for event in events.Scalars("train/loss")]
    assert scalars == [(s, 1.0) for s in range(1, 6)] + [(s, 2.0) for s in range(6, 9)]
    assert [event.value for event in events.Scalars("valid/loss")] == [1.5]


@pytest.mark.parametrize(
    ("values", "ending"),
    [
        ({"loss": 1.0}, "loss 1.0000"),
        ({"tokens": 1000, "tokens_per_second": 0.0}, "0 tok/s"),
        ({"tokens": 1000, "tokens_per_second": math.nan}, "/1000"),
        ({"tokens": 1_000_000, "tokens_per_second": 1000.0}, "1.0k tok/s  eta 2:30:00"),
        ({"tokens": 4_000_000_000, "tokens_per_second": 2.5e6}, "2.5M tok/s  eta 4:00:00"),
    ],
)
def test_console_line_leaves_out_what_is_unknown(values, ending):
    assert console_line(100, 1000, values).endswith(ending)


def test_bits_per_base():
    assert bits_per_base(math.log(4)) == pytest.approx(2.0)

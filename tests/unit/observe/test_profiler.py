"""Throughput on a clock set by hand, and peak memory of a process of known size."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest

from megatron_hyena.observe.profiler import Throughput, peak_memory_gb


class Clock:
    def __init__(self):
        self.now = 100.0

    def __call__(self):
        return self.now


def steps(meter, clock, seconds, tokens=1000):
    for duration in seconds:
        clock.now += duration
        meter.step(tokens)


def test_the_first_step_is_left_out():
    clock = Clock()
    meter = Throughput(clock)
    steps(meter, clock, [50.0, 2.0, 2.0])
    assert meter.interval() == pytest.approx(500.0)
    steps(meter, clock, [1.0])
    assert meter.interval() == pytest.approx(1000.0)
    assert meter.overall() == pytest.approx(3000 / 5.0)


def test_a_lone_first_step_tells_its_own_speed():
    clock = Clock()
    meter = Throughput(clock)
    assert meter.interval() == meter.overall() == 0.0
    steps(meter, clock, [50.0])
    assert meter.interval() == meter.overall() == pytest.approx(20.0)
    steps(meter, clock, [2.0])
    assert meter.interval() == meter.overall() == pytest.approx(500.0)
    assert meter.interval() == 0.0


@pytest.mark.parametrize("steps_before", [1, 2])
def test_pauses_do_not_count(steps_before):
    clock = Clock()
    meter = Throughput(clock)
    steps(meter, clock, [2.0] * steps_before)
    with meter.paused():
        clock.now += 1000.0
    steps(meter, clock, [2.0])
    assert meter.interval() == meter.overall() == pytest.approx(500.0)


def test_peak_memory_is_that_of_this_process_alone():
    """A child holds 256 MiB and lets go; its launcher, far larger, must not show."""
    ballast = np.ones(1 << 26)  # 512 MiB in this process
    code = (
        "import sys; from megatron_hyena.observe.profiler import peak_memory_gb as peak\n"
        "before = peak(); block = bytearray(b'x') * (256 << 20); del block\n"
        "print(before, peak())"
    )
    output = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    ).stdout
    before, after = map(float, output.split())
    assert before < 0.2
    assert 0.25 < after < 0.5
    assert peak_memory_gb() > ballast.nbytes / 2**30

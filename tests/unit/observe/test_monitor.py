"""The monitor of forward passes: what it counts, and that it leaves the model as it was."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from megatron_hyena import HyenaPerformanceMonitor
from megatron_hyena.observe import monitor as module
from megatron_hyena.observe.profiler import peak_memory_gb


class Recorder(nn.Module):
    """Counts its calls, and notes in which state they came."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Dropout(0.5)
        self.calls: list[tuple[tuple[int, ...], bool, bool]] = []

    def forward(self, x: Tensor, scale: float = 1.0) -> Tensor:
        self.calls.append((tuple(x.shape), self.inner.training, torch.is_grad_enabled()))
        return self.inner(x.float()) * scale


class Clock:
    """Time that goes on by `seconds` at each second look: by one pass."""

    def __init__(self, seconds: list[float]) -> None:
        self.now, self.seconds, self.looks = 100.0, seconds, 0

    def perf_counter(self) -> float:
        if self.looks % 2:
            self.now += self.seconds[self.looks // 2]
        self.looks += 1
        return self.now


def test_tokens_per_second_are_all_tokens_over_all_seconds(monkeypatch) -> None:
    """Rows of a batch count; the mean of lengths over the mean of seconds is not the rate."""
    monkeypatch.setattr(module, "time", Clock([1.0, 0.5, 4.5]))
    watch, model = HyenaPerformanceMonitor(), Recorder()
    for batch, length in ((2, 100), (1, 50), (4, 300)):
        watch.monitor_forward_pass(model, torch.zeros(batch, length))
    stats = watch.stats()
    assert stats is not None
    assert stats.passes == 3
    assert stats.average_length == 150
    assert stats.average_seconds == 2.0
    assert stats.tokens_per_second == pytest.approx((200 + 50 + 1200) / 6.0)
    assert watch.forward_times == [1.0, 0.5, 4.5]
    assert watch.sequence_lengths == [100, 50, 300]


def test_first_passes_of_each_shape_are_not_measured() -> None:
    watch, model = HyenaPerformanceMonitor(warmup=2), Recorder()
    for length in (10, 10, 20, 10):
        watch.monitor_forward_pass(model, torch.zeros(1, length))
    assert len(model.calls) == 3 + 1 + 3 + 1
    assert len(watch.forward_times) == 4
    other = Recorder()
    watch.monitor_forward_pass(other, torch.zeros(1, 10))
    assert len(other.calls) == 3
    cold = Recorder()
    HyenaPerformanceMonitor(warmup=0).monitor_forward_pass(cold, torch.zeros(1, 10))
    assert len(cold.calls) == 1


def test_dropout_is_off_no_gradient_is_kept_and_every_mode_comes_back() -> None:
    watch, model = HyenaPerformanceMonitor(), Recorder()
    model.train()
    model.inner.eval()
    x = torch.ones(1, 50)
    assert torch.equal(watch.monitor_forward_pass(model, x), x)
    assert [(training, grad) for _, training, grad in model.calls] == [(False, False)] * 2
    assert model.training
    assert not model.inner.training
    assert torch.is_grad_enabled()


def test_modes_come_back_after_a_failure() -> None:
    watch, model = HyenaPerformanceMonitor(), Recorder().train()
    with pytest.raises(TypeError):
        watch.monitor_forward_pass(model, torch.zeros(1, 5), no_such_argument=1)
    assert model.training
    assert model.inner.training
    assert watch.stats() is None


def test_other_inputs_reach_the_model() -> None:
    found = HyenaPerformanceMonitor().monitor_forward_pass(Recorder(), torch.ones(1, 5), scale=3.0)
    assert torch.equal(found, torch.full((1, 5), 3.0))


def test_memory_on_a_cpu_is_the_processs_peak_and_says_so() -> None:
    watch = HyenaPerformanceMonitor()
    before = peak_memory_gb() * 1024
    watch.monitor_forward_pass(Recorder(), torch.zeros(1, 5))
    stats = watch.stats()
    assert stats is not None
    assert stats.memory_kind == "process peak"
    assert before <= stats.peak_memory_mb <= peak_memory_gb() * 1024


def test_what_is_printed(capsys) -> None:
    watch = HyenaPerformanceMonitor()
    watch.print_stats()
    assert capsys.readouterr().out == "No performance data recorded\n"
    watch.monitor_forward_pass(Recorder(), torch.zeros(2, 5))
    watch.print_stats()
    printed = capsys.readouterr().out
    for text in ("1 forward passes", "length: 5", "process peak", "tokens per second"):
        assert text in printed
    watch.reset_stats()
    assert watch.stats() is None

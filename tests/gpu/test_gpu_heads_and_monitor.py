"""Heads, public operators and the monitor on a GPU."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from megatron_hyena import (
    HyenaGLT,
    HyenaOperator,
    HyenaPerformanceMonitor,
    RegressionHead,
    SequenceClassificationHead,
    TokenClassificationHead,
    fine_tune_hyena_for_task,
)
from tests.oracles.drawing import disturb, draw_bytes, small_config

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]


class Large(nn.Module):
    """Holds 256 MiB for a moment."""

    def forward(self, x: Tensor) -> Tensor:
        return x.new_zeros(64, 1 << 20).sum() + x


def test_memory_is_the_devices_peak_of_the_pass() -> None:
    watch = HyenaPerformanceMonitor()
    watch.monitor_forward_pass(Large(), torch.zeros(1, 5, device="cuda"))
    stats = watch.stats()
    assert stats is not None
    assert stats.memory_kind == "device peak"
    assert 256 <= stats.peak_memory_mb < 400
    assert stats.average_seconds > 0


def test_heads_equal_those_on_the_cpu() -> None:
    torch.manual_seed(0)
    states, mask = torch.randn(3, 20, 8), torch.ones(3, 20)
    mask[1, 5:] = 0
    mask[2] = 0
    for head in (
        *(
            SequenceClassificationHead(8, 3, pooling=p)
            for p in ("mean", "last", "max", "attention")
        ),
        TokenClassificationHead(8, 3),
        RegressionHead(8, 2, loss="poisson"),
    ):
        expected = head.eval()(states, mask)
        found = head.cuda()(states.cuda(), mask.cuda())
        torch.testing.assert_close(found.cpu(), expected, rtol=1e-4, atol=1e-5)


def test_operator_and_adapted_model_stay_on_the_device() -> None:
    operator = HyenaOperator(32, 500).cuda()
    assert operator(torch.randn(1, 500, 32, device="cuda")).is_cuda
    model = HyenaGLT(small_config("HA", hyena_filter_size=50))
    disturb(model)
    adapted = fine_tune_hyena_for_task(model.cuda(), "variant_calling")
    ids = draw_bytes(1, 30).cuda()
    assert adapted(ids).logits.is_cuda

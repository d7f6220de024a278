"""Both forms of a short convolution, in any number of cache-sized pieces, are one function."""

from __future__ import annotations

import pytest
import torch
from torch.autograd import gradcheck

from megatron_hyena.ops import fir


@pytest.mark.parametrize("cached", [1, 40, 1 << 18])
@pytest.mark.parametrize(("length", "taps"), [(9, 3), (2, 3), (1, 7), (20, 8)])
def test_pieces_and_forms_agree(
    monkeypatch: pytest.MonkeyPatch, cached: int, length: int, taps: int
) -> None:
    generator = torch.Generator().manual_seed(0)
    z = torch.randn(4, 2, length, dtype=torch.float64, generator=generator, requires_grad=True)
    w = torch.randn(2, taps, dtype=torch.float64, generator=generator, requires_grad=True)
    monkeypatch.setattr(fir, "CACHED_ELEMENTS", cached)
    assert gradcheck(fir.causal_fir, (z, w))
    shifted = fir.causal_fir(z, w)
    monkeypatch.setattr(fir, "SHIFTED_TAPS", 0)
    torch.testing.assert_close(shifted, fir.causal_fir(z, w), rtol=0, atol=1e-12)

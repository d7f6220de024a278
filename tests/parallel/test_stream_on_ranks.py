"""A stream on tensor ranks reads what the dense model reads; shared sequences are refused."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from megatron_hyena.errors import UserError
from megatron_hyena.model.hyena_glt import HyenaGLT
from megatron_hyena.model.stream import Stream
from tests.oracles.drawing import open_branches
from tests.oracles.merged_models import dna, merged_config
from tests.parallel.ranks import run_ranks

pytestmark = pytest.mark.parallel
PATTERNS = ["S(SMLA)W", "GH"]
LENGTH = 45


def model_of(pattern: str, provider=None) -> HyenaGLT:
    config = merged_config(pattern, slots=6, router_input="trunk")
    model = HyenaGLT(config, provider, seed=2).double().eval()
    open_branches(model, model.provider.rank, model.provider.size)
    return model


def on_ranks() -> tuple[dict[str, Tensor], list[str]]:
    """Logits by pattern, and what layouts that share a sequence say."""
    from megatron_hyena.parallel.mesh import build_mesh, destroy_mesh
    from megatron_hyena.parallel.provider import MegatronProvider

    mesh, found, refusals = build_mesh(2, 1), {}, []
    for pattern in PATTERNS:
        stream = Stream(model_of(pattern, MegatronProvider(mesh, False, {})))
        pieces = [stream.feed(piece).logits for piece in dna(2, LENGTH).split(11, dim=1)]
        found[pattern] = torch.cat(pieces, dim=1)
    with pytest.raises(UserError) as refused:
        Stream(model_of("S", MegatronProvider(mesh, True, {})))
    refusals.append(str(refused.value))
    destroy_mesh()
    mesh = build_mesh(1, 2)
    with pytest.raises(UserError) as refused:
        Stream(model_of("S", MegatronProvider(mesh, False, {"S": "halo"})))
    refusals.append(str(refused.value))
    destroy_mesh()
    return found, refusals


def test_streams_on_tensor_ranks(tmp_path):
    for found, refusals in run_ranks(on_ranks, 2, tmp_path):
        for pattern, logits in found.items():
            with torch.no_grad():
                whole = model_of(pattern)(dna(2, LENGTH))
            assert (logits - whole.logits).abs().max() < 1e-11
        assert len(refusals) == 2
        for refusal in refusals:
            assert "shares each sequence between 2 ranks; read pieces with" in refusal

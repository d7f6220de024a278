"""Additions of low rank: the function and the gradients of W + s B A, merged and exported."""

from __future__ import annotations

import peft
import pytest
import torch
from torch.func import functional_call

from megatron_hyena import HyenaGLT, HyenaGLTConfig
from megatron_hyena.errors import UserError
from megatron_hyena.finetune.lora import Lora

TARGETS = ("projection", "output", "gate_value")
CONFIG = HyenaGLTConfig(
    pattern="S(MA)0.5L", hidden_size=16, num_heads=2, num_filter_groups=4, window=4, vocab_size=128
)


@pytest.fixture
def trained():
    """A trunk with additions that are not 0, in double precision, and ids."""
    trunk = HyenaGLT(CONFIG, seed=1).double()
    lora = Lora(trunk, rank=3, alpha=6.0, targets=TARGETS, seed=5)
    generator = torch.Generator().manual_seed(0)
    for name, parameter in trunk.named_parameters():
        if parameter.requires_grad:
            assert "lora" in name
            with torch.no_grad():
                parameter.normal_(0, 0.3, generator=generator)
    return lora, torch.randint(65, 90, (2, 24), generator=generator)


def additions(lora):
    """(A, B) by the name of the matrix."""
    return {
        lora.names[id(w.get_param())]: (w.lora_A["default"].weight, w.lora_B["default"].weight)
        for w in lora._wrappers()
    }


def test_it_computes_with_w_plus_s_b_a(trained):
    lora, ids = trained
    plain = HyenaGLT(CONFIG, seed=1).double()
    found = additions(lora)
    matrices = {n for n, p in plain.named_parameters() if n.rpartition(".")[2] in TARGETS}
    assert set(found) == matrices and len(matrices) == 16
    copies = {n: [x.detach().clone().requires_grad_() for x in pair] for n, pair in found.items()}
    changed = {n: plain.get_parameter(n) + 2.0 * b @ a for n, (a, b) in copies.items()}
    wanted = functional_call(plain, changed, (ids,)).last_hidden_state
    states = lora.trunk(ids).last_hidden_state
    assert torch.allclose(states, wanted, rtol=0, atol=1e-12)
    for result in (states, wanted):
        result.square().sum().backward()
    for name, pair in found.items():
        for parameter, copy in zip(pair, copies[name], strict=True):
            scale = copy.grad.abs().max()
            assert scale > 0 and (parameter.grad - copy.grad).abs().max() < 1e-9 * scale, name
    assert all(p.grad is None for p in lora._own())


def test_merged_it_is_the_same_to_the_last_digit(trained):
    lora, ids = trained
    before = {name: p.clone() for name, p in lora.trunk.named_parameters()}
    merged = HyenaGLT(CONFIG).double()
    weights = lora.merged()
    assert set(weights) == {name for name, _ in merged.named_parameters()}
    merged.load_state_dict(weights, strict=False)
    for model in (merged, lora.trunk):
        model.eval()
    assert torch.equal(merged(ids).logits, lora.trunk(ids).logits)
    assert all(torch.equal(p, before[name]) for name, p in lora.trunk.named_parameters())
    lora.trunk.load_state_dict(lora.restored(weights), strict=False)
    assert torch.equal(merged(ids).logits, lora.trunk(ids).logits)


def test_peft_reads_what_is_written(trained, tmp_path):
    lora, ids = trained
    lora.save(tmp_path / "adapter", "base")
    loaded = peft.PeftModel.from_pretrained(HyenaGLT(CONFIG, seed=1).double(), tmp_path / "adapter")
    found = loaded.eval()(ids).logits
    # The file holds fp64, and peft takes it as it is.
    assert torch.allclose(found, lora.trunk.eval()(ids).logits, rtol=0, atol=1e-12)


def test_it_begins_as_nothing_and_the_same_everywhere():
    trunks = [HyenaGLT(CONFIG, seed=1) for _ in range(3)]
    ids = torch.randint(65, 90, (1, 16))
    state = torch.random.get_rng_state()
    first = Lora(trunks[0], 2, 4.0, TARGETS, seed=5)
    assert torch.equal(torch.random.get_rng_state(), state)
    torch.rand(3)
    second = Lora(trunks[1], 2, 4.0, TARGETS, seed=5)
    for name, (a, b) in additions(first).items():
        assert torch.equal(a, additions(second)[name][0]) and not b.any() and a.any()
    assert torch.equal(trunks[0].eval()(ids).logits, trunks[2].eval()(ids).logits)


def test_no_such_matrix():
    with pytest.raises(UserError, match="names no matrix of the model; its blocks have"):
        Lora(HyenaGLT(CONFIG), 2, 4.0, ("q_proj",), seed=0)

"""Base by base is the parallel pass: any prompt, any lengths side by side, every kind of layer."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from megatron_hyena.errors import UserError
from megatron_hyena.generation.decoder import Decoder
from megatron_hyena.generation.plan import Plan
from megatron_hyena.model.hyena_glt import HyenaGLT
from tests.oracles.drawing import open_branches, small_config, small_model
from tests.oracles.merged_models import (
    KINDS,
    NESTED,
    assert_lively,
    dna,
    lively_model,
    merged_config,
)

MIXED = [1, 2, 3, 23, 24, 3, 26]
"""Around the featurizer's 3 taps, the 7 of `S`, the 24 of `M` and windows of 24; one twice."""
PATTERNS: dict[str, dict[str, Any]] = {
    **{sign: {} for sign in "SMLHGAW"},
    "SMLHGAW": {"hyena_order": 3, "hyena_output_gate": True, "ffn_hidden_size": -1},
    "HH": {"hyena_filter_size": 9, "use_fft_conv": False},
    "SLWAM": {
        **{"li_poles": "complex", "projection_bias": True, "se_skip": True, "rope_scaling": 3.0},
        **{"rope_bf16": True},
        **{"norm_eps_outside": True, "mlp_activation": "evo2", "mr_decay": "none"},
        **{"tie_embeddings": False, "type_embedding": "rna"},
    },
}


def worst(model: HyenaGLT, lengths: list[int], room: int, plan: Plan | None = None) -> float:
    """The largest difference between logits of the steps and of the whole pass, in any row."""
    ids = dna(len(lengths), max(lengths) + room, seed=5)
    with torch.no_grad():  # what stands behind a row's end is not seen from before it
        whole = model(ids)
    if model.stages:
        assert_lively(whole)
    rows = torch.arange(len(lengths))
    prompts = [ids[row, :length] for row, length in enumerate(lengths)]
    decoder = Decoder.read(model, prompts, room, plan=plan)
    difference, place = torch.zeros((), dtype=torch.float64), torch.tensor(lengths)
    for _ in range(room):
        assert torch.equal(decoder.length_B, place)
        difference = torch.maximum(
            difference, (decoder.logits - whole.logits[rows, place - 1]).abs().max()
        )
        decoder.step(ids[rows, place])
        place = place + 1
    return float(difference)


@pytest.mark.parametrize("pattern", PATTERNS)
def test_every_layer(pattern: str) -> None:
    model = small_model(small_config(pattern, mr_filter_length=24, **PATTERNS[pattern])).eval()
    open_branches(model)
    assert worst(model, MIXED, 30) < 1e-10
    assert worst(model, [5, 5], 30) < 1e-10  # rows that are always at one place


@pytest.mark.parametrize("pattern", ["SMLAW", "S(MLA)S", "S(M(WL))A"])
def test_prompts_around_every_border(pattern: str) -> None:
    """Of 128 taps and of windows of 128, the published sizes, some bases before and behind."""
    lengths = [1, 2, 3, 6, 7, 126, 127, 128, 129, 140]
    changes = {"mr_filter_length": 128, "window": 128, "attention_window": 127}
    model = lively_model(small_config(pattern, **changes), dna(2, 512))
    assert worst(model, lengths, 12) < 1e-10


@pytest.mark.slow
@pytest.mark.parametrize("pattern", ["SMLAW", "S(MLA)S", "H(G)"])
def test_prompts_of_every_length(pattern: str) -> None:
    model = lively_model(small_config(pattern, window=64, max_sequence_length=320), dna(2, 256))
    assert worst(model, list(range(1, 141)), 70) < 1e-10


@pytest.mark.parametrize("kind", [k for k in KINDS if KINDS[k].get("merger") != "precomputed"])
def test_every_way_to_merge(kind: str) -> None:
    changes = dict(KINDS[kind])
    if not {"merge_ratio", "window"} & changes.keys() and changes.get("merger") != "static":
        changes["slots"] = 6
    pattern = "S(M)S" if kind == "adaptive kmer" else NESTED
    model = lively_model(merged_config(pattern, **changes), dna(2, 96))
    assert worst(model, [1, 2, 7, 8, 9, 37, 33], 40) < 1e-10


@pytest.mark.parametrize("pattern", ["S(SMLA)S", "L(WL(AL)W)L", "(H)(G)", "H(S)G", "(S)(A)0.7A"])
def test_merged_patterns(pattern: str) -> None:
    model = lively_model(merged_config(pattern, slots=4), dna(2, 96))
    assert worst(model, [1, 8, 20, 37], 40) < 1e-10
    assert worst(model, [15], 10) < 1e-10  # nearly as many steps for the open window


def test_empty_slots_pass_in_every_window() -> None:
    """Budgets above what opens, so that blocks inside meet slots that no chunk took."""
    model = lively_model(merged_config("S(SMLW(SA))S", slots=8), dna(2, 96))
    with torch.no_grad():
        output = model(dna(7, 60, seed=5))
    assert output.merges[0].chunks.filled_nKB.double().mean() < 0.8
    assert worst(model, [1, 5, 20], 40) < 1e-10


def test_a_long_prompt_is_read_in_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("megatron_hyena.generation.decoder.PIECE", 20)
    model = lively_model(merged_config("SL(MA)W"), dna(2, 96))
    assert worst(model, [53, 16, 40], 9) < 1e-10


def test_rows_are_chosen_and_repeated() -> None:
    """Some leave, some go on twice: each as if it were alone."""
    model = lively_model(merged_config("SL(MAW)WA"), dna(2, 96))
    ids = dna(3, 60, seed=5)
    with torch.no_grad():
        whole = model(ids).logits
    decoder = Decoder.read(model, [ids[0, :9], ids[1, :30], ids[2, :11]], room=20)
    decoder.select(torch.tensor([2, 0, 2]))
    place, rows = torch.tensor([11, 9, 11]), torch.tensor([2, 0, 2])
    for _ in range(20):
        assert (decoder.logits - whole[rows, place - 1]).abs().max() < 1e-10
        decoder.step(ids[rows, place])
        place = place + 1


def test_types_of_sequences() -> None:
    model = small_model(small_config("SA", type_embedding="dna")).eval()
    ids, types = dna(2, 12), torch.tensor([2, 1])
    with torch.no_grad():
        whole = model(ids, tracks={"type": types[:, None].expand_as(ids)}).logits
    decoder = Decoder.read(model, [ids[0, :5], ids[1, :7]], room=5, types=types)
    for step in range(5):
        expected = torch.stack([whole[0, 4 + step], whole[1, 6 + step]])
        assert (decoder.logits - expected).abs().max() < 1e-10
        decoder.step(torch.stack([ids[0, 5 + step], ids[1, 7 + step]]))


@pytest.mark.parametrize(("dtype", "limit"), [(torch.float32, 1e-4), (torch.bfloat16, 0.1)])
def test_other_precisions(dtype: torch.dtype, limit: float) -> None:
    """As near as rounding allows; filters stay in fp32 where weights are bfloat16."""
    model = HyenaGLT(small_config("SMLA(LW)", window=8, init_std=0.1)).to(dtype).eval()
    ids = dna(1, 40)
    with torch.no_grad():
        whole = model(ids).logits[0]
    decoder = Decoder.read(model, [ids[0, :17]], room=20)
    for place in range(17, 37):
        assert (decoder.logits[0] - whole[place - 1]).abs().max() < limit * whole.abs().max()
        decoder.step(ids[:, place])


def test_memory_is_constant_without_attention() -> None:
    sizes = {}
    for pattern in ("SMLW", "S(SMLW)S", "A"):
        model = small_model(merged_config(pattern))
        decoder = Decoder.read(model, [dna(1, 8)[0]], room=1000)
        first = decoder.memory_bytes
        for base in dna(1, 300)[0]:
            decoder.step(base[None])
        sizes[pattern] = decoder.memory_bytes / first
    assert sizes["SMLW"] == sizes["S(SMLW)S"] == 1
    assert 1.9 < sizes["A"] < 2.1  # room for 264, doubled


def test_the_model_is_shared_and_trains_on() -> None:
    model = small_model(small_config("SLA"))
    Decoder.read(model, [dna(1, 5)[0]], room=2).step(dna(1, 1)[0])
    model.train()(dna(2, 9), labels=dna(2, 9)).loss.backward()
    assert all(parameter.grad is not None for parameter in model.parameters())


def refused(pattern: str, prompts: list[Tensor], room: int = 2, **changes: Any) -> str:
    with pytest.raises(UserError) as caught:
        Decoder.read(small_model(small_config(pattern, **changes)), prompts, room)
    return str(caught.value)


def test_what_cannot_be_written_is_refused() -> None:
    some = [dna(1, 5)[0]]
    assert "causal is false" in refused("S", some, causal=False)
    assert "prompt is empty" in refused("S", [*some, dna(1, 5)[0, :0]])
    assert "merger=precomputed" in refused("(S)", some, merger="precomputed", window=8)
    assert "252 bytes exceeds model.max_sequence_length=251" in refused("H", some, room=247)

"""Models that are not causal: what they see and learn, and how merging treats hidden bytes."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from megatron_hyena import HyenaGLT, HyenaGLTConfig
from megatron_hyena.checkpoint.format import check_architecture, check_causal
from megatron_hyena.compat.adaptation import fine_tune_hyena_for_task, is_causal
from megatron_hyena.config import load_config, plain_values
from megatron_hyena.errors import UserError
from megatron_hyena.model.count import cost, flops_per_token
from megatron_hyena.ops.merging import admit
from tests.oracles.drawing import draw_bytes, small_config, small_model

MASK, PAD = 2, 1
MERGED = small_config("S(SA)W", causal=False, window=16, slots=16, merge_ratio=0.5)


def letters(rows: int, length: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.tensor(list(b"ACGT"))[torch.randint(0, 4, (rows, length), generator=generator)]


@pytest.mark.parametrize("pattern", ["SMLHAW", "S(SLA)0.5W"])
def test_every_byte_changes_its_document_and_no_other(pattern: str) -> None:
    """Bytes before and behind; chunks may only spread what the layers inside of them see."""
    config = small_config(pattern, causal=False, window=8, slots=8, attention_window=40)
    model = small_model(config).eval()
    ids, documents = letters(1, 32), torch.tensor([[0] * 8 + [1] * 16 + [2] * 8])
    before = model(ids, document_ids=documents).logits
    for place in range(32):
        changed = ids.clone()
        changed[0, place] = ord("N")
        after = model(changed, document_ids=documents).logits
        moved = (after != before).any(-1)[0]
        assert torch.equal(moved, documents[0] == documents[0, place])


def test_padding_is_not_seen() -> None:
    model = small_model(small_config("SMLHAW", causal=False)).eval()
    ids = letters(2, 40)
    alone = model(ids[:, :27]).logits
    padded = ids.clone()
    padded[:, 27:] = PAD
    torch.testing.assert_close(model(padded).logits[:, :27], alone, rtol=1e-11, atol=1e-11)
    documents = torch.tensor([[0] * 11 + [3] * 29] * 2)
    expected = model(ids[:, 11:27]).logits
    found = model(padded, document_ids=documents).logits[:, 11:27]
    torch.testing.assert_close(found, expected, rtol=1e-11, atol=1e-11)


def test_merged_stages_refuse_lengths_that_would_be_padded() -> None:
    model = small_model(MERGED)
    with pytest.raises(UserError, match=r"30 bytes would be padded to 32, and with model\.causal"):
        model(letters(1, 30))
    assert model(letters(1, 32)).logits.shape == (1, 32, 256)


def test_complexity_of_the_whole_sequence_needs_a_model_that_sees_it() -> None:
    with pytest.raises(UserError, match="whole sequence, but the model is causal; use window or"):
        small_config("S(S)", complexity="global")
    config = small_config("S(S)", adaptive=True, complexity="global", causal=False)
    assert config.complexity == "global"


def test_labels_belong_where_they_stand() -> None:
    model = small_model(small_config("SA", causal=False)).eval()
    ids = draw_bytes(2, 20)
    labels = ids.clone()
    labels[:, ::3] = -100
    output = model(ids, labels=labels)
    nats = -output.logits.log_softmax(-1).gather(-1, ids[..., None])[..., 0]
    expected = nats[labels != -100].mean()
    torch.testing.assert_close(output.loss, expected, rtol=1e-12, atol=0)


@pytest.mark.parametrize("merger", ["wcc", "hnet", "precomputed"])
@pytest.mark.parametrize("pattern", ["S(SA)W", "S(S(A))"])
def test_hidden_bytes_have_chunks_of_their_own(merger: str, pattern: str) -> None:
    """With slots for all, in every stage; without a hidden byte, chunks are what they were."""
    config = small_config(
        pattern, causal=False, merger=merger, window=16, slots=16, merge_ratio=0.5
    )
    model = small_model(config).eval()
    ids = letters(3, 64)
    hidden = torch.rand(3, 64, generator=torch.Generator().manual_seed(1)) < 0.2
    ids[hidden] = MASK
    tracks = {"boundaries": torch.zeros(3, 64, dtype=torch.uint8)}
    (outer, *inner) = model(ids, tracks=tracks).merges
    opens = outer.chunks.opens_nWB.flatten(0, 1).t()
    behind = torch.zeros_like(hidden)
    behind[:, 1:] = hidden[:, :-1]
    assert opens[hidden | behind].all()
    others = opens[~(hidden | behind)].float().mean()
    assert (0.1 if merger == "wcc" else 0.05) < others < 0.7
    for merge in inner:  # slots of hidden bytes
        slots, of_slot = merge.below.hidden_LB, merge.chunks.opens_nWB.flatten(0, 1)
        assert slots is not None and int(slots.sum()) == int(hidden.sum())
        assert of_slot[slots].all()
        assert of_slot[slots.roll(1, 0) & merge.below.present][1:].all()
    if outer.gate_MB is not None:
        slots = outer.axis.hidden_LB
        assert slots is not None and (outer.gate_MB[slots] == 1).all()


def test_static_chunks_are_even_whatever_is_hidden() -> None:
    config = small_config("(S)0.5", causal=False, merger="static", window=8)
    ids = letters(2, 32)
    ids[0, ::3] = MASK
    opens = small_model(config)(ids).merges[0].chunks.opens_nWB
    assert torch.equal(opens[:, :, 0], opens[:, :, 1])


def test_protected_positions_come_first() -> None:
    """Against a loop over windows."""
    generator = torch.Generator().manual_seed(0)
    wanted, present, must = (
        torch.rand(200, 12, 3, generator=generator) < share for share in (0.5, 0.8, 0.25)
    )
    for slots in (1, 2, 5, 12):
        opens, anchors = admit(wanted, present, slots, must)
        for window in range(200):
            for row in range(3):
                here = [t for t in range(12) if present[window, t, row]]
                had = here[:1] + [t for t in here[1:] if must[window, t, row]]
                others = [t for t in here if t not in had and wanted[window, t, row]]
                found = opens[window, :, row].nonzero().flatten().tolist()
                assert found == sorted((had + others)[: slots if here else 0])
                assert anchors[window, :, row].nonzero().flatten().tolist() == had
    plain = admit(wanted, present, 5)
    none = admit(wanted, present, 5, torch.zeros_like(must))
    assert all(torch.equal(a, b) for a, b in zip(plain, none, strict=True))


def test_the_rate_counts_hidden_bytes_as_anchors() -> None:
    model = HyenaGLT(MERGED)
    rate = model.stages[0].rate
    ids = letters(2, 64)
    ids[:, 5:64:8] = MASK
    model.train()
    model.weighted_losses(ids, ids, torch.ones(2, 64))
    assert rate.take()[1] == 2 * (4 + 8 + 8)  # windows' firsts, hidden, and behind these


def test_thirty_steps_lower_the_loss_of_hidden_bytes() -> None:
    """A period of 7 letters: what is hidden stands before and behind; the first is always hidden.

    A causal model could not know the first letters: only from what follows them.
    """
    torch.manual_seed(0)
    model = HyenaGLT(
        HyenaGLTConfig(pattern="SA", hidden_size=64, num_heads=4, causal=False), seed=1
    )
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3)
    losses = []
    for step in range(30):
        period = letters(16, 7, seed=step)
        ids = period.repeat(1, 6)
        weights = torch.zeros(16, 42)
        weights[:, 0] = 1.0
        weights += (torch.rand(16, 42, generator=torch.Generator().manual_seed(step)) < 0.1).float()
        weights = weights.clamp(max=1.0)
        loss = model.weighted_losses(ids.masked_fill(weights > 0, MASK), ids, weights)[0]
        loss = loss / weights.sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[0] > 5.0
    assert sum(losses[-5:]) / 5 < 1.5, losses


def test_a_checkpoint_is_never_read_as_the_other_kind() -> None:
    here = Path("runs/x/checkpoints/step_00000001")
    kinds = [HyenaGLTConfig(pattern="A", causal=causal) for causal in (True, False)]
    for saved, asked in (kinds, kinds[::-1]):
        wrong = rf"model\.causal: {saved.causal} saved, {asked.causal} asked"
        with pytest.raises(UserError, match=wrong):
            check_architecture(plain_values(saved), asked, here)
        check_architecture(plain_values(saved), saved, here)
    older = {k: v for k, v in plain_values(kinds[0]).items() if k != "causal"}
    check_architecture(older, kinds[0], here)
    with pytest.raises(UserError, match=r"model\.causal: True saved, False asked"):
        check_architecture(older, kinds[1], here)


def test_what_needs_a_causal_model_says_so(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"x: generation needs a causal model, and this one was"):
        check_causal({"causal": False}, Path("x"), "generation")
    check_causal({}, Path("x"), "generation")
    model = HyenaGLT(small_config("SA", causal=False), seed=4)
    model.save_pretrained(tmp_path / "native")
    again = HyenaGLT.from_pretrained(tmp_path / "native")
    assert again.config == model.config
    assert torch.equal(again(draw_bytes(1, 9)).logits, model(draw_bytes(1, 9)).logits)


@pytest.mark.parametrize("pattern", ["SA", "S(S)0.5"])
def test_no_adaptation_makes_a_model_of_the_other_kind(pattern: str) -> None:
    model = HyenaGLT(small_config(pattern, causal=False, window=16))
    assert not is_causal(model) and is_causal(HyenaGLT(small_config(pattern, window=16)))
    with pytest.raises(UserError, match="generation needs a model trained causally"):
        fine_tune_hyena_for_task(model, "generation")
    with pytest.raises(UserError, match="this change needs other weights"):
        fine_tune_hyena_for_task(model, causal=True)
    attention = HyenaGLT(small_config("A", causal=False))  # of the same weights
    with pytest.raises(UserError, match="causal would make a bidirectional model something else"):
        fine_tune_hyena_for_task(attention, causal=True)


def test_costs_of_both_directions() -> None:
    """Hyena twice, attention once, over twice as many positions."""
    keys = ["model.hidden_size=64", "model.ffn_hidden_size=-1", "data.sequence_length=256"]

    def counted(pattern: str, causal: bool) -> tuple[int, float]:
        own = [f"model.pattern={pattern}", f"model.causal={str(causal).lower()}"]
        config = load_config(None, [*keys, *own])
        return cost(config, 1).parameters, flops_per_token(config.model, 256)

    ends, head = 256 * 64 + 64, 3 * 2 * 256 * 64
    for pattern in "SMLH":
        one, two = (counted(pattern, causal) for causal in (True, False))
        assert two[0] - ends - 64 == 2 * (one[0] - ends - 64)
        assert two[1] - head == pytest.approx(2 * (one[1] - head), rel=1e-12)
    one, two = (counted("A", causal) for causal in (True, False))
    assert one[0] == two[0]
    assert two[1] - one[1] == 3 * 2 * 256 * 64

"""Which bases are hidden, what is shown instead, and the batches of a masked model."""

from __future__ import annotations

from collections.abc import Callable
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch

from megatron_hyena.config import load_config
from megatron_hyena.data.alphabet import EOD, MASK, PAD, SequenceType
from megatron_hyena.data.batch import Batch
from megatron_hyena.data.loader import BatchIterator, evaluation_batches, micro_batches
from megatron_hyena.data.masking import TRAINING, VALIDATION, Masking
from megatron_hyena.data.packing import PackedStream
from megatron_hyena.data.windows import ChosenWindows, SequentialWindows, WindowStream
from pretrain.data import masking_of

DNA = np.zeros(4096, dtype=np.uint8)


def bases(length: int = 4096, letters: bytes = b"ACGTacgt", seed: int = 0) -> np.ndarray:
    draw = np.random.default_rng(seed)
    return draw.choice(np.frombuffer(letters, np.uint8), length)


def test_draws_are_a_function_of_seed_position_and_purpose() -> None:
    shown, chosen = Masking(0.15, 1, 7).draw(bases(), DNA, 3)
    again, same = Masking(0.15, 1, 7).draw(bases(), DNA, 3)
    assert np.array_equal(shown, again) and np.array_equal(chosen, same)
    others = [
        Masking(0.15, 1, 8).draw(bases(), DNA, 3),
        Masking(0.15, 1, 7).draw(bases(), DNA, 4),
        Masking(0.15, 1, 7, VALIDATION).draw(bases(), DNA, 3),
    ]
    assert all(not np.array_equal(chosen, other) for _, other in others)
    assert TRAINING != VALIDATION
    # Of the first window of seed 7, for ever: a run that goes on must hide the same bases.
    first = Masking(0.15, 1, 7).draw(bases(), DNA, 0)[1]
    assert np.flatnonzero(first)[:6].tolist() == [3, 10, 15, 25, 32, 34]


@pytest.mark.parametrize(("fraction", "span"), [(0.15, 1), (0.15, 5), (0.5, 3), (0.02, 40)])
def test_shares_of_the_chosen(fraction: float, span: int) -> None:
    """Over 200 windows: within five standard errors of 80 %, 10 % and 10 %, in spans."""
    masking, kinds, edges = Masking(fraction, span, 1), np.zeros(3), np.zeros(2)
    lengths: list[int] = []
    for position in range(200):
        window = bases(seed=position)
        shown, chosen = masking.draw(window, DNA, position)
        assert np.array_equal(shown[~chosen], window[~chosen])
        hidden, kept = chosen & (shown == MASK), chosen & (shown == window)
        kinds += [hidden.sum(), (chosen & ~hidden & ~kept).sum(), kept.sum()]
        edges += [chosen[:64].mean() / 200, chosen[-64:].mean() / 200]
        starts = np.flatnonzero(np.diff(np.concatenate([[0], chosen, [0]])))
        lengths += list(starts[3:-2:2] - starts[2:-2:2])
    total, count = kinds.sum(), 200 * 4096
    assert abs(total / count - fraction) < 5 * np.sqrt(fraction * span / count)
    assert np.all(abs(edges - fraction) < 5 * np.sqrt(fraction * span / (200 * 64)))
    # One letter in eight is drawn again where another was meant.
    expected = np.array([0.8, 0.1 * 7 / 8, 0.1 + 0.1 / 8])
    assert np.all(abs(kinds / total - expected) < 5 * np.sqrt(expected / total))
    assert min(lengths) == span


def test_what_is_unknown_is_never_chosen_and_never_shown_instead() -> None:
    window = bases(letters=b"ACGTN")
    window[:9] = [EOD, PAD, MASK] * 3
    types = np.zeros(4096, dtype=np.uint8)
    types[2000:] = int(SequenceType.PROTEIN)
    window[2000:] = bases(2096, letters=b"NXWY")
    shown, chosen = Masking(0.6, 2, 0).draw(window, types, 0)
    unknown = (types == 0) & (window == ord("N")) | (types == 2) & (window == ord("X"))
    unknown[:9] = True
    assert not chosen[unknown].any()
    assert np.array_equal(shown[unknown], window[unknown])
    assert abs(chosen[~unknown].mean() - 0.6) < 0.05
    replaced = chosen & (shown != MASK) & (shown != window)
    assert set(shown[replaced & (types == 0)]) == set(b"ACGT")
    assert set(shown[replaced & (types == 2)]) == set(b"NWY")


def test_a_window_without_known_bases_is_left_alone() -> None:
    window = np.full(64, PAD, dtype=np.uint8)
    shown, chosen = Masking(0.9, 3, 0).draw(window, DNA[:64], 0)
    assert np.array_equal(shown, window) and not chosen.any()


@pytest.fixture(scope="module")
def shards(shards_of: Callable[..., Path], random_contigs: Callable[..., list[bytes]]) -> Path:
    return shards_of(random_contigs(900, 300, 40, 700, letters=b"ACGTN"))


def together(batches: list[Batch]) -> dict[str, torch.Tensor]:
    names = ("input_ids", "targets", "weights")
    return {name: torch.cat([getattr(b, name) for b in batches]) for name in names}


@pytest.mark.parametrize("kind", [WindowStream, PackedStream])
def test_batches_hide_what_the_masking_of_their_windows_says(
    shards: Path, kind: type[WindowStream]
) -> None:
    """The same on any ranks and micro-batches; targets are the bytes at their own places."""
    stream, masking = kind(shards, 32, seed=2), Masking(0.3, 2, 2)
    whole = together(micro_batches(stream, 5, 8, 8, 0, 1, masking))
    for row in range(8):
        window = stream.window(5 * 8 + row)
        shown, chosen = masking.draw(window.bases[:-1], window.types[:-1], 40 + row)
        assert torch.equal(whole["input_ids"][row], torch.from_numpy(shown.astype(np.int64)))
        assert torch.equal(whole["targets"][row], torch.from_numpy(window.bases[:-1]).long())
        assert torch.equal(whole["weights"][row] == 1, torch.from_numpy(chosen))
    assert whole["weights"].unique().tolist() == [0.0, 1.0]
    assert not (whole["targets"][whole["weights"] == 1] == ord("N")).any()
    parts = [micro_batches(stream, 5, 8, 2, rank, 2, masking) for rank in range(2)]
    cut = together(parts[0] + parts[1])
    assert all(torch.equal(cut[name], whole[name]) for name in whole)
    plain = together(micro_batches(stream, 5, 8, 8, 0, 1))
    assert torch.equal(plain["input_ids"], whole["targets"])
    documents = [
        b.documents
        for masked in (masking, None)
        for b in micro_batches(stream, 5, 8, 8, 0, 1, masked)
    ]
    assert (documents[0] is None) == (kind is WindowStream)
    if documents[0] is not None and documents[1] is not None:
        assert torch.equal(documents[0], documents[1])


def test_the_iterator_masks_and_goes_on_where_it_was(shards: Path) -> None:
    stream, masking = WindowStream(shards, 32, seed=2), Masking(0.15, 1, 2)

    def steps(start: int) -> list[torch.Tensor]:
        with BatchIterator(
            stream,
            start,
            global_batch_size=4,
            micro_batch_size=2,
            length_at=lambda step: 16,
            masking=masking,
        ) as batches:
            return [together(b)["input_ids"] for _, b in islice(batches, 5 - start)]

    whole, rest = steps(0), steps(3)
    assert all(torch.equal(a, b) for a, b in zip(whole[3:], rest, strict=True))
    expected = [b.in_pieces(16) for b in micro_batches(stream, 4, 4, 2, 0, 1, masking)]
    assert torch.equal(whole[4], together(expected)["input_ids"])
    assert (whole[4] == MASK).any()


def test_validation_hides_the_same_on_any_ranks(shards: Path) -> None:
    windows = ChosenWindows(SequentialWindows(shards, 32, context=1), 5)
    masking = Masking(0.4, 1, 0, VALIDATION)
    whole = together(list(evaluation_batches(windows, 5, masking=masking)))
    halves = [list(evaluation_batches(windows, 2, rank, 2, masking)) for rank in range(2)]
    rows = together([b for pair in zip(*halves, strict=True) for b in pair])
    for name, expected in whole.items():
        assert torch.equal(rows[name][:5], expected)
    assert rows["weights"][5:].sum() == 0 and (rows["input_ids"][5:] == PAD).all()
    assert 0 < whole["weights"].mean() < 0.5
    assert not whole["weights"][whole["targets"] == PAD].any()


def test_the_objective_decides() -> None:
    assert masking_of(load_config(None, []), TRAINING) is None
    keys = ["train.objective=mlm", "model.causal=false", "data.mask_span=3", "run.seed=5"]
    found = masking_of(load_config(None, keys), VALIDATION)
    assert found == Masking(0.15, 3, 5, VALIDATION)

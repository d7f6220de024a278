"""A step of a length curriculum shows what the step without one shows, with less context."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from megatron_hyena.config import Config, length_schedule, load_config
from megatron_hyena.data.batch import Batch
from megatron_hyena.data.loader import BatchIterator, micro_batches
from megatron_hyena.data.packing import PackedStream
from megatron_hyena.data.stream import TrainingStream
from megatron_hyena.data.windows import WindowStream
from megatron_hyena.model.hyena_glt import HyenaGLT

L, GLOBAL = 24, 12
Row = tuple[bytes, bytes, bytes]
"""Inputs, targets and weights of one sequence."""
SIZES: dict[str, Any] = {"global_batch_size": GLOBAL, "micro_batch_size": 4}


@pytest.fixture(scope="module", params=["windows", "packed"])
def stream(request, shards_of, random_contigs) -> TrainingStream:
    contigs = random_contigs(400, 3, 80, 25, 1, 190, 60, 60, letters=b"ACGTacgN")
    kind = PackedStream if request.param == "packed" else WindowStream
    return kind(shards_of(contigs), L, seed=6, augment_reverse_complement=True)


def expected_rows(stream: TrainingStream, step: int, length: int) -> list[Row]:
    """A step's pieces, cut here from the stream's own windows."""
    rows = []
    for position in range(step * GLOBAL, (step + 1) * GLOBAL):
        window = stream.window(position)
        numbers = window.documents
        for first in range(0, L, length):
            piece = window.bases[first : first + length + 1]  # its last byte: target alone
            weights = [float(chr(byte) not in "Nn\1") for byte in piece[1:]]
            if numbers is not None:
                for i in range(length):
                    weights[i] *= float(numbers[first + i] == numbers[first + i + 1])
            rows.append((bytes(piece[:-1]), bytes(piece[1:]), bytes(map(int, weights))))
    return rows


def rows_of(batches: list[Batch]) -> list[Row]:
    def written(row: torch.Tensor) -> bytes:
        return bytes(row.to(torch.uint8).tolist())

    return [
        (written(inputs), written(targets), written(weights))
        for batch in batches
        for inputs, targets, weights in zip(
            batch.input_ids, batch.targets, batch.weights, strict=True
        )
    ]


def cut_batches(
    stream: TrainingStream,
    step: int,
    length: int,
    micro: int = GLOBAL,
    rank: int = 0,
    ranks: int = 1,
) -> list[Batch]:
    """The micro-batches of a step in pieces of `length`."""
    whole = micro_batches(stream, step, GLOBAL, micro, rank, ranks)
    return [batch.in_pieces(length) for batch in whole]


@pytest.mark.parametrize("length", [2, 3, 4, 6, 8, 12, 24])
def test_pieces_are_the_windows_bytes_and_targets(stream, length):
    for step in (0, 5, 11):
        batches = cut_batches(stream, step, length, micro=4)
        assert len(batches) == 3
        assert all(batch.input_ids.shape == (4 * L // length, length) for batch in batches)
        assert rows_of(batches) == expected_rows(stream, step, length)


@pytest.mark.parametrize("length", [2, 8, 12])
def test_only_context_is_lost(stream, length):
    """All bytes, (byte, target) pairs and weights of a step are there, each exactly once."""

    def pairs(batches: list[Batch]) -> Counter[tuple[int, int, float]]:
        columns = [
            torch.cat([getattr(batch, name).flatten() for batch in batches]).tolist()
            for name in ("input_ids", "targets", "weights")
        ]
        return Counter(zip(*columns, strict=True))

    for step in range(8):
        whole = micro_batches(stream, step, GLOBAL, 4, 0, 1)
        cut = cut_batches(stream, step, length, micro=4)
        assert pairs(cut) == pairs(whole)
        assert sum(pairs(cut).values()) == GLOBAL * L
        for ours, theirs in zip(cut, whole, strict=True):
            assert ours.weights.sum() == theirs.weights.sum()


def test_a_piece_holds_the_documents_of_its_bytes(stream):
    for step in (0, 3):
        (whole,) = micro_batches(stream, step, GLOBAL, GLOBAL, 0, 1)
        (cut,) = cut_batches(stream, step, 8)
        if isinstance(stream, WindowStream):
            assert cut.documents is None
            continue
        for row in range(GLOBAL * L // 8):
            window = stream.window(step * GLOBAL + row // 3)
            assert window.documents is not None and cut.documents is not None
            first = row % 3 * 8
            assert cut.documents[row].tolist() == window.documents[first : first + 8].tolist()
        assert whole.documents is not None and whole.documents.unique().numel() > 1


def test_ranks_together_see_the_same_pieces(stream):
    for length in (3, 12):
        whole = rows_of(cut_batches(stream, 4, length))
        for micro, ranks in ((2, 2), (1, 4), (4, 3)):
            shares = [cut_batches(stream, 4, length, micro, rank, ranks) for rank in range(ranks)]
            assert [row for share in shares for row in rows_of(share)] == whole


def test_tracks_stay_with_their_bytes(stream):
    (batch,) = micro_batches(stream, 1, 6, 6, 0, 1)
    conservation = batch.input_ids.float() / 7
    conservation[:, ::5] = float("nan")
    opens = batch.input_ids == ord("A")
    tracks = {"conservation": conservation, "boundaries": opens}
    cut = replace(batch, tracks=tracks).in_pieces(4)
    assert {name: track.dtype for name, track in cut.tracks.items()} == {
        "conservation": torch.float32,
        "boundaries": torch.bool,
    }
    assert torch.equal(cut.tracks["boundaries"], cut.input_ids == ord("A"))
    known = ~cut.tracks["conservation"].isnan()
    assert torch.equal(cut.tracks["conservation"][known], (cut.input_ids.float() / 7)[known])
    unknown = {(i // 24, i % 24) for i in (~known).flatten().nonzero().flatten().tolist()}
    assert unknown == {(row, at) for row in range(6) for at in range(0, 24, 5)}


def test_what_does_not_divide_is_no_piece(stream):
    (batch,) = micro_batches(stream, 0, 1, 1, 0, 1)
    for length in (0, -2, 5, 48):
        with pytest.raises(
            ValueError, match=f"sequences of 24 do not fall into pieces of {length}"
        ):
            batch.in_pieces(length)


def run_config(shards: Path, growth: str = "linear", steps: int = 9) -> Config:
    keys = [f"data.train={shards}", f"data.sequence_length={L}", "train.steps=40"]
    keys += ["train.global_batch_size=12", "train.micro_batch_size=4"]
    keys += [f"curriculum.growth={growth}", f"curriculum.steps={steps}"]
    return load_config(None, [*keys, "curriculum.initial_length=2"])


@pytest.mark.parametrize("growth", ["linear", "doubling"])
def test_batches_of_a_run_follow_the_schedule_from_any_step(stream, growth):
    schedule = length_schedule(run_config(Path("nowhere"), growth))
    assert len(schedule.stages) > 3
    with BatchIterator(stream, 0, stop_step=14, length_at=schedule.at, **SIZES) as batches:
        straight = {step: share for step, share in batches}
    lengths = [share[0].input_ids.shape[1] for share in straight.values()]
    assert lengths == [schedule.at(step) for step in range(14)]
    assert lengths[0] == 2 and lengths[-1] == L and lengths == sorted(lengths)
    for step, share in straight.items():
        assert sum(batch.input_ids.numel() for batch in share) == GLOBAL * L
        assert rows_of(share) == expected_rows(stream, step, schedule.at(step))
    for start in (1, 5, 9, 13):
        with BatchIterator(stream, start, length_at=schedule.at, **SIZES) as batches:
            for step, share in islice(batches, 14 - start):
                assert rows_of(share) == rows_of(straight[step])


def test_no_byte_is_lost_over_an_epoch(stream):
    """An epoch under a growing length shows what an epoch shows without."""
    n = stream.windows_per_epoch // 3
    schedule = length_schedule(run_config(Path("nowhere"), steps=n // 2))
    assert len(schedule.stages) > 3
    for lengths in (schedule.at, None):
        with BatchIterator(
            stream, 0, global_batch_size=3, micro_batch_size=3, stop_step=n, length_at=lengths
        ) as batches:
            shown = torch.cat([b.targets.flatten() for _, share in batches for b in share])
        if lengths:
            growing = shown
    assert torch.equal(growing, shown)
    assert len(shown) == 3 * n * L


def test_the_program_gives_the_curriculum_to_its_batches(shards_of, random_contigs):
    from pretrain.data import open_data, training_batches

    shards = shards_of(random_contigs(900))
    config = run_config(shards)
    schedule = length_schedule(config)

    class OneRank:
        data_rank, data_size = 0, 1

    data = open_data(config)
    with training_batches(data.train, config, OneRank(), 3) as batches:  # type: ignore[arg-type]
        for step, share in islice(batches, 10):
            assert len(share) == 3
            assert {batch.input_ids.shape[1] for batch in share} == {schedule.at(step)}


def test_pieces_are_predicted_as_sequences_of_their_own(stream):
    """The loss of a piece is that of the piece alone: nothing of its neighbours reaches it."""
    config = load_config(None, ["model.pattern=SMLA", "model.hidden_size=16", "model.num_heads=2"])
    model = HyenaGLT(config.model, seed=3).double()
    (whole,) = micro_batches(stream, 2, 4, 4, 0, 1)
    batch = whole.in_pieces(8)
    nats = model.token_losses(batch.input_ids, batch.targets, batch.documents)
    for row in range(12):
        documents = None if batch.documents is None else batch.documents[row : row + 1]
        alone = model.token_losses(
            batch.input_ids[row : row + 1], batch.targets[row : row + 1], documents
        )
        assert np.allclose(nats[row].detach(), alone[0].detach(), rtol=0, atol=1e-12)

"""Packed training sequences against a string laid by hand: bases, documents, weights, order."""

from __future__ import annotations

from itertools import groupby, pairwise, zip_longest

import numpy as np
import pytest

from megatron_hyena.data.alphabet import COMPLEMENT, PAD
from megatron_hyena.data.loader import BatchIterator
from megatron_hyena.data.packing import PackedStream
from megatron_hyena.data.shard_reader import Run
from megatron_hyena.data.stream import Cuts
from megatron_hyena.data.windows import WindowStream
from megatron_hyena.errors import UserError
from tests.oracles.window_order import laid_runs, laid_windows

COMPLEMENTED = bytes.maketrans(b"ACGTacgtNn", b"TGCAtgcaNn")
UNCOMPLEMENTED = np.setdiff1d(np.flatnonzero(np.arange(256) == COMPLEMENT), PAD).astype(np.uint8)
"""Bytes but PAD that are their own complement: a base made of one is known on either strand."""


def _known_bases(monkeypatch, *lengths: int) -> list[bytes]:
    """Make `open_runs` answer with runs of these lengths in which no two bases are the same."""
    ends = np.cumsum(lengths)
    parts = [UNCOMPLEMENTED[e - n : e] for e, n in zip(ends, lengths, strict=True)]
    assert [len(part) for part in parts] == list(lengths)
    runs = [Run(f"c{i}", 0, len(part), (part,), (0,)) for i, part in enumerate(parts)]
    monkeypatch.setattr("megatron_hyena.data.stream.open_runs", lambda source, verify: runs)
    return [part.tobytes() for part in parts]


def _by_hand(
    documents: list[bytes], length: int, seed: int, epoch: int, both_strands: bool
) -> list[tuple[bytes, list[int]]]:
    """The windows of an epoch: the whole string is laid, then cut."""
    laid: list[tuple[int, int]] = []
    for number, turned in laid_runs(len(documents), seed, epoch):
        text = documents[number]
        if both_strands and turned:
            text = text[::-1].translate(COMPLEMENTED)
        laid += [(base, number) for base in text]
    windows = []
    for cut in laid_windows(laid, length, seed, epoch, (PAD, -1)):
        last = [number for _, number in cut if number >= 0][-1]
        numbers = [last if number < 0 else number for _, number in cut]
        windows.append((bytes(base for base, _ in cut), numbers))
    return windows


LENGTHS = {
    "long and short": (205, 1, 20, 2, 95, 1, 1, 60, 7, 150, 3),
    "short only": (5, 9, 1, 19, 2, 2, 18, 11, 20, 3),
    "one": (300,),
    "one sequence": (12, 9),
}


@pytest.mark.parametrize("both_strands", [False, True])
@pytest.mark.parametrize("lengths", LENGTHS.values(), ids=LENGTHS)
def test_windows_are_those_of_the_string_laid_by_hand(
    shards_of, random_contigs, lengths, both_strands
):
    contigs = random_contigs(*lengths, letters=b"ACGTacgtN")
    folder = shards_of(contigs, piece=60)
    stream = PackedStream(folder, 20, seed=5, augment_reverse_complement=both_strands)
    found = [run.read(0, run.length).tobytes() for run in stream.runs]
    assert found == [contig for contig in contigs if contig.strip(b"N")]
    for epoch in range(5):
        expected = _by_hand(found, 20, 5, epoch, both_strands)
        assert stream.windows_per_epoch == len(expected)
        for index, (bases, numbers) in enumerate(expected):
            window = stream.window(epoch * len(expected) + index)
            assert window.bases.dtype == np.uint8
            assert window.documents is not None
            assert window.documents.dtype == np.int64
            assert window.bases.tobytes() == bases
            assert window.documents.tolist() == numbers


def _reassemble(stream: PackedStream, epoch: int) -> list[tuple[int, bytes]]:
    """(document, bases of it that were shown), in the order in which the epoch laid them.

    Every base is another byte, so the window that follows a full one begins with its last.
    """
    n = stream.windows_per_epoch
    places = np.argsort(stream._epoch(epoch).order(np.arange(n)))
    windows = [stream.window(epoch * n + int(i)) for i in places]
    pairs: list[tuple[int, int]] = []
    for window, following in zip_longest(windows, windows[1:]):
        assert window.documents is not None
        if following is not None and window.bases[-1] != PAD:
            assert window.bases[-1] == following.bases[0]
            assert following.documents is not None
            assert window.documents[-1] == following.documents[0]
        shown = zip(window.documents[:-1].tolist(), window.bases[:-1].tolist(), strict=True)
        pairs += [(number, base) for number, base in shown if base != PAD]
    return [
        (number, bytes(base for _, base in group))
        for number, group in groupby(pairs, key=lambda pair: pair[0])
    ]


@pytest.mark.parametrize("length", [2, 7, 20, 33, 500])
@pytest.mark.parametrize("lengths", [(60, 1, 9, 40, 2, 1, 30), (4,) * 40, (1,) * 90, (150, 30)])
def test_an_epoch_shows_every_base_once(monkeypatch, lengths, length):
    runs = _known_bases(monkeypatch, *lengths)
    stream = PackedStream("any", length, seed=1, augment_reverse_complement=True)
    orders = set()
    for epoch in range(40):
        shown = _reassemble(stream, epoch)
        assert all(part in (runs[number], runs[number][::-1]) for number, part in shown)
        assert sorted(number for number, _ in shown) == list(range(len(runs)))
        orders.add(tuple(number for number, _ in shown))
    if len(lengths) > 2:
        assert len(orders) > 30


def test_phase_and_strand_are_drawn_for_each_epoch(monkeypatch):
    _known_bases(monkeypatch, 167)
    stream = PackedStream("any", 10, seed=4, augment_reverse_complement=True)
    phases = [stream._epoch(epoch).phase for epoch in range(1500)]
    assert len(set(phases)) == Cuts.of(np.array([167]), 10).choices[0] >= 5
    turned = [bool(stream._epoch(epoch).reverse[0]) for epoch in range(1500)]
    assert abs(sum(turned) / 1500 - 0.5) < 0.06
    forward = PackedStream("any", 20, seed=4)
    assert not any(forward._epoch(epoch).reverse[0] for epoch in range(50))


def test_strands_are_drawn_for_each_document_apart(monkeypatch):
    runs = _known_bases(monkeypatch, *(9,) * 20)
    stream = PackedStream("any", 7, seed=4, augment_reverse_complement=True)
    shown = [one for epoch in range(40) for one in _reassemble(stream, epoch)]
    turned = [part != runs[number] for number, part in shown]
    assert abs(sum(turned) / len(turned) - 0.5) < 0.08
    agree = [a == b for a, b in pairwise(turned)]
    assert abs(sum(agree) / len(agree) - 0.5) < 0.08


def test_stretches_parted_by_unknown_bases_are_documents_of_their_own(shards_of, random_contigs):
    left, right = random_contigs(50, 80)
    folder = shards_of([left + b"N" * 50 + right])
    stream = PackedStream(folder, 60, seed=2)
    joins = set()
    for epoch in range(20):
        shown = _by_hand([left, right], 60, 2, epoch, both_strands=False)
        assert stream.windows_per_epoch == len(shown)
        for index, (bases, numbers) in enumerate(shown):
            window = stream.window(epoch * len(shown) + index)
            assert window.documents is not None
            assert window.bases.tobytes() == bases
            assert window.documents.tolist() == numbers
            joins.add(tuple(dict.fromkeys(numbers)))
    assert {(0, 1), (1, 0)} <= joins


def test_one_run_gives_the_windows_it_gives_unpacked(shards_of, random_contigs):
    folder = shards_of(random_contigs(437))
    packed, plain = PackedStream(folder, 20, seed=9), WindowStream(folder, 20, seed=9)
    assert packed.windows_per_epoch == plain.windows_per_epoch
    for position in range(3 * plain.windows_per_epoch):
        assert np.array_equal(packed.window(position).bases, plain.window(position).bases)


def test_order_is_a_pure_function_of_seed_epoch_and_position(shards_of, random_contigs):
    folder = shards_of(random_contigs(300, 5, 17, 40, 90))
    first, second, other = (
        PackedStream(folder, 20, seed=s, augment_reverse_complement=True) for s in (5, 5, 6)
    )
    positions = np.random.default_rng(0).permutation(5 * first.windows_per_epoch)
    straight = [first.window(p) for p in range(len(positions))]
    for p in positions:
        window = second.window(int(p))
        assert np.array_equal(window.bases, straight[p].bases)
        assert window.documents is not None
        assert window.documents.tolist() == straight[p].documents.tolist()
    assert any(
        not np.array_equal(other.window(p).bases, window.bases) for p, window in enumerate(straight)
    )
    with pytest.raises(ValueError, match="position"):
        first.window(-1)


def test_known_order_of_one_seed(monkeypatch):
    """Pins the draws: a change of these numbers breaks the resuming of older runs."""
    _known_bases(monkeypatch, 30, 3, 21, 1, 12)
    stream = PackedStream("any", 10, seed=1, augment_reverse_complement=True)
    assert stream.windows_per_epoch == 7
    shown = [stream.window(position).bases for position in range(14)]
    shown = [bases[bases != PAD] for bases in shown]
    known = UNCOMPLEMENTED.tolist()
    ends = [(known.index(bases[0]), known.index(bases[-1])) for bases in shown]
    assert ends == [
        (57, 66),
        (2, 12),
        (36, 46),
        (22, 57),
        (54, 35),
        (12, 22),
        (46, 2),
        (52, 42),
        (12, 2),
        (22, 12),
        (2, 59),
        (59, 52),
        (29, 23),
        (42, 33),
    ]  # the first and the last base of each, counted over all runs


def test_a_window_reads_its_own_bytes_and_no_others(shards_of, random_contigs, monkeypatch):
    folder = shards_of(random_contigs(*(3, 50, 1, 8) * 30))
    stream = PackedStream(folder, 20, seed=2, augment_reverse_complement=True)
    reads: list[int] = []
    read = Run.read

    def spy(run: Run, start: int, end: int) -> np.ndarray:
        reads.append(end - start)
        return read(run, start, end)

    monkeypatch.setattr(Run, "read", spy)
    for position in range(stream.windows_per_epoch):
        reads.clear()
        documents = stream.window(position).documents
        assert documents is not None
        assert sum(reads) <= 21
        assert len(reads) == len(set(documents.tolist()))


def test_a_global_batch_beyond_the_epoch_is_refused(shards_of, random_contigs):
    folder = shards_of(random_contigs(9, 5, 6))
    stream = PackedStream(folder, 4, seed=0)
    stream.check_global_batch(5)
    with pytest.raises(UserError, match="holds 5 sequences of 4 bases, fewer than one global"):
        stream.check_global_batch(6)
    with pytest.raises(UserError, match="fewer than one global batch of 6"):
        BatchIterator(stream, 0, global_batch_size=6, micro_batch_size=1)


def test_shipped_genome_packed_with_its_own_pieces(chlamydia_shards):
    """A glob of folders: three documents of one contig, parted by the gaps between splits."""
    stream = PackedStream(str(chlamydia_shards / "*"), 2048, seed=3)
    lengths = stream.run_lengths
    assert len(lengths) == 3
    seen = np.zeros(3, dtype=np.int64)
    for position in range(stream.windows_per_epoch):
        window = stream.window(position)
        documents = window.documents
        assert documents is not None
        seen += np.bincount(documents[:-1][window.bases[:-1] != PAD], minlength=3)
    assert (lengths == seen).all()

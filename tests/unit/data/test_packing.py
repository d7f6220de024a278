"""Packed training sequences against a string laid by hand: bases, documents, weights, order."""

from __future__ import annotations

from itertools import groupby, pairwise

import numpy as np
import pytest

from megatron_hyena.data.alphabet import COMPLEMENT
from megatron_hyena.data.loader import BatchIterator
from megatron_hyena.data.packing import PackedStream
from megatron_hyena.data.shard_reader import Run
from megatron_hyena.data.windows import WindowStream
from megatron_hyena.errors import UserError

COMPLEMENTED = bytes.maketrans(b"ACGTacgtNn", b"TGCAtgcaNn")
UNCOMPLEMENTED = np.flatnonzero(np.arange(256) == COMPLEMENT).astype(np.uint8)
"""Bytes that are their own complement: a base made of one is known on either strand."""


def _known_bases(monkeypatch, *lengths: int) -> list[bytes]:
    """Make `open_runs` answer with runs of these lengths in which no two bases are the same."""
    ends = np.cumsum(lengths)
    parts = [UNCOMPLEMENTED[e - n : e] for e, n in zip(ends, lengths, strict=True)]
    assert [len(part) for part in parts] == list(lengths)
    runs = [Run(f"c{i}", 0, len(part), (part,), (0,)) for i, part in enumerate(parts)]
    monkeypatch.setattr("megatron_hyena.data.stream.open_runs", lambda source, verify: runs)
    return [part.tobytes() for part in parts]


def _words(seed: int, epoch: int, purpose: int, count: int) -> list[int]:
    sequence = np.random.SeedSequence(seed, spawn_key=(epoch, purpose))
    return [int(word) for word in np.random.Philox(sequence).random_raw(count)]


def _by_hand(
    documents: list[bytes], length: int, seed: int, epoch: int, both_strands: bool
) -> list[tuple[bytes, list[int]]]:
    """The windows of an epoch: the whole string is laid, then cut."""
    order_words = _words(seed, epoch, 3, len(documents))
    strand_words = _words(seed, epoch, 2, len(documents))
    laid: list[tuple[int, int]] = []
    by_draw = sorted(range(len(documents)), key=lambda i: order_words[i])
    for number, strand in zip(by_draw, strand_words, strict=True):
        text = documents[number]
        if both_strands and strand >= 1 << 63:
            text = text[::-1].translate(COMPLEMENTED)
        laid += [(base, number) for base in text]
    n = max(1, len(laid) // length - 1)
    phase = _words(seed, epoch, 1, 1)[0] % (len(laid) - n * length)
    window_words = _words(seed, epoch, 0, n)
    windows = []
    for nth in sorted(range(n), key=lambda i: window_words[i]):
        cut = laid[phase + nth * length :][: length + 1]
        assert len(cut) == length + 1
        windows.append((bytes(base for base, _ in cut), [number for _, number in cut]))
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

    Every base is another byte, so the window that follows is the one that begins with our last.
    """
    n = stream.windows_per_epoch
    windows = [stream.window(epoch * n + i) for i in range(n)]
    follows = {int(window.bases[0]): window for window in windows}
    assert len(follows) == n
    (first,) = set(follows) - {int(window.bases[-1]) for window in windows}
    pairs: list[tuple[int, int]] = []
    while first in follows:
        window = follows.pop(first)
        assert window.documents is not None
        begun = 1 if pairs else 0
        assert not pairs or pairs[-1] == (int(window.documents[0]), first)
        joined = zip(window.documents[begun:], window.bases[begun:], strict=True)
        pairs += [(int(number), int(base)) for number, base in joined]
        first = int(window.bases[-1])
    assert not follows
    assert len(pairs) == n * stream.sequence_length + 1
    return [
        (number, bytes(base for _, base in group))
        for number, group in groupby(pairs, key=lambda pair: pair[0])
    ]


@pytest.mark.parametrize("length", [2, 7, 20, 33])
@pytest.mark.parametrize("lengths", [(60, 1, 9, 40, 2, 1, 30), (4,) * 40, (1,) * 90, (150, 30)])
def test_an_epoch_shows_every_base_once_but_for_the_ends_of_its_string(
    monkeypatch, lengths, length
):
    runs = _known_bases(monkeypatch, *lengths)
    stream = PackedStream("any", length, seed=1, augment_reverse_complement=True)
    total = sum(lengths)
    orders = set()
    for epoch in range(40):
        shown = _reassemble(stream, epoch)
        text = b"".join(part for _, part in shown)
        assert len(set(text)) == len(text)
        assert total - len(text) < 2 * length
        inner = shown[1:-1]
        assert all(part in (runs[number], runs[number][::-1]) for number, part in inner)
        (begun, head), (cut, tail) = shown[0], shown[-1]
        if len(shown) > 1:
            assert any(side.endswith(head) for side in (runs[begun], runs[begun][::-1]))
            assert any(side.startswith(tail) for side in (runs[cut], runs[cut][::-1]))
        else:
            assert any(head in side for side in (runs[begun], runs[begun][::-1]))
        assert len({number for number, _ in shown}) == len(shown)
        orders.add(tuple(number for number, _ in shown))
    if len(lengths) > 2:
        assert len(orders) > 30


def test_phase_and_strand_are_drawn_for_each_epoch_and_every_base_is_reached(monkeypatch):
    (run,) = _known_bases(monkeypatch, 67)
    stream = PackedStream("any", 20, seed=4, augment_reverse_complement=True)
    assert stream.windows_per_epoch == 2
    starts: list[tuple[bool, int]] = []
    for epoch in range(1500):
        ((_, text),) = _reassemble(stream, epoch)
        starts.append((text not in run, (run if text in run else run[::-1]).find(text)))
    assert {start for _, start in starts} == set(range(67 - 41 + 1))
    assert abs(sum(turned for turned, _ in starts) / 1500 - 0.5) < 0.06
    forward = PackedStream("any", 20, seed=4)
    assert all(_reassemble(forward, epoch)[0][1] in run for epoch in range(50))


def test_strands_are_drawn_for_each_document_apart(monkeypatch):
    runs = _known_bases(monkeypatch, *(9,) * 20)
    stream = PackedStream("any", 7, seed=4, augment_reverse_complement=True)
    inner = [shown for epoch in range(40) for shown in _reassemble(stream, epoch)[1:-1]]
    turned = [part != runs[number] for number, part in inner]
    assert abs(sum(turned) / len(turned) - 0.5) < 0.08
    agree = [a == b for a, b in pairwise(turned)]
    assert abs(sum(agree) / len(agree) - 0.5) < 0.08


def test_stretches_parted_by_unknown_bases_are_documents_of_their_own(shards_of, random_contigs):
    left, right = random_contigs(50, 80)
    folder = shards_of([left + b"N" * 50 + right])
    stream = PackedStream(folder, 60, seed=2)
    assert stream.windows_per_epoch == 1
    joins = set()
    for position in range(40):
        window = stream.window(position)
        assert window.documents is not None
        parts = [list(group) for _, group in groupby(window.documents.tolist())]
        assert len(parts) <= 2
        assert b"N" not in window.bases.tobytes()
        if len(parts) == 2:
            first, second = (left, right) if parts[0][0] == 0 else (right, left)
            at = len(parts[0])
            assert window.bases.tobytes() == first[len(first) - at :] + second[: 61 - at]
            joins.add(parts[0][0])
    assert joins == {0, 1}


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
    assert stream.windows_per_epoch == 5
    shown = [stream.window(position).bases for position in range(10)]
    known = UNCOMPLEMENTED.tolist()
    ends = [(known.index(bases[0]), known.index(bases[-1])) for bases in shown]
    assert ends == [
        (30, 59),
        (59, 24),
        (52, 42),
        (24, 14),
        (42, 30),
        (33, 43),
        (10, 0),
        (43, 53),
        (20, 10),
        (53, 20),
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
        assert sum(reads) == 21
        assert len(reads) == len(set(documents.tolist()))


def test_too_little_data(shards_of, random_contigs):
    folder = shards_of(random_contigs(9, 5, 6))
    with pytest.raises(UserError, match=r"no stretch of 21 bases .* or data\.pack=true"):
        WindowStream(folder, 20, seed=0)
    with pytest.raises(UserError, match=r"holds 20 bases in all, fewer than the 21 of one packed"):
        PackedStream(folder, 20, seed=0)
    stream = PackedStream(folder, 4, seed=0)
    stream.check_global_batch(4)
    with pytest.raises(UserError, match="holds 4 sequences of 4 bases, fewer than one global"):
        stream.check_global_batch(5)
    with pytest.raises(UserError, match="fewer than one global batch of 5"):
        BatchIterator(stream, 0, global_batch_size=5, micro_batch_size=1)


def test_shipped_genome_packed_with_its_own_pieces(chlamydia_shards):
    """A glob of folders: three documents of one contig, parted by the gaps between splits."""
    stream = PackedStream(str(chlamydia_shards / "*"), 2048, seed=3)
    lengths = stream.run_lengths
    assert len(lengths) == 3
    seen = np.zeros(3, dtype=np.int64)
    for position in range(stream.windows_per_epoch):
        documents = stream.window(position).documents
        assert documents is not None
        seen += np.bincount(documents[:-1], minlength=3)
    assert seen.sum() == 2048 * stream.windows_per_epoch
    assert (lengths - seen >= 0).all()
    assert lengths.sum() - seen.sum() <= 2 * 2048

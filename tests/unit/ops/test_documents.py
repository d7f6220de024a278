"""Where documents begin and end, and the layouts that keep them apart, against plain lists."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.autograd import gradcheck

from megatron_hyena.ops.documents import Documents, Placement
from tests.oracles.documents import counted, drawn, layouts, numbered, runs
from tests.oracles.drawing import draw

LENGTHS = [1, 2, 7, 40]
CASES = [
    pytest.param(ids, id=f"{name}, {length}")
    for length in LENGTHS
    for name, ids in layouts(length).items()
]
every_layout = pytest.mark.parametrize("ids", CASES)


def widened(x_DBL: Tensor, ids: Tensor, multiple: int = 1, gap: int = 0) -> Tensor:
    """Documents one behind the other, each followed by `gap` zeros and filled to `multiple`."""
    rows: list[list[list[float]]] = [[] for _ in ids]
    for row, start, stop in runs(ids):
        rows[row] += x_DBL[:, row, start:stop].t().tolist()
        empty = [0.0] * len(x_DBL)
        rows[row] += [empty] * (gap + -(stop - start) % multiple)
    longest = max(len(row) for row in rows)
    filled = [row + [[0.0] * len(x_DBL)] * (longest - len(row)) for row in rows]
    return torch.tensor(filled, dtype=x_DBL.dtype).permute(2, 0, 1)


def segments(documents: Documents) -> list[tuple[int, int, int]]:
    return [(s.row, s.start, s.stop) for s in documents.segments()]


@every_layout
def test_documents_are_runs_of_equal_numbers(ids: Tensor) -> None:
    documents = Documents.from_ids(ids)
    assert documents.position_BL.dtype == torch.int64
    assert documents.position_BL.tolist() == counted(ids)
    assert segments(documents) == runs(ids)


def test_what_the_numbers_are_does_not_matter() -> None:
    """Nor their order, nor whether one comes again, nor a type that cannot count the positions."""
    first = torch.tensor([[7, 7, 2, 2, 2, 7, 9], [0, -1, -1, -1, 5, 5, 5]])
    assert Documents.from_ids(first).position_BL.tolist() == counted(first)
    assert segments(Documents.from_ids(first))[2] == (0, 5, 6)
    many = drawn(2, 700, seed=4)
    for dtype in (torch.int32, torch.int16, torch.uint8):
        assert Documents.from_ids(many.to(dtype)).position_BL.tolist() == counted(many)


@pytest.mark.parametrize("ids", [pytest.param(v, id=k) for k, v in layouts(40).items()])
def test_a_stretch_keeps_the_places_in_documents_that_began_before(ids: Tensor) -> None:
    documents = Documents.from_ids(ids)
    for start, stop in ((0, 40), (0, 1), (13, 14), (5, 33), (39, 40)):
        part = documents.stretch(start, stop)
        assert part.position_BL.tolist() == [row[start:stop] for row in counted(ids)]
        assert segments(part) == runs(ids[:, start:stop])


@every_layout
@pytest.mark.parametrize("width", [0, 1, 6])
def test_gaps_follow_each_document(ids: Tensor, width: int) -> None:
    x = draw(2, *ids.shape)
    placement = Documents.from_ids(ids).gaps(width)
    wide = placement.spread(x)
    assert torch.equal(wide, widened(x, ids, gap=width))
    assert wide.shape[-1] == placement.width
    assert torch.equal(placement.collect(wide), x)


@every_layout
@pytest.mark.parametrize("chunk", [1, 4, 64])
def test_documents_begin_at_chunks(ids: Tensor, chunk: int) -> None:
    x = draw(2, *ids.shape)
    placement = Documents.from_ids(ids).chunks(chunk)
    wide = placement.spread(x)
    assert torch.equal(wide, widened(x, ids, multiple=chunk))
    assert wide.shape[-1] == placement.width
    assert torch.equal(placement.collect(wide), x)


@every_layout
@pytest.mark.parametrize("chunk", [1, 4, 64])
def test_chunks_say_where_a_carry_ends(ids: Tensor, chunk: int) -> None:
    placement = Documents.from_ids(ids).chunks(chunk)
    keep = torch.ones(placement.width // chunk, len(ids))
    used, ends = [0] * len(ids), [(0, 0)] * len(ids)
    for row, start, stop in runs(ids):
        if start > 0:
            keep[used[row], row] = 0.0
        used[row] += -(-(stop - start) // chunk)
        ends[row] = ((used[row] - 1) * chunk, (stop - start - 1) % chunk + 1)
    assert torch.equal(placement.keep_nB, keep)
    assert placement.ends == ends


def test_a_stretch_within_documents_is_laid_out_like_one_that_begins_them() -> None:
    """How far a row's first document reaches back makes no difference to the layout."""
    ids = drawn(3, 40, seed=5)
    part, fresh = Documents.from_ids(ids).stretch(11, 31), Documents.from_ids(ids[:, 11:31])
    assert not torch.equal(part.position_BL, fresh.position_BL)
    for mine, theirs in ((part.gaps(3), fresh.gaps(3)), (part.chunks(4), fresh.chunks(4))):
        assert torch.equal(mine.slot_BL, theirs.slot_BL)
    assert torch.equal(part.chunks(4).keep_nB, fresh.chunks(4).keep_nB)
    assert part.chunks(4).ends == fresh.chunks(4).ends


def test_layouts_of_one_width_do_not_stand_in_for_those_of_another() -> None:
    """They are kept for all layers of a model."""
    ids, x = drawn(2, 30, seed=1), draw(1, 2, 30)
    documents = Documents.from_ids(ids)
    assert documents.gaps(4) is documents.gaps(4)
    assert documents.segments() is documents.segments()
    for width in (4, 2, 4):
        assert torch.equal(documents.gaps(width).spread(x), widened(x, ids, gap=width))
        assert torch.equal(documents.chunks(width).spread(x), widened(x, ids, multiple=width))


@pytest.mark.parametrize("kind", ["gaps", "chunks"])
def test_gradients_of_spreading_and_collecting(kind: str) -> None:
    ids = numbered(6, [[1, 4], [], [1, 2, 3, 4, 5]])
    placement: Placement = getattr(Documents.from_ids(ids), kind)(3)
    narrow, wide = draw(2, 3, 6).requires_grad_(), draw(2, 3, placement.width).requires_grad_()
    assert gradcheck(placement.spread, (narrow,))
    assert gradcheck(placement.collect, (wide,))

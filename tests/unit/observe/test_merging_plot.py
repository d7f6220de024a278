"""The picture of chunks and the merging panel of the training plot hold what they are given."""

from __future__ import annotations

import json
import struct
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from matplotlib.figure import Figure

from megatron_hyena.evaluation.chunks import StagePositions
from megatron_hyena.observe.plots import plot_merging, plot_training
from megatron_hyena.observe.plots.genome import Gene
from megatron_hyena.observe.plots.merging import RegionView


@pytest.fixture
def figures(monkeypatch):
    """The figures saved during the test."""
    saved = []
    save = Figure.savefig

    def remember(figure, *args, **kwargs):
        saved.append(figure)
        return save(figure, *args, **kwargs)

    monkeypatch.setattr(Figure, "savefig", remember)
    return saved


def stages(start: int, length: int, routed: bool = True) -> list[StagePositions]:
    """Two stages, each of which opens at random half of its positions; more on both sides."""
    random = np.random.default_rng(length)
    place, found = np.arange(max(0, start - 30), start + length + 30), []
    for number in range(2):
        p = random.random(len(place))
        opened = p > 0.5
        anchor = np.zeros_like(opened)
        found.append(
            StagePositions(
                f"stage{number}",
                0.5,
                place,
                opened,
                opened,
                anchor,
                p if routed else None,
                int(place[-1]) + 1,
            )
        )
        place = place[opened]
    return found


def draw(
    tmp_path: Path,
    start: int,
    length: int,
    genes: Sequence[Gene] | None = None,
    routed: bool = True,
) -> None:
    letters = np.frombuffer(b"ACGTNacgtn", np.uint8)
    bases = np.random.default_rng(0).choice(letters, length)
    view = RegionView("c:1-2", start, bases, stages(start, length, routed), genes)
    plot_merging(view, tmp_path / "m.png")
    content = (tmp_path / "m.png").read_bytes()
    width, height = struct.unpack(">II", content[16:24])
    assert content[-8:-4] == b"IEND" and width > 1500 and height > 400


def intervals(collection) -> list[tuple[float, float]]:
    extents = [path.get_extents() for path in collection.get_paths()]
    return [(e.x0, e.x1) for e in extents]


def texts(figure) -> list[str]:
    return [t.get_text() for t in figure.findobj(lambda artist: hasattr(artist, "get_text"))]


def test_boxes_are_the_chunks_in_alternating_shades(tmp_path, figures):
    genes = [Gene(95, 150, 1, "abcA"), Gene(160, 190, -1), Gene(900, 950, 1, "far")]
    draw(tmp_path, 100, 100, genes=genes)
    panels = figures[0].axes
    assert len(panels) == 5
    for stage, axes in zip(stages(100, 100), panels[3:], strict=True):
        starts, ends, _ = stage.overlapping(100, 200)
        dark, light = axes.collections
        boxes = sorted(intervals(dark) + intervals(light))
        np.testing.assert_allclose(boxes, np.stack([starts, ends], axis=1) + 0.5)
        # Neighbours never share a shade.
        assert not {b for _, b in intervals(dark)} & {a for a, _ in intervals(dark)}
    assert panels[0].get_xlim() == (100.5, 200.5)
    said = texts(figures[0])
    assert "abcA" in said and "far" not in said and "c:1-2" in said
    letters = [t for t in panels[1].texts if len(t.get_text()) == 1]
    assert len(letters) == 100
    assert letters[0].get_position()[0] == 101


def test_probabilities_stand_at_their_bases(tmp_path, figures):
    draw(tmp_path, 0, 120)
    lines = {line.get_label(): line for line in figures[0].axes[1].get_lines()}
    for stage in stages(0, 120):
        assert stage.probability is not None
        inside = stage.place < 120
        np.testing.assert_allclose(lines[stage.name].get_xdata(), stage.place[inside] + 1)
        np.testing.assert_allclose(lines[stage.name].get_ydata(), stage.probability[inside])


def test_long_regions_show_the_local_kept_fraction(tmp_path, figures):
    draw(tmp_path, 999, 50_000, genes=[])
    panels = figures[0].axes
    figures[0].canvas.draw()
    labels = [t.get_text() for t in panels[-1].get_xticklabels()]
    assert "20,000" in labels
    for stage, axes in zip(stages(999, 50_000), panels[3:], strict=True):
        outline = axes.patches[0].get_data()
        assert len(outline.values) == 100
        inside = (stage.place >= 999) & (stage.place < 999 + 500)
        assert outline.values[0] == stage.opened[inside].mean()
        np.testing.assert_allclose(outline.edges[[0, 1, -1]], [999.5, 1499.5, 50_999.5])
        assert "in stretches of 500 bp; dashed: target 0.50" in [t.get_text() for t in axes.texts]


@pytest.mark.parametrize(
    ("length", "routed"),
    [
        *((length, True) for length in (1, 500, 3001)),
        (500, False),
        *(pytest.param(length, True, marks=pytest.mark.slow) for length in (7, 2000)),
        *(pytest.param(length, False, marks=pytest.mark.slow) for length in (1, 7, 2000, 3001)),
    ],
)
def test_every_length_can_be_drawn(tmp_path, figures, length, routed):
    draw(tmp_path, 40, length, routed=routed)
    assert len(figures[0].axes) == (4 if routed else 3)


def test_training_shows_the_kept_fractions_and_their_targets(tmp_path, figures):
    records = [
        {"step": s, "loss": 1.3, "lr": 1e-3, "grad_norm": 1.0, "tokens": s}
        | {"merge/0/kept": 0.3 + s / 100, "merge/1/kept": 0.5}
        for s in range(1, 9)
    ]
    path = tmp_path / "metrics.jsonl"
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    plot_training(path, tmp_path / "t.png", kept_targets=[0.4, 0.5])
    axes = next(a for a in figures[0].axes if a.get_ylabel() == "kept")
    lines = {line.get_label(): line for line in axes.get_lines()}
    np.testing.assert_allclose(lines["stage 0"].get_ydata(), [0.3 + s / 100 for s in range(1, 9)])
    np.testing.assert_allclose(lines["stage 1"].get_ydata(), 0.5)
    dashed = [line.get_ydata()[0] for line in axes.get_lines() if len(line.get_ydata()) == 2]
    assert dashed == [0.4, 0.5]
    plot_training(path, tmp_path / "t.png")
    path.write_text(json.dumps(records[0] | {"merge/0/kept": None}).replace("merge/", "other/"))
    plot_training(path, tmp_path / "t.png")
    assert "kept" not in [a.get_ylabel() for a in figures[2].axes]

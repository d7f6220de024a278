"""Plots: what is drawn holds the figures given, files are whole PNGs, gaps and cuts are shown."""

from __future__ import annotations

import json
import math
import struct
import subprocess
import sys

import numpy as np
import pytest
from matplotlib.figure import Figure

from megatron_hyena.errors import UserError
from megatron_hyena.evaluation.markov import MarkovRow
from megatron_hyena.evaluation.report import EvaluationReport
from megatron_hyena.observe.plots import plot_evaluation, plot_position, plot_training
from megatron_hyena.observe.plots.smoothing import running_mean


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


def size_of_png(path):
    content = path.read_bytes()
    assert content[:8] == b"\x89PNG\r\n\x1a\n" and content[-8:-4] == b"IEND"
    return struct.unpack(">II", content[16:24])


def texts(figure):
    found = [text.get_text() for text in figure.findobj(lambda artist: hasattr(artist, "get_text"))]
    return " | ".join(found)


def write_run(folder, bits, valid=()):
    def line(step, key, value):
        loss = None if math.isnan(value) else value * math.log(2)
        return json.dumps({"step": step, key: loss, "lr": 1e-3, "grad_norm": 1.0, "tokens": step})

    lines = [line(step, "loss", value) for step, value in enumerate(bits, start=1)]
    (folder / "metrics.jsonl").write_text("".join(text + "\n" for text in lines))
    lines = [line(step, "valid_loss", value) for step, value in valid]
    (folder / "validation.jsonl").write_text("".join(text + "\n" for text in lines))
    return folder / "metrics.jsonl"


def test_training_shows_losses_in_bits_and_validation_points(tmp_path, figures):
    bits = 1.93 + 6.0 * np.exp(-np.arange(200) / 4)
    path = write_run(tmp_path, bits, [(100, 1.95), (200, 1.94)])
    plot_training(path, tmp_path / "plots" / "training.png", best_markov_bits=1.9408)
    width, height = size_of_png(tmp_path / "plots" / "training.png")
    assert width > 1000 and height > 800
    loss, rate, norm = figures[0].axes[:3]
    curves = {line.get_label(): line for line in loss.get_lines()}
    np.testing.assert_allclose(curves["training batch"].get_ydata(), bits)
    np.testing.assert_allclose(curves["validation"].get_xydata(), [[100, 1.95], [200, 1.94]])
    assert [line.get_ydata()[0] for line in (*rate.get_lines(), *norm.get_lines())] == [1e-3, 1.0]
    low, high = loss.get_ylim()
    assert low < 1.93 and 2.0 < high < 2.4
    assert "above this range" in texts(figures[0])
    assert "best Markov" in texts(figures[0])
    assert [child.name for child in (tmp_path / "plots").iterdir()] == ["training.png"]


@pytest.mark.parametrize("bits", [[1.95], [math.nan, math.nan], [8.0, math.nan, 2.5], [1.9] * 5])
def test_training_draws_short_and_broken_runs(tmp_path, bits, figures):
    plot_training(write_run(tmp_path, bits), tmp_path / "training.png")
    size_of_png(tmp_path / "training.png")
    low, high = figures[0].axes[0].get_ylim()
    last = [value for value in bits if not math.isnan(value)][-1:]
    assert all(low < value < high for value in [2.0, *last])


def test_training_without_a_step_is_an_error(tmp_path):
    with pytest.raises(UserError, match="holds no step yet"):
        plot_training(write_run(tmp_path, []), tmp_path / "training.png")


def test_evaluation_has_one_bar_each_and_names_the_cut(tmp_path, figures):
    rows = tuple(
        MarkovRow(order, "interpolated", True, 1.98 - 0.01 * order, ()) for order in (1, 2, 3)
    )
    report = EvaluationReport("Hyena-GLT", 1.92, 50_000, rows)
    plot_evaluation(report, tmp_path / "evaluation.png")
    size_of_png(tmp_path / "evaluation.png")
    (axes,) = figures[0].axes
    left = axes.get_xlim()[0]
    ends = [bar.get_x() + bar.get_width() for bar in axes.patches]
    np.testing.assert_allclose(ends, [2.0, 1.97, 1.96, 1.95, 1.92])
    assert 1.8 < left < 1.92
    shown = texts(figures[0])
    assert f"starts at {left:.3f}, not 0" in shown
    assert "1.9200" in shown and "Markov order 3" in shown and "beats the best Markov" in shown


def test_position_compares_smoothed_curves_over_genes(tmp_path, figures):
    model, markov = np.full(1000, 1.8), np.full(1000, 1.9)
    model[[0, 500]] = np.nan  # not scored
    genes = [(4900, 5100, 1), (5500, 5600, -1), (9000, 9100, 1)]
    plot_position(model, markov, tmp_path / "p.png", start=5000, window=50, genes=genes)
    size_of_png(tmp_path / "p.png")
    axes, track = figures[0].axes
    curves = {line.get_label(): line for line in axes.get_lines()}
    np.testing.assert_allclose(curves["model"].get_ydata(), 1.8)
    np.testing.assert_allclose(curves["model"].get_xdata()[[0, -1]], [5.0, 5.999])
    assert "lower at 100%" in texts(figures[0])
    plus, minus = track.collections
    np.testing.assert_allclose(plus.get_paths()[0].get_extents().intervalx, [5.0, 5.1])
    np.testing.assert_allclose(minus.get_paths()[0].get_extents().intervalx, [5.5, 5.6])
    assert len(plus.get_paths()) == 1  # the third gene lies outside


def test_position_without_genes_and_with_unequal_lengths(tmp_path):
    plot_position(np.ones(10), np.ones(10), tmp_path / "p.png", window=1)
    size_of_png(tmp_path / "p.png")
    with pytest.raises(UserError, match="10 model values and 9 Markov values"):
        plot_position(np.ones(10), np.ones(9), tmp_path / "p.png")


@pytest.mark.parametrize("window", [1, 2, 5, 30])
def test_running_mean_is_the_mean_of_its_window(window):
    values = np.random.default_rng(0).normal(size=23)
    values[[3, 4, 11]] = np.nan
    expected = []
    for place in range(23):
        inside = values[max(0, place - (window - 1) // 2) : place + window // 2 + 1]
        known = inside[np.isfinite(inside)]
        expected.append(float(known.mean()) if len(known) else math.nan)
    np.testing.assert_allclose(running_mean(values, window), np.array(expected))


def test_importing_the_room_loads_neither_matplotlib_nor_torch():
    code = (
        "import sys, megatron_hyena.observe.plots, megatron_hyena.observe.metrics\n"
        "import megatron_hyena.observe.profiler, megatron_hyena.evaluation.report\n"
        "sys.exit(' '.join(sys.modules.keys() & {'matplotlib', 'torch', 'tensorboard'}) or 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr

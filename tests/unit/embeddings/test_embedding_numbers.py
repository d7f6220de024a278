"""Embeddings are the states of the whole pass, pooled, in any pieces and either format."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import zarr

from megatron_hyena.checkpoint.source import TrainedModel
from megatron_hyena.corpus.prepare import write_store
from megatron_hyena.embeddings import EmbedOptions, embed, run
from megatron_hyena.embeddings.pooling import Pooler
from megatron_hyena.errors import UserError
from megatron_hyena.model.hyena_glt import HyenaGLT
from megatron_hyena.model.states import layer_states
from tests.oracles.drawing import open_branches, small_config, small_model
from tests.oracles.merged_models import NESTED, dna, lively_model, merged_config
from tests.oracles.small_corpus import draw, reverse
from tests.oracles.variants import write_fasta

pq = pytest.importorskip("pyarrow.parquet")
CONTIGS = {f"c{n}": draw(np.random.default_rng(n), size) for n, size in enumerate((90, 7, 131))}


def model_of(pattern: str) -> HyenaGLT:
    if "(" in pattern:
        return lively_model(merged_config(pattern), dna(2, 64))
    return small_model(small_config(pattern)).eval()


def whole(model: HyenaGLT, letters: bytes, layer: str | int = -1) -> np.ndarray:
    """States of one pass over all of it, [n, h]."""
    return layer_states(model, torch.tensor([list(letters)]), layer)[0].numpy()


def pooled(states: np.ndarray, size: int, pool: str) -> np.ndarray:
    """Row by row."""
    rows = [states[at : at + size] for at in range(0, len(states), size)]
    return np.stack([row[-1] if pool == "last" else row.mean(0) for row in rows])


def rows_of(path: Path) -> list[np.ndarray]:
    """The rows of each sequence in an output of either format."""
    if path.suffix == ".zarr":
        group = zarr.open_group(str(path), mode="r")
        ends = np.asarray(group["offsets"])
        rows = np.asarray(group["embeddings"])
        return [rows[a:b] for a, b in pairwise(ends)]
    found: dict[str, list[Any]] = {}
    for row in pq.read_table(path).to_pylist():
        found.setdefault(row["name"], []).append(row["embedding"])
    return [np.array(rows) for rows in found.values()]


@pytest.fixture(scope="module")
def fasta(tmp_path_factory) -> Path:
    return write_fasta(tmp_path_factory.mktemp("embedding") / "a.fa", CONTIGS)


@pytest.mark.parametrize(("pattern", "ending"), [("SML", "zarr"), (NESTED, "parquet")])
def test_numbers_are_those_of_the_whole_pass(pattern, ending, fasta, tmp_path) -> None:
    model = model_of(pattern)
    cases: list[tuple[str, str, int, str | int]] = [
        ("base", "mean", 1, -1),
        ("chunk", "mean", 10, 1),
        ("chunk", "last", 10, "embedding"),
    ]
    cases += [("sequence", "mean", 999, 2), ("sequence", "last", 999, -1)]
    for number, (per, pool, size, layer) in enumerate(cases):
        output = tmp_path / f"{number}.{ending}"
        options = EmbedOptions(per, 10, layer, pool, "float64", piece=[13, 64, 1000][number % 3])
        report = embed(model, fasta, output, options)
        found = rows_of(output)
        assert (report.sequences, report.rows) == (3, sum(map(len, found)))
        for rows, letters in zip(found, CONTIGS.values(), strict=True):
            wanted = pooled(whole(model, letters, layer), size, pool)
            assert rows.shape == wanted.shape
            assert np.abs(rows - wanted).max() < 1e-10, (per, pool)


def test_single_and_half_precision(fasta, tmp_path) -> None:
    model = model_of("S(ML)S")
    wanted = [whole(model, letters) for letters in CONTIGS.values()]
    scale = max(np.abs(one).max() for one in wanted)
    for dtype, bound in (("float32", 1e-5), ("float16", 1e-3)):
        output = tmp_path / f"{dtype}.zarr"
        embed(model, fasta, output, EmbedOptions(dtype=dtype, piece=32))
        for rows, one in zip(rows_of(output), wanted, strict=True):
            assert rows.dtype == dtype
            assert 0 < np.abs(rows - one).max() < bound * max(1, scale)


@pytest.mark.parametrize("causal", [True, False])
def test_windows_overlap_by_half(causal, fasta, tmp_path) -> None:
    """Causal: a base in the second half of its pass; else in the middle half of one of 24."""
    model = small_model(small_config("SA", causal=causal)).eval()
    window = 20 if causal else 24
    embed(model, fasta, tmp_path / "e.zarr", EmbedOptions(dtype="float64", window=window))
    for rows, letters in zip(rows_of(tmp_path / "e.zarr"), CONTIGS.values(), strict=True):
        step, context = (10, 10) if causal else (12, 6)
        last = max(0, -(-(len(letters) - window) // step))
        begins = [step * min(last, max(0, (b - context) // step)) for b in range(len(letters))]
        passes = {begin: whole(model, letters[begin : begin + window]) for begin in {*begins}}
        for base, begin in enumerate(begins):
            assert np.abs(rows[base] - passes[begin][base - begin]).max() < 1e-10, base


def test_intervals_are_read_by_themselves_on_their_strand(fasta, tmp_path) -> None:
    model = model_of("SL")
    bed = tmp_path / "a.bed"
    bed.write_text(
        "track name=x\nc2\t5\t45\tfirst\t0\t-\nc0\t0\t30\tsecond\t0\t+\n\nc2\t100\t131\n"
    )
    options = EmbedOptions("chunk", 16, dtype="float64", piece=7)
    texts = [reverse(CONTIGS["c2"][5:45]), CONTIGS["c0"][:30], CONTIGS["c2"][100:]]
    for ending in ("zarr", "parquet"):
        embed(model, fasta, tmp_path / f"e.{ending}", options, bed=bed)
        for rows, letters in zip(rows_of(tmp_path / f"e.{ending}"), texts, strict=True):
            wanted = pooled(whole(model, letters), 16, "mean")
            assert np.abs(rows - wanted).max() < 1e-10
    rows = pq.read_table(tmp_path / "e.parquet").to_pylist()
    assert [(r["name"], r["start"], r["end"], r["strand"]) for r in rows[:4]] == [
        *(("first", 29, 45, -1), ("first", 13, 29, -1), ("first", 5, 13, -1)),
        ("second", 0, 16, 1),
    ]
    assert (rows[-1]["name"], rows[-1]["contig"], rows[-1]["end"]) == ("c2:100-131", "c2", 131)
    group = zarr.open_group(str(tmp_path / "e.zarr"), mode="r")
    assert group.attrs["names"] == ["first", "second", "c2:100-131"]
    assert np.asarray(group["strands"]).tolist() == [-1, 1, 1]
    assert np.asarray(group["starts"]).tolist() == [5, 0, 100]


def store_with(folder: Path, fasta: Path, name: str, values: np.ndarray) -> Path:
    """A genome store with a track."""
    write_store(folder, [fasta])
    group = zarr.open_group(str(folder), mode="r+")
    group.require_group("tracks").create_array(name, data=values)
    return folder


def test_a_store_gives_its_tracks_on_either_strand(fasta, tmp_path, monkeypatch) -> None:
    model = small_model(small_config("GS")).eval()
    open_branches(model)
    trained = TrainedModel(model, "run", None, ("conservation",), False, "0" * 64)
    monkeypatch.setattr(run, "trained_model", lambda source: trained)
    with pytest.raises(UserError, match="trained with the track 'conservation', which this input"):
        embed(model, fasta, tmp_path / "a.zarr")
    scores = np.random.default_rng(0).normal(size=228).astype("float32")
    store = store_with(tmp_path / "genome.zarr", fasta, "conservation", scores)
    bed = tmp_path / "a.bed"
    bed.write_text("c2\t5\t45\t.\t0\t-\nc2\t5\t45\t.\t0\t+\n")
    embed(model, store, tmp_path / "b.zarr", EmbedOptions(dtype="float64", piece=9), bed=bed)
    held = CONTIGS["c2"][5:45], torch.from_numpy(scores[102:142].copy())
    for rows, turned in zip(rows_of(tmp_path / "b.zarr"), (True, False), strict=True):
        letters, track = (reverse(held[0]), held[1].flip(0)) if turned else held
        ids = torch.tensor([list(letters)])
        wanted = layer_states(model, ids, tracks={"conservation": track[None]})[0].numpy()
        assert np.abs(rows - wanted).max() < 1e-10
        assert np.abs(rows - whole(model, letters)).max() > 1e-3


def test_boundaries_of_a_store(fasta, tmp_path) -> None:
    model = lively_model(merged_config("S(S)S", merger="precomputed"), dna(2, 64))
    opens = np.random.default_rng(0).integers(0, 2, 228).astype("uint8")
    store = store_with(tmp_path / "genome.zarr", fasta, "boundaries", opens)
    embed(model, store, tmp_path / "b.zarr", EmbedOptions(dtype="float64", piece=9))
    ids = torch.tensor([list(CONTIGS["c2"])])
    track = torch.from_numpy(opens[97:].copy())[None]
    wanted = layer_states(model, ids, tracks={"boundaries": track})[0].numpy()
    assert np.abs(rows_of(tmp_path / "b.zarr")[2] - wanted).max() < 1e-10
    bed = tmp_path / "a.bed"
    bed.write_text("c2\t5\t45\tleft\t0\t-\n")
    with pytest.raises(UserError, match="left is read from the other strand, but the track 'bound"):
        embed(model, store, tmp_path / "c.zarr", bed=bed)


@pytest.mark.parametrize("pool", ["mean", "last"])
@pytest.mark.parametrize("size", [1, 4, 9, None])
def test_rows_do_not_depend_on_pieces(size: int | None, pool: str) -> None:
    states = np.random.default_rng(0).normal(size=(45, 3))
    wanted = pooled(states, size or 45, pool)
    for piece in (1, 2, 5, 9, 44, 45, 90):
        pooler = Pooler(size, pool)
        rows = [pooler.feed(states[at : at + piece]) for at in range(0, 45, piece)]
        rows = [one for one in [*rows, pooler.finish()] if len(one)]
        assert np.abs(np.concatenate(rows) - wanted).max() < 1e-12

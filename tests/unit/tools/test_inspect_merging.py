"""`tools.inspect_merging`: its files against the model itself, and its refusals."""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from megatron_hyena.checkpoint.format import Manifest, step_folder, tensor_file, write_manifest
from megatron_hyena.checkpoint.tensors import write_tensors
from megatron_hyena.config import config_dict, load_config
from megatron_hyena.corpus.prepare import write_store
from megatron_hyena.layers.merging.rate import rate_state
from megatron_hyena.layers.parameter import cut_of
from megatron_hyena.model.hyena_glt import HyenaGLT
from tools.inspect_merging import main

LENGTH = 200
MODEL = ["model.hidden_size=16", "model.num_heads=2", "model.window=16", "model.init_std=0.4"]


def save(run: Path, *overrides: str) -> HyenaGLT:
    """A run folder with one checkpoint of a model of random weights."""
    keys = [f"data.sequence_length={LENGTH}", f"run.output_dir={run}", *MODEL, *overrides]
    config = load_config(None, keys)
    model, values = HyenaGLT(config.model, seed=3), config_dict(config)
    folder = run / "checkpoints" / step_folder(7)
    folder.mkdir(parents=True)
    parameters, buffers = dict(model.named_parameters()), rate_state(model)
    described = {
        name: {"shape": list(p.shape), "dim": cut_of(p).dim, "blocks": cut_of(p).blocks}
        for name, p in parameters.items()
    }
    tensors: dict[str, torch.Tensor] = {f"weight/{name}": p for name, p in parameters.items()}
    tensors |= {f"buffer/{name}": b for name, b in buffers.items()}
    size = write_tensors(folder / tensor_file(0, 1), tensors)
    files = {tensor_file(0, 1): size}
    manifest = Manifest(7, 7, values["model"], values, 1, described, files, sorted(buffers))
    write_manifest(folder, manifest)
    return model.eval()


@pytest.fixture(scope="module")
def genome(tmp_path_factory):
    """Two contigs, a repeat in lower case, two genes; as FASTA, GFF3 and as a store."""
    folder = tmp_path_factory.mktemp("genome")
    random = np.random.default_rng(0)
    one, two = (random.choice(np.frombuffer(b"ACGT", np.uint8), n).tobytes() for n in (60, 900))
    two = two[:500] + two[500:600].lower() + two[600:]
    (folder / "g.fa").write_bytes(b">one\n" + one + b"\n>two\n" + two + b"\n")
    rows = ["two\t.\tCDS\t101\t160\t.\t+\t0\tID=x", "two\t.\tCDS\t401\t700\t.\t-\t0\tID=y"]
    (folder / "g.gff").write_text("##gff-version 3\n" + "\n".join(rows) + "\n")
    write_store(folder / "g.zarr", [folder / "g.fa"], [folder / "g.gff"])
    return folder, np.frombuffer(two, np.uint8)


@pytest.fixture(autouse=True)
def no_bigwig(monkeypatch: pytest.MonkeyPatch) -> None:
    """bedGraph on every machine; `test_region` looks at bigWig."""
    monkeypatch.setattr("megatron_hyena.formats.interval_files.has_bigwig", lambda: False)


def rows_of(path: Path) -> list[list[Any]]:
    words = [line.split("\t") for line in path.read_text().splitlines()]
    return [[w[0], int(w[1]), int(w[2]), *w[3:]] for w in words]


def merged(model: HyenaGLT, bases: np.ndarray) -> list[tuple[dict[int, float], list[int]]]:
    """Of each stage: p by byte, and the bytes that open chunks, of a sequence by itself."""
    ids = torch.from_numpy(bases.astype(np.int64))[None]
    found = []
    with torch.no_grad():
        for merge in model(ids).merges:
            place = merge.below.place_LB[:, 0].tolist()
            p = dict(zip(place, merge.probability_LB[:, 0].tolist(), strict=True))
            opened = merge.chunks.opens_nWB.flatten().tolist()
            opens = [b for b, o in zip(place, opened, strict=True) if o and b < len(bases)]
            found.append(({b: p[b] for b in p if 0 <= b < len(bases)}, opens))
    return found


def test_files_hold_what_the_model_decides(tmp_path, genome, capsys):
    folder, two = genome
    model = save(tmp_path / "run", "model.pattern=S(L(S)0.5)0.4")
    output = tmp_path / "out"
    arguments = [str(tmp_path / "run"), "--store", str(folder / "g.zarr"), "--output", str(output)]
    assert main([*arguments, "--region", "two:23-150"]) == 0
    said = capsys.readouterr().out
    names = {"stage0.bed", "stage1.bed", "merging.png", "summary.json"}
    names |= {"stage0_probability.bedgraph", "stage1_probability.bedgraph"}
    assert {p.name for p in output.iterdir()} == names
    assert sorted(p.name for p in tmp_path.iterdir()) == ["out", "run"]
    assert all(str(output / name) in said for name in names)
    assert "pip install 'megatron-hyena[bigwig]'" in said
    # Bases 23 to 150 from 1 on are [22, 150) from 0 on, inside of the first pass.
    for number, (p, opens) in enumerate(merged(model, two[:LENGTH])):
        chunks = list(pairwise(opens))
        overlapping = [(a, b) for a, b in chunks if a < 150 and b > 22]
        assert 10 < len(overlapping) < 127
        bed = rows_of(output / f"stage{number}.bed")
        assert [(c, a, b, name) for c, a, b, name, _ in bed] == [
            ("two", a, b, f"stage{number}") for a, b in overlapping
        ]
        for _, start, _, _, score in bed:
            assert int(score) == pytest.approx(1000 * p[start], abs=0.51)
        values = rows_of(output / f"stage{number}_probability.bedgraph")
        assert [(a, b) for _, a, b, _ in values] == [(x, x + 1) for x in p if 22 <= x < 150]
        assert all(float(v) == pytest.approx(p[a], abs=1e-4) for _, a, _, v in values)
    summary = json.loads((output / "summary.json").read_text())
    assert summary["region"] == {"contig": "two", "start": 23, "end": 150}
    assert summary["step"] == 7 and set(summary["files"]) == names
    stage = summary["stages"][0]
    assert stage["kept"] == sum(22 <= b < 150 for b in merged(model, two[:LENGTH])[0][1]) / 128
    assert stage["kept_of_bytes_in"]["coding"]["bytes"] == 50
    assert "soft_masked" not in stage["kept_of_bytes_in"]


def test_what_is_asked_for_does_not_move_a_decision(tmp_path, genome):
    folder, _ = genome
    save(tmp_path / "run", "model.pattern=S(L(S)0.5)0.4")
    fasta, gff = str(folder / "g.fa"), str(folder / "g.gff")
    base = [str(tmp_path / "run"), "--fasta", fasta, "--gff", gff]
    whole, part = tmp_path / "whole", tmp_path / "part"
    assert main([*base, "--region", "two", "--output", str(whole)]) == 0
    assert main([*base, "--region", "two:391-811", "--output", str(part)]) == 0
    for number in range(2):
        all_rows = rows_of(whole / f"stage{number}.bed")
        assert [r[1] for r in all_rows[1:]] == [r[2] for r in all_rows[:-1]]
        assert (all_rows[0][1], all_rows[-1][2]) == (0, 900)
        overlapping = [r for r in all_rows if r[1] < 811 and r[2] > 390]
        found = rows_of(part / f"stage{number}.bed")
        assert [r[:4] for r in found] == [r[:4] for r in overlapping]
        for one, other in zip(found, overlapping, strict=True):
            assert abs(int(one[4]) - int(other[4])) <= 1
    parts = json.loads((part / "summary.json").read_text())["stages"][0]["kept_of_bytes_in"]
    bytes_of = {name: one["bytes"] for name, one in parts.items()}
    assert bytes_of == {
        "coding": 300,
        "non_coding": 121,
        "soft_masked": 100,
        "not_soft_masked": 321,
    }


def test_tracks_that_the_model_reads(tmp_path, genome, capsys):
    folder, _ = genome
    save(tmp_path / "run", "model.pattern=S(L)0.5", "data.tracks=[type,conservation]")
    given = [str(tmp_path / "run"), "--region", "two:1-40", "--output", str(tmp_path / "out")]
    assert main([*given, "--fasta", str(folder / "g.fa")]) == 2
    assert "'conservation', which no FASTA file has; give --store" in capsys.readouterr().err
    assert main([*given, "--store", str(folder / "g.zarr")]) == 2
    assert "no track 'conservation'" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_model_that_reads_both_sides_decides_as_in_one_pass_over_the_contig(tmp_path, genome):
    """The block before the router reaches 6 bases, so no pass may end where its decisions count."""
    folder, two = genome
    both = ("model.causal=false", "train.objective=mlm")
    model = save(tmp_path / "run", "model.pattern=S(L)", *both)
    arguments = [str(tmp_path / "run"), "--store", str(folder / "g.zarr"), "--region", "two:1-800"]
    assert main([*arguments, "--output", str(tmp_path / "out")]) == 0
    ((p, _),) = merged(model, two[: 900 // 16 * 16])
    values = rows_of(tmp_path / "out" / "stage0_probability.bedgraph")
    assert [a for _, a, _, _ in values] == [*range(800)]
    assert all(float(v) == pytest.approx(p[a], abs=1e-4) for _, a, _, v in values)


def test_chunks_without_a_router_have_no_probability(tmp_path, genome, capsys):
    folder, _ = genome
    save(tmp_path / "run", "model.pattern=S(L)", "model.merger=static", "model.merge_ratio=0.75")
    arguments = [str(tmp_path / "run"), "--fasta", str(folder / "g.fa"), "--region", "one:6-60"]
    assert main([*arguments, "--output", str(tmp_path / "out")]) == 0
    assert "no opening probabilities" in capsys.readouterr().out
    bed = rows_of(tmp_path / "out" / "stage0.bed")
    assert bed == [["one", a, a + 4, "stage0", "1000"] for a in range(4, 60, 4)]
    assert not list((tmp_path / "out").glob("*probability*"))


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"--region": "three:1-5"}, "has no contig 'three'"),
        ({"--region": "two:1-901"}, "reaches base 901, but two in"),
        ({"--region": None}, "choose one with --region"),
        ({"--store": "nowhere.zarr"}, "nowhere.zarr is no genome store"),
        ({"--store": None, "--fasta": "nowhere.fa"}, "nowhere.fa"),
        ({"--gff": "nowhere.gff"}, "nowhere.gff"),
        ({"--length": "0"}, "--length 0 must be 1 or more"),
        ({"--output": "taken"}, "taken exists already; pass --overwrite"),
        ({"--output": "taken", "--overwrite": ""}, "taken exists and holds no summary.json"),
    ],
)
def test_mistakes_are_one_sentence(tmp_path, genome, capsys, monkeypatch, changes, sentence):
    folder, _ = genome
    save(tmp_path / "run", "model.pattern=S(L)0.5")
    monkeypatch.chdir(tmp_path)
    Path("taken").mkdir()
    given = {"--store": str(folder / "g.zarr"), "--region": "two:1-40", "--output": "out"}
    words = [w for pair in (given | changes).items() if pair[1] is not None for w in pair if w]
    assert main(["run", *words]) == 2
    said = capsys.readouterr()
    assert said.err.startswith("error: ") and said.err.count("\n") == 1
    assert sentence in said.err and not said.out
    assert not Path("out").exists()


@pytest.mark.parametrize("pattern", ["SL", None])
def test_runs_without_merged_stages_and_folders_that_are_none(tmp_path, genome, capsys, pattern):
    folder, _ = genome
    (tmp_path / "run").mkdir()
    if pattern:
        save(tmp_path / "run", f"model.pattern={pattern}")
    arguments = ["--store", str(folder / "g.zarr"), "--output", str(tmp_path / "out")]
    assert main([str(tmp_path / "run"), *arguments]) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert ("'SL' has no merged stage" in said) == bool(pattern)


def test_a_result_is_replaced_when_asked_to(tmp_path, genome):
    folder, _ = genome
    save(tmp_path / "run", "model.pattern=S(L)0.5")
    arguments = [str(tmp_path / "run"), "--store", str(folder / "g.zarr"), "--region", "one"]
    arguments += ["--output", str(tmp_path / "out")]
    assert main(arguments) == 0
    assert main(arguments) == 2
    (tmp_path / "out" / "stale").write_text("")
    assert main([*arguments, "--overwrite"]) == 0
    assert not (tmp_path / "out" / "stale").exists()

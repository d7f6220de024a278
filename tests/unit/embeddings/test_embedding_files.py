"""What `tools.embed` writes: whole or not at all, resumed after a stop, mistakes in a sentence."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest
import zarr

from megatron_hyena.embeddings import EmbedOptions, embed, run
from megatron_hyena.errors import UserError
from megatron_hyena.model.hyena_glt import HyenaGLT
from megatron_hyena.runtime.lock import only_process_in
from tests.oracles.drawing import small_config, small_model
from tests.oracles.small_corpus import draw
from tests.oracles.variants import write_fasta
from tools.embed import main

pq = pytest.importorskip("pyarrow.parquet")
CONTIGS = {f"chr{n}": draw(np.random.default_rng(n), 40 + n) for n in range(5)}


@pytest.fixture(scope="module")
def model() -> HyenaGLT:
    return small_model(small_config("SL")).float()


@pytest.fixture
def files(tmp_path: Path, model: HyenaGLT) -> list[str]:
    model.save_pretrained(tmp_path / "model")
    fasta = write_fasta(tmp_path / "a.fa", CONTIGS)
    return ["--from", str(tmp_path / "model"), "--fasta", str(fasta)]


def sentence(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    assert main(arguments) == 2
    said = capsys.readouterr().err
    assert said.startswith("error: ") and said.count("\n") == 1
    return said


def test_outputs_say_where_they_come_from(files, tmp_path, capsys) -> None:
    for ending in ("zarr", "parquet"):
        output = tmp_path / f"e.{ending}"
        assert main([*files, "--output", str(output), "--per", "chunk", "--chunk", "20"]) == 0
        assert "14 rows of 8 numbers, of 5 sequences" in capsys.readouterr().out
    group = zarr.open_group(str(tmp_path / "e.zarr"), mode="r")
    schema = pq.read_schema(tmp_path / "e.parquet")
    told = json.loads(schema.metadata[b"megatron_hyena"])
    for about in (dict(group.attrs), told):
        assert (about["layer"], about["chunk"], about["window"]) == ("final", 20, 0)
        assert re.fullmatch("[0-9a-f]{64}", str(about["model_sha256"]))
        assert re.fullmatch("[0-9a-f]{64}", str(about["sequences_sha256"]))
    assert group.attrs["contigs"] == list(CONTIGS)
    left = sorted(path.name for path in tmp_path.iterdir())
    assert left == ["a.fa", "e.parquet", "e.zarr", "model"]


@pytest.mark.parametrize("ending", ["zarr", "parquet"])
def test_work_goes_on_where_it_was_stopped(ending, tmp_path, model, monkeypatch) -> None:
    from megatron_hyena.embeddings import parquet_output, zarr_output

    monkeypatch.setattr(zarr_output, "CHUNK", 8 * 4 * 16)  # 16 rows
    monkeypatch.setattr(parquet_output, "TOGETHER", 40)
    fasta, output = write_fasta(tmp_path / "a.fa", CONTIGS), tmp_path / f"e.{ending}"
    options = EmbedOptions(piece=11)
    embed(model, fasta, tmp_path / f"wanted.{ending}", options)
    whole, begun = run.states_along, list[int]()

    def stopped(model, read, total, options):
        begun.append(total)
        for number, states in enumerate(whole(model, read, total, options)):
            if len(begun) == 4 and number == 2:
                raise KeyboardInterrupt
            yield states

    monkeypatch.setattr(run, "states_along", stopped)
    with pytest.raises(KeyboardInterrupt):
        embed(model, fasta, output, options)
    assert not output.exists() and begun == [40, 41, 42, 43]
    with pytest.raises(UserError, match=r"was begun with layer = 'final', now it is 'block\.0'"):
        embed(model, fasta, output, EmbedOptions(layer=0))
    report = embed(model, fasta, output, options)
    assert report.resumed >= 2 and begun[4:] == [40 + n for n in range(report.resumed, 5)]
    if ending == "zarr":
        found, wanted = (
            np.asarray(zarr.open_group(str(tmp_path / f"{name}.zarr"), mode="r")["embeddings"])
            for name in ("e", "wanted")
        )
        assert found.shape == (sum(map(len, CONTIGS.values())), 8) and np.array_equal(found, wanted)
    else:
        assert pq.read_table(output).equals(pq.read_table(tmp_path / "wanted.parquet"))
    with pytest.raises(UserError, match="exists already; pass --overwrite"):
        embed(model, fasta, output, options)
    assert embed(model, fasta, output, options, overwrite=True).resumed == 0


def test_one_process_writes_a_zarr_output(tmp_path, model) -> None:
    fasta, output = write_fasta(tmp_path / "a.fa", CONTIGS), tmp_path / "e.zarr"
    with only_process_in(tmp_path / ".e.zarr.partial"):
        for overwrite in (False, True):
            with pytest.raises(UserError, match=r"process \d+ is at work in this folder"):
                embed(model, fasta, output, EmbedOptions(), overwrite=overwrite)
    embed(model, fasta, output, EmbedOptions())
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.fa", "e.zarr"]
    assert not (output / ".lock").exists()


def test_mistakes(files, tmp_path, capsys) -> None:
    bed, output = tmp_path / "a.bed", ["--output", str(tmp_path / "e.zarr")]
    named = [*files, *output, "--bed", str(bed)]
    for text, said in [
        ("chr1\t5\n", "line 1 is no BED row"),
        ("chr1\t5\t5\n", "line 1 is no BED row"),
        ("chr1\t5\t9\n1\t5\t9\n", "line 2: "),
        ("1\t5\t9\n", "no contig '1' but 'chr1'"),
        ("chr1\t5\t90\n", "ends at 90, but chr1 of"),
        ("# none\n", "holds no BED rows"),
    ]:
        bed.write_text(text)
        assert said in sentence(named, capsys)
    assert ".zarr or .parquet; rename it" in sentence([*files, "--output", "e.txt"], capsys)
    assert "no layer '7'; give embedding" in sentence([*files, *output, "--layer", "7"], capsys)
    assert "use base, chunk or sequence" in sentence([*files, *output, "--per", "x"], capsys)
    assert "--chunk 0: give 1 or more" in sentence([*files, *output, "--chunk", "0"], capsys)
    (tmp_path / "e.zarr").mkdir()
    assert "no Zarr group, so it is not ours" in sentence([*files, *output, "--overwrite"], capsys)


def test_models_that_grow_with_the_sequence_want_windows(tmp_path) -> None:
    fasta = write_fasta(tmp_path / "a.fa", CONTIGS)

    def refused(pattern: str, said: str, options: EmbedOptions, **changes: object) -> None:
        model = small_model(small_config(pattern, **changes))
        with pytest.raises(UserError, match=said):
            embed(model, fasta, tmp_path / "e.zarr", options)

    short = {"max_sequence_length": 30}
    refused("H", r"chr4 has 44 bases, .* its H remember .* --window 30", EmbedOptions(), **short)
    refused("H", r"--window 40 exceeds .*=30; give less", EmbedOptions(window=40), **short)
    refused("S(S)S", "reads its chunks from the track", EmbedOptions(), merger="precomputed")

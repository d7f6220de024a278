"""`tools.generate`: prompts of every kind of file become sequences; mistakes are one sentence."""

from __future__ import annotations

import gzip
from dataclasses import asdict
from pathlib import Path

import pytest
import torch
from Bio import SeqIO
from Bio.Seq import Seq

from megatron_hyena import HyenaGLT, HyenaGLTConfig, generate
from megatron_hyena.checkpoint.format import Manifest, tensor_file, write_manifest
from megatron_hyena.checkpoint.tensors import write_tensors
from megatron_hyena.generation.column_first import column_first
from megatron_hyena.layers.parameter import cut_of
from tests.oracles.drawing import disturb
from tools.generate import main


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[HyenaGLT, Path]:
    """A model of every kind of layer, and a run folder that holds it."""
    config = HyenaGLTConfig(
        pattern="SM(LW)AH", hidden_size=16, num_heads=2, window=8, max_sequence_length=4096
    )
    model = HyenaGLT(config, seed=5).eval()
    disturb(model)
    run = tmp_path_factory.mktemp("generate") / "run"
    folder = run / "checkpoints" / "step_00000007"
    folder.mkdir(parents=True)
    parameters, name = dict(model.named_parameters()), tensor_file(0, 1)
    files = {name: write_tensors(folder / name, {f"weight/{n}": p for n, p in parameters.items()})}
    described = {}
    for key, parameter in parameters.items():
        cut = cut_of(parameter)
        described[key] = {"shape": list(cut.shape), "dim": cut.dim, "blocks": cut.blocks}
    write_manifest(folder, Manifest(7, 56, asdict(config), {}, 1, described, files))
    return model, run


@pytest.fixture
def output(tmp_path: Path) -> Path:
    return tmp_path / "out.fa"


def call(run: Path, output: Path, *more: str) -> int:
    return main(["--from", str(run), "--output", str(output), *more])


def texts(path: Path) -> dict[str, str]:
    return {record.id: str(record.seq) for record in SeqIO.parse(path, "fasta")}


def test_samples_of_a_prompt(
    trained: tuple[HyenaGLT, Path], output: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    more = ("--prompt", "ACGTTG", "--length", "40", "--samples", "3", "--seed", "2")
    assert call(trained[1], output, *more, "--batch", "1") == 0
    assert capsys.readouterr().out == f"3 sequences written to {output}\n"
    found = texts(output)
    assert list(found) == ["written_1", "written_2", "written_3"]
    assert len(set(found.values())) == 3
    assert all(len(text) == 40 and set(text) <= set("ACGT") for text in found.values())
    headers = [line for line in output.read_text().splitlines() if line.startswith(">")]
    assert headers[0].startswith(">written_1 prompt=6 written=40 end=length nats=")
    assert call(trained[1], output, *more, "--with-prompt", "--overwrite") == 0
    assert texts(output) == {name: "ACGTTG" + text for name, text in found.items()}


def test_prompts_of_a_file(trained: tuple[HyenaGLT, Path], output: Path) -> None:
    """Greedy, so that the function says what is to come; FASTA, gzip and text."""
    model, run = trained
    prompts = {"one": "ACGTA" * 15, "two": "G", "three": "ggatNNcc"}
    expected = dict(zip(prompts, generate(model, list(prompts.values()), 30, 0.0), strict=True))
    fasta = "".join(f">{name} more\n{text}\n" for name, text in prompts.items())
    path = output.with_name("prompts.fa.gz")
    path.write_bytes(gzip.compress(fasta.encode()))
    greedy = ("--length", "30", "--temperature", "0")
    assert call(run, output, "--prompts", str(path), *greedy) == 0
    assert texts(output) == expected
    plain = output.with_name("prompts.txt")
    plain.write_text("\n".join(prompts.values()) + "\n\n")
    assert call(run, output, "--prompts", str(plain), *greedy, "--overwrite") == 0
    numbered = [f"prompt_{number}" for number in (1, 2, 3)]
    assert texts(output) == dict(zip(numbered, expected.values(), strict=True))


def test_reading_frames(trained: tuple[HyenaGLT, Path], output: Path) -> None:
    run, prompt = trained[1], ("--prompt", "AGGAGG", "--temperature", "3")
    frame = ("--codons", "11", "--prefix", "ATG", "--length", "90")
    assert call(run, output, *prompt, *frame) == 0
    (text,) = texts(output).values()
    assert text.startswith("ATG") and "*" not in Seq(text).translate(11)
    protein = output.with_name("protein.fa")
    protein.write_text(">short\nMKVLAW\n")
    for given in ("MKVLAW", str(protein)):
        more = ("--codons", "4", "--protein", given, "--overwrite", "--type", "rna")
        assert call(run, output, "--prompt", "AGGAGG", *more) == 0
        (text,) = texts(output).values()
        assert set(text) <= set("ACGU") and str(Seq(text).translate(4)) == "MKVLAW"


def test_filters_are_fitted_or_refused(
    trained: tuple[HyenaGLT, Path], output: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    more = ("--prompt", "ACG", "--length", "40", "--fit-modes", "12")
    assert call(trained[1], output, *more) == 0
    assert "; filters fitted within " in capsys.readouterr().out
    assert call(trained[1], output, *more, "--fit-error", "1e-12", "--overwrite") == 2
    assert "12 modes give a long filter with a relative error" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (("--prompt", "ACXG"), "--prompt: 'X' at position 3 is no letter of DNA"),
        (("--prompt", ""), "written: the prompt is empty; give one letter or more"),
        (("--prompt", "A", "--samples", "0"), "--samples 0 must be 1 or more"),
        (("--prompt", "A", "--protein", "MK"), "--protein needs --codons, the number of the"),
        (("--prompt", "A", "--until-stop"), "--until-stop needs --codons"),
        (("--prompt", "M", "--type", "protein", "--codons", "1"), "--codons 1 needs --type dna"),
        (("--prompt", "A", "--codons", "1", "--protein", "M", "--until-stop"), "exclude each"),
        (("--prompt", "A", "--length", "9999"), "10000 bytes exceeds model.max_sequence_length"),
        (("--prompts", "nowhere.fa"), "nowhere.fa"),
        (("--prompt", "A", "--type", "dan"), "'dan' is no sequence type"),
        (("--prompt", "A", "--device", "moon"), "--device moon cannot be used here: "),
        (("--prompt", "A", "--temperature", "-1"), r"temperature -1.0 must be 0"),
    ],
)
def test_mistakes_are_told_before_anything_is_written(
    trained: tuple[HyenaGLT, Path],
    output: Path,
    capsys: pytest.CaptureFixture[str],
    more: tuple[str, ...],
    message: str,
) -> None:
    length = () if "--length" in more else ("--length", "20")
    assert call(trained[1], output, *more, *length) == 2
    said = capsys.readouterr().err
    assert said.startswith("error: ") and message in said and said.count("\n") == 1
    assert list(output.parent.iterdir()) == []


def test_files_in_the_way(
    trained: tuple[HyenaGLT, Path], output: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output.write_text("mine")
    more = ("--prompt", "A", "--length", "5")
    assert call(trained[1], output, *more) == 2
    assert f"{output} exists already; pass --overwrite" in capsys.readouterr().err
    assert output.read_text() == "mine"
    assert call(trained[1], output.parent / "none" / "out.fa", *more) == 2
    assert "there is no folder" in capsys.readouterr().err
    assert call(trained[1], output.with_name("b.fa"), "--prompt", "A") == 2
    assert "give --length, the letters to write" in capsys.readouterr().err
    text = output.with_name("bad.txt")
    text.write_text("ACGT\nACXT\n")
    assert call(trained[1], output.with_name("b.fa"), "--prompts", str(text), *more[2:]) == 2
    assert "prompt_2: 'X' at position 3 is no letter of DNA" in capsys.readouterr().err


def test_matrices_by_column_are_the_same_model(tmp_path: Path) -> None:
    config = HyenaGLTConfig(pattern="SLA", hidden_size=16, num_heads=2)
    model, other = HyenaGLT(config), column_first(HyenaGLT(config))
    ids = torch.tensor([list(b"ACGTTGCA")])
    assert not dict(other.named_parameters())["blocks.0.mlp.gate_value"].is_contiguous()
    assert torch.allclose(model(ids).logits, other(ids).logits, atol=1e-6)
    other(ids, labels=ids).loss.backward()
    other.save_pretrained(tmp_path / "saved")
    found = HyenaGLT.from_pretrained(tmp_path / "saved").state_dict()
    assert all(torch.equal(found[name], value) for name, value in model.state_dict().items())

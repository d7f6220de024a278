"""Heads of fine-tuned folders on their way to transformers, and what cannot be exported."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from megatron_hyena import HyenaGLT, HyenaGLTConfig
from megatron_hyena.checkpoint.exchange.formats import Options, convert
from megatron_hyena.checkpoint.format import Manifest, write_manifest
from megatron_hyena.checkpoint.huggingface.heads import TrainedHead, read_head
from megatron_hyena.checkpoint.huggingface.model_card import described_by, model_card
from megatron_hyena.data.tokenizer import BASES
from megatron_hyena.errors import UserError
from megatron_hyena.model.heads import (
    RegressionHead,
    SequenceClassificationHead,
    TokenClassificationHead,
)
from megatron_hyena.model.tasks import Task

NAMES = ["intron", "exon", "neither"]
HEADS = {
    "splice": (
        SequenceClassificationHead(32, 3, pooling="max"),
        Task("classification", num_classes=3, pooling="max"),
        NAMES,
    ),
    "strength": (
        RegressionHead(32, 2, loss="huber", pooling="last", delta=2.0, target_mean=4.0),
        Task("regression", output_dim=2, loss="huber", pooling="last"),
        [],
    ),
    "coding": (TokenClassificationHead(32, 2, 0.3), Task("token_classification", dropout=0.3), []),
}


@pytest.fixture
def tuned(tmp_path: Path) -> Path:
    """A folder as fine-tuning leaves it: trunk, heads and what they are."""
    HyenaGLT(HyenaGLTConfig(pattern="SL", hidden_size=32)).save_pretrained(tmp_path / "best")
    tensors: dict[str, torch.Tensor] = {}
    tasks: dict[str, dict] = {}
    for name, (head, task, classes) in HEADS.items():
        tensors |= {f"{name}.{key}": p.detach() for key, p in head.named_parameters()}
        tasks[name] = asdict(task) | {"classes": classes}
    tasks["strength"] |= {"delta": 2.0, "target_mean": 4.0, "target_std": 1.0}
    save_file(tensors, tmp_path / "best" / "heads.safetensors")
    (tmp_path / "best" / "tasks.json").write_text(json.dumps({"format": 1, "tasks": tasks}))
    return tmp_path / "best"


@pytest.mark.parametrize("name", HEADS)
def test_a_head_is_found_with_its_options(tuned: Path, name: str) -> None:
    head, _, classes = HEADS[name]
    found, expected = read_head(tuned, name), TrainedHead.of(head, classes)
    assert found is not None
    assert found.fields() == expected.fields() and found.per_byte == expected.per_byte
    assert found.tensors.keys() == expected.tensors.keys()
    for key, tensor in expected.tensors.items():
        assert torch.equal(found.tensors[key], tensor)


def test_a_head_is_exported_by_name(tuned: Path, tmp_path: Path) -> None:
    convert(tuned, "hf", tmp_path / "hf", Options(head="splice"))
    said = json.loads((tmp_path / "hf" / "config.json").read_text())
    assert said["architectures"] == ["HyenaGLTForSequenceClassification"]
    assert said["id2label"] == {"0": "intron", "1": "exon", "2": "neither"}
    tensors = load_file(tmp_path / "hf" / "model.safetensors")
    weights = dict(HEADS["splice"][0].named_parameters())
    assert torch.equal(tensors["classifier.pooler.weight"], weights["pooler.weight"])
    card = (tmp_path / "hf" / "README.md").read_text()
    assert "AutoModelForSequenceClassification.from_pretrained" in card
    convert(tuned, "hf", tmp_path / "hf", Options(head="none"))
    assert not any("classifier" in n for n in load_file(tmp_path / "hf" / "model.safetensors"))


def test_heads_that_are_not_there_are_named(tuned: Path, tmp_path: Path) -> None:
    def refused(match: str, name: str = "") -> None:
        with pytest.raises(UserError, match=match):
            convert(tuned, "hf", tmp_path / "hf", Options(head=name))
        assert not (tmp_path / "hf").exists()

    refused(r"best has the heads splice, strength, coding; name one by --head, or none")
    refused(r"best has no head 'splce'; it has splice, strength, coding", "splce")
    path = tuned / "tasks.json"
    whole = json.loads(path.read_text())
    del whole["tasks"]["splice"]["pooling"]
    path.write_text(json.dumps(whole))
    refused(r"tasks.json: task 'splice' has no 'pooling'; copy it again", "splice")
    (tuned / "heads.safetensors").write_bytes(b"cut")
    refused(r"heads.safetensors: damaged or not there", "coding")
    path.write_text("{")
    refused(r"tasks.json: not a description of tasks", "coding")
    path.unlink()
    refused(r"best: no tasks.json says what its heads are; .*--head none", "coding")


def test_heads_are_not_left_out_in_silence(tuned: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"native cannot hold the heads of .*best.*--head none"):
        convert(tuned, "native", tmp_path / "trunk", Options())
    convert(tuned, "native", tmp_path / "trunk", Options(head="none"))
    assert HyenaGLT.from_pretrained(tmp_path / "trunk").config.pattern == "SL"


def test_a_model_of_four_letters_has_no_tokenizer(tmp_path: Path) -> None:
    HyenaGLT(HyenaGLTConfig(pattern="S", hidden_size=32, vocab_size=4)).save_pretrained(
        tmp_path / "ours"
    )
    convert(tmp_path / "ours", "hf", tmp_path / "hf", Options())
    assert not (tmp_path / "hf" / "tokenizer_config.json").exists()
    assert json.loads((tmp_path / "hf" / "config.json").read_text())["pad_token_id"] is None
    card = (tmp_path / "hf" / "README.md").read_text()
    assert "AutoTokenizer" not in card and "Ids 0 to 3 are the letters A, T, G, C" in card
    assert BASES == "ATGC"


def test_the_card_says_what_the_run_says(tmp_path: Path) -> None:
    checkpoint = tmp_path / "checkpoints" / "step_00000007"
    checkpoint.mkdir(parents=True)
    manifest = Manifest(7, 1, {}, {}, 1, {}, {})
    write_manifest(checkpoint, manifest)
    source = {"role": "sequence", "file": "ct.fa", "sha256": "ab12"}
    data = [{"folder": "mine", "digest": "77" * 20, "provenance": {"sources": [source]}}]
    (checkpoint / "provenance.json").write_text(json.dumps(data))
    summary = {"steps": 7, "valid_loss": 1.25, "valid_bits_per_base": 1.8034}
    (tmp_path / "summary.json").write_text(json.dumps(summary))
    markov = {"order": 8, "bits_per_base": 1.9}
    evaluation = {"model": {"bits_per_base": 1.85}, "best_markov": markov}
    (tmp_path / "evaluation.json").write_text(json.dumps(evaluation))
    config = HyenaGLTConfig(pattern="S(A)S", hidden_size=32, num_heads=4)

    def card() -> str:
        found = {name: t for name, t in HyenaGLT(config).stored().items()}
        return model_card(config, "HyenaGLTForCausalLM", described_by(checkpoint, 7), found)

    text = card()
    for part in ("`S(A)S`", "merged positions", "ct.fa", "ab12", "`mine`", "| 1.2500 |", "1.8034"):
        assert part in text, part
    assert "best Markov model (order 8) on the same bases | 1.9000" in text
    assert "# license: state" in text
    (tmp_path / "summary.json").write_text(json.dumps(summary | {"steps": 8}))
    assert "1.2500" not in card() and "order 8" not in card()
    (tmp_path / "summary.json").write_text("{")
    with pytest.raises(UserError, match=r"summary.json: not JSON .*restore or delete it"):
        card()


def test_names_must_fit_the_head() -> None:
    with pytest.raises(UserError, match=r"2 names of labels for a head of 3; name each"):
        TrainedHead.of(HEADS["splice"][0], ["a", "b"])

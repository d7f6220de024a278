"""The Hugging Face folder, read by the Auto classes where this package cannot be imported."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from megatron_hyena import HyenaGLT, HyenaGLTConfig
from megatron_hyena.checkpoint.huggingface.export import export_huggingface
from megatron_hyena.checkpoint.huggingface.heads import TrainedHead
from megatron_hyena.model.heads import (
    RegressionHead,
    SequenceClassificationHead,
    TaskHead,
    TokenClassificationHead,
)

pytest.importorskip("transformers", reason="the export extra is not installed")

READER = Path(__file__).with_name("huggingface_reader.py")
BASE = HyenaGLTConfig(pattern="SMLHGAW", hidden_size=32, num_heads=4, attention_window=16)
CONFIGURATIONS = {
    "tied": replace(BASE, motifs=("TATAWAW", "CG")),
    "untied": replace(BASE, hyena_filter="genomic", motifs=("TATAWAW", "CG"), tie_embeddings=False),
    "merged": replace(BASE, pattern="S(MA)S", window=16, tie_embeddings=False),
    "masked": replace(BASE, pattern="SA", causal=False),
    "published": replace(
        BASE,
        pattern="SLA",
        norm_eps_outside=True,
        projection_bias=True,
        li_poles="complex",
        se_skip=True,
        mr_decay="none",
        mlp_activation="evo2",
        rope_scaling=2.0,
        rope_bf16=True,
    ),
}
IDS = torch.randint(65, 85, (2, 150), generator=torch.Generator().manual_seed(0))
HEADS = {
    "classes": (lambda: SequenceClassificationHead(32, 3, pooling="attention"), [2, 1]),
    "numbers": (lambda: RegressionHead(32, 1, target_mean=3.0, target_std=2.0), [2.5, 4.0]),
    "bytes": (lambda: TokenClassificationHead(32, 2), (IDS % 2).tolist()),
}


M = TypeVar("M", bound=nn.Module)


@dataclass(frozen=True)
class Read:
    """A model, and what a process that cannot import this package has made of its folder."""

    model: HyenaGLT
    said: dict[str, Any]
    found: dict[str, Tensor]
    head: TaskHead | None = None


def spread(model: M) -> M:
    """`model` with biases and scales away from their start, as training leaves them."""
    generator = torch.Generator().manual_seed(9)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.02 * torch.randn(parameter.shape, generator=generator))
    return model.eval()


QUICK = ("tied", "merged", "new heads", "classes")
"""Read in every run of the suite; every folder brings its own code and takes a second or two."""


def names_of(known: Iterable[str]) -> list[Any]:
    """Parameters of a test, the slow ones marked."""
    return [n if n in QUICK else pytest.param(n, marks=pytest.mark.slow) for n in known]


class Readings(dict[str, Read]):
    """Folders read by one process each for the quick and the slow ones, when first asked for."""

    def __init__(self, scratch: Path) -> None:
        super().__init__()
        self.scratch = scratch

    def __missing__(self, name: str) -> Read:
        quick = name in QUICK
        place = self.scratch / ("quick" if quick else "slow")
        place.mkdir()
        self.update(read_folders(place, quick))
        return self[name]


@pytest.fixture(scope="module")
def read(tmp_path_factory: pytest.TempPathFactory) -> Readings:
    return Readings(tmp_path_factory.mktemp("read"))


def read_folders(scratch: Path, quick: bool) -> dict[str, Read]:
    """What a process without this package reads of the quick folders, or of all others."""
    models = {name: spread(HyenaGLT(one, seed=3)) for name, one in CONFIGURATIONS.items()}
    jobs: list[tuple[str, HyenaGLT, TaskHead | None, dict[str, Any]]] = []
    for name, model in models.items():
        auto = "AutoModelForCausalLM" if model.config.causal else "AutoModelForMaskedLM"
        jobs.append((name, model, None, {"act": "language_model", "auto": auto}))
    jobs.append(("new heads", models["merged"], None, {"act": "heads"}))
    for name, (make, labels) in HEADS.items():
        kind = "Token" if name == "bytes" else "Sequence"
        asked = {"act": "trained_head", "auto": f"AutoModelFor{kind}Classification"}
        jobs.append((name, models["untied"], spread(make()), asked | {"labels": labels}))
    jobs = [job for job in jobs if (job[0] in QUICK) is quick]
    folders = [scratch / name.replace(" ", "_") for name, *_ in jobs]
    for folder, (name, model, head, _) in zip(folders, jobs, strict=True):
        classes = ["no", "yes"] if name == "bytes" else []
        trained = None if head is None else TrainedHead.of(head, classes)
        size = "60KB" if name == "merged" else "5GB"
        export_huggingface(model.config, model.stored(), folder, head=trained, max_shard_size=size)
    save_file({"ids": IDS}, scratch / "ids.safetensors")
    (scratch / "words.json").write_text(json.dumps([asked for *_, asked in jobs]))
    done = subprocess.run(
        [sys.executable, str(READER), str(scratch), *map(str, folders)],
        capture_output=True,
        text=True,
        env={
            **{"HF_HOME": str(scratch / "cache"), "HF_HUB_OFFLINE": "1", "PATH": ""},
            "OMP_NUM_THREADS": "1",
        },
        cwd=scratch,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    lines = [line for line in done.stdout.splitlines() if line.startswith("said ")]
    assert len(lines) == len(jobs), done.stdout
    return {
        name: Read(model, json.loads(line[5:]), load_file(scratch / f"{number}.safetensors"), head)
        for number, (line, (name, model, head, _)) in enumerate(zip(lines, jobs, strict=True))
    }


@pytest.mark.smoke
@pytest.mark.parametrize("name", names_of(CONFIGURATIONS))
def test_auto_classes_read_the_folder_without_this_package(
    read: dict[str, Read], name: str
) -> None:
    model, said, found = read[name].model, read[name].said, read[name].found
    assert said["missing"] == [] and said["unexpected"] == [] and said["missing_base"] == []
    assert said["decoded"] == "ACGTNnacgtUuRYKMswv"
    assert said["tied"] is model.config.tie_embeddings
    with torch.no_grad():
        expected = model(IDS, labels=IDS)
    close = partial(torch.testing.assert_close, atol=1e-5, rtol=1e-5)
    close(found["logits"], expected.logits)
    torch.testing.assert_close(found["loss"][0], expected.loss)
    close(found["states"], expected.last_hidden_state)
    close(found["base_states"], expected.last_hidden_state)
    assert found["token_ids"][0].tolist() == list(b"ACGTNnacgtUuRYKMswv")
    assert found["token_ids"][1].tolist() == [65, 67] + [1] * 17
    assert found["mask"][1].tolist() == [1, 1] + [0] * 17


@pytest.mark.smoke
def test_an_exported_model_writes_what_ours_would(read: dict[str, Read]) -> None:
    for name in ("tied", "merged"):
        found, passes = read[name].found, read[name].said["passes"]
        grown = IDS[:2, :5]
        with torch.no_grad():
            for _ in range(6):
                best = read[name].model(grown).logits[:, -1].argmax(-1, keepdim=True)
                grown = torch.cat([grown, best], dim=1)
        assert found["grown/1/True"].tolist() == grown.tolist()
        assert passes["grown/1/True"] == passes["grown/3/True"] == 0
        assert passes["grown/1/False"] == passes["grown/3/False"] == 6
        for beams in (1, 3):
            assert torch.equal(found[f"grown/{beams}/True"], found[f"grown/{beams}/False"])


@pytest.mark.smoke
def test_prompts_of_several_lengths_are_padded_in_front(read: dict[str, Read]) -> None:
    for name in ("tied", "merged"):
        found, (behind, by_passes) = read[name].found, read[name].said["refused"]
        assert torch.equal(found["batch"], found["alone"])
        assert "padding_side = 'left'" in behind and "use_cache=False" in by_passes


@pytest.mark.smoke
def test_new_heads_are_named_missing_and_train(read: dict[str, Read]) -> None:
    said = read["new heads"].said["heads"]
    assert set(said) == {
        "AutoModelForSequenceClassification/3",
        "AutoModelForSequenceClassification/1",
        "AutoModelForTokenClassification/4",
    }
    found = read["new heads"].found
    for name, told in said.items():
        assert told["missing"] and all(key.startswith("classifier.") for key in told["missing"])
        assert told["unexpected"] == []
        assert not set(told["missing"]) & set(told["still"])
        assert found[f"{name}/loss"].isfinite()
    saved = "AutoModelForTokenClassification/4"
    assert said[saved]["missing_again"] == []
    torch.testing.assert_close(found["again"], found[f"{saved}/logits"], atol=1e-6, rtol=1e-6)


@pytest.mark.smoke
def test_the_mask_says_what_a_head_reads(read: dict[str, Read]) -> None:
    found = read["new heads"].found
    for name in read["new heads"].said["heads"]:
        masked, cut = found[f"{name}/logits"][1], found[f"{name}/cut"][0]
        if "Token" in name:
            masked = masked[:40]
        torch.testing.assert_close(masked, cut, atol=1e-5, rtol=1e-5)


@pytest.mark.smoke
@pytest.mark.parametrize("name", names_of(HEADS))
def test_trained_heads_open_with_their_labels(read: dict[str, Read], name: str) -> None:
    one = read[name]
    assert one.said["missing"] == [] and one.said["unexpected"] == [] and one.head is not None
    labels = torch.tensor(HEADS[name][1])
    with torch.no_grad():
        expected = one.head(one.model(IDS).last_hidden_state)
        loss = one.head.loss(expected, labels)
    torch.testing.assert_close(one.found["logits"], expected, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(one.found["loss"][0], loss)
    if name == "bytes":
        assert one.said["id2label"] == {"0": "no", "1": "yes"}
    assert one.said["problem"] == (
        "regression" if name == "numbers" else "single_label_classification"
    )


def test_export_replaces_only_an_export(tmp_path: Path) -> None:
    model = HyenaGLT(HyenaGLTConfig(pattern="S", hidden_size=32))
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("do not lose me")
    with pytest.raises(ValueError, match="not ours to overwrite"):
        export_huggingface(model.config, model.stored(), tmp_path / "mine")
    assert (tmp_path / "mine" / "thesis.txt").exists()
    export_huggingface(model.config, model.stored(), tmp_path / "hf")
    export_huggingface(model.config, model.stored(), tmp_path / "hf")

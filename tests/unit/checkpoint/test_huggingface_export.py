"""The Hugging Face folder, read by the Auto classes where this package cannot be imported."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from megatron_hyena import HyenaGLT, HyenaGLTConfig
from megatron_hyena.checkpoint.huggingface.export import export_huggingface

pytest.importorskip("transformers", reason="the export extra is not installed")

READER = """
import json, sys

class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("megatron_hyena", "deepspeed", "megatron"):
            raise ImportError(f"{name} is out of reach in this test")

sys.meta_path.insert(0, Refuse())
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

scratch, *folders = sys.argv[1:]
ids = load_file(f"{scratch}/ids.safetensors")["ids"]
for number, folder in enumerate(folders):
    config = AutoConfig.from_pretrained(folder, trust_remote_code=True)
    model, report = AutoModelForCausalLM.from_pretrained(
        folder, trust_remote_code=True, output_loading_info=True
    )
    out = model(input_ids=ids, labels=ids, output_hidden_states=True)
    tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=True)
    text = "ACGTNnacgtUuRYKMswv"
    batch = tokenizer([text, "AC"], padding=True, return_tensors="pt")
    grown = model.generate(ids[:1, :5], max_new_tokens=3, do_sample=False, use_cache=False)
    save_file(
        {"logits": out.logits.detach().contiguous(), "loss": out.loss.detach().reshape(1),
         "grown": grown, "token_ids": batch["input_ids"], "mask": batch["attention_mask"]},
        f"{scratch}/{number}.safetensors",
    )
    print("said", json.dumps({
        "model_type": config.model_type,
        "missing": sorted(report["missing_keys"]), "unexpected": sorted(report["unexpected_keys"]),
        "decoded": tokenizer.decode(batch["input_ids"][0]),
        "tied": model.get_output_embeddings().weight is model.get_input_embeddings().weight,
    }))
"""
CONFIGURATIONS = {
    tied: HyenaGLTConfig(
        pattern="SMLHGAW",
        hidden_size=32,
        num_heads=4,
        attention_window=16,
        tie_embeddings=tied,
        hyena_filter="implicit" if tied else "genomic",
        motifs=("TATAWAW", "CG"),
    )
    for tied in (True, False)
}
IDS = torch.randint(65, 85, (2, 150), generator=torch.Generator().manual_seed(0))


@dataclass(frozen=True)
class Read:
    """A model, and what a process that cannot import this package has made of its folder."""

    model: HyenaGLT
    said: dict[str, Any]
    found: dict[str, Tensor]


@pytest.fixture(scope="module")
def read(tmp_path_factory: pytest.TempPathFactory) -> dict[bool, Read]:
    """Both configurations, read by one process: it takes seconds to start."""
    scratch = tmp_path_factory.mktemp("read")
    models = {tied: HyenaGLT(one, seed=3).eval() for tied, one in CONFIGURATIONS.items()}
    folders = {tied: scratch / f"hf_{tied}" for tied in models}
    for tied, model in models.items():
        export_huggingface(model, folders[tied])
    save_file({"ids": IDS}, scratch / "ids.safetensors")
    done = subprocess.run(
        [sys.executable, "-c", READER, str(scratch), *map(str, folders.values())],
        capture_output=True,
        text=True,
        env={"HF_HOME": str(scratch / "cache"), "HF_HUB_OFFLINE": "1", "PATH": ""},
        cwd=scratch,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    lines = [line for line in done.stdout.splitlines() if line.startswith("said ")]
    assert len(lines) == len(models), done.stdout
    return {
        tied: Read(model, json.loads(line[5:]), load_file(scratch / f"{number}.safetensors"))
        for number, (line, (tied, model)) in enumerate(zip(lines, models.items(), strict=True))
    }


@pytest.mark.smoke
@pytest.mark.parametrize("tied", CONFIGURATIONS)
def test_auto_classes_read_the_folder_without_this_package(
    read: dict[bool, Read], tied: bool
) -> None:
    model, said, found = read[tied].model, read[tied].said, read[tied].found
    assert said["model_type"] == "hyena_glt"
    assert said["missing"] == [] and said["unexpected"] == []
    assert said["decoded"] == "ACGTNnacgtUuRYKMswv"
    assert said["tied"] is tied
    with torch.no_grad():
        expected = model(IDS, labels=IDS)
        grown = IDS[:1, :5]
        for _ in range(3):
            best = model(grown).logits[:, -1].argmax(-1, keepdim=True)
            grown = torch.cat([grown, best], dim=1)
    torch.testing.assert_close(found["logits"], expected.logits, atol=1e-6, rtol=1e-6)
    torch.testing.assert_close(found["loss"][0], expected.loss)
    assert found["grown"].tolist() == grown.tolist()
    assert found["token_ids"][0].tolist() == list(b"ACGTNnacgtUuRYKMswv")
    assert found["token_ids"][1].tolist() == [65, 67] + [1] * 17
    assert found["mask"][1].tolist() == [1, 1] + [0] * 17


def test_export_replaces_only_an_export(tmp_path: Path) -> None:
    model = HyenaGLT(HyenaGLTConfig(pattern="S", hidden_size=32))
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("do not lose me")
    with pytest.raises(ValueError, match="not ours to overwrite"):
        export_huggingface(model, tmp_path / "mine")
    assert (tmp_path / "mine" / "thesis.txt").exists()
    export_huggingface(model, tmp_path / "hf")
    export_huggingface(model, tmp_path / "hf")

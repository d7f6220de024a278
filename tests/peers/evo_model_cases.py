"""Inside the peer's process: `evo` opens a Hugging Face folder of Evo 1, scores and writes."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import torch

from tests.peers import shims
from tests.peers.process import Arrays, write_as_resource
from tests.peers.stripedhyena_cases import build, stored

NAME, REPOSITORY, REVISION = "evo-1-8k-base", "togethercomputer--evo-1-8k-base", "1.1_fix"


def main(settings: dict[str, Any], inputs: Arrays) -> Arrays:
    """What `evo` says of `settings["folder"]`, or one of `weights.NAME`, else of random ones.

    Those not from a folder are returned too.

    In the precision that it chooses, mostly bf16: logits of `ids` [B, L] (`bf16`). Then in fp32:
    `logits`, the mean log-likelihood of each of `settings["texts"]`, and the tokens written after
    `settings["prompt"]` with a cache; without one, this version of `evo` fails.
    """
    os.environ["HF_HUB_CACHE"] = str(Path("hub").resolve())
    if folder := settings.get("folder"):
        shims.lend_flash_attn()
        file: dict[str, torch.Tensor] = {}
        shutil.copytree(folder, new_snapshot(Path("hub")), dirs_exist_ok=True)
    else:
        _, file = build(settings["config"], inputs)
        write_hub_folder(Path("hub"), file)
    import evo
    from evo.models import load_checkpoint
    from evo.tokenizer import CharLevelTokenizer

    path = write_as_resource(settings["config"], "evo")
    model = load_checkpoint(NAME, config_path=path, device="cpu").eval()
    dtypes = {f"dtype.{n}": np.asarray(str(t.dtype)) for n, t in model.state_dict().items()}
    ids = torch.from_numpy(inputs["ids"])
    with torch.inference_mode():
        coarse = model(ids)[0].float().numpy()
        logits = model.float()(ids)[0].numpy()
    tokenizer = CharLevelTokenizer(512)
    scores = evo.score_sequences(settings["texts"], model, tokenizer, device="cpu")
    (text,), _ = evo.generate(
        [settings["prompt"]],
        model,
        tokenizer,
        n_tokens=8,
        top_k=1,
        device="cpu",
        cached_generation=True,
        verbose=0,
    )
    return {
        "bf16": coarse,
        "logits": logits,
        "scores": np.asarray(scores),
        "written": np.asarray([ord(letter) for letter in text]),
        **dtypes,
        **stored(file),
    }


def new_snapshot(hub: Path) -> Path:
    """An empty snapshot in the hub's cache, where evo-model looks for its model offline."""
    folder = hub / f"models--{REPOSITORY}"
    (folder / "refs").mkdir(parents=True)
    (folder / "refs" / REVISION).write_text("0" * 40)
    snapshot = folder / "snapshots" / ("0" * 40)
    snapshot.mkdir(parents=True)
    return snapshot


def write_hub_folder(hub: Path, weights: dict[str, torch.Tensor]) -> None:
    """The hub's cache with one snapshot of two shards, as evo-model finds it offline."""
    from safetensors.torch import save_file

    snapshot = new_snapshot(hub)
    names = sorted(n for n in weights if n != "unembed.weight")  # tied: stored once
    index: dict[str, str] = {}
    for shard in range(2):
        file = f"model-{shard + 1:05d}-of-00002.safetensors"
        own = {f"backbone.{n}": weights[n] for n in names[shard::2]}
        save_file(own, snapshot / file)
        index |= dict.fromkeys(own, file)
    (snapshot / "model.safetensors.index.json").write_text(json.dumps({"weight_map": index}))

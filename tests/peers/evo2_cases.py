"""Inside the peer's process: `evo2.Evo2` opens a .pt file and a YAML, scores, embeds and writes."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from tests.peers import shims
from tests.peers.process import Arrays, write_as_resource
from tests.peers.stripedhyena_cases import stored
from tests.peers.vtx_cases import build

NAME = "evo2_7b_base"  # one of the package's own; its YAML is replaced by ours


def main(settings: dict[str, Any], inputs: Arrays) -> Arrays:
    """What `Evo2` says of `settings["path"]`, or a file of `weights.NAME`, else of random ones.

    Those not from a path are returned too.

    In the precision that it chooses, mostly bf16: logits of `ids` [B, L] (`bf16`). Then in fp32:
    `logits`, what layer 0 hands on, the mean log-likelihood of each of `settings["texts"]`, and the
    tokens written after `settings["prompt"]` with and without a cache.
    """
    shims.keep_evo2_on_the_cpu()
    import evo2.models

    evo2.models.CONFIG_MAP[NAME] = write_as_resource(settings["config"], "evo2")
    path = settings.get("path")
    file: dict[str, torch.Tensor] = {}
    if path is None:
        _, file = build(settings["config"], inputs)
        path = "model.pt"
        torch.save(file, path)

    model = evo2.Evo2(NAME, local_path=path)
    dtypes = {f"dtype.{n}": np.asarray(str(t.dtype)) for n, t in model.model.state_dict().items()}
    ids = torch.from_numpy(inputs["ids"])
    (coarse, _), _ = model(ids)
    model.model.float()
    (logits, _), layers = model(ids, return_embeddings=True, layer_names=["blocks.0"])
    return {
        "bf16": coarse.float().numpy(),
        "logits": logits.numpy(),
        "layer": layers["blocks.0"].numpy(),
        "scores": np.asarray(model.score_sequences(settings["texts"])),
        "written.cached": _write(model, settings["prompt"], cached_generation=True),
        "written.whole": _write(model, settings["prompt"], cached_generation=False),
        **dtypes,
        **stored(file),
    }


def _write(model: Any, prompt: str, **options: Any) -> np.ndarray:
    """The eight likeliest bytes behind `prompt`, one after another."""
    made = model.generate([prompt], n_tokens=8, temperature=1.0, top_k=1, verbose=0, **options)
    return np.asarray([ord(letter) for letter in made.sequences[0]])

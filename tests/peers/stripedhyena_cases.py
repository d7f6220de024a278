"""Inside the peer's process: build a StripedHyena model, read with it and write with it."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from tests.peers import shims
from tests.peers.process import Arrays
from tests.peers.random_weights import file_of


def main(settings: dict[str, Any], inputs: Arrays) -> Arrays:
    """Logits of `ids` [B, L] at once and, after the first `prompt` of them, one by one, in fp32.

    The weights are `weights.NAME` of the inputs (strict), else random; they are returned too.
    """
    model, file = build(settings["config"], inputs)
    model.load_state_dict(file, strict=True)
    return {**read_and_decode(model, settings, inputs), **stored(file)}


def build(config: dict[str, Any], inputs: Arrays) -> tuple[torch.nn.Module, dict[str, Any]]:
    """A model of the package and tensors for it."""
    if config["attn_layer_idxs"]:
        shims.lend_flash_attn()
    from stripedhyena.model import StripedHyena
    from stripedhyena.utils import dotdict

    model = StripedHyena(dotdict(config)).eval()
    file = file_of(model, inputs)
    if config["tie_embeddings"]:
        file["unembed.weight"] = file["embedding_layer.weight"]
    return model, file


def stored(file: dict[str, torch.Tensor]) -> Arrays:
    """The tensors by `weights.NAME`."""
    return {f"weights.{name}": tensor.numpy() for name, tensor in file.items()}


def read_and_decode(model: Any, settings: dict[str, Any], inputs: Arrays) -> Arrays:
    """`logits` [B, L, V] of one pass; `decoded`: the prompt in one, then one token at a time."""
    ids, prompt = torch.from_numpy(inputs["ids"]), settings["prompt"]
    with torch.inference_mode():
        whole, _ = model(ids)
        state = model.initialize_inference_params()
        for part in state.values():
            part.max_batch_size = len(ids)
        pieces = [model(ids[:, :prompt], inference_params_dict=state)[0]]
        for at in range(prompt, ids.shape[1]):
            for part in state.values():
                part.seqlen_offset = at
            pieces.append(model(ids[:, at : at + 1], inference_params_dict=state)[0])
    return {"logits": whole.numpy(), "decoded": np.concatenate([p.numpy() for p in pieces], 1)}

"""Inside the peer's process: read files that were converted for it, and make models of its own."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml

from tests.peers.process import Arrays
from tests.peers.random_weights import file_of
from tests.peers.stripedhyena_cases import read_and_decode, stored


def main(settings: dict[str, Any], inputs: Arrays) -> Arrays:
    """Several models in one process, which takes seconds to start.

    `settings["files"]`: name -> .pt file, its YAML beside it; each gives `NAME.logits`,
    `NAME.decoded` and `NAME.unknown`, the tensors that the model has no place for.
    `settings["made"]`: name -> configuration of a random model, which gives `NAME.weights.TENSOR`
    too. `settings["program"]`: settings of a case of the program around the model, whose arrays
    come as `program.…`.
    """
    outputs: Arrays = {}
    for name, path in settings["files"].items():
        config = yaml.safe_load(Path(path).with_suffix(".yml").read_text())
        model = _build(settings, config)
        file = torch.load(path, map_location="cpu", mmap=True, weights_only=True)
        unknown = sorted(file.keys() - model.state_dict().keys())
        outputs[f"{name}.unknown"] = np.asarray(unknown, dtype=str)
        _load(model, file)
        outputs |= _named(name, read_and_decode(model, settings, inputs))
    for name, config in settings["made"].items():
        model = _build(settings, config)
        file = file_of(model, {})
        if "hyena_layer_idxs" in config and config["tie_embeddings"]:
            file["unembed.weight"] = file["embedding_layer.weight"]
        _load(model, file)
        outputs |= _named(name, read_and_decode(model, settings, inputs) | stored(file))
    if program := settings.get("program"):
        found = import_module(f"tests.peers.{program['cases']}").main(program, inputs)
        outputs |= _named("program", found)
    return outputs


def _build(settings: dict[str, Any], config: dict[str, Any]) -> Any:
    return import_module(f"tests.peers.{settings['cases']}").build(config, {})[0]


def _load(model: Any, file: dict[str, torch.Tensor]) -> None:
    # vortex turns rows of a file; stripedhyena has files as they are in memory.
    getattr(model, "custom_load_state_dict", model.load_state_dict)(file, strict=True)


def _named(name: str, arrays: Arrays) -> Arrays:
    return {f"{name}.{key}": array for key, array in arrays.items()}

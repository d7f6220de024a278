"""Write a dense model as a Hugging Face folder.

The folder holds the weights, the configuration and the code: this package's own modules, copied
with their imports made relative, so that `AutoModelForCausalLM.from_pretrained(folder,
trust_remote_code=True)` runs the very same operators where this package is not installed.
"""

from __future__ import annotations

import importlib.util
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from megatron_hyena.checkpoint.huggingface.exported_fields import exported_fields
from megatron_hyena.checkpoint.huggingface.heads import TrainedHead
from megatron_hyena.checkpoint.huggingface.model_card import Described, model_card
from megatron_hyena.checkpoint.huggingface.shards import size_in_bytes, write_shards
from megatron_hyena.config.alphabet import COMPACT
from megatron_hyena.config.filters import BUILT_IN_FILTERS
from megatron_hyena.config.model import HyenaGLTConfig
from megatron_hyena.config.pattern import SIGNS
from megatron_hyena.data.atomic import atomic_folder
from megatron_hyena.errors import UserError
from megatron_hyena.model.count import meta_model

_HERE = "megatron_hyena.checkpoint.huggingface"
_CONFIGURATION = f"{_HERE}.configuration_hyena_glt"
_MODELING = f"{_HERE}.modeling_hyena_glt"
_TOKENIZER = f"{_HERE}.tokenization_hyena_glt"
_IMPORT = re.compile(r"^(\s*)from (megatron_hyena[\w.]*) import", re.MULTILINE)
_LAYER = re.compile(r'Sign\(\s*"(megatron_hyena[\w.]+):')
LARGEST_FILE = "5GB"


def export_huggingface(
    config: HyenaGLTConfig,
    tensors: Mapping[str, Tensor],
    folder: Path,
    *,
    head: TrainedHead | None = None,
    about: Described | None = None,
    max_shard_size: str = LARGEST_FILE,
) -> None:
    """Write a model to `folder`, which appears whole; an old one is replaced.

    Args:
        config: the architecture.
        tensors: of `HyenaGLT.stored`, by name; asked for one at a time, and written in fp32.
        folder: to be made.
        head: a trained head, for the Auto class of its kind.
        about: what the model card says beside the architecture.
        max_shard_size: of a file of weights, such as `5GB`.
    Raises:
        UserError: the model has long filters that are not of this package; or tensors are missing
            or have other shapes.
    """
    limit = size_in_bytes(max_shard_size)
    if config.hyena_filter not in BUILT_IN_FILTERS:
        raise UserError(
            f"model.hyena_filter={config.hyena_filter!r} is registered by a program, whose "
            f"code an exported model lacks; only {' and '.join(BUILT_IN_FILTERS)} can be exported"
        )
    described = {f"model.{name}": tensor for name, tensor in meta_model(config).stored().items()}
    with atomic_folder(folder, marker="config.json", overwrite=True) as building:
        found: Mapping[str, Tensor] = _Prefixed(tensors, head)
        if head is not None:
            described |= {f"classifier.{n}": t.to("meta") for n, t in head.tensors.items()}
        write_shards(building, found, described, limit)
        (building / "config.json").write_text(_configuration(config, head), encoding="utf-8")
        card = model_card(config, _architecture(config, head), about or Described(), described)
        (building / "README.md").write_text(card, encoding="utf-8")
        if config.vocab_size > COMPACT:
            _write_tokenizer(building)
        for module in _modules():
            text = _relative(_source(module))
            (building / f"{_file(module)}.py").write_text(text, encoding="utf-8")


class _Prefixed(Mapping[str, Tensor]):
    """Tensors of a model under `model.`, and of a head under `classifier.`."""

    def __init__(self, tensors: Mapping[str, Tensor], head: TrainedHead | None) -> None:
        self.parts = {"model": tensors, "classifier": head.tensors if head else {}}

    def __getitem__(self, key: str) -> Tensor:
        part, _, name = key.partition(".")
        return self.parts[part][name].detach()

    def __iter__(self) -> Any:
        return (f"{part}.{name}" for part, named in self.parts.items() for name in named)

    def __len__(self) -> int:
        return sum(map(len, self.parts.values()))


def _architecture(config: HyenaGLTConfig, head: TrainedHead | None) -> str:
    """The class in the modeling file that the folder is first of all."""
    if head is not None:
        return f"HyenaGLTFor{'Token' if head.per_byte else 'Sequence'}Classification"
    return "HyenaGLTForCausalLM" if config.causal else "HyenaGLTForMaskedLM"


def _configuration(config: HyenaGLTConfig, head: TrainedHead | None) -> str:
    classes = {
        "AutoModel": "HyenaGLTModel",
        "AutoModelForSequenceClassification": "HyenaGLTForSequenceClassification",
        "AutoModelForTokenClassification": "HyenaGLTForTokenClassification",
    }
    if config.causal:
        classes["AutoModelForCausalLM"] = "HyenaGLTForCausalLM"
    else:
        classes["AutoModelForMaskedLM"] = "HyenaGLTForMaskedLM"
    pad = None if config.vocab_size <= COMPACT else 1
    values = exported_fields(config) | {
        "model_type": "hyena_glt",
        "architectures": [_architecture(config, head)],
        "dtype": str(torch.float32).partition(".")[2],
        "tie_word_embeddings": config.tie_embeddings,
        "eos_token_id": None if pad is None else 0,
        "pad_token_id": pad,
        "auto_map": {
            "AutoConfig": f"{_file(_CONFIGURATION)}.HyenaGLTAutoConfig",
            **{auto: f"{_file(_MODELING)}.{name}" for auto, name in classes.items()},
        },
    }
    return json.dumps(values | (head.fields() if head else {}), indent=2) + "\n"


def _write_tokenizer(folder: Path) -> None:
    tokenizer = {
        "tokenizer_class": "HyenaGLTTokenizer",
        "auto_map": {"AutoTokenizer": [f"{_file(_TOKENIZER)}.HyenaGLTTokenizer", None]},
    }
    text = json.dumps(tokenizer, indent=2) + "\n"
    (folder / "tokenizer_config.json").write_text(text, encoding="utf-8")


def _modules() -> list[str]:
    """Every module of this package that the exported model needs, found by its imports."""
    # Mixers are named in the table of signs and imported when a model is built.
    waiting = [_MODELING, _TOKENIZER, *(s.layer.partition(":")[0] for s in SIGNS.values())]
    found: list[str] = []
    while waiting:
        module = waiting.pop()
        if module not in found:
            found.append(module)
            waiting += [name for _, name in _IMPORT.findall(_source(module))]
    return sorted(found)


def _source(module: str) -> str:
    spec = importlib.util.find_spec(module)
    assert spec is not None and spec.origin is not None, module
    text = Path(spec.origin).read_text(encoding="utf-8")
    if module != _MODELING:
        return text
    # `transformers` copies the files that the modeling file reaches by relative imports.
    layers = sorted({sign.layer.partition(":")[0] for sign in SIGNS.values()})
    lines = "".join(
        f"from {layer} import __name__ as _{_file(layer)}  # noqa\n" for layer in layers
    )
    return text + "\n\n" + lines


def _relative(text: str) -> str:
    text = _IMPORT.sub(lambda m: f"{m[1]}from .{_file(m[2])} import", text)
    return _LAYER.sub(lambda m: f'Sign(f"{{__package__}}.{_file(m[1])}:', text)


def _file(module: str) -> str:
    if module.startswith(_HERE):
        return module.rpartition(".")[2]
    return module.replace(".", "_")

"""Write a dense model as a Hugging Face folder.

The folder holds the weights, the configuration and the code: this package's own modules, copied
with their imports made relative, so that `AutoModelForCausalLM.from_pretrained(folder,
trust_remote_code=True)` runs the very same operators where this package is not installed.
"""

from __future__ import annotations

import importlib.util
import json
import re
from dataclasses import asdict
from pathlib import Path

from safetensors.torch import save_file

from megatron_hyena.config.filters import BUILT_IN_FILTERS
from megatron_hyena.config.pattern import SIGNS
from megatron_hyena.data.atomic import atomic_folder
from megatron_hyena.errors import UserError
from megatron_hyena.model.hyena_glt import HyenaGLT

_HERE = "megatron_hyena.checkpoint.huggingface"
_CONFIGURATION = f"{_HERE}.configuration_hyena_glt"
_MODELING = f"{_HERE}.modeling_hyena_glt"
_TOKENIZER = f"{_HERE}.tokenization_hyena_glt"
_IMPORT = re.compile(r"^(\s*)from (megatron_hyena[\w.]*) import", re.MULTILINE)
_LAYER = re.compile(r'Sign\(\s*"(megatron_hyena[\w.]+):')


def export_huggingface(model: HyenaGLT, folder: Path) -> None:
    """Write `model` (dense, fp32) to `folder`, which appears whole; an old one is replaced.

    Raises:
        UserError: the model is not causal, so nothing that transformers generates with; or it has
            long filters that are not of this package.
    """
    if not model.config.causal:
        raise UserError(
            "--to hf writes a model for AutoModelForCausalLM, and this one has model.causal=false; "
            "use --to native"
        )
    if model.config.hyena_filter not in BUILT_IN_FILTERS:
        raise UserError(
            f"model.hyena_filter={model.config.hyena_filter!r} is registered by a program, whose "
            f"code an exported model lacks; only {' and '.join(BUILT_IN_FILTERS)} can be exported"
        )
    with atomic_folder(folder, marker="config.json", overwrite=True) as building:
        _write_weights(model, building)
        (building / "config.json").write_text(_configuration(model), encoding="utf-8")
        tokenizer = {
            "tokenizer_class": "HyenaGLTTokenizer",
            "auto_map": {"AutoTokenizer": [f"{_file(_TOKENIZER)}.HyenaGLTTokenizer", None]},
        }
        (building / "tokenizer_config.json").write_text(json.dumps(tokenizer, indent=2) + "\n")
        for module in _modules():
            text = _relative(_source(module))
            (building / f"{_file(module)}.py").write_text(text, encoding="utf-8")


def _write_weights(model: HyenaGLT, folder: Path) -> None:
    tensors = {
        f"model.{name}": tensor.detach().cpu().contiguous()
        for name, tensor in model.float().stored().items()
    }
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def _configuration(model: HyenaGLT) -> str:
    values = asdict(model.config) | {
        "model_type": "hyena_glt",
        "architectures": ["HyenaGLTForCausalLM"],
        "dtype": "float32",
        "tie_word_embeddings": model.config.tie_embeddings,
        "eos_token_id": 0,
        "pad_token_id": 1,
        "auto_map": {
            "AutoConfig": f"{_file(_CONFIGURATION)}.HyenaGLTAutoConfig",
            "AutoModelForCausalLM": f"{_file(_MODELING)}.HyenaGLTForCausalLM",
        },
    }
    return json.dumps(values, indent=2) + "\n"


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

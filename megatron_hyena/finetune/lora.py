"""Additions of low rank to a trunk's matrices (LoRA, Hu et al., arXiv:2106.09685), by peft.

peft wraps raw parameters (`target_parameters`): in the forward pass it computes with W + s B A, and
so does a merged model, to the last digit.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from megatron_hyena.errors import UserError
from megatron_hyena.layers.parameter import Cut, cut_parameter
from megatron_hyena.model.hyena_glt import HyenaGLT

ADAPTER = "default"


def check_peft() -> None:
    """Raise UserError where peft is missing; cheap, and before anything expensive."""
    from importlib.util import find_spec

    if find_spec("peft") is None:
        raise UserError(
            "finetune.method=lora needs peft; install it with: "
            "pip install 'megatron-hyena[finetune]'"
        )


class Lora:
    """A trunk with additions, changed in place; its own weights are frozen.

    Args:
        trunk: dense in its channels (one tensor rank).
        rank, alpha: additions are alpha / rank times B A; B starts as 0.
        targets: last words of the names of parameters of blocks.
        seed: of A.
    Raises:
        UserError: no parameter has such a name.
    """

    def __init__(
        self, trunk: HyenaGLT, rank: int, alpha: float, targets: Sequence[str], seed: int
    ) -> None:
        import peft

        self.names = {id(p): name for name, p in trunk.named_parameters()}
        chosen = _chosen(trunk, targets)
        self.config = peft.LoraConfig(
            r=rank,
            lora_alpha=alpha,  # type: ignore[arg-type]
            target_modules=[],
            target_parameters=chosen,
        )
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.model = peft.get_peft_model(trunk, self.config)
        self.trunk = trunk
        for name, parameter in trunk.named_parameters():
            if id(parameter) not in self.names:
                _describe(parameter)
                assert parameter.requires_grad, name

    def merged(self, weights: Mapping[str, Tensor] | None = None) -> dict[str, Tensor]:
        """The trunk's parameters by their names without additions, these added."""
        found = {self.names[id(p)]: p.detach().clone() for p in self._own()}
        for wrapper in self._wrappers():
            parameter = wrapper.get_param()
            delta = wrapper.get_delta_weight(ADAPTER).detach()
            found[self.names[id(parameter)]] = parameter.detach() + delta
        return found

    def save(self, folder: Path, base: str) -> None:
        """Write `adapter_config.json` and `adapter_model.safetensors` as peft reads them."""
        import peft

        folder.mkdir(parents=True, exist_ok=True)
        tensors = peft.get_peft_model_state_dict(self.model, save_embedding_layers=False)
        save_file(
            {name: t.detach().cpu().contiguous() for name, t in tensors.items()},
            folder / "adapter_model.safetensors",
        )
        values = self.config.to_dict() | {"base_model_name_or_path": base, "inference_mode": True}
        plain = {key: sorted(v) if isinstance(v, set) else v for key, v in values.items()}
        text = json.dumps(plain, indent=2, default=str, sort_keys=True)
        (folder / "adapter_config.json").write_text(text + "\n", encoding="utf-8")

    def restored(self, merged: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """What the trunk's parameters, under their present names, are after `merged`.

        Its own are the merged ones and the additions 0, which computes the same.
        """
        return {
            name: merged[self.names[id(p)]] if id(p) in self.names else torch.zeros_like(p)
            for name, p in self.trunk.named_parameters()
        }

    def _own(self) -> list[nn.Parameter]:
        return [p for p in self.trunk.parameters() if id(p) in self.names]

    def _wrappers(self) -> list[Any]:
        from peft.tuners.lora.layer import ParamWrapper

        return [module for module in self.trunk.modules() if isinstance(module, ParamWrapper)]


def _chosen(trunk: HyenaGLT, targets: Sequence[str]) -> list[str]:
    """Names of the matrices of blocks that end in one of `targets`."""
    matrices = [n for n, p in trunk.named_parameters() if n.startswith("blocks.") and p.dim() == 2]
    chosen = [name for name in matrices if name.rpartition(".")[2] in targets]
    if not chosen:
        known = sorted({name.rpartition(".")[2] for name in matrices})
        raise UserError(
            f"finetune.lora_targets={list(targets)} names no matrix of the model; its blocks have "
            f"{', '.join(known)}"
        )
    return chosen


def _describe(parameter: nn.Parameter) -> None:
    """Let an addition carry what the engine asks of every parameter: whole, and a matrix."""
    described = cut_parameter(Cut(tuple(parameter.shape), init=_never), 1)
    parameter.cut = described.cut  # type: ignore[attr-defined]
    parameter.tensor_model_parallel = False  # type: ignore[attr-defined]


def _never(full: Tensor, generator: object) -> None:
    raise AssertionError("an addition is drawn by peft")

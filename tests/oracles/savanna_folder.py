"""savanna's models and folders, made without the project: names, shapes, ranks and files.

`draw` gives the whole tensors of a random model by savanna's names, `logits` what they compute, by
loops of numpy in fp64, and `write_folder` DeepSpeed's files of any number of ranks.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from torch import Tensor

from tests.peers.reference import _gelu

BY_ROWS = ("embeddings", "final_linear", "dense_projection", "short_conv", "conv_bias", "w1", "w2")
BY_COLUMNS = ("mixer.dense.weight", "w3")
BUFFERS = ("decay", "filter.t", "inv_freq")


@dataclass(frozen=True)
class Model:
    """A savanna model in miniature."""

    pattern: str = "SMLA"
    width: int = 32
    heads: int = 4
    inner: int = 96
    vocabulary: int = 64
    groups: int = 8
    length: int = 160
    modes: int = 4
    taps: int = 24
    outside: bool = True
    tied: bool = True
    se_bias: int = 0
    interleaved: bool = True
    ranks: int = 1
    preset: str = ""
    settings: dict[str, Any] = field(default_factory=dict)

    def config(self) -> dict[str, Any]:
        """Its YAML."""
        names = {"S": "hyena_se", "M": "hyena_mr", "L": "hyena", "A": "flash_te"}
        return {
            "num_layers": len(self.pattern),
            "num_attention_heads": self.heads,
            "operator-config": [[[names[sign]], 1] for sign in self.pattern],
            "hyena_mr_len": self.taps,
            "seq_length": self.length,
            "pos_emb": "rotary",
            "rotary_emb_base": 5000,
            "norm": "rmsnorm",
            "rms_norm_epsilon": 1.0e-3,
            "use_fp8_norm": not self.outside,
            "mlp_type": "llama",
            "pre_mlp_norm": True,
            "hyena_filter_cls": "implicit_modal",
            "hyena_medium_filter_cls": "explicit_single_decay",
            "interleave_projections": self.interleaved,
            **self.settings,
        }


def draw(model: Model, seed: int = 0) -> dict[str, Tensor]:
    """Random whole tensors in fp32."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int, std: float = 0.2) -> Tensor:
        return torch.randn(*shape, generator=generator) * std

    norm, width, count = "scale" if model.outside else "weight", model.width, len(model.pattern)
    found = {
        "sequential.0.word_embeddings.weight": normal(model.vocabulary, width),
        f"sequential.{count + 3}.norm.{norm}": 1 + normal(width),
    }
    if not model.tied:
        found[f"sequential.{count + 4}.final_linear.weight"] = normal(model.vocabulary, width)
    for block, sign in enumerate(model.pattern):
        own = {
            f"input_layernorm.{norm}": 1 + normal(width),
            f"pre_mlp_layernorm.{norm}": 1 + normal(width),
            "mlp.w1.weight": normal(model.inner, width),
            "mlp.w2.weight": normal(model.inner, width),
            "mlp.w3.weight": normal(width, model.inner),
            "mixer.dense_projection.weight": normal(3 * width, width),
            "mixer.dense.weight": normal(width, width),
            "mixer.dense.bias": normal(width),
            **_mixer(model, sign, normal),
        }
        found |= {f"sequential.{block + 2}.{name}": tensor for name, tensor in own.items()}
    return found


def _mixer(model: Model, sign: str, normal: Any) -> dict[str, Tensor]:
    if sign == "A":
        half = model.width // model.heads // 2
        base = float(model.config()["rotary_emb_base"])
        frequencies = [base ** (-i / half) for i in range(half)]
        return {"mixer.rotary_emb.inv_freq": torch.tensor(frequencies)}
    own = {"mixer.hyena_proj_conv.short_conv_weight": normal(3 * model.width, 3, std=0.5)}
    at = "mixer.mixer."
    if sign == "S":
        own[f"{at}short_conv.short_conv_weight"] = normal(model.groups, 1, 7, std=0.4)
        if model.se_bias:
            own[f"{at}conv_bias"] = normal(model.se_bias)
        return own
    own[f"{at}conv_bias"] = normal(model.width)
    if sign == "M":
        own[f"{at}filter.h"] = normal(model.groups, model.length)
        own[f"{at}filter.decay"] = _decay(model)
        return own
    own[f"{at}filter.gamma"] = normal(model.width, model.modes) - 3
    own[f"{at}filter.R"] = normal(model.width, model.modes)
    own[f"{at}filter.p"] = normal(model.width, model.modes) - 1
    own[f"{at}filter.t"] = torch.arange(model.length, dtype=torch.float32)[None, None]
    return own


def _decay(model: Model) -> Tensor:
    """Over the training length, as savanna draws it; over the taps, where `preset` is named."""
    least = {"weak": -2.0, "normal": -1.0, "strong": 0.0}[model.preset or "weak"]
    rates = torch.logspace(least, 2, model.groups)[:, None]
    over = model.taps if model.preset else model.length
    lags = torch.arange(model.length, dtype=torch.float32) / (over - 1)
    return torch.exp(-rates * lags)


def write_folder(
    folder: Path,
    model: Model,
    tensors: Mapping[str, Tensor],
    *,
    stage: int = 1,
    data: int = 1,
    masters: bool = False,
) -> Path:
    """DeepSpeed's files below `folder`; `masters`: ZeRO 1's modules in bf16, beside fp32."""
    step = folder / "global_step7"
    (step / "configs").mkdir(parents=True)
    (step / "configs" / "model.yml").write_text(yaml.safe_dump(model.config()))
    (folder / "latest").write_text("global_step7")
    for rank in range(model.ranks):
        own = {name: _part(name, t, rank, model.ranks) for name, t in tensors.items()}
        parameters = {name: t for name, t in own.items() if not name.endswith(BUFFERS)}
        # Two groups, as with weight decay and without, in an order of their own.
        wide = {name: t for name, t in parameters.items() if t.dim() > 1}
        groups = [wide, {name: t for name, t in parameters.items() if t.dim() < 2}]
        module = {n: t.bfloat16() if masters and n in parameters else t for n, t in own.items()}
        if stage == 1:
            torch.save(
                _states(module, groups, data, model.ranks),
                step / f"mp_rank_{rank:02d}_model_states.pt",
            )
            if masters:
                _write_masters(step, groups, data, rank)
            continue
        empty = {n: torch.empty(0) if n in parameters else t for n, t in module.items()}
        for place in range(data):
            tail = f"zero_pp_rank_{place}_mp_rank_{rank:02d}"
            states = _states(empty, groups, data, model.ranks)
            torch.save(states, step / f"{tail}_model_states.pt")
            flats = [
                torch.cat([_slice(t, place, data) for t in group.values()]) for group in groups
            ]
            state = {"fp32_flat_groups": flats, "zero_stage": 3, "partition_count": data}
            torch.save(
                {"optimizer_state_dict": state, "odd": _Odd()},
                step / f"bf16_{tail}_optim_states.pt",
            )
    return folder


class _Odd:
    """An object of a class that a reader need not know."""

    def __reduce__(self) -> tuple[Any, ...]:
        return (_explode, (7,))


def _explode(_: int) -> None:
    raise AssertionError("code of the file was run")


def _part(name: str, tensor: Tensor, rank: int, ranks: int) -> Tensor:
    if any(word in name for word in BY_COLUMNS) and "bias" not in name:
        return tensor.chunk(ranks, 1)[rank].contiguous()
    is_filter = ".filter." in name and not name.endswith("filter.t")
    if is_filter or any(word in name for word in BY_ROWS):
        return tensor.chunk(ranks, 0)[rank].contiguous()
    return tensor


def _slice(tensor: Tensor, place: int, data: int) -> Tensor:
    each = -(-tensor.numel() // data)
    padded = torch.nn.functional.pad(tensor.flatten(), (0, each * data - tensor.numel()))
    return padded[place * each :][:each].clone()


def _write_masters(step: Path, groups: list[dict[str, Tensor]], data: int, rank: int) -> None:
    """ZeRO 1: each group one vector, padded at the end, cut evenly over the data ranks."""
    flats = []
    for group in groups:
        flat = torch.cat([t.flatten() for t in group.values()])
        flats.append(torch.nn.functional.pad(flat, (0, -len(flat) % (2 * data))))
    for place in range(data):
        parts = [torch.nn.Parameter(flat.chunk(data)[place].clone()) for flat in flats]
        state = {"single_partition_of_fp32_groups": parts, "zero_stage": 1, "odd": _Odd()}
        name = f"bf16_zero_pp_rank_{place}_mp_rank_{rank:02d}_optim_states.pt"
        torch.save({"optimizer_state_dict": state}, step / name)


def _states(
    module: dict[str, Tensor], groups: list[dict[str, Tensor]], data: int, ranks: int
) -> dict[str, Any]:
    return {
        "module": module,
        "buffer_names": [name for name in module if name.endswith(BUFFERS)],
        "param_shapes": [{name: t.shape for name, t in group.items()} for group in groups],
        "frozen_param_fragments": None,
        "dp_world_size": data,
        "mp_world_size": ranks,
        "random_rng_state": np.random.RandomState(0).get_state(),
        "odd": _Odd(),
    }


def logits(model: Model, tensors: Mapping[str, Tensor], ids: np.ndarray) -> np.ndarray:
    """[L] ids -> [L, V]; `activations` follow savanna's rule."""
    named = {name: tensor.double().numpy() for name, tensor in tensors.items()}
    config, count = model.config(), len(model.pattern)
    norm = "scale" if model.outside else "weight"
    x = named["sequential.0.word_embeddings.weight"][ids]
    changed = False
    for block, sign in enumerate(model.pattern):
        at = f"sequential.{block + 2}."
        own = {name.removeprefix(at): t for name, t in named.items() if name.startswith(at)}
        changed = changed or sign in "ML"
        gate = (lambda z: z) if changed else _gelu
        if given := config.get("parallel_glu_activation_default"):
            gate = {"gelu": _gelu, "identity": lambda z: z}[given]
        z = _norm(model, config, x, own[f"input_layernorm.{norm}"])
        projected = z @ own["mixer.dense_projection.weight"].T
        mixed = _attention if sign == "A" else _hyena
        y = mixed(model, config, own, projected)
        x = x + y @ own["mixer.dense.weight"].T + own["mixer.dense.bias"]
        z = _norm(model, config, x, own[f"pre_mlp_layernorm.{norm}"])
        inner = gate(z @ own["mlp.w1.weight"].T) * (z @ own["mlp.w2.weight"].T)
        x = x + inner @ own["mlp.w3.weight"].T
    x = _norm(model, config, x, named[f"sequential.{count + 3}.norm.{norm}"])
    head = "0.word_embeddings" if model.tied else f"{count + 4}.final_linear"
    return x @ named[f"sequential.{head}.weight"].T


def _norm(model: Model, config: dict[str, Any], x: np.ndarray, scale: np.ndarray) -> np.ndarray:
    square, eps = (x**2).mean(-1, keepdims=True), config["rms_norm_epsilon"]
    return scale * x / (np.sqrt(square) + eps if model.outside else np.sqrt(square + eps))


def _convolved(x: np.ndarray, taps: np.ndarray) -> np.ndarray:
    """x [L, n], taps [n, K], the first of the current position."""
    y = np.zeros_like(x)
    for lag in range(min(taps.shape[1], len(x))):
        y[lag:] += x[: len(x) - lag] * taps[:, lag]
    return y


def _hyena(model: Model, config: dict[str, Any], own: dict[str, Any], z: np.ndarray) -> np.ndarray:
    width, at = model.width, "mixer.mixer."
    z = _convolved(z, own["mixer.hyena_proj_conv.short_conv_weight"][:, ::-1])
    if model.interleaved:
        after, before, v = z[:, 0::3], z[:, 1::3], z[:, 2::3]
    else:  # rank after rank: its channels' post gates, pre gates, values
        split = z.reshape(len(z), model.ranks, 3, width // model.ranks)
        after, before, v = (split[:, :, i].reshape(len(z), width) for i in range(3))
    u = before * v
    if f"{at}short_conv.short_conv_weight" in own:
        taps = own[f"{at}short_conv.short_conv_weight"][:, 0, ::-1].repeat(width // model.groups, 0)
        bias = own.get(f"{at}conv_bias", np.zeros(width))
        bias = bias.repeat(width // len(bias))
    else:
        bias = own[f"{at}conv_bias"]
        if f"{at}filter.h" in own:
            taps = own[f"{at}filter.h"] * own[f"{at}filter.decay"]
            taps = taps[:, : config["hyena_mr_len"]].repeat(width // model.groups, 0)
        else:
            rate = np.exp(own[f"{at}filter.p"]) * np.exp(own[f"{at}filter.gamma"])
            t = np.arange(len(z))
            taps = (own[f"{at}filter.R"][..., None] * np.exp(-rate[..., None] * t)).sum(1)
    return after * (_convolved(u, taps) + bias * u)


def _attention(
    model: Model, config: dict[str, Any], own: dict[str, Any], z: np.ndarray
) -> np.ndarray:
    length, size = len(z), model.width // model.heads
    q, k, v = np.moveaxis(z.reshape(length, model.heads, 3, size), 2, 0)
    scaled = config["pos_emb"] == "rotary_linear_scaled"
    t = np.arange(length) / (config["rotary_emb_scaling_factor"] if scaled else 1)
    angles = np.tile(t[:, None] * own["mixer.rotary_emb.inv_freq"], 2)[:, None]

    def turned(x: np.ndarray) -> np.ndarray:
        first, second = x[..., : size // 2], x[..., size // 2 :]
        return x * np.cos(angles) + np.concatenate([-second, first], -1) * np.sin(angles)

    scores = np.einsum("ihd,jhd->hij", turned(q), turned(k)) / np.sqrt(size)
    scores[:, np.triu(np.ones((length, length), bool), 1)] = -np.inf
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    weights /= weights.sum(-1, keepdims=True)
    return np.einsum("hij,jhd->ihd", weights, v).reshape(length, model.width)

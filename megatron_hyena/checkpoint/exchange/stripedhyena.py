"""stripedhyena, the model of Evo 1 (PyPI `stripedhyena`, `evo-model`): settings and modes.

Hyena layers are L with complex modes (`poles` are the poles themselves, not their logarithms), all
projections and featurizers have biases, rows of Hyena projections lie head after head, and those
of `Wqkv` as [q | k | v].
"""

from __future__ import annotations

import dataclasses
from typing import Any

from megatron_hyena.checkpoint.exchange.blocks import IDLE_MLP, Layout, Modes
from megatron_hyena.checkpoint.exchange.evo_settings import read_shared, shared_keys
from megatron_hyena.checkpoint.exchange.fitting import Abilities, fit
from megatron_hyena.checkpoint.exchange.hyena_forms import poles, residues
from megatron_hyena.checkpoint.exchange.lossy import Losses
from megatron_hyena.checkpoint.exchange.mapping import Entry, Form
from megatron_hyena.checkpoint.exchange.rows import is_shared, shared
from megatron_hyena.checkpoint.exchange.settings import Settings, inner_size
from megatron_hyena.checkpoint.exchange.tensors import Tensors
from megatron_hyena.config import HyenaGLTConfig
from megatron_hyena.errors import UserError

NAME = "stripedhyena"
CAN = Abilities("LA", ("gelu", "silu"))
ROPE_BASE = 10000.0
"""Where the settings have none."""
SIGNS = {"hyena_layer_idxs": "L", "attn_layer_idxs": "A"}
ONLY = {
    "final_norm": True,
    "proj_groups": 1,
    "model_parallel_size": 1,
    "short_filter_length": 3,
    "short_filter_bias": True,
    "qkv_proj_bias": True,
    "mha_out_proj_bias": True,
    "smeared_gqa": False,
}


def read_config(settings: Settings, theirs: Tensors) -> HyenaGLTConfig:
    """Our architecture of a model's settings; RoPE as they say, which the tensors may correct.

    Tensors tell whether modes turn and biases are anything but 0: reads poles, residues, biases.

    Raises:
        UserError: a key is missing, or says what no model of ours is.
    """
    settings.insist(ONLY | {"num_filters": settings.whole("hidden_size")}, NAME)
    activation = settings.get("mlp_activation")  # silu without it, which no Evo is
    if activation not in CAN.activations:
        raise UserError(f"{settings.where}: mlp_activation={activation!r} is not gelu or silu")
    return HyenaGLTConfig(
        pattern=settings.pattern(SIGNS),
        li_poles="complex" if _turn(theirs) else "real",
        projection_bias=_any(theirs, ("short_filter_bias", "projections.bias", "Wqkv.bias")),
        mlp_activation=activation,
        **read_shared(settings, ROPE_BASE, longest=8192),
    )


def _any(theirs: Tensors, ends: tuple[str, ...]) -> bool:
    return any(bool(theirs[name].any()) for name in theirs if name.endswith(ends))


def _turn(theirs: Tensors) -> bool:
    """Whether a mode has an imaginary part, or alternates its sign."""
    for name in theirs:
        if name.endswith(("filter.poles", "filter.residues")):
            numbers = theirs[name]
            if bool(numbers[..., 1].any()):
                return True
            if name.endswith("poles") and bool((numbers[..., 0] < 0).any()):
                return True
    return False


def read_layout(settings: Settings, unembed: bool) -> Layout:
    """The layout that settings say; `unembed`: a tied model's file holds a copy."""
    by_head = bool(settings.get("column_split_hyena", True))
    return Layout(
        rows="by head" if by_head else "whole",
        qkv_by_head=False,
        projection_bias=True,
        featurizer_bias=True,
        unembed=unembed,
        idle_mlp=inner_size(settings),
    )


def filters(settings: Settings, width: int) -> int:
    """Filters that are stored, each for as many neighbouring channels as stand for it."""
    groups = settings.whole("hyena_filter_groups")
    if width % groups:
        raise UserError(
            f"{settings.where}: hyena_filter_groups={groups} does not divide hidden_size={width}"
        )
    return width // groups


def fitted(config: HyenaGLTConfig, losses: Losses) -> HyenaGLTConfig:
    """The architecture that a file can hold; see `fitting.fit`.

    Raises:
        UserError: also where heads, by which rows are ordered, do not divide the channels.
    """
    found = fit(config, CAN, losses)
    if found.hidden_size % found.num_heads:
        found = dataclasses.replace(found, num_heads=1)  # heads of no layer
    return found


def stored_filters(config: HyenaGLTConfig, ours: Tensors, origin: Settings | None) -> int:
    """How many filters to store: as the origin, if channels still share them, else one each."""
    if origin is None:
        return config.hidden_size
    count = filters(origin, config.hidden_size)
    names = ("log_rate", "phase", "residue", "residue_imaginary")
    modes = [n for n in ours if n.rsplit(".", 1)[-1] in names]
    return count if all(is_shared(ours[n], count) for n in modes) else config.hidden_size


def settings_of(config: HyenaGLTConfig, stored: int) -> dict[str, Any]:
    """The YAML's keys, for `stored` filters."""
    return {
        **shared_keys(config, SIGNS),
        "short_filter_bias": True,
        "inner_mlp_size": config.ffn or IDLE_MLP,
        "hyena_filter_groups": config.hidden_size // stored,
        "column_split_hyena": True,
        "mlp_activation": config.mlp_activation,
        "qkv_proj_bias": True,
        "max_batch_size": 1,
        "proj_groups": 1,
        "model_parallel_size": 1,
        "final_norm": True,
        "use_flash_attn": False,
        "use_flash_rmsnorm": False,
        "use_flash_depthwise": False,
        "use_flashfft": False,
        "tokenizer_type": "CharLevelTokenizer",
        "prefill_style": "fft",
    }


def modes(config: HyenaGLTConfig, stored: int) -> Modes:
    """Entries of an L layer's modes, `stored` filters for all channels."""
    turning = config.li_poles == "complex"
    fold = shared(config.hidden_size, stored)

    def of_block(at: str) -> list[Entry]:
        theirs = f"{at}filter.poles"
        rates = (f"{at}mixer.log_rate", f"{at}mixer.phase")[: 1 + turning]
        sizes = (f"{at}mixer.residue", f"{at}mixer.residue_imaginary")[: 1 + turning]
        return [
            Entry(rates, (theirs,), _folded(poles(theirs, turning), fold)),
            Entry(sizes, (f"{at}filter.residues",), _folded(residues(turning), fold)),
        ]

    return of_block


def _folded(form: Form, fold: Form) -> Form:
    """`form` on filters that channels share."""
    return Form(
        lambda *ours: fold.out(*form.out(*ours)),
        lambda *theirs: form.back(*fold.back(*theirs)),
        form.exact,
    )

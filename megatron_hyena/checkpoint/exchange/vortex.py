"""vortex, the inference program of Evo 2 (PyPI `vtx`, `evo2`): settings, orders, modes.

Names and orders: blocks `hcs`, `hcm`, `hcl` are S, M, L; seven taps end with the current position,
128 begin with it; `log_poles` = -exp(log_rate); rows of the projection interleave as ours do, and
`Wqkv` lies head after head in a file (`column_split`). It drops tensors it does not know without
an error, so nothing but what its settings ask for is written.
"""

from __future__ import annotations

import dataclasses
from typing import Any

from megatron_hyena.checkpoint.exchange.blocks import Layout
from megatron_hyena.checkpoint.exchange.evo_settings import read_shared, shared_keys
from megatron_hyena.checkpoint.exchange.fitting import Abilities, fit
from megatron_hyena.checkpoint.exchange.hyena_forms import log_poles
from megatron_hyena.checkpoint.exchange.lossy import Losses
from megatron_hyena.checkpoint.exchange.mapping import SAME, Entry
from megatron_hyena.checkpoint.exchange.rows import is_shared
from megatron_hyena.checkpoint.exchange.settings import Settings, inner_size
from megatron_hyena.checkpoint.exchange.tensors import Tensors
from megatron_hyena.config import HyenaGLTConfig
from megatron_hyena.errors import UserError

NAME = "vortex"
CAN = Abilities("SMLA", ("gelu", "silu", "evo2"), complex_poles=False, se_skip=False)
LONG = 128
"""Filters with fewer taps have the order of S and no skip, others the order of M and one."""
ROPE_BASE = 1e6
"""Where the settings have none."""
SIGNS = {
    "hcs_layer_idxs": "S",
    "hcm_layer_idxs": "M",
    "hcl_layer_idxs": "L",
    "attn_layer_idxs": "A",
}
ONLY = {
    "final_norm": True,
    "proj_groups": 1,
    "model_parallel_size": 1,
    "short_filter_length": 3,
    "hyena_flip_x1x2": False,
    "smeared_gqa": False,
    "mha_out_proj_bias": True,
}


def read_config(settings: Settings, losses: Losses) -> HyenaGLTConfig:
    """Our architecture of a model's settings; RoPE as they say, which the tensors may correct.

    Raises:
        UserError: a key is missing, or says what no model of ours is.
    """
    settings.insist(ONLY | {"num_filters": settings.whole("hidden_size")}, NAME)
    pattern = settings.pattern(SIGNS)
    se, mr = settings.whole("hcs_filter_length"), settings.whole("hcm_filter_length")
    for key, taps, right in (
        ("hcs_filter_length", se, "S" not in pattern or se < LONG),
        ("hcm_filter_length", mr, "M" not in pattern or mr >= LONG),
    ):
        if not right:
            raise UserError(
                f"{settings.where}: {key}={taps}, but {NAME} reads filters of fewer than {LONG} "
                "taps as hcs and longer ones as hcm, whatever the list; correct the lists"
            )
    layout = read_layout(settings, unembed=False)
    activation = settings.get("mlp_activation", "gelu")
    if activation not in ("gelu", "silu"):
        raise UserError(f"{settings.where}: mlp_activation={activation!r} is not gelu or silu")
    if settings.get("evo2_style_activations"):
        settings.insist({"mlp_activation": "gelu"}, NAME)
        activation = "evo2"
    return HyenaGLTConfig(
        pattern=pattern,
        num_filter_groups=_common_groups(settings, layout, pattern),
        se_filter_length=se,
        mr_filter_length=mr,
        mr_decay="none",
        projection_bias=layout.projection_bias or layout.featurizer_bias,
        mlp_activation=activation,
        **read_shared(settings, ROPE_BASE, longest=65536),
    )


def _common_groups(settings: Settings, layout: Layout, pattern: str) -> int:
    """Ours has one number of groups for S and M: the larger, of which the other must be a part."""
    wanted = [n for n, s in ((layout.se_groups, "S"), (layout.mr_groups, "M")) if s in pattern]
    most = max(wanted, default=1)
    if any(most % n for n in wanted):
        raise UserError(
            f"{settings.where}: hcs_filter_groups={layout.se_groups} and hcm_filter_groups="
            f"{layout.mr_groups}: one must divide the other"
        )
    return most


def read_layout(settings: Settings, unembed: bool) -> Layout:
    """The layout that settings say; `unembed`: a tied model's file holds a copy."""
    interleave = bool(settings.get("interleave"))
    by_head = bool(settings.get("column_split_hyena"))
    if interleave and by_head:
        raise UserError(
            f"{settings.where}: interleave and column_split_hyena are both true, an order of rows "
            "that no published model has; set one to false"
        )
    return Layout(
        settings.whole("hcs_filter_groups"),
        settings.whole("hcm_filter_groups"),
        "interleaved" if interleave else "by head" if by_head else "whole",
        bool(settings.get("column_split", True)),
        bool(settings.get("qkv_proj_bias")),
        bool(settings.get("short_filter_bias", False)),
        bool(settings.get("hyena_out_proj_bias")),
        unembed,
        inner_size(settings),
    )


def fitted(config: HyenaGLTConfig, losses: Losses) -> HyenaGLTConfig:
    """The architecture that a file can hold; see `fitting.fit`."""
    found = fit(config, CAN, losses)
    for field, right, limit in (
        ("se_filter_length", "S" not in found.signs or config.se_filter_length < LONG, "below"),
        ("mr_filter_length", "M" not in found.signs or config.mr_filter_length >= LONG, "at least"),
    ):
        if not right:
            raise UserError(
                f"{NAME} needs model.{field} {limit} {LONG}, not {getattr(config, field)}; "
                "use --to hf or native"
            )
    if found.hidden_size % found.num_heads:
        found = dataclasses.replace(found, num_heads=1)  # heads of no layer
    return found


def layout_of(config: HyenaGLTConfig, ours: Tensors, origin: Settings | None, kept: bool) -> Layout:
    """The layout to write: that of the origin as far as it still fits, else Evo 2's.

    Reads the taps of S and M, and biases.
    """
    biases = config.projection_bias
    plain = Layout(config.groups, config.groups, projection_bias=biases, featurizer_bias=biases)
    if origin is None:
        return plain
    was = read_layout(origin, kept)

    def fits(sign: str, name: str, count: int) -> bool:
        blocks = [n for n, s in enumerate(config.signs) if s in sign]
        return all(is_shared(ours[f"blocks.{n}.mixer.{name}"], count) for n in blocks)

    def zero(sign: str, name: str) -> bool:
        blocks = [n for n, s in enumerate(config.signs) if s in sign]
        return not any(bool(ours[f"blocks.{n}.mixer.{name}"].any()) for n in blocks)

    return dataclasses.replace(
        was,
        se_groups=was.se_groups if fits("S", "taps", was.se_groups) else config.groups,
        mr_groups=was.mr_groups if fits("M", "taps", was.mr_groups) else config.groups,
        projection_bias=biases and (was.projection_bias or not zero("SMLA", "projection_bias")),
        featurizer_bias=biases and (was.featurizer_bias or not zero("SML", "featurizer_bias")),
        output_bias=was.output_bias or not zero("SML", "bias"),
    )


def settings_of(config: HyenaGLTConfig, layout: Layout) -> dict[str, Any]:
    """The YAML's keys."""
    evo2 = config.mlp_activation == "evo2"
    return {
        **shared_keys(config, SIGNS),
        "hcs_filter_length": config.se_filter_length,
        "hcm_filter_length": config.mr_filter_length,
        "hcs_filter_groups": layout.se_groups,
        "hcm_filter_groups": layout.mr_groups,
        "hcl_filter_groups": config.hidden_size,
        "short_filter_bias": layout.featurizer_bias,
        "inner_mlp_size": config.ffn or layout.idle_mlp,
        "column_split_hyena": layout.rows == "by head",
        "column_split": layout.qkv_by_head,
        "interleave": layout.rows == "interleaved",
        "evo2_style_activations": evo2,
        "mlp_activation": "gelu" if evo2 else config.mlp_activation,
        "qkv_proj_bias": layout.projection_bias,
        "hyena_out_proj_bias": layout.output_bias,
    }


REST: dict[str, Any] = {
    "max_batch_size": 1,
    "proj_groups": 1,
    "hyena_filter_groups": 1,
    "hyena_flip_x1x2": False,
    "model_parallel_size": 1,
    "final_norm": True,
    "use_fp8_input_projections": False,
    "use_flash_attn": False,
    "use_flash_rmsnorm": False,
    "use_flash_depthwise": False,
    "use_flashfft": False,
    "inference_mode": True,
    "tokenizer_type": "CharLevelTokenizer",
    "prefill_style": "fft",
    "print_activations": False,
}
"""Keys of the YAML that no model of ours moves."""


def modes(at: str) -> list[Entry]:
    """Entries of an L layer's modes; `at` is the block's prefix."""
    stored = f"{at}filter.log_poles"
    return [
        Entry((f"{at}mixer.log_rate",), (stored,), log_poles(stored)),
        Entry((f"{at}mixer.residue",), (f"{at}filter.residues",), SAME),
    ]

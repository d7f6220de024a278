"""savanna, the training program of Evo 2: its settings, and our architecture of them.

What tensors tell (widths, groups, modes, tying, lengths) is read from them; the YAML must tell
`operator-config`, `num_attention_heads`, `hyena_mr_len`, eps, RoPE and activations, and keys that
are missing have savanna's own defaults.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import torch

from megatron_hyena.checkpoint.exchange.fitting import Abilities, fit
from megatron_hyena.checkpoint.exchange.lossy import Losses
from megatron_hyena.checkpoint.exchange.rope import Rope
from megatron_hyena.checkpoint.exchange.savanna_table import Layout, least_inner
from megatron_hyena.checkpoint.exchange.settings import Settings
from megatron_hyena.checkpoint.exchange.tensors import Tensors
from megatron_hyena.config import HyenaGLTConfig
from megatron_hyena.config.model import MR_SLOWEST_DECAY
from megatron_hyena.errors import UserError
from megatron_hyena.layers.striped import mr_decay

NAME = "savanna"
CAN = Abilities("SMLA", ("gelu", "silu", "identity", "evo2"), biases=False, complex_poles=False)
SIGNS = {"hyena_se": "S", "hyena_mr": "M", "hyena": "L"}
ATTENTION = ("flash_te", "flash_v2", "flash", "ring", "global")
DEFAULTS = {
    "activation": "gelu",
    "gating_act": "identity",
    "hyena_mr_len": 64,
    "hyena_se_len": 3,
    "interleave_projections": True,
    "pos_emb": "learned",
    "rms_norm_epsilon": 1e-8,
    "rotary_emb_base": 10000,
    "rotary_emb_scaling_factor": 1.0,
}
"""savanna's, of keys that may be missing."""
ONLY: dict[str, tuple[Any, Any]] = {
    "norm": ("layernorm", "rmsnorm"),
    "mlp_type": ("regular", "llama"),
    "prenorm": (True, True),
    "postnorm": (False, False),
    "pre_mlp_norm": (False, True),
    "outer_mlp_norm": (False, False),
    "gpt_j_residual": (False, False),
    "identity_mlp": (False, False),
    "rotary_pct": (1, 1),
    "proj_groups": (1, 1),
    "grouped_attention": (False, False),
    "tie_projection_weights": (False, False),
    "bidirectional": (False, False),
    "use_slow_heads": (False, False),
    "hyena_width_expansion": (1, 1),
    "hyena_se_pregate": (True, True),
    "hyena_se_postgate": (True, True),
    "use_cgcg": (False, False),
}
"""Of savanna's keys: the default, and the only value for which there is a model of ours."""
FILTERS = {"L": ("hyena_filter_cls", "implicit_modal")}
MEDIUM = ("hyena_medium_filter_cls", "explicit_single_decay")


def insist(settings: Settings, pattern: str) -> None:
    """Refuse settings of models that have no form here (UserError)."""
    wanted: dict[str, Any] = {key: value for key, (_, value) in ONLY.items()}
    if "L" in pattern:
        wanted["hyena_filter_cls"] = "implicit_modal"
    if "M" in pattern:
        key, value = MEDIUM
        wanted[key if settings.get(key, None) is not None else "hyena_filter_cls"] = value
    defaults = {key: default for key, (default, _) in ONLY.items()}
    defaults |= {"hyena_filter_cls": "implicit", MEDIUM[0]: None}
    for key, value in wanted.items():
        if (found := settings.get(key, defaults[key])) != value:
            missing = "" if key in settings.values else " (savanna's default: the key is missing)"
            raise UserError(
                f"{settings.where}: {key}={found!r}{missing} is a savanna model that this program "
                f"has no form for; only {key}={value!r} can be read"
            )


def read_pattern(settings: Settings) -> str:
    """One sign per block, from `operator-config`.

    Raises:
        UserError: another form, an unknown operator, or another number of them than `num_layers`.
    """
    count, signs = settings.whole("num_layers"), []
    for item in settings.get("operator_config"):
        if not (isinstance(item, list) and len(item) == 2 and isinstance(item[0], list)):
            raise UserError(
                f"{settings.where}: operator-config has {item!r}; give [[names], repeats]"
            )
        names, repeats = item
        known = [SIGNS.get(n, "A" if n in ATTENTION else "") for n in names]
        if "" in known:
            raise UserError(
                f"{settings.where}: operator-config has {names[known.index('')]!r}, for which "
                f"there is no layer; only {', '.join((*SIGNS, *ATTENTION))} can be read"
            )
        signs += known * (count // len(known) if repeats == "all" else repeats)
    if len(signs) != count:
        raise UserError(
            f"{settings.where}: operator-config has {len(signs)} blocks and num_layers={count}; "
            "correct one"
        )
    return "".join(signs)


def read_activation(settings: Settings, pattern: str) -> str:
    """`model.mlp_activation`.

    savanna's first M or L changes the activation of its own and all later blocks to `gating_act`,
    unless `parallel_glu_activation_default` is set.

    Raises:
        UserError: activations that change at another block than the second.
    """
    default = settings.get("parallel_glu_activation_default", None)
    first = default or settings.get("activation", DEFAULTS["activation"])
    rest = default or settings.get("gating_act", DEFAULTS["gating_act"])
    changes = min((pattern.index(sign) for sign in "ML" if sign in pattern), default=len(pattern))
    names = {"gelu": "gelu", "silu": "silu", "swish": "silu", "identity": "identity"}
    for name in (first, rest):
        if name not in names:
            raise UserError(f"{settings.where}: activation {name!r} is none of {', '.join(names)}")
    first, rest = names[first], names[rest]
    if first == rest or changes in (0, len(pattern)):
        return first if changes else rest
    if (changes, first, rest) == (1, "gelu", "identity"):
        return "evo2"
    raise UserError(
        f"{settings.where}: the MLPs of blocks 0 to {changes - 1} have {first} and all from block "
        f"{changes}, the first hyena or hyena_mr, {rest}; model.mlp_activation has no such choice"
    )


def read_rope(settings: Settings, pattern: str) -> Rope:
    """RoPE as the settings say (UserError: another kind of positions, where there is attention)."""
    kind = settings.get("pos_emb", DEFAULTS["pos_emb"])
    if "A" in pattern and kind not in ("rotary", "rotary2", "rotary_linear_scaled"):
        raise UserError(
            f"{settings.where}: pos_emb={kind!r} is not rotary, rotary2 or rotary_linear_scaled; "
            "only these can be read"
        )
    scaling = 1.0
    if kind == "rotary_linear_scaled":
        scaling = settings.number(
            "rotary_emb_scaling_factor", DEFAULTS["rotary_emb_scaling_factor"]
        )
    return Rope(settings.number("rotary_emb_base", DEFAULTS["rotary_emb_base"]), scaling)


def read_config(settings: Settings, theirs: Tensors, ranks: int) -> tuple[HyenaGLTConfig, Layout]:
    """Our architecture of a checkpoint, and how it is laid out; `ranks` of tensor parallelism.

    Raises:
        UserError: no model of ours is that, or a tensor that tells a size is missing.
    """
    pattern = read_pattern(settings)
    insist(settings, pattern)
    sizes = Sizes(theirs, settings, pattern)
    layout = sizes.layout(ranks)
    norm_outside = layout.norm == "scale"
    said = settings.get("use_fp8_norm", not norm_outside)
    if said == norm_outside:
        raise UserError(
            f"{settings.where}: use_fp8_norm={said!r}, but norms are called .{layout.norm}, as "
            f"savanna calls them with use_fp8_norm={not said}; correct the key"
        )
    rope = read_rope(settings, pattern)
    width = sizes.of("sequential.0.word_embeddings.weight")[1]
    groups = [n for n, s in ((layout.se_groups, "S"), (layout.mr_groups, "M")) if s in pattern]
    most = max(groups, default=1)
    if any(most % n for n in groups):
        raise UserError(
            f"{settings.where}: S has {layout.se_groups} filters and M {layout.mr_groups}; one "
            "must divide the other"
        )
    config = HyenaGLTConfig(
        pattern=pattern,
        hidden_size=width,
        num_heads=settings.whole("num_attention_heads"),
        ffn_hidden_size=sizes.of("sequential.2.mlp.w1.weight")[0],
        vocab_size=sizes.of("sequential.0.word_embeddings.weight")[0],
        num_filter_groups=most,
        se_filter_length=sizes.se_taps(),
        mr_filter_length=sizes.mr_taps(layout),
        mr_decay="none",
        se_skip=bool(layout.se_bias),
        li_modes=sizes.modes(),
        max_sequence_length=settings.whole("seq_length", 65536),
        rope_base=rope.base,
        rope_scaling=rope.scaling,
        norm_eps=settings.number("rms_norm_epsilon", DEFAULTS["rms_norm_epsilon"]),
        norm_eps_outside=norm_outside,
        tie_embeddings=f"sequential.{len(pattern) + 4}.final_linear.weight" not in theirs.kinds,
        mlp_activation=read_activation(settings, pattern),
    )
    return dataclasses.replace(config, mr_decay=_known_decay(config, layout, theirs)), layout


def _known_decay(config: HyenaGLTConfig, layout: Layout, theirs: Tensors) -> str:
    """The `mr_decay` that all stored decays are, bit by bit; `none` (multiplied in) otherwise."""
    taps, blocks = config.mr_filter_length, [n for n, s in enumerate(config.signs) if s == "M"]
    stored = [theirs[f"sequential.{n + 2}.mixer.mixer.filter.decay"][:, :taps] for n in blocks]
    if not stored or layout.mr_groups != config.groups:
        return "none"
    for name, slowest in MR_SLOWEST_DECAY.items():
        own = mr_decay(slowest, config.groups, taps, torch.float32)
        if slowest is not None and all(torch.equal(one.float(), own) for one in stored):
            return name
    return "none"


class Sizes:
    """What shapes of tensors tell; every question names the tensor it needs."""

    def __init__(self, theirs: Tensors, settings: Settings, pattern: str) -> None:
        self.theirs, self.settings, self.pattern = theirs, settings, pattern

    def of(self, name: str) -> tuple[int, ...]:
        """Shape of a tensor (UserError: it is not there)."""
        if name not in self.theirs.kinds:
            raise UserError(
                f"{self.settings.where}: a model of these settings has {name}, and the checkpoint "
                "has not; give the settings it was made with"
            )
        return self.theirs.kinds[name].shape

    def first(self, sign: str, name: str) -> tuple[int, ...]:
        """Shape of a mixer's tensor in the first block of `sign`; () without such a block."""
        if sign not in self.pattern:
            return ()
        return self.of(f"sequential.{self.pattern.index(sign) + 2}.mixer.{name}")

    def layout(self, ranks: int) -> Layout:
        """How the checkpoint is laid out."""
        kinds, count = self.theirs.kinds, len(self.pattern)
        norms = [
            (place, norm)
            for place in (count + 3, count + 2)
            for norm in ("scale", "weight")
            if f"sequential.{place}.norm.{norm}" in kinds
        ]
        if not norms:
            self.of(f"sequential.{count + 3}.norm.scale")
        hyena = next((s for s in self.pattern if s != "A"), "")
        proj = self.first(hyena, "hyena_proj_conv.short_conv_weight") if hyena else ()
        short = self.first("S", "mixer.short_conv.short_conv_weight")
        medium, long = self.first("M", "mixer.filter.h"), self.first("L", "mixer.filter.p")
        interleaved = self.settings.get(
            "interleave_projections", DEFAULTS["interleave_projections"]
        )
        stored = self.first("L", "mixer.filter.t")
        return Layout(
            norm=norms[0][1],
            final_norm=norms[0][0],
            length=medium[1] if medium else stored[-1] if stored else 0,
            flat_featurizer=len(proj) == 2,
            flat_se=len(short) == 2,
            se_groups=short[0] if short else 1,
            mr_groups=medium[0] if medium else 1,
            li_groups=long[0] if long else 1,
            se_bias=self._se_bias(),
            split=0 if interleaved else ranks,
            idle_mlp=self.of("sequential.2.mlp.w1.weight")[0],
        )

    def _se_bias(self) -> int:
        found = {
            self.theirs.kinds[name].shape[0] if name in self.theirs.kinds else 0
            for block, sign in enumerate(self.pattern)
            if sign == "S"
            for name in [f"sequential.{block + 2}.mixer.mixer.conv_bias"]
        }
        if len(found) > 1:
            raise UserError(
                f"{self.settings.where}: only some hyena_se blocks have a conv_bias, or of "
                f"different sizes ({sorted(found)}); model.se_skip is for all or none"
            )
        return found.pop() if found else 0

    def se_taps(self) -> int:
        """Taps of S, which the settings must say too if they say any."""
        shape = self.first("S", "mixer.short_conv.short_conv_weight")
        return shape[-1] if shape else 7

    def mr_taps(self, layout: Layout) -> int:
        """Taps of M: `hyena_mr_len`, but no more than are stored."""
        if "M" not in self.pattern:
            return 128
        return min(self.settings.whole("hyena_mr_len", DEFAULTS["hyena_mr_len"]), layout.length)

    def modes(self) -> int:
        """Modes of L."""
        shape = self.first("L", "mixer.filter.p")
        return shape[1] if shape else 16


def fitted(config: HyenaGLTConfig, losses: Losses) -> HyenaGLTConfig:
    """The architecture that a folder can hold; savanna has both forms of eps.

    Raises:
        UserError: see `fitting.fit`; or an MLP narrower than savanna makes them, or activations
            that change elsewhere than savanna would change them.
    """
    found = fit(dataclasses.replace(config, norm_eps_outside=True), CAN, losses)
    found = dataclasses.replace(found, norm_eps_outside=config.norm_eps_outside)
    least = least_inner(config)
    if 0 < config.ffn < least:
        raise UserError(
            f"{NAME} makes MLPs of {least} channels or more, not the {config.ffn} of "
            "model.ffn_hidden_size; use --to hf or native"
        )
    first = min((found.signs.index(s) for s in "ML" if s in found.signs), default=len(found.signs))
    if found.mlp_activation == "evo2" and first != 1:
        losses.add(
            "activation",
            "model.mlp_activation=evo2 where the first M or L is not the second block "
            "(train with gelu)",
        )
        found = dataclasses.replace(found, mlp_activation="gelu")
    return found


def settings_of(config: HyenaGLTConfig, layout: Layout, ranks: int, stage: int) -> dict[str, Any]:
    """The YAML's keys."""
    operators = {sign: name for name, sign in SIGNS.items()} | {"A": "flash_te"}
    evo2, scaled = config.mlp_activation == "evo2", config.rope_scaling != 1
    return {
        "model_parallel_size": ranks,
        "pipe_parallel_size": 0,
        "zero_optimization": {"stage": stage},
        "finetune": True,
        "num_layers": len(config.signs),
        "hidden_size": config.hidden_size,
        "num_attention_heads": config.num_heads,
        "seq_length": layout.length,
        "max_position_embeddings": layout.length,
        "make_vocab_size_divisible_by": max(1, config.vocab_size // ranks),
        "make_gated_mlp_multiple_of": _multiple(config, config.ffn or layout.idle_mlp),
        "operator-config": [[[operators[sign]], 1] for sign in config.signs],
        "num_groups_hyena": layout.li_groups,
        "num_groups_hyena_short": layout.se_groups,
        "num_groups_hyena_medium": layout.mr_groups,
        "hyena_se_len": config.se_filter_length,
        "hyena_mr_len": config.mr_filter_length,
        "short-conv-L": 3,
        "hyena_filter_order": config.li_modes,
        "hyena_filter_cls": "implicit_modal",
        "hyena_medium_filter_cls": "explicit_single_decay",
        "explicit_filter_decay_preset": "weak" if config.mr_decay == "none" else config.mr_decay,
        "use-hyena-filter": True,
        "fast_conv_proj": layout.flat_featurizer,
        "interleave_projections": not layout.split,
        "pos_emb": "rotary_linear_scaled" if scaled else "rotary",
        "rotary_pct": 1,
        "rotary_emb_base": config.rope_base,
        "rotary_emb_scaling_factor": config.rope_scaling,
        "no_weight_tying": not config.tie_embeddings,
        "norm": "rmsnorm",
        "use_fp8_norm": layout.norm == "weight",
        "rms_norm_epsilon": config.norm_eps,
        "mlp_type": "llama",
        "activation": "gelu" if evo2 else config.mlp_activation,
        **({} if evo2 else {"parallel_glu_activation_default": config.mlp_activation}),
        "prenorm": True,
        "pre_mlp_norm": True,
        "precision": "bfloat16",
        "tokenizer_type": "CharLevelTokenizer",
    }


def _multiple(config: HyenaGLTConfig, inner: int) -> int:
    """Of which savanna's rounding of 8/3 of the width makes the MLP's inner width."""
    for multiple in (64, 128, 16):
        if -(-least_inner(config) // multiple) * multiple == inner:
            return multiple
    return inner

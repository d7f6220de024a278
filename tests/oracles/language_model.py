"""Norm, MLP, block, loss and the whole model, written out from their equations in fp64."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

from megatron_hyena.config import HyenaGLTConfig
from tests.oracles import operators
from tests.oracles.operators import Array, Weights

SLOWEST_LOG10 = {"weak": -2.0, "normal": -1.0, "strong": 0.0, "none": None}


def rms_norm(x: Array, weight: Array, eps: float, outside: bool = False) -> Array:
    """x / sqrt(mean(x^2) + eps) * weight over the last axis, or x / (sqrt(mean(x^2)) + eps)."""
    if outside:
        return x / (np.sqrt((x * x).mean(-1, keepdims=True)) + eps) * weight
    return x / np.sqrt((x * x).mean(-1, keepdims=True) + eps) * weight


def gelu(x: Array) -> Array:
    """x times the normal distribution function of x."""
    return x * 0.5 * (1 + np.vectorize(math.erf)(x / math.sqrt(2)))


ACTIVATIONS = {"gelu": gelu, "silu": lambda x: x / (1 + np.exp(-x)), "identity": lambda x: x}


def gated_mlp(x: Array, w: Weights, activation: str) -> Array:
    """W3 (act(W1 x) * (W2 x)); W1 is the first half of `gate_value`."""
    w1, w2 = np.split(w["gate_value"], 2)
    return (ACTIVATIONS[activation](x @ w1.T) * (x @ w2.T)) @ w["output"].T


def mixer(sign: str, x: Array, w: Weights, config: HyenaGLTConfig) -> Array:
    """The layer behind a sign of the pattern."""
    if sign == "S":
        return operators.hyena_se(x, w)
    if sign == "M":
        return operators.hyena_mr(x, w, SLOWEST_LOG10[config.mr_decay])
    if sign == "L":
        return operators.hyena_li(x, w)
    if sign == "H":
        sizes = (config.hyena_order, config.max_sequence_length, config.hyena_filter_size)
        return operators.hyena_order(x, w, *sizes)
    if sign == "G":
        return operators.genomic(x, w, config.hyena_order, config.max_sequence_length)
    if sign not in "AW":
        raise KeyError(f"no equation is written out for {sign}; add its oracle")
    window = config.attention_window if sign == "W" else None
    rope = config.rope_base, window, config.rope_scaling, config.rope_bf16
    return operators.attention(x, w, config.num_heads, *rope)


def under(w: Weights, prefix: str) -> Weights:
    """The weights below `prefix`, with it taken off."""
    return {k.removeprefix(prefix): a for k, a in w.items() if k.startswith(prefix)}


def hidden_states(ids: npt.NDArray[np.int64], w: Weights, config: HyenaGLTConfig) -> Array:
    """ids [B, L] -> after the final norm, [L, B, h]."""
    x = w["embedding.weight"][ids.T]
    form = config.norm_eps, config.norm_eps_outside
    for i, sign in enumerate(config.signs):
        block = under(w, f"blocks.{i}.")
        normed = rms_norm(x, block["mixer_norm.weight"], *form)
        x = x + mixer(sign, normed, under(block, "mixer."), config)
        if config.ffn:
            normed = rms_norm(x, block["mlp_norm.weight"], *form)
            gate = config.mlp_activation
            if gate == "evo2":
                gate = "gelu" if i == 0 else "identity"
            x = x + gated_mlp(normed, under(block, "mlp."), gate)
    return rms_norm(x, w["final_norm.weight"], *form)


def logits(ids: npt.NDArray[np.int64], w: Weights, config: HyenaGLTConfig) -> Array:
    """[B, L, V]."""
    head = w["embedding.weight"] if config.tie_embeddings else w["head.weight"]
    return (hidden_states(ids, w, config) @ head.T).transpose(1, 0, 2)


def next_byte_loss(scores: Array, labels: npt.NDArray[np.int64]) -> float:
    """Mean nats of labels[t + 1] under scores[t], where the label is not -100."""
    nats = []
    for row, wanted in zip(scores, labels, strict=True):
        for t in range(len(wanted) - 1):
            if wanted[t + 1] != -100:
                largest = row[t].max()
                total = largest + math.log(np.exp(row[t] - largest).sum())
                nats.append(total - row[t, wanted[t + 1]])
    return float(np.mean(nats))

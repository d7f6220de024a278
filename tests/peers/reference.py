"""Evo 1 and Evo 2 as loops of numpy in fp64: what the tensors of their files mean, said once.

Written from the shapes alone and independent of both the peers and the project; [L, H] arrays of
one sequence, sums position by position. Names as in the files.
"""

from __future__ import annotations

from collections.abc import Callable
from math import erf, sqrt
from typing import Any

import numpy as np

Array = np.ndarray
Weights = dict[str, Array]


def evo1_logits(weights: Weights, config: dict[str, Any], ids: Array) -> Array:
    """[L] ids -> [L, V] by StripedHyena 1."""
    return _logits(weights, config, ids, _evo1_hyena, lambda layer: _gelu)


def evo2_logits(weights: Weights, config: dict[str, Any], ids: Array) -> Array:
    """[L] ids -> [L, V] by StripedHyena 2; of Evo 2 only the first layer's MLP is activated."""
    weights = _evo2_in_memory(weights, config)
    linear = config["evo2_style_activations"]
    return _logits(
        weights, config, ids, _evo2_hyena, lambda layer: _same if layer and linear else _gelu
    )


def _logits(
    weights: Weights,
    config: dict[str, Any],
    ids: Array,
    hyena: Callable[[Weights, dict[str, Any], Array], Array],
    activation: Callable[[int], Callable[[Array], Array]],
) -> Array:
    weights = {name: array.astype(np.float64) for name, array in weights.items()}
    x = weights["embedding_layer.weight"][ids]
    for layer in range(config["num_layers"]):
        own = _of(weights, f"blocks.{layer}.")
        mixer = _attention if layer in config["attn_layer_idxs"] else hyena
        x = x + mixer(own, config, _norm(x, own["pre_norm.scale"], config["eps"]))
        z = _norm(x, own["post_norm.scale"], config["eps"])
        gate = activation(layer)(z @ own["mlp.l1.weight"].T)
        x = x + (gate * (z @ own["mlp.l2.weight"].T)) @ own["mlp.l3.weight"].T
    x = _norm(x, weights["norm.scale"], config["eps"])
    return x @ weights["embedding_layer.weight"].T


def _of(weights: Weights, prefix: str) -> Weights:
    return {n.removeprefix(prefix): a for n, a in weights.items() if n.startswith(prefix)}


def _norm(x: Array, scale: Array, eps: float) -> Array:
    """eps is added to the root, not under it."""
    return scale * x / (np.sqrt((x**2).mean(-1, keepdims=True)) + eps)


def _gelu(x: Array) -> Array:
    return x * (1 + np.vectorize(erf)(x / sqrt(2))) / 2


def _same(x: Array) -> Array:
    return x


def _evo1_hyena(own: Weights, config: dict[str, Any], x: Array) -> Array:
    """Rows of the projection: head after head, in each [x2 | x1 | v]."""
    z = x @ own["projections.weight"].T + own["projections.bias"]
    taps = own["filter.short_filter_weight"][:, 0, ::-1]  # the last tap is the current token's
    z = _convolve(z, taps) + own["filter.short_filter_bias"]
    heads = z.reshape(len(z), config["num_attention_heads"], 3, -1)
    x2, x1, v = (heads[:, :, part].reshape(len(z), -1) for part in range(3))
    poles, residues = (_complex(own[f"filter.{name}"]) for name in ("poles", "residues"))
    steps = np.arange(len(x))
    h = (residues[..., None] * poles[..., None] ** steps).sum(1).real  # [H, L]
    y = x2 * (_convolve(x1 * v, h) + own["filter.D"] * x1 * v)
    return y @ own["out_filter_dense.weight"].T + own["out_filter_dense.bias"]


def _evo2_hyena(own: Weights, config: dict[str, Any], x: Array) -> Array:
    """Rows of the projection: channel after channel, in each x2, x1, v."""
    z = x @ own["projections.weight"].T
    z = _convolve(z, own["filter.short_filter_weight"][:, 0, ::-1])
    x2, x1, v = (z[:, part::3] for part in range(3))
    u = x1 * v
    if "filter.log_poles" in own:
        modes = np.exp(own["filter.log_poles"] * np.arange(len(x)))  # [H, n, L]
        h = (own["filter.residues"][..., None] * modes).sum(1)
    else:
        h = own["filter.h"][:, 0]
        # Seven taps: the last is the current token's. 128 taps: the first is.
        h = h[:, ::-1] if h.shape[1] < 128 else h
        h = h.repeat(u.shape[1] // len(h), 0)
    y = _convolve(u, h)
    if "filter.D" in own:  # absent with seven taps
        y = y + own["filter.D"] * u
    return (x2 * y) @ own["out_filter_dense.weight"].T + own["out_filter_dense.bias"]


def _complex(pairs: Array) -> Array:
    """[H, n, 1, 2] -> [H, n]."""
    return pairs[..., 0, 0] + 1j * pairs[..., 0, 1]


def _convolve(u: Array, h: Array) -> Array:
    """y[t] = sum_k h[:, k] u[t - k]; u [L, H], h [H, K]."""
    y = np.zeros_like(u)
    for k in range(min(len(u), h.shape[1])):
        y[k:] += h[:, k] * u[: len(u) - k]
    return y


def _attention(own: Weights, config: dict[str, Any], x: Array) -> Array:
    """`Wqkv` as in memory: [q | k | v], heads inside; the stored frequencies turn q and k."""
    own = _of(own, "inner_mha_cls.")
    qkv = x @ own["Wqkv.weight"].T + own.get("Wqkv.bias", np.zeros(1))
    heads = qkv.reshape(len(x), 3, config["num_attention_heads"], -1)
    scaling = config.get("rotary_emb_scaling_factor", 1)
    angle = np.arange(len(x))[:, None] * own["rotary_emb.inv_freq"] / scaling
    q, k = (_rotate(heads[:, part], angle) for part in range(2))
    scores = np.einsum("thd,shd->hts", q, k) / sqrt(q.shape[-1])
    scores[:, np.triu(np.ones(scores.shape[1:], bool), 1)] = -np.inf
    share = np.exp(scores - scores.max(-1, keepdims=True))
    share /= share.sum(-1, keepdims=True)
    y = np.einsum("hts,shd->thd", share, heads[:, 2]).reshape(x.shape)
    return y @ own["out_proj.weight"].T + own["out_proj.bias"]


def _rotate(x: Array, angle: Array) -> Array:
    first, second = np.split(x, 2, -1)
    cos, sin = np.cos(angle)[:, None], np.sin(angle)[:, None]
    return np.concatenate([first * cos - second * sin, second * cos + first * sin], -1)


def _evo2_in_memory(weights: Weights, config: dict[str, Any]) -> Weights:
    """`Wqkv` of a vortex file, head after head in each q, k, v, as [q | k | v]."""
    changed = dict(weights)
    for name, array in weights.items():
        if ".Wqkv." in name:
            heads = array.reshape(config["num_attention_heads"], 3, -1, *array.shape[1:])
            changed[name] = heads.swapaxes(0, 1).reshape(array.shape)
    return changed

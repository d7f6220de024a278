"""Merged stages, one byte after the other: every equation as a loop over one row, in fp64.

Nothing of the package computes here; only the names of a stage's parameters are known. A row is a
sequence of positions in windows; a position may be empty (an unused slot of an outer stage), which
is a zero vector to those that look at it, and never opens a chunk.
"""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass, replace
from fractions import Fraction

import numpy as np

from megatron_hyena.config import HyenaGLTConfig
from tests.oracles.language_model import rms_norm, under
from tests.oracles.operators import Array, Weights

GATE, COSINE = 1e-4, 1e-4
"""Smoothing gates, and H-Net's similarities, stay this far from 0 and 1."""
CARRIED = 0.5
"""Share of the earlier windows in the memory that complexity is computed from."""
NUMBER = {"A": 0, "C": 1, "G": 2, "T": 3, "U": 3}


@dataclass(frozen=True)
class Row:
    """Positions of one row.

    Attributes:
        places: byte of its document that each position stands for; -1 for an empty one.
        features: what the router sees instead of the stream, [L, r].
        complexity: of the sequence before each position, where it comes from bytes alone.
        levels: how many stages a precomputed boundary opens a chunk in.
    """

    places: list[int]
    features: Array | None = None
    complexity: list[float] | None = None
    levels: list[int] | None = None


@dataclass(frozen=True)
class Sizes:
    """Of a stage: positions and slots of a window, stages around it, the rate control's state."""

    window: int
    slots: int
    depth: int = 0
    shift: float = 0.0
    mean_complexity: float = 0.5


@dataclass(frozen=True)
class Merged:
    """What a stage makes of a row.

    Attributes:
        opens: per position; `slot`: the slot that it reads, -1 for an empty position.
        starts: per slot, the position that opened it, -1 if empty; `lengths`: how many read it.
        vectors: u [M, h].
        row: the slots as positions of an inner stage.
        probability: p per position; `gates`: P per slot; None without a router, or smoothing.
    """

    opens: list[bool]
    slot: list[int]
    starts: list[int]
    lengths: list[int]
    vectors: Array
    row: Row
    probability: list[float] | None = None
    gates: list[float] | None = None


def sigmoid(a: float) -> float:
    """1 / (1 + exp(-a))."""
    return 1 / (1 + math.exp(-a))


def logits(x: Array, row: Row, w: Weights, sizes: Sizes, config: HyenaGLTConfig) -> list[float]:
    """a_t: above 0, position t wants to open a chunk."""
    seen = row.features if row.features is not None else x
    normed = np.zeros_like(seen)
    for t, place in enumerate(row.places):
        if place >= 0:
            normed[t] = rms_norm(seen[t], w["norm.weight"], config.norm_eps)
    complexity = complexities(normed, row, under(w, "complexity."), sizes, config)
    found = []
    for t, place in enumerate(row.places):
        # The first byte of a document has nothing before it.
        before = normed[t - 1] if t > 0 and place != 0 else np.zeros_like(normed[t])
        like = under(w, "similarity.")
        mlp = config.merger == "wcc" and config.similarity == "mlp"
        z = pair_mlp(before, normed[t], like) if mlp else pair_cosine(before, normed[t], like)
        a = (math.log(config.threshold / (1 - config.threshold)) - z) / config.router_temperature
        if complexity is not None:
            a += config.gamma * (complexity[t] - sizes.mean_complexity)
        found.append(a + sizes.shift)
    return found


def pair_mlp(before: Array, own: Array, w: Weights) -> float:
    """z = w2 . ReLU(W_a x_{t-1} + W_b x_t + b1) + b2."""
    width = len(w["bias"])
    inner = w["pair"][:width] @ before + w["pair"][width:] @ own + w["bias"]
    return float(w["out"] @ np.maximum(inner, 0) + w["offset"][0])


def pair_cosine(before: Array, own: Array, w: Weights) -> float:
    """The logit of (1 + cos(W_q x_{t-1}, W_k x_t)) / 2."""
    query, key = w["query"] @ before, w["key"] @ own
    sizes = float(np.sqrt(query @ query) * np.sqrt(key @ key))
    cosine = float(query @ key) / sizes if sizes > 0 else 0.0
    like = min(max((1 + cosine) / 2, COSINE), 1 - COSINE)
    return math.log(like / (1 - like))


def complexities(
    normed: Array, row: Row, w: Weights, sizes: Sizes, config: HyenaGLTConfig
) -> list[float] | None:
    """c of each position, from the windows before its own."""
    if not config.adaptive:
        return None
    if config.complexity == "kmer":
        return row.complexity
    found: list[float] = []
    memory = np.zeros(normed.shape[1])
    for first in range(0, len(normed), sizes.window):
        inside = range(first, first + sizes.window)
        if any(row.places[t] == 0 for t in inside):
            memory = np.zeros_like(memory)
            found += [sizes.mean_complexity] * sizes.window  # nothing is known
        else:
            hidden = np.maximum(w["weight_in"] @ memory + w["bias_in"], 0)
            found += [sigmoid(float(w["weight_out"] @ hidden + w["bias_out"][0]))] * sizes.window
        present = [normed[t] for t in inside if row.places[t] >= 0]
        mean = sum(present, np.zeros_like(memory)) / max(len(present), 1)
        memory = CARRIED * memory + (1 - CARRIED) * mean
    return found


def wishes(a: list[float] | None, row: Row, sizes: Sizes, config: HyenaGLTConfig) -> list[bool]:
    """Which positions want to open a chunk."""
    if a is not None:
        return [number > 0 for number in a]
    if config.merger == "precomputed":
        assert row.levels is not None
        return [level > sizes.depth for level in row.levels]
    points = [Fraction(i * sizes.window, sizes.slots) for i in range(sizes.slots)]
    return [
        any(t % sizes.window <= point < t % sizes.window + 1 for point in points)
        for t in range(len(row.places))
    ]


def admitted(wants: list[bool], places: list[int], sizes: Sizes) -> list[bool]:
    """First come, first served: K slots in each window, the first for its first position."""
    opens, taken = [], 0
    for t, place in enumerate(places):
        if t % sizes.window == 0:
            taken = 0
        here = place >= 0 and (taken == 0 or (wants[t] and taken < sizes.slots))
        taken += here
        opens.append(here)
    return opens


def merge(x: Array, row: Row, w: Weights, sizes: Sizes, config: HyenaGLTConfig) -> Merged:
    """x [L, h] -> the chunks of a row. `w` are the stage's parameters."""
    learned = config.merger in ("wcc", "hnet")
    a = logits(x, row, under(w, "router."), sizes, config) if learned else None
    opens = admitted(wishes(a, row, sizes, config), row.places, sizes)
    windows = len(opens) // sizes.window
    starts = [-1] * (windows * sizes.slots)
    lengths, slot, now = [0] * len(starts), [], -1
    for t, place in enumerate(row.places):
        if t % sizes.window == 0:
            now = t // sizes.window * sizes.slots - 1
        if opens[t]:
            now += 1
            starts[now] = t
        slot.append(now if place >= 0 else -1)
        if place >= 0:
            lengths[now] += 1
    u = chunk_vectors(x, row, slot, starts, w, sizes, config)
    inner = inner_row(row, starts)
    if a is None:
        return Merged(opens, slot, starts, lengths, u, inner)
    # A document's first byte opens a chunk for certain.
    p = [1.0 if place == 0 else sigmoid(b) for place, b in zip(row.places, a, strict=True)]
    merged = Merged(opens, slot, starts, lengths, u, inner, p)
    return replace(merged, gates=gates(merged)) if config.smoothing == "ema" else merged


def inner_row(row: Row, starts: list[int]) -> Row:
    """The slots as positions: each stands for its opening."""
    features = None
    if row.features is not None:
        nothing = np.zeros(row.features.shape[1])
        features = np.stack([row.features[t] if t >= 0 else nothing for t in starts])
    return Row(
        [row.places[t] if t >= 0 else -1 for t in starts],
        features,
        None if row.complexity is None else [row.complexity[t] if t >= 0 else 0.0 for t in starts],
        None if row.levels is None else [row.levels[t] if t >= 0 else 0 for t in starts],
    )


def chunk_vectors(
    x: Array,
    row: Row,
    slot: list[int],
    starts: list[int],
    w: Weights,
    sizes: Sizes,
    config: HyenaGLTConfig,
) -> Array:
    """u: the opening's state, and what the completed chunk before it holds."""
    rule = "select" if config.merger == "hnet" else config.merge_fn
    u = np.zeros((len(starts), x.shape[1]))
    for m, t in enumerate(starts):
        if t < 0:
            continue
        before = chunk_before(m, starts, sizes.slots) if row.places[t] != 0 else None
        members = [x[i] for i in range(len(x)) if before is not None and slot[i] == before]
        if rule == "select":
            u[m] = x[t]
        elif rule == "mean":
            u[m] = np.mean([*members, x[t]], axis=0)
        else:
            mean = np.mean(members, axis=0) if members else np.zeros_like(x[t])
            pair = np.concatenate([mean, x[t]])
            u[m] = x[t] + w["merge_weight"] @ pair + w["merge_bias"]
    return u


def chunk_before(m: int, starts: list[int], slots: int) -> int | None:
    """The slot before m that was taken, in its window or the one before."""
    first = m // slots * slots
    for other in range(m - 1, max(first - slots, 0) - 1, -1):
        if starts[other] >= 0:
            return other
    return None


def gates(merged: Merged) -> list[float]:
    """P of each slot: 1 where a document begins, 0 where nothing is."""
    found = []
    for t, place in zip(merged.starts, merged.row.places, strict=True):
        p = 0.0 if t < 0 else min(max((merged.probability or [])[t], GATE), 1 - GATE)
        found.append(1.0 if place == 0 else p)
    return found


def smoothed(z: Array, gate: list[float]) -> Array:
    """s_m = P_m z_m + (1 - P_m) s_{m-1}."""
    out, state = np.zeros_like(z), np.zeros(z.shape[1])
    for m, p in enumerate(gate):
        state = p * z[m] + (1 - p) * state
        out[m] = state
    return out


def unmerge(z: Array, merged: Merged, x: Array, w: Weights) -> Array:
    """y_t = x_t + W_skip x_t + s_{chunk(t)}; rows of empty positions stay zero."""
    s = z if merged.gates is None else smoothed(z, merged.gates)
    y = np.zeros_like(x)
    for t, m in enumerate(merged.slot):
        if m >= 0:
            y[t] = x[t] + w["skip"] @ x[t] + s[m]
    return y


def trunk_features(ids: list[int], places: list[int], w: Weights) -> Array:
    """e <- e + SiLU(sum_k taps_k e_{t - k d}) for d = 1, 4, 16, inside each document: [L, r]."""
    e = np.stack([w["table"][i] for i in ids])
    for taps, dilation in zip(w["taps"], (1, 4, 16), strict=True):
        new = e.copy()
        for t, place in enumerate(places):
            lags = [k * dilation for k in range(len(taps)) if k * dilation <= place]
            total = sum(taps[lag // dilation] * e[t - lag] for lag in lags)
            new[t] = e[t] + total / (1 + np.exp(-total))
        e = new
    return e


def kmer_complexities(ids: list[int], places: list[int]) -> list[float]:
    """Entropy of the 62 3-mers of the 64 bytes before each block of 16, over ln 62; else 1."""
    found: list[float] = []
    for first in range(0, len(ids), 16):
        value = 1.0
        if places[first] >= 64:
            letters = [NUMBER.get(chr(i).upper(), 4) for i in ids[first - 64 : first]]
            words = Counter(tuple(letters[i : i + 3]) for i in range(62))
            value = -sum(n / 62 * math.log(n / 62) for n in words.values()) / math.log(62)
        found += [value] * 16
    return found

"""The operators written out from their equations: fp64, one position and one lag at a time.

Nothing here is shared with the package. Weights arrive as plain arrays, named as in the modules.
Shapes: x [L, B, h]; channel-first tensors [D, B, L]; taps [D, K].
"""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]
Weights = dict[str, Array]


def correlate(z: Array, taps: Array) -> Array:
    """y[t] = sum_j taps[j] z[t - (K - 1) + j]: the last tap meets the current position."""
    y, width = np.zeros_like(z), taps.shape[1]
    for t in range(z.shape[2]):
        for j in range(width):
            source = t - (width - 1) + j
            if source >= 0:
                y[:, :, t] += taps[:, j, None] * z[:, :, source]
    return y


def convolve(z: Array, taps: Array) -> Array:
    """y[t] = sum_k taps[k] z[t - k]: the first tap meets the current position."""
    y = np.zeros_like(z)
    for t in range(z.shape[2]):
        for k in range(min(t + 1, taps.shape[1])):
            y[:, :, t] += taps[:, k, None] * z[:, :, t - k]
    return y


def spread_groups(taps: Array, channels: int) -> Array:
    """Taps of groups [G, K] to taps of channels [D, K]."""
    each = channels // taps.shape[0]
    return np.stack([taps[c // each] for c in range(channels)])


def decayed_taps(taps: Array, slowest_log10: float | None) -> Array:
    """f[g, k] = h[g, k] exp(-r_g k / (K - 1)), r_g from 10^slowest to 10^2 in even ratios.

    None: f = h.
    """
    if slowest_log10 is None:
        return taps
    groups, width = taps.shape
    out = np.empty_like(taps)
    for g in range(groups):
        place = g / (groups - 1) if groups > 1 else 0.0
        rate = 10.0 ** (slowest_log10 + (2.0 - slowest_log10) * place)
        for k in range(width):
            out[g, k] = taps[g, k] * math.exp(-rate * k / (width - 1))
    return out


def modal_taps(
    log_rate: Array,
    residue: Array,
    length: int,
    phase: Array | None = None,
    imaginary: Array | None = None,
) -> Array:
    """h[c, t] = sum_n R[c, n] exp(-exp(p[c, n]) t), or

    h[c, t] = sum_n exp(-exp(p[c, n]) t) (R cos(phase t) - I sin(phase t)).
    """
    out = np.zeros((log_rate.shape[0], length))
    for t in range(length):
        for n in range(log_rate.shape[1]):
            weight = residue[:, n]
            if phase is not None and imaginary is not None:
                turned = phase[:, n] * t
                weight = weight * np.cos(turned) - imaginary[:, n] * np.sin(turned)
            out[:, t] += weight * np.exp(-np.exp(log_rate[:, n]) * t)
    return out


def implicit_taps(w: Weights, length: int, longest: int) -> Array:
    """Three linear layers with sines between, of position features, times exp(-|a_c| t)."""
    channels = w["weight_out"].shape[0]
    slow, fast = -math.log(0.01) / 1.5, -math.log(0.01) / 0.3
    out = np.zeros((channels, length))
    for step in range(length):
        t = step / longest
        bands = [1e-4 + (15 - 1e-4) * b / 15 for b in range(16)]
        cosines = [math.cos(2 * math.pi * f * t) for f in bands]
        sines = [-math.sin(2 * math.pi * f * t) for f in bands]
        x = np.array([t, *cosines, *sines])
        x = np.sin(w["frequency"] * (w["weight_in"] @ x + w["bias_in"]))
        x = np.sin(w["frequency"] * (w["weight_mid"] @ x + w["bias_mid"]))
        for c in range(channels):
            rate = slow + (fast - slow) * (c / (channels - 1) if channels > 1 else 0.0)
            out[c, step] = (w["weight_out"][c] @ x) * math.exp(-t * rate)
    return out


def features(x: Array, w: Weights, streams: int) -> list[Array]:
    """Projection, 3-tap featurizer, biases if any; row `streams` c + s is stream s of channel c."""
    none = np.zeros(len(w["projection"]))
    projected = np.einsum("ri,tbi->rbt", w["projection"], x)
    projected += w.get("projection_bias", none)[:, None, None]
    mixed = correlate(projected, w["featurizer"])
    mixed += w.get("featurizer_bias", none)[:, None, None]
    return [mixed[s::streams] for s in range(streams)]


def leave(y: Array, w: Weights) -> Array:
    """Output product and bias: [D, B, L] -> [L, B, h]."""
    return np.einsum("od,dbt->tbo", w["output"], y) + w["bias"]


def hyena_se(x: Array, w: Weights) -> Array:
    """x1 * (correlation(x2 * v) + skip x2 * v, if any), taps shared by groups of channels."""
    x1, x2, v = features(x, w, 3)
    skipped = w.get("skip", np.zeros(len(v)))[:, None, None] * x2 * v
    return leave(x1 * (correlate(x2 * v, spread_groups(w["taps"], v.shape[0])) + skipped), w)


def hyena_mr(x: Array, w: Weights, slowest_log10: float | None) -> Array:
    """x1 * (convolution(x2 * v) + skip x2 * v), decayed taps."""
    x1, x2, v = features(x, w, 3)
    taps = spread_groups(decayed_taps(w["taps"], slowest_log10), v.shape[0])
    return leave(x1 * (convolve(x2 * v, taps) + w["skip"][:, None, None] * x2 * v), w)


def hyena_li(x: Array, w: Weights) -> Array:
    """x1 * (convolution(x2 * v) + skip x2 * v), modal taps."""
    x1, x2, v = features(x, w, 3)
    turning = (w.get("phase"), w.get("residue_imaginary"))
    taps = modal_taps(w["log_rate"], w["residue"], x.shape[0], *turning)
    return leave(x1 * (convolve(x2 * v, taps) + w["skip"][:, None, None] * x2 * v), w)


def long_taps(w: Weights, length: int, longest: int) -> Array:
    """An explicit bank's first taps, or the implicit filter's."""
    return w["filters"][:, :length] if "filters" in w else implicit_taps(w, length, longest)


def recurrence(streams: list[Array], w: Weights, longest: int, count: int = 0) -> Array:
    """z_n = x_n * (h_n conv z_{n-1} + d_n z_{n-1}); z_0 is the last stream.

    `count` taps of h_n are kept; 0 for all.
    """
    *gates, z = streams
    for n, gate in enumerate(gates):
        prefix = f"filters.{n}."
        part = {k.removeprefix(prefix): a for k, a in w.items() if k.startswith(prefix)}
        taps = long_taps(part, z.shape[2], longest)[:, : count or None]
        z = gate * (convolve(z, taps) + w["skip"][:, n, None, None] * z)
    return z


def output_gate(z: Array, x: Array, w: Weights) -> Array:
    """sigmoid(W_g x) z, if there is a gate."""
    if "gate" not in w:
        return z
    return z / (1 + np.exp(-np.einsum("di,tbi->dbt", w["gate"], x)))


def hyena_order(x: Array, w: Weights, order: int, longest: int, count: int = 0) -> Array:
    """The recurrence and the output gate."""
    z = recurrence(features(x, w, order + 1), w, longest, count)
    return leave(output_gate(z, x, w), w)


def averages(v: Array, log_rate: Array, weight: Array) -> Array:
    """sum_n weight[c, n] m_n[t], each m_n[t] = a m_n[t - 1] + (1 - a) v[t], a = exp(-exp(rate))."""
    out = np.zeros_like(v)
    for c in range(v.shape[0]):
        for n in range(log_rate.shape[1]):
            a, mean = math.exp(-math.exp(log_rate[c, n])), np.zeros(v.shape[1])
            for t in range(v.shape[2]):
                mean = a * mean + (1 - a) * v[c, :, t]
                out[c, :, t] += weight[c, n] * mean
    return out


def conserved(y: Array, weight: Array, bias: Array, score: Array | None) -> Array:
    """y times 1 + tanh(w s + u) where the score s [B, L] is a number."""
    out = y.copy()
    for b in range(y.shape[1]):
        for t in range(y.shape[2]):
            if score is not None and not math.isnan(score[b, t]):
                out[:, b, t] *= 1 + np.tanh(weight * score[b, t] + bias)
    return out


def genomic(x: Array, w: Weights, order: int, longest: int, score: Array | None = None) -> Array:
    """c * (recurrence + a_m motif(v) + a_s structure(v)), then the output gate."""
    streams = features(x, w, order + 1)
    motif = w["motif.scale"][:, None, None] * convolve(streams[-1], w["motif.taps"])
    means = averages(streams[-1], w["structure.log_rate"], w["structure.weight"])
    y = recurrence(streams, w, longest) + motif + w["structure.scale"][:, None, None] * means
    y = conserved(y, w["conservation.weight"], w["conservation.bias"], score)
    return leave(output_gate(y, x, w), w)


def rotated(vector: Array, position: float, base: float, coarse: bool = False) -> Array:
    """RoPE: pair i is (vector[i], vector[i + d/2]), turned by position * base^(-2i/d)."""
    out, half = np.empty_like(vector), len(vector) // 2
    for i in range(half):
        frequency = base ** (-2 * i / len(vector))
        if coarse:
            mantissa, exponent = math.frexp(frequency)
            frequency = round(mantissa * 256) / 256 * 2**exponent
        angle = position * frequency
        a, b = vector[i], vector[i + half]
        out[i] = a * math.cos(angle) - b * math.sin(angle)
        out[i + half] = b * math.cos(angle) + a * math.sin(angle)
    return out


def attention(
    x: Array,
    w: Weights,
    heads: int,
    base: float,
    window: int | None,
    scaling: float = 1.0,
    coarse: bool = False,
) -> Array:
    """Softmax attention to the last `window` positions (all before, if None), RoPE of t / scaling.

    With the projection's bias, if any; `coarse`: RoPE's frequencies have 8 significant bits.
    """
    length, batch, width = x.shape
    dim = width // heads
    out = np.zeros((width, batch, length))
    for b in range(batch):
        for head in range(heads):
            held = slice(3 * dim * head, 3 * dim * (head + 1))
            projected = x[:, b] @ w["projection"][held].T
            projected += w.get("projection_bias", np.zeros(3 * width))[held]
            q, k, v = np.split(projected, 3, axis=1)
            q = np.stack([rotated(q[t], t / scaling, base, coarse) for t in range(length)])
            k = np.stack([rotated(k[t], t / scaling, base, coarse) for t in range(length)])
            for t in range(length):
                first = 0 if window is None else max(0, t - window + 1)
                scores = [q[t] @ k[s] / math.sqrt(dim) for s in range(first, t + 1)]
                weights = np.exp(np.array(scores) - max(scores))
                mean = weights @ v[first : t + 1] / weights.sum()
                out[head * dim : (head + 1) * dim, b, t] = mean
    return leave(out, w)

"""What tests of the peers ask of `reference`: whose tensors are heard, how it scores and writes."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from tests.peers.process import Arrays

Logits = Callable[[Arrays, np.ndarray], np.ndarray]  # weights, ids [L] -> [L, V]


def silent_tensors(logits: Logits, weights: Arrays, ids: np.ndarray) -> list[str]:
    """Names of tensors of which one number may change by a fifth and nothing is heard of it."""
    before = logits(weights, ids)
    silent = []
    for name, array in weights.items():
        other = array.copy()
        other[(ids[0], 0) if name == "embedding_layer.weight" else (0,) * other.ndim] *= 1.2
        change = np.abs(logits(weights | {name: other}, ids) - before).max()
        silent += [name] if change < 1e-4 * np.abs(before).max() else []
    return silent


def mean_likelihood(logits: Logits, weights: Arrays, text: str, start: bool) -> float:
    """Mean log-likelihood of the letters, the first one given the token 0 if `start`, else none."""
    ids = np.array([0] * start + list(text.encode()))
    scores = logits(weights, ids)[:-1]
    likelihoods = scores - np.log(np.exp(scores).sum(-1, keepdims=True))
    return float(likelihoods[np.arange(len(scores)), ids[1:]].mean())


def likeliest(logits: Logits, weights: Arrays, prompt: str, count: int) -> list[int]:
    """`count` tokens behind `prompt`, each the likeliest; the peers show those below 32 as 32."""
    ids = list(prompt.encode())
    for _ in range(count):
        ids.append(int(logits(weights, np.array(ids))[-1].argmax()))
    return [max(32, token) for token in ids[-count:]]

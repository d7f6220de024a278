"""Counts of a step: numbers that are not finite stop no forward pass, so the loss can tell."""

from __future__ import annotations

import torch

from megatron_hyena.layers.merging.rate import BINS, POSITIONS, SCALARS
from tests.oracles.merged_models import dna, lively_model, merged_config, stage_of


def test_a_router_without_numbers_leaves_the_news_to_the_loss() -> None:
    ids = dna(2, 48)
    model = lively_model(merged_config("S(M)S"), ids).train()
    rate = stage_of(model).rate
    model(ids)
    counts = rate.take()
    assert counts[POSITIONS] == ids.numel()
    free = int(counts[SCALARS : SCALARS + BINS].sum())
    assert free == ids.numel() - ids.numel() // 8  # all but the anchors
    with torch.no_grad():
        model.embedding.weight[ord("A")] = float("inf")
    loss = model(ids, labels=ids).loss
    assert loss is not None and not loss.isfinite()
    assert rate.take()[SCALARS : SCALARS + BINS].sum() == free

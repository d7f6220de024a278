"""From a language model to a classifier: filters of another reach, the same weights, a head.

A small model is pretrained on random DNA in which a motif occurs, adapted, and trained to tell
sequences with the motif from those without.

    python examples/adapt_to_task.py
    python examples/adapt_to_task.py --steps 300
"""

from __future__ import annotations

import argparse
import sys

import torch
from torch import Tensor

from megatron_hyena import (
    HyenaGLT,
    HyenaGLTConfig,
    SequenceClassificationHead,
    fine_tune_hyena_for_task,
)
from megatron_hyena.errors import UserError

MOTIF, LENGTH, BATCH = b"TATAAAGG", 64, 16


def main(argv: list[str] | None = None) -> int:
    """Print what changes, what is refused, and how well the classifier does on new sequences."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=60, help="of each of the two trainings")
    options = parser.parse_args(argv)
    torch.manual_seed(0)
    config = HyenaGLTConfig.from_seed(
        num_layers=2, hidden_size=64, max_seq_len=LENGTH, hyena_filter_size=8, init_std=0.1
    )
    model = HyenaGLT(config)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    for _ in range(options.steps):
        ids, _ = sequences()
        pretrain(model, ids, optimizer)
    try:
        fine_tune_hyena_for_task(model, "classification", hyena_order=3)
    except UserError as error:
        print(f"refused: {error}")
    adapted = fine_tune_hyena_for_task(model, "classification")
    print(
        f"filters: {model.config.hyena_filter_size} taps, then {adapted.config.hyena_filter_size}"
    )
    head = SequenceClassificationHead(64, num_classes=2, dropout=0.0, pooling="max")
    optimizer = torch.optim.AdamW([*adapted.parameters(), *head.parameters()], lr=3e-3)
    for _ in range(options.steps):
        ids, labels = sequences()
        head.loss(head(adapted(ids).last_hidden_state), labels).backward()
        optimizer.step()
        optimizer.zero_grad()
    print(f"accuracy on new sequences: {accuracy(adapted, head):.2f}")
    return 0


def sequences(count: int = BATCH) -> tuple[Tensor, Tensor]:
    """Random DNA [B, L] as bytes, and whether the motif is in it [B]: in every other one."""
    ids = torch.tensor(list(b"ACGT"))[torch.randint(0, 4, (count, LENGTH))]
    labels = torch.arange(count) % 2
    for row in range(1, count, 2):
        start = int(torch.randint(0, LENGTH - len(MOTIF) + 1, ()))
        ids[row, start : start + len(MOTIF)] = torch.tensor(list(MOTIF))
    return ids, labels


def pretrain(model: HyenaGLT, ids: Tensor, optimizer: torch.optim.Optimizer) -> None:
    """One step of next-byte prediction."""
    loss = model(ids, labels=ids).loss
    assert loss is not None
    loss.backward()
    optimizer.step()
    optimizer.zero_grad()


@torch.no_grad()
def accuracy(model: HyenaGLT, head: SequenceClassificationHead) -> float:
    """Share of 200 new sequences that are told right."""
    ids, labels = sequences(200)
    told = head.eval()(model.eval()(ids).last_hidden_state).argmax(1)
    return (told == labels).double().mean().item()


if __name__ == "__main__":
    sys.exit(main())

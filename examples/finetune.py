"""Fine-tune from Python: a saved model, labelled sequences, additions of low rank, a saved result.

What `python -m pretrain.finetune` does on many ranks, here on one in a loop of one's own: a small
model learns to tell sequences with a motif from those without, by additions alone; merged into its
weights they are a model like any other.

    python examples/finetune.py
    python examples/finetune.py --method full --steps 200
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

import torch
from torch import Tensor

from megatron_hyena import HyenaGLT, HyenaGLTConfig
from megatron_hyena.finetune.folder import load_task_model, write_tasks
from megatron_hyena.finetune.lora import Lora
from megatron_hyena.model.task_model import TaskModel, padded_ids
from megatron_hyena.model.tasks import Task
from megatron_hyena.model.unfreezing import set_method

MOTIF = b"TATAAAGG"
CLASSES = {"motif": ("absent", "present")}


def main(argv: list[str] | None = None) -> int:
    """Print what is trained, how well it does, and that the saved model tells the same."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--method", default="lora", choices=["full", "frozen", "lora"])
    parser.add_argument("--steps", type=int, default=80)
    options = parser.parse_args(argv)
    torch.manual_seed(0)
    config = HyenaGLTConfig(pattern="SA", hidden_size=64, num_heads=2, init_std=0.1)
    trunk = HyenaGLT(config)  # in earnest: HyenaGLT.from_pretrained(folder)
    model = TaskModel(trunk, {"motif": Task("classification", dropout=0.0, pooling="max")})
    set_method(model, options.method)
    lora = None
    if options.method == "lora":
        lora = Lora(trunk, rank=8, alpha=16.0, targets=("projection", "output"), seed=0)
    trained = [p for p in model.parameters() if p.requires_grad]
    whole = sum(p.numel() for p in model.parameters())
    print(f"{options.method}: {sum(p.numel() for p in trained):,} of {whole:,} parameters")
    optimizer = torch.optim.AdamW(trained, lr=3e-3)
    for step in range(options.steps):
        ids, labels = sequences(16)
        model.begin("motif", step)
        loss = model.weighted_losses(ids, labels, torch.ones(16)).sum() / 16
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    ids, labels = sequences(200)
    told = predict(model, ids)
    print(f"accuracy on new sequences: {(told.argmax(1) == labels).double().mean():.2f}")
    with tempfile.TemporaryDirectory() as folder:
        best = Path(folder) / "best"
        weights = lora.merged() if lora else dict(trunk.named_parameters())
        write_tasks(best, model, weights, dict(model.heads.named_parameters()), CLASSES, {})
        loaded, classes = load_task_model(best)
        same = torch.equal(predict(loaded, ids), told)
    print(f"saved and loaded, of classes {' and '.join(classes['motif'])}: the same {same}")
    return 0


def sequences(count: int) -> tuple[Tensor, Tensor]:
    """Random DNA of several lengths as ids [B, L], and whether the motif is in it [B]."""
    rows, labels = [], torch.arange(count) % 2
    for label in labels.tolist():
        bases = torch.tensor(list(b"ACGT"))[torch.randint(0, 4, (int(torch.randint(40, 64, ())),))]
        if label:
            start = int(torch.randint(0, len(bases) - len(MOTIF) + 1, ()))
            bases[start : start + len(MOTIF)] = torch.tensor(list(MOTIF))
        rows.append(bases)
    return padded_ids(rows), labels


@torch.no_grad()
def predict(model: TaskModel, ids: Tensor) -> Tensor:
    """Logits [B, 2]."""
    model.eval()
    model.begin("motif")
    return model.predictions(ids)


if __name__ == "__main__":
    sys.exit(main())

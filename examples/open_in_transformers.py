"""A model as a folder for transformers, and a new head on it that learns to tell two sequences.

python examples/open_in_transformers.py
python examples/open_in_transformers.py --pattern "S(SMLA)S" --steps 40
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

import torch

from megatron_hyena import HyenaGLT, HyenaGLTConfig
from megatron_hyena.checkpoint.huggingface.export import export_huggingface


def main(argv: list[str] | None = None) -> int:
    """Print what the folder holds, and the loss before and after training."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pattern", default="SMA", help="of a model with random weights")
    parser.add_argument("--width", type=int, default=32, help="channels")
    parser.add_argument("--steps", type=int, default=15, help="steps of training")
    options = parser.parse_args(argv)
    from transformers import AutoModelForSequenceClassification, AutoTokenizer
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    torch.manual_seed(0)
    ours = HyenaGLT(HyenaGLTConfig(pattern=options.pattern, hidden_size=options.width))
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch) / "exported"
        export_huggingface(ours.config, ours.stored(), folder)
        names = sorted(path.name for path in folder.iterdir() if path.suffix != ".py")
        print(f"{', '.join(names)}, and the model's code")
        model = AutoModelForSequenceClassification.from_pretrained(
            folder, trust_remote_code=True, id2label={0: "AT-rich", 1: "GC-rich"}
        )
        tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=True)
    batch = tokenizer(
        ["ATTATAAT", "GGCGCC", "TTATAA", "CCGGACGC"], padding=True, return_tensors="pt"
    )
    labels = torch.tensor([0, 1, 0, 1])
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    losses = []
    for _ in range(options.steps):
        loss = model(**batch, labels=labels).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    print(f"loss {losses[0]:.3f} -> {losses[-1]:.3f}")
    with torch.no_grad():
        best = model.eval()(**tokenizer(["AATATT"], return_tensors="pt")).logits[0].argmax()
    print(f"AATATT is {model.config.id2label[int(best)]}")
    return 0


if __name__ == "__main__":
    sys.exit(main())

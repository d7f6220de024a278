"""The tutorial's exercise, end to end: a sequence of 3000 bases, its features, two classes.

    python examples/analyse_sequence.py
    python examples/analyse_sequence.py --width 512

The model is untrained, so its classes mean nothing yet; `HyenaGLT.from_pretrained(FOLDER)` opens
one that a run has exported.
"""

from __future__ import annotations

import argparse
import sys

import torch

from megatron_hyena import (
    GenomicTokenizer,
    HyenaGLT,
    HyenaGLTConfig,
    HyenaPerformanceMonitor,
    SequenceClassificationHead,
    fine_tune_hyena_for_task,
)

SEQUENCE = "ATGCGTACGTAGCTAGCGATCGTAGCTAGC" * 100


def main(argv: list[str] | None = None) -> int:
    """Print the shapes of features and classes, and the cost of the pass."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--width", type=int, default=64, help="channels (the tutorial's: 512)")
    parser.add_argument("--layers", type=int, default=6, help="blocks")
    options = parser.parse_args(argv)
    torch.manual_seed(0)
    tokenizer = GenomicTokenizer()
    tokens = tokenizer.encode(SEQUENCE)
    config = HyenaGLTConfig.from_seed(
        vocab_size=tokenizer.vocab_size,
        hidden_size=options.width,
        num_layers=options.layers,
        use_hyena=True,
        hyena_order=2,
        hyena_filter_size=64,
        max_seq_len=len(tokens),
    )
    model = fine_tune_hyena_for_task(HyenaGLT(config), "classification")
    head = SequenceClassificationHead(config.hidden_size, num_classes=2).eval()
    monitor = HyenaPerformanceMonitor()
    output = monitor.monitor_forward_pass(model, torch.tensor([tokens]))
    with torch.no_grad():
        classes = head(output.last_hidden_state)
    print(f"sequence length: {len(tokens)}")
    print(f"features: {tuple(output.last_hidden_state.shape)}")
    print(f"classes: {tuple(classes.shape)}, probabilities {classes.softmax(1)[0].tolist()}")
    monitor.print_stats()
    return 0


if __name__ == "__main__":
    sys.exit(main())

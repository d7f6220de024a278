"""Attention in some layers, Hyena in the others: three ways to say it, one pattern.

python examples/hybrid_model.py
"""

from __future__ import annotations

import argparse
import sys

import torch

from megatron_hyena import HyenaGLT, HyenaGLTConfig, create_hybrid_model


def main(argv: list[str] | None = None) -> int:
    """Print the patterns, and what one attention layer more costs."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--width", type=int, default=64, help="channels")
    parser.add_argument("--length", type=int, default=256, help="positions")
    options = parser.parse_args(argv)
    sizes = {"hidden_size": options.width, "num_heads": 4, "max_seq_len": options.length}
    listed = HyenaGLTConfig.from_seed(
        attention_layers=[0, 3, 6, 9], hyena_layers=[1, 2, 4, 5, 7, 8, 10, 11], **sizes
    )
    striped = HyenaGLTConfig.from_seed(num_layers=12, use_hyena=True, use_attention=True, **sizes)
    models = {
        "attention in 0, 3, 6, 9": HyenaGLT(listed),
        "every other": HyenaGLT(striped),
        "every third, in a window": create_hybrid_model(attention_window_size=64, **sizes),
    }
    ids = torch.randint(0, 256, (1, options.length))
    for name, model in models.items():
        parameters = sum(p.numel() for p in model.parameters())
        shape = tuple(model(ids).logits.shape)
        print(f"{name}: pattern {model.config.pattern}, {parameters:,} parameters, logits {shape}")
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""Write DNA with a model: freely, as an open reading frame, and as the codons of a protein.

    python examples/generate.py [--model runs/quickstart/native]

The model is random without `--model`, a folder of `save_pretrained`.
"""

from __future__ import annotations

import argparse
import sys

from megatron_hyena import HyenaGLT, HyenaGLTConfig, generate
from megatron_hyena.generation.constraints import OpenFrame, ProteinFrame
from megatron_hyena.generation.sampling import Sampling
from megatron_hyena.generation.writing import Order, write_sequences

PROMPTS = ["A", "ATGACCGATTAA", "GGAGG"]
PROTEIN = "MKTAYIAKQR*"


def main(argv: list[str] | None = None) -> int:
    """Print what is written."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--model", help="a folder of save_pretrained")
    arguments = parser.parse_args(argv)
    if arguments.model:
        model = HyenaGLT.from_pretrained(arguments.model)
    else:
        model = HyenaGLT(HyenaGLTConfig(pattern="S(SMLA)S", hidden_size=32, num_heads=4))

    # Prompts of any lengths side by side; each is written as if it were alone.
    for prompt, text in zip(PROMPTS, generate(model, PROMPTS, length=40, seed=1), strict=True):
        print(f"{prompt} -> {text}")

    orders = [
        Order("frame", "GGAGG", length=60, prefix="ATG", constraint=OpenFrame(table=11)),
        Order("gene", "GGAGG", length=33, constraint=ProteinFrame(11, PROTEIN)),
    ]
    for one in write_sequences(model, orders, Sampling(temperature=0.8, top_k=3, seed=1)):
        print(f"{one.name}: {one.text} ({one.end}, {one.nats:.2f} nats per base)")
    return 0


if __name__ == "__main__":
    sys.exit(main())

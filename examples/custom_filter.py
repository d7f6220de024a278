"""A long filter of one's own, by name: taps at every third base, which is where codons repeat.

    python examples/custom_filter.py

A configuration holds the name and not the class, so that it can be saved; the program that opens
the model registers the class first.
"""

from __future__ import annotations

import argparse
import sys
import tempfile

import torch
from torch import Tensor

from megatron_hyena import HyenaGLT, HyenaGLTConfig, LongFilter, register_hyena_filter
from megatron_hyena.layers.exchange import ALL_CHANNELS
from megatron_hyena.layers.hyena import filter_parameter
from megatron_hyena.layers.parameter import normal
from megatron_hyena.layers.provider import Provider

CODON, CODONS = 3, 16


class CodonFilter(LongFilter):
    """h[c, 3 n] = weight[c, n] of the last 16 codons, 0 between."""

    def __init__(self, config: HyenaGLTConfig, provider: Provider) -> None:
        super().__init__(config, provider)
        shape = (config.hidden_size, CODONS)
        self.weight = filter_parameter(shape, normal(0.1), provider)

    def forward(self, length: int, dtype: torch.dtype, channels: slice = ALL_CHANNELS) -> Tensor:
        """See `LongFilter.forward`."""
        weight = self.weight[channels].to(dtype)
        taps = weight.new_zeros(len(weight), CODON * CODONS)
        taps[:, ::CODON] = weight
        return taps[:, :length]


def main(argv: list[str] | None = None) -> int:
    """Train a little, save, open again; then the same with the bank of motifs."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=10)
    options = parser.parse_args(argv)
    register_hyena_filter("codon", CodonFilter)
    codons = torch.tensor([list(b"ATGGCCAAATTC"), list(b"ATGCTGGACCGT")])
    ids = codons.repeat(1, 8)
    for name in ("codon", "genomic"):
        config = HyenaGLTConfig(pattern="[HA]1", hidden_size=32, num_heads=4, hyena_filter=name)
        model = HyenaGLT(config)
        losses = [step(model, ids) for _ in range(options.steps)]
        with tempfile.TemporaryDirectory() as folder:
            model.save_pretrained(folder)
            again = HyenaGLT.from_pretrained(folder)
        same = torch.equal(model(ids).logits, again(ids).logits)
        print(
            f"{name}: loss {losses[0]:.2f} -> {losses[-1]:.2f} nats per base; saved and opened "
            f"again, the same: {same}"
        )
    return 0


def step(model: HyenaGLT, ids: Tensor) -> float:
    """One step of plain gradient descent; the loss before it."""
    model.zero_grad()
    loss = model(ids, labels=ids).loss
    assert loss is not None
    loss.backward()
    with torch.no_grad():
        for parameter in model.parameters():
            assert parameter.grad is not None
            parameter -= 0.3 * parameter.grad
    return loss.item()


if __name__ == "__main__":
    sys.exit(main())

"""A model to Evo 2's and Evo 1's programs and back, and what a format cannot hold.

python examples/convert_model.py
python examples/convert_model.py --output converted
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

import torch

from megatron_hyena import HyenaGLT, HyenaGLTConfig
from megatron_hyena.checkpoint.exchange.formats import Options, convert
from megatron_hyena.errors import UserError

EVERYWHERE = {"norm_eps_outside": True, "vocab_size": 512, "hidden_size": 64, "num_heads": 4}
MODELS = {
    "vortex": HyenaGLTConfig(pattern="SMLA", **EVERYWHERE),  # type: ignore[arg-type]
    "stripedhyena": HyenaGLTConfig(pattern="LAL", li_poles="complex", **EVERYWHERE),  # type: ignore[arg-type]
}


def main(argv: list[str] | None = None) -> int:
    """Print where each file is, how far the model read back is, and one refusal."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, help="folder to keep the files in")
    options = parser.parse_args(argv)
    with tempfile.TemporaryDirectory() as scratch:
        folder = options.output or Path(scratch)
        ids = torch.randint(512, (1, 300), generator=torch.Generator().manual_seed(1))
        for program, config in MODELS.items():
            model = HyenaGLT(config).eval()
            ours, theirs = folder / f"{program}-ours", folder / f"{program}.pt"
            model.save_pretrained(ours)
            convert(ours, program, theirs, Options())
            convert(theirs, "native", folder / f"{program}-back", Options())
            back = HyenaGLT.from_pretrained(folder / f"{program}-back").eval()
            with torch.no_grad():
                apart = float((back(ids).logits - model(ids).logits).abs().max())
            print(f"{program}: {theirs.name} and a YAML; back, logits differ by {apart:.0e}")
        try:
            convert(folder / "vortex-ours", "stripedhyena", folder / "x.pt", Options())
        except UserError as error:
            print(f"refused: {error}")
    return 0


if __name__ == "__main__":
    sys.exit(main())

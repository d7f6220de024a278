"""Load an exported Hugging Face folder with transformers' Auto classes and compare logits.

    python -m tools.verify_export --run runs/quickstart --export runs/quickstart/hf

Both models read the same held-out windows; the folder's own code runs, not this package's.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from megatron_hyena.errors import UserError

TOLERANCE = 1e-5


def main(argv: list[str] | None = None) -> int:
    """Compare; 0 if the largest difference is below the tolerance, 1 if not, 2 on bad input."""
    parser = argparse.ArgumentParser(prog="tools.verify_export", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--run", type=Path, required=True, help="run folder or checkpoint")
    parser.add_argument("--export", type=Path, required=True, help="exported folder")
    parser.add_argument("--length", type=int, default=512, help="bases per window")
    parser.add_argument("--windows", type=int, default=4, help="random windows compared")
    arguments = parser.parse_args(argv)
    try:
        difference, scale = compare(arguments)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    good = difference <= TOLERANCE * max(1.0, scale)
    print(
        f"{arguments.export}: max |logit difference| {difference:.2e} (largest logit "
        f"{scale:.1f}), {'agrees with' if good else 'DIFFERS FROM'} the trained model"
    )
    return 0 if good else 1


def compare(arguments: argparse.Namespace) -> tuple[float, float]:
    """(largest absolute difference, largest absolute logit) on random ACGT windows."""
    if not (arguments.export / "config.json").is_file():
        raise UserError(f"{arguments.export}: no config.json; give a folder of --to hf")
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from transformers.utils import logging

    from megatron_hyena.checkpoint.dense import load_dense

    logging.disable_progress_bar()
    tokenizer = AutoTokenizer.from_pretrained(arguments.export, trust_remote_code=True)
    exported = AutoModelForCausalLM.from_pretrained(arguments.export, trust_remote_code=True)
    exported.eval()
    trained, _ = load_dense(arguments.run)
    generator = torch.Generator().manual_seed(0)
    drawn = torch.randint(0, 4, (arguments.windows, arguments.length), generator=generator)
    texts = ["".join("ACGT"[i] for i in row) for row in drawn.tolist()]
    input_ids = tokenizer(texts, return_tensors="pt")["input_ids"]
    with torch.no_grad():
        expected = trained(input_ids).logits
        found = exported(input_ids=input_ids).logits
    return (found - expected).abs().max().item(), expected.abs().max().item()


if __name__ == "__main__":
    sys.exit(main())

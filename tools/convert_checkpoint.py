"""Convert a checkpoint for other programs.

    python -m tools.convert_checkpoint --from runs/quickstart --to hf --output exported/

`--from` is a run folder (its newest checkpoint is taken) or one checkpoint. `hf` is a folder for
transformers' Auto classes, with its code inside; `native` is read by `HyenaGLT.from_pretrained`.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from megatron_hyena.errors import UserError

FORMATS = ("hf", "native")


def main(argv: list[str] | None = None) -> int:
    """Convert one checkpoint; 0 done, 2 after a user's mistake."""
    parser = argparse.ArgumentParser(prog="tools.convert_checkpoint", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--from", dest="source", required=True, help="run folder or checkpoint")
    parser.add_argument("--to", choices=FORMATS, required=True, help="format to write")
    parser.add_argument("--output", type=Path, required=True, help="folder to write")
    parser.add_argument("--max-shard-size", default="5GB", help="hf: of a file of weights")
    arguments = parser.parse_args(argv)
    from megatron_hyena.checkpoint.dense import load_dense

    try:
        model, checkpoint = load_dense(arguments.source)
        if arguments.to == "hf":
            from megatron_hyena.checkpoint.format import read_manifest
            from megatron_hyena.checkpoint.huggingface.export import export_huggingface
            from megatron_hyena.checkpoint.huggingface.model_card import described_by

            about = described_by(checkpoint, read_manifest(checkpoint).step)
            export_huggingface(
                model.config,
                model.stored(),
                arguments.output,
                about=about,
                max_shard_size=arguments.max_shard_size,
            )
        else:
            model.save_pretrained(arguments.output)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(f"{checkpoint} written as {arguments.to} to {arguments.output}")
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""Convert a model between programs.

    python -m tools.convert_checkpoint --from runs/quickstart --to hf --output exported/
    python -m tools.convert_checkpoint --from runs/mine --to vortex --output mine.pt
    python -m tools.convert_checkpoint --from evo2.pt --settings evo2.yml --to native --output evo2/

`--from` is a run folder (its newest checkpoint is taken), a checkpoint, or a folder or file of any
format below, told by its contents. Nothing is lost in silence: what a format cannot hold is an
error that names it, unless `--allow-lossy` does. Pages: docs/convert.md.

    hf            a folder for transformers' Auto classes, with its code inside
    native        a folder for `HyenaGLT.from_pretrained`
    vortex        NAME.pt and NAME.yml: Evo 2's inference program (PyPI vtx, evo2)
    stripedhyena  a folder as on the hub, or NAME.pt and NAME.yml: Evo 1's (stripedhyena, evo-model)
    savanna       a folder of DeepSpeed's states and its YAML: what trained Evo 2
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from megatron_hyena.errors import UserError

WRITTEN = ("hf", "native", "vortex", "stripedhyena", "savanna")
READ = ("run", *WRITTEN)


def main(argv: list[str] | None = None) -> int:
    """Convert one checkpoint; 0 done, 2 after a user's mistake."""
    arguments = _parser().parse_args(argv)
    from megatron_hyena.checkpoint.exchange.formats import Options, convert
    from megatron_hyena.checkpoint.exchange.savanna_files import Ranks

    options = Options(
        arguments.from_format,
        arguments.settings,
        tuple(name for name in arguments.allow_lossy.split(",") if name),
        arguments.dtype,
        arguments.max_shard_size,
        Ranks(arguments.tensor_ranks, arguments.data_ranks, arguments.zero_stage),
        arguments.head,
        arguments.origin,
    )
    try:
        done = convert(arguments.source, arguments.to, arguments.output, options)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(f"{done.source} written as {arguments.to} to {arguments.output}")
    for note in done.notes:
        print(f"  {note}")
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="tools.convert_checkpoint", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument(
        "--from", dest="source", type=Path, required=True, help="run folder, checkpoint or model"
    )
    parser.add_argument("--to", choices=WRITTEN, required=True, help="format to write")
    parser.add_argument("--output", type=Path, required=True, help="folder or file to write")
    parser.add_argument("--from-format", choices=READ, help="instead of telling by the contents")
    parser.add_argument("--settings", type=Path, help="settings (YAML) of another program's model")
    parser.add_argument("--origin", type=Path, help="native folder that a trained model began as")
    parser.add_argument("--dtype", choices=("fp32", "bf16", "fp16"), help="of the output's tensors")
    parser.add_argument("--max-shard-size", default="5GB", help="of a file of a folder")
    parser.add_argument(
        "--head", default="", help="hf: of a fine-tuned model's heads; none for the language model"
    )
    parser.add_argument(
        "--tensor-ranks", type=int, default=1, help="savanna: of the folder written"
    )
    parser.add_argument("--zero-stage", type=int, choices=(1, 3), default=1, help="likewise")
    parser.add_argument("--data-ranks", type=int, default=1, help="likewise, for stage 3")
    parser.add_argument(
        "--allow-lossy", default="", metavar="NAME[,NAME]", help="what may be lost, and is listed"
    )
    return parser


if __name__ == "__main__":
    sys.exit(main())

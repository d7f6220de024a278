"""Hidden states of a long sequence, a chunk a row, from Python; equal to those of one pass.

python examples/embed.py
python examples/embed.py --model runs/mine --bases 200000 --chunk 1000
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch
import zarr

from megatron_hyena import HyenaGLT, HyenaGLTConfig
from megatron_hyena.checkpoint.source import trained_model
from megatron_hyena.embeddings import EmbedOptions, embed
from megatron_hyena.formats.reference import open_reference
from megatron_hyena.model.states import layer_states

GENOME = Path(__file__).parent / "chlamydia" / "ct.fasta.gz"


def main(argv: list[str] | None = None) -> int:
    """Print what was written, and how far it is from one pass over the whole."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", help="run folder (default: a small model of random weights)")
    parser.add_argument("--bases", type=int, default=20_000, help="of the genome")
    parser.add_argument("--chunk", type=int, default=500, help="bases of a row")
    parser.add_argument("--layer", default="1", help="embedding, a block's number, or final")
    asked = parser.parse_args(argv)
    config = HyenaGLTConfig(pattern="S(ML)S", hidden_size=32)
    model = trained_model(asked.model).model if asked.model else HyenaGLT(config).eval()
    reference = open_reference(GENOME)
    contig = next(iter(reference.lengths))
    bases = reference.read(contig, 0, asked.bases)
    with TemporaryDirectory() as folder:
        bed = Path(folder) / "start.bed"
        bed.write_text(f"{contig}\t0\t{asked.bases}\n")
        options = EmbedOptions("chunk", asked.chunk, asked.layer, piece=4096)
        report = embed(model, GENOME, Path(folder) / "emb.zarr", options, bed=bed)
        rows = np.asarray(zarr.open_group(str(report.output), mode="r")["embeddings"])
    print(f"{report.rows} rows of {report.width} numbers")
    whole = layer_states(model, torch.from_numpy(bases.astype(np.int64))[None], asked.layer)[0]
    wanted = torch.stack([chunk.mean(0) for chunk in whole.split(asked.chunk)]).numpy()
    print(f"from one pass they differ by {np.abs(rows - wanted).max():.1e}")
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""Hidden states of sequences of any length, written to Zarr or Parquet in bounded memory.

    from megatron_hyena.embeddings import EmbedOptions, embed
    embed("runs/mine", "genome.fa.gz", "emb.zarr", EmbedOptions(per="chunk", chunk=128))

`docs/embed.md` says what lies in the output.
"""

from __future__ import annotations

from megatron_hyena.embeddings.options import EmbedOptions
from megatron_hyena.embeddings.run import embed

__all__ = ["EmbedOptions", "embed"]

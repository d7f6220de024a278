"""What a causal model says of variants: the change of the sequence's log-likelihood.

    from megatron_hyena.variants import score_variants
    table = score_variants("runs/mine", "calls.vcf.gz", "genome.fa.gz", "scores.parquet")

`docs/variants.md` defines every number.
"""

from __future__ import annotations

from megatron_hyena.variants.options import ScoreOptions
from megatron_hyena.variants.run import score_variants

__all__ = ["ScoreOptions", "score_variants"]

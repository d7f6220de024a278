"""A lineage, `Bacteria;Pseudomonadota;…;Escherichia`, down to one of its levels.

Taxonomies with marks (`g__Escherichia`) tell the rank of each level, whichever levels are left
out; of others, levels are counted, from the top or from the end.
"""

from __future__ import annotations

import re

from megatron_hyena.errors import UserError

RANKS = {
    "domain": ("d", "sk", "k"),
    "kingdom": ("k",),
    "phylum": ("p",),
    "class": ("c",),
    "order": ("o",),
    "family": ("f",),
    "genus": ("g",),
    "species": ("s",),
}
"""Rank → the marks of GTDB, Greengenes and NCBI-made lineages, best first."""
_NUMBER = re.compile("-?[1-9][0-9]*")


def check_rank(rank: str) -> None:
    """Raise UserError for what is neither empty, a rank nor a number of levels other than 0."""
    if rank and rank not in RANKS and not _NUMBER.fullmatch(rank):
        raise UserError(
            f"taxon_rank is {rank!r}; give one of {', '.join(RANKS)}, a number of levels from the "
            "top, such as 6, or one below 0 of levels to leave off at the end"
        )


def ancestor(taxon: str, rank: str, sample: str) -> str:
    """The lineage of `taxon` from its top down to `rank` (see `SplitRules.taxon_rank`).

    White space in names counts once. Raises UserError, with the name of the sample, where the
    lineage does not tell: it has no such rank, none with a name, or too few levels.
    """
    levels = [" ".join(level.split()) for level in taxon.split(";")]
    if not rank:
        return ";".join(levels)
    while levels and not levels[-1]:
        levels.pop()  # some lineages end with their separator
    if rank in RANKS:
        return ";".join(levels[: _level_of(levels, taxon, rank, sample) + 1])
    wanted = int(rank)
    if abs(wanted) > len(levels) - (wanted < 0):
        raise UserError(
            f"sample {sample!r} has the taxon {taxon!r} of {len(levels)} levels, too few for "
            f"taxon_rank={rank}; give it its whole lineage, or a smaller number"
        )
    kept = levels[:wanted]
    if not kept[-1].rpartition("__")[2]:
        raise UserError(
            f"sample {sample!r} has the taxon {taxon!r}, whose level {len(kept)}, which "
            f"taxon_rank={rank} asks for, has no name; give it one, or another taxon_rank"
        )
    return ";".join(kept)


def _level_of(levels: list[str], taxon: str, rank: str, sample: str) -> int:
    """The number of the level that is marked as `rank` and has a name."""
    for mark in RANKS[rank]:
        for number, level in enumerate(levels):
            head, both, name = level.partition("__")
            if both and head.lower() == mark and name.strip():
                return number
    raise UserError(
        f"sample {sample!r} has the taxon {taxon!r}, in which no level is marked as its {rank}, "
        f"such as {RANKS[rank][0]}__NAME; mark it so, or set taxon_rank to a number of levels"
    )

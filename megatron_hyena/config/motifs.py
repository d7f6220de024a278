"""Motifs of a genome as text: their names, the IUPAC letters, and the bank of patterns they make.

>>> motif_bank(["cg_dinucleotide", "TATAWAW"])
('CG', 'TATAWAW', 'WTWTATA')
"""

from __future__ import annotations

from collections.abc import Sequence

from megatron_hyena.errors import UserError

MOTIFS = {
    "cg_dinucleotide": "CG",  # the site of methylation; its density marks CpG islands
    "tata_box": "TATAWAW",  # core promoter, 25 to 35 bases before the start of transcription
    "palindrome": "CANNTG",  # E-box: like most sites of dimers, its own reverse complement
}
"""Motifs that `model.motifs` may call by name."""

BASES = "ACGT"
IUPAC = {
    **{"A": "A", "C": "C", "G": "G", "T": "T", "U": "T", "R": "AG", "Y": "CT", "S": "CG"},
    **{"W": "AT", "K": "GT", "M": "AC", "B": "CGT", "D": "AGT", "H": "ACT", "V": "ACG"},
    "N": BASES,
}
"""The bases that each letter stands for (IUPAC-IUB 1984; U is read as T)."""

_OPPOSITE = str.maketrans("ACGTURYSWKMBDHVN", "TGCAAYRSWMKVHDBN")


def reverse_complement(pattern: str) -> str:
    """The pattern as the opposite strand spells it."""
    return pattern.translate(_OPPOSITE)[::-1]


def motif_bank(motifs: Sequence[str]) -> tuple[str, ...]:
    """The patterns of `motifs`, each followed by its reverse complement where that is another.

    Args:
        motifs: names of `MOTIFS`, or IUPAC letters of either case.
    Raises:
        UserError: there is none, one is neither a name nor IUPAC letters, or one says nothing.
    """
    if isinstance(motifs, str) or not motifs:
        raise UserError(f"model.motifs={motifs!r} must be a list of motifs, such as [TATAWAW, CG]")
    bank: list[str] = []
    for motif in motifs:
        pattern = MOTIFS.get(motif, motif.upper()).replace("U", "T")
        stray = next((letter for letter in pattern if letter not in IUPAC), None)
        if stray is not None:
            raise UserError(
                f"model.motifs: {motif!r} has {stray!r}, which is no IUPAC letter; use letters of "
                f"{''.join(IUPAC)} or one of the names {', '.join(MOTIFS)}"
            )
        if not set(pattern) - {"N"}:
            raise UserError(
                f"model.motifs: {motif!r} fits every sequence; give it a letter other than N"
            )
        bank += [pattern, reverse_complement(pattern)]
    return tuple(dict.fromkeys(bank))


def check_motifs(motifs: Sequence[str], lengths: dict[str, int], channels: int) -> None:
    """Refuse motifs that do not fit where they are laid.

    Args:
        motifs: as for `motif_bank`.
        lengths: taps of each filter that starts from them, by its key in the model section; with
            none, only the motifs themselves are looked at.
        channels: channels of the layer, of which each pattern takes four.
    Raises:
        UserError: see `motif_bank`; a motif is longer than a filter, or the patterns need more
            channels.
    """
    bank = motif_bank(motifs)
    if not lengths:
        return
    longest = max(bank, key=len)
    for key, taps in lengths.items():
        if len(longest) > taps:
            raise UserError(
                f"model.motifs has {longest} of {len(longest)} letters, but model.{key} = {taps} "
                "taps; raise the latter or shorten the motif"
            )
    needed = len(BASES) * len(bank)
    if needed > channels:
        raise UserError(
            f"model.motifs makes {len(bank)} patterns, reverse complements included, of four "
            f"channels each, {needed} in all, but model.hidden_size = {channels}; name fewer "
            "motifs or raise the latter"
        )

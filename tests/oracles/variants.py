"""Variant scores by the plainest means: whole haplotypes, every placement tried, one model call."""

from __future__ import annotations

from pathlib import Path

import torch

from megatron_hyena.data.alphabet import PAD
from megatron_hyena.model.hyena_glt import HyenaGLT
from tests.oracles.small_corpus import reverse

HEADER = "##fileformat=VCFv4.2\n#CHROM\tPOS\tID\tREF\tALT\tQUAL\tFILTER\tINFO\n"
Line = tuple[str, int, str, str]
"""Contig, 1-based position, REF, ALT."""


def write_vcf(path: Path, lines: list[Line]) -> Path:
    """A plain VCF."""
    rows = [f"{contig}\t{pos}\t.\t{ref}\t{alt}\t.\t.\t.\n" for contig, pos, ref, alt in lines]
    path.write_text(HEADER + "".join(rows))
    return path


def write_fasta(path: Path, contigs: dict[str, bytes]) -> Path:
    """One line a record."""
    path.write_bytes(b"".join(b">%s\n%s\n" % (n.encode(), s) for n, s in contigs.items()))
    return path


def mirrored(line: Line, contigs: dict[str, bytes]) -> Line:
    """The same change of the contig's other strand."""
    contig, position, ref, alt = line
    start = len(contigs[contig]) - (position - 1 + len(ref))
    turned = [
        ",".join(reverse(one.encode()).decode() for one in text.split(",")) for text in (ref, alt)
    ]
    return contig, start + 1, turned[0], turned[1]


def stretch(old: bytes, new: bytes, size: int) -> tuple[int, int]:
    """[start, end) of `old` that holds every way to turn it into `new` by one edit.

    `size` bases at most are cut out at each place, and what stands in `new` there is put in.
    """
    if len(old) == len(new):
        places = [i for i in range(len(old)) if old[i] != new[i]]
        return places[0], places[-1] + 1
    shift = len(new) - len(old)
    ways = [
        (i, i + cut)
        for cut in range(size + 1)
        for i in range(len(old) - cut + 1)
        if cut + shift >= 0 and old[:i] == new[:i] and old[i + cut :] == new[i + cut + shift :]
    ]
    fewest = min(end - start for start, end in ways)
    ways = [way for way in ways if way[1] - way[0] == fewest]
    return min(start for start, _ in ways), max(end for _, end in ways)


@torch.no_grad()
def log_likelihoods(model: HyenaGLT, text: bytes, padding: int = 0) -> list[float]:
    """log p of every byte but the first, which has 0; so many bytes of padding stand behind."""
    ids = torch.tensor([[*text, *[PAD] * padding]])
    logs = torch.log_softmax(model(ids).logits[0].double(), -1)
    return [0.0] + [float(logs[i - 1, text[i]]) for i in range(1, len(text))]


def score(
    model: HyenaGLT, contig: bytes, position: int, ref: str, alt: str, window: int, padding: int = 0
) -> list[tuple[float, float, float]]:
    """(delta, per base, following) of both strands: [(…), (…)]."""
    at = position - 1
    new = contig[:at] + alt.encode() + contig[at + len(ref) :]
    start, end = stretch(contig, new, max(len(ref), len(alt)))
    inserted = len(new) - len(contig)
    flank = (window - max(end - start, end - start + inserted)) // 2
    low, high = max(0, start - flank), min(len(contig), end + flank)
    pair = contig[low:high], new[low : high + inserted]
    found = []
    for forward in (True, False):
        texts = pair if forward else tuple(reverse(text) for text in pair)
        before, behind = (start - low, high - end) if forward else (high - end, start - low)
        logs = [log_likelihoods(model, text, padding) for text in texts]
        sums = [sum(one[before:]) for one in logs]
        means = [total / len(one[max(1, before) :]) for total, one in zip(sums, logs, strict=True)]
        rest = [sum(one[len(one) - behind :]) for one in logs]
        found.append((sums[1] - sums[0], means[1] - means[0], rest[1] - rest[0]))
    return found

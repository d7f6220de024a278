"""A change in its contextual form: every way of writing it, on either strand, is that form."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from megatron_hyena.variants.alleles import Change, contextual, in_case_of
from tests.oracles.small_corpus import reverse
from tests.oracles.variants import stretch

text = st.text("AC", min_size=0, max_size=9).map(str.encode)
"""Two letters, so that most changes can stand in several places."""


@given(before=text, ref=text, behind=text, alt=text)
def test_the_form_holds_every_way_of_writing_the_change(
    before: bytes, ref: bytes, behind: bytes, alt: bytes
) -> None:
    old, new = before + ref + behind, before + alt + behind
    found = contextual(old, len(before), len(before) + len(ref), alt)
    if old == new:
        assert found is None
        return
    assert found is not None
    assert old[: found.start] + found.alt + old[found.end :] == new
    smallest = min(found.end - found.start, len(found.alt))
    if len(old) == len(new) or _is_pure(old, new):
        assert (found.start, found.end) == stretch(old, new, len(ref))
    else:  # neither end is shared
        assert smallest > 0 and old[found.start] != found.alt[0]
        assert old[found.end - 1] != found.alt[-1]


def _is_pure(old: bytes, new: bytes) -> bool:
    """Whether bases were only put in, or only cut out, at one place."""
    short, long = sorted((old, new), key=len)
    more = len(long) - len(short)
    return any(long[:i] + long[i + more :] == short for i in range(len(short) + 1))


@given(before=text, ref=text, behind=text, alt=text)
def test_the_other_strand_has_the_mirrored_form(
    before: bytes, ref: bytes, behind: bytes, alt: bytes
) -> None:
    old = before + ref + behind
    found = contextual(old, len(before), len(before) + len(ref), alt)
    turned = contextual(reverse(old), len(behind), len(behind) + len(ref), reverse(alt))
    if found is None:
        assert turned is None
    else:
        ends = len(old) - found.end, len(old) - found.start
        assert turned == Change(*ends, reverse(found.alt))


def test_one_deletion_written_in_three_ways() -> None:
    around = b"GCAAAT"
    ways = [(1, 3, b"C"), (2, 5, b"AA"), (0, 6, b"GCAAT"), (4, 5, b"")]
    assert {contextual(around, *way) for way in ways} == {Change(2, 5, b"AA")}


def test_alleles_are_in_the_case_of_their_site() -> None:
    def shown(site: bytes) -> bytes:
        return in_case_of(b"GT", np.frombuffer(site, np.uint8)).tobytes()

    assert shown(b"acg") == b"gt"
    assert shown(b"acG") == shown(b"ACG") == shown(b"") == b"GT"

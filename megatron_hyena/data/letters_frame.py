"""zstd frames of sequence letters: entropy coding alone, without a search.

Letters of a genome repeat by chance every few bases, so that zstd's search finds many matches, each
of which costs more than the two bits a letter takes by itself: without it frames are smaller, and
written three times as fast. Where upper and lower case alternate, matches tell the case, and the
search of level 1 pays. They are zstd frames as others (RFC 8878): any Zarr reads them.
"""

from __future__ import annotations

import sys

import numpy as np

from megatron_hyena.data.alphabet import Bases

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

_PARAMETER = zstd.CompressionParameter
_LITERALS_ALWAYS: dict[int, int] = {1002: 1}
"""`ZSTD_c_literalCompressionMode`, of which the Python modules have the number alone."""
_LETTERS: dict[int, int] = {
    **_LITERALS_ALWAYS,
    _PARAMETER.strategy: int(zstd.Strategy.fast),
    _PARAMETER.window_log: 15,
    _PARAMETER.hash_log: 6,
    _PARAMETER.target_length: 1 << 17,  # bytes between two looks: a whole block
    _PARAMETER.checksum_flag: 1,
}
_CASES: dict[int, int] = {_PARAMETER.compression_level: 1, _PARAMETER.checksum_flag: 1}
_FEW = 0.2
"""A share of lower or upper case below which the case costs a letter less than matches would."""

_SAMPLED = 16
"""Every so manieth letter is asked for its case."""


def letters_frame(letters: Bases) -> bytes:
    """One frame of `letters` uint8 [n], with a checksum."""
    sample = letters[::_SAMPLED]
    lower = np.count_nonzero(sample >= ord("a"))
    mixed = _FEW * len(sample) < lower < (1 - _FEW) * len(sample)
    return zstd.compress(letters.data, options=_CASES if mixed else _LETTERS)

"""Text to token ids and back: bytes without loss, or the four bases alone.

The model's own tokens are bytes, so this is a convenience for work by hand; training data never
pass through it.
"""

from __future__ import annotations

from collections.abc import Iterable

from megatron_hyena.data.alphabet import EOD, MASK, PAD
from megatron_hyena.errors import UserError

BASES = "ATGC"
"""The compact alphabet, in the order of its ids 0 to 3."""
SPECIALS = {"<eod>": EOD, "<pad>": PAD, "<mask>": MASK}
"""Names of the ids that no sequence holds."""
FIRST_LEGAL = max(SPECIALS.values()) + 1


class GenomicTokenizer:
    """DNA, RNA or protein as ids.

    A token id is the byte's value: case, N, IUPAC codes, U and amino acids all come back as they
    were. With `compact`, the ids 0 to 3 are A, T, G, C (`vocab_size=4`): upper-case DNA only, no
    special ids, and everything else is refused.

    Attributes:
        vocab_size: for `HyenaGLTConfig`.
        eod_token_id, pad_token_id, mask_token_id: special ids; None where `compact`.
    """

    def __init__(self, compact: bool = False) -> None:
        self.compact = compact
        self.vocab_size = len(BASES) if compact else 256
        self.eod_token_id = None if compact else EOD
        self.pad_token_id = None if compact else PAD
        self.mask_token_id = None if compact else MASK

    def __len__(self) -> int:
        return self.vocab_size

    def encode(self, sequence: str | bytes) -> list[int]:
        """One id per character (per byte of UTF-8).

        Raises:
            UserError: a byte that is a special id, or, where `compact`, no A, T, G or C.
        """
        data = sequence.encode("utf-8") if isinstance(sequence, str) else bytes(sequence)
        for place, byte in enumerate(data):
            if byte < FIRST_LEGAL:
                raise UserError(
                    f"byte {byte} at position {place + 1} is a special id, not sequence; remove it"
                )
            if self.compact and byte not in BASES.encode():
                raise UserError(
                    f"{chr(byte)!r} at position {place + 1} is not one of {', '.join(BASES)}; use "
                    "GenomicTokenizer() for any letter in either case"
                )
        return [BASES.index(chr(byte)) for byte in data] if self.compact else list(data)

    def decode(self, ids: Iterable[int], skip_special: bool = True) -> str:
        """The text of `ids` (a list, an array or a one-dimensional tensor).

        Args:
            skip_special: leave special ids out; otherwise they appear as <eod>, <pad> and <mask>.
        Raises:
            UserError: an id outside the vocabulary, or bytes that are no UTF-8.
        """
        numbers = [int(number) for number in ids]
        wrong = [number for number in numbers if not 0 <= number < self.vocab_size]
        if wrong:
            raise UserError(f"token id {wrong[0]} is outside 0 to {self.vocab_size - 1}")
        if self.compact:
            return "".join(BASES[number] for number in numbers)
        names = {} if skip_special else {value: name for name, value in SPECIALS.items()}
        data = b"".join(
            names.get(number, "").encode() if number < FIRST_LEGAL else bytes([number])
            for number in numbers
        )
        try:
            return data.decode("utf-8")
        except UnicodeDecodeError as error:
            raise UserError(
                f"byte {data[error.start]} at position {error.start + 1} is no text; decode whole "
                "sequences of letters"
            ) from error

    def pad(self, sequences: Iterable[list[int]]) -> tuple[list[list[int]], list[list[int]]]:
        """Sequences of ids, filled up to the longest, and their masks (1 for sequence, 0 for fill).

        The fill of the compact alphabet is 0, which only the mask tells from an A.
        """
        rows = [list(row) for row in sequences]
        longest = max(map(len, rows), default=0)
        fill = self.pad_token_id or 0
        padded = [row + [fill] * (longest - len(row)) for row in rows]
        return padded, [[1] * len(row) + [0] * (longest - len(row)) for row in rows]

"""`transformers` tokenizer: a token is a byte and its id is the byte's value."""

from __future__ import annotations

from typing import Any

from transformers import PreTrainedTokenizer

SPECIAL = {"<eod>": 0, "<pad>": 1, "<mask>": 2}


class HyenaGLTTokenizer(PreTrainedTokenizer):
    """Lossless for ASCII sequences: case, N, U and IUPAC codes are kept.

    Ids 0, 1 and 2 are end of document, padding and mask; no sequence holds these bytes.
    """

    model_input_names = ["input_ids", "attention_mask"]  # noqa: RUF012

    def __init__(self, **values: Any) -> None:
        self._names = {i: name for name, i in SPECIAL.items()}
        values.setdefault("eos_token", "<eod>")
        values.setdefault("pad_token", "<pad>")
        values.setdefault("mask_token", "<mask>")
        values.setdefault("padding_side", "right")
        super().__init__(**values)

    @property
    def vocab_size(self) -> int:
        """One id for each value of a byte."""
        return 256

    def get_vocab(self) -> dict[str, int]:
        """Token to id."""
        return {self._convert_id_to_token(i): i for i in range(self.vocab_size)}

    def _tokenize(self, text: str, **_: Any) -> list[str]:
        return list(text.encode("utf-8").decode("latin-1"))

    def _convert_token_to_id(self, token: str) -> int:
        return SPECIAL[token] if token in SPECIAL else ord(token)

    def _convert_id_to_token(self, index: int) -> str:
        return self._names.get(index) or chr(index)

    def convert_tokens_to_string(self, tokens: list[str]) -> str:
        """Bytes back to text."""
        return "".join(tokens).encode("latin-1").decode("utf-8", errors="replace")

    def save_vocabulary(self, save_directory: str, filename_prefix: str | None = None) -> tuple:
        """There is no vocabulary file."""
        return ()

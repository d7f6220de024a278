"""Log-likelihoods of passages, in batches that do not matter.

Passages of one length share a batch and none is padded, so a row is computed from its own bases
alone. In double precision the sums do not depend on what shares a batch to 1e-10 nats; in single
precision they are equal bit by bit, or nearly so (see `docs/variants.md`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import numpy as np
import numpy.typing as npt
import torch

from megatron_hyena.model.hyena_glt import HyenaGLT
from megatron_hyena.variants.windows import Passage

Sums = npt.NDArray[np.float64]


class Scorer:
    """A causal model that reads passages.

    Args:
        model: on its device, in its precision.
        batch_tokens: bases of a batch at most, but one passage at least.
        fold: whether the model knows upper case alone.
        kind: number of the sequence type, for models that are told it; None for others.
    """

    def __init__(
        self, model: HyenaGLT, batch_tokens: int, fold: bool = False, kind: int | None = None
    ) -> None:
        self.model, self.batch_tokens, self.fold, self.kind = model.eval(), batch_tokens, fold, kind
        self.device = next(model.parameters()).device

    def sums(
        self, passages: Sequence[Passage], done: Callable[[int], object] = lambda n: None
    ) -> Sums:
        """Nats of log p(base | the window's bases before it), summed in double precision.

        Args:
            done: told how many passages were computed.
        Returns:
            fp64 [n, 2]: over all bases that count, and over those behind the allele.
        """
        result = np.zeros((len(passages), 2))
        texts: dict[bytes, list[int]] = {}
        for index, passage in enumerate(passages):
            texts.setdefault(passage.bases.tobytes(), []).append(index)
        for batch in self._batches(list(texts)):
            for text, nats in zip(batch, self._log_likelihoods(batch), strict=True):
                for index in texts[text]:
                    one = passages[index]
                    result[index] = nats[one.first :].sum(), nats[one.following :].sum()
            done(sum(len(texts[text]) for text in batch))
        return result

    def _batches(self, texts: list[bytes]) -> Iterator[list[bytes]]:
        """Texts of one length, in an order that depends on the texts alone."""
        texts.sort(key=lambda text: (len(text), text))
        at = 0
        while at < len(texts):
            length = len(texts[at])
            most, end = max(1, self.batch_tokens // max(1, length)), at + 1
            while end < len(texts) and end - at < most and len(texts[end]) == length:
                end += 1
            yield texts[at:end]
            at = end

    @torch.no_grad()
    def _log_likelihoods(self, batch: list[bytes]) -> Sums:
        """log p of every base but the first, fp64 [B, L]; 0 for the first."""
        letters = np.stack([np.frombuffer(text, dtype=np.uint8) for text in batch])
        if self.fold:
            lower = (letters >= ord("a")) & (letters <= ord("z"))
            letters = np.where(lower, letters & 0xDF, letters)
        nats = np.zeros(letters.shape)
        if letters.shape[1] > 1:
            ids = torch.from_numpy(letters.astype(np.int64)).to(self.device)
            given = ids[:, :-1].contiguous()
            tracks = {} if self.kind is None else {"type": torch.full_like(given, self.kind)}
            losses = self.model.token_losses(given, ids[:, 1:].contiguous(), tracks=tracks)
            # A merged model fills up its last window, behind all that counts.
            nats[:, 1:] = -losses[:, : given.shape[1]].double().cpu().numpy()
        return nats

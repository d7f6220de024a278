"""Where chunks open, one position at a time; the equations are those of `layers.merging.router`."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from megatron_hyena.generation.carried import Carried, Now, Past, keep
from megatron_hyena.generation.norm import NormStep
from megatron_hyena.layers.merging.router import MEMORY, Complexity, Router
from megatron_hyena.layers.merging.similarity import SMALLEST, Cosine, Mlp
from megatron_hyena.ops.fir import compute_dtype


class MlpSimilarity:
    """`Mlp`: what is kept of a position is its share of the next one's hidden layer."""

    def __init__(self, similarity: Mlp, wide: torch.dtype) -> None:
        self.pair, self.width = similarity.pair.to(wide).t(), len(similarity.bias)
        self.bias = F.pad(similarity.bias.to(wide), (self.width, 0))
        self.out, self.offset = similarity.out.to(wide), similarity.offset.to(wide)

    def __call__(self, before_BW: Tensor, x_BR: Tensor) -> tuple[Tensor, Tensor]:
        """z [B] and what is kept, of what was kept of the position before and this one."""
        earlier, own = torch.addmm(self.bias, x_BR, self.pair).chunk(2, dim=-1)
        return torch.addmv(self.offset, (before_BW + own).relu_(), self.out), earlier


class CosineSimilarity:
    """`Cosine`: what is kept of a position is its query."""

    def __init__(self, similarity: Cosine, wide: torch.dtype) -> None:
        self.query, self.key = similarity.query.to(wide), similarity.key.to(wide)
        self.width = len(self.query)

    def __call__(self, before_BW: Tensor, x_BR: Tensor) -> tuple[Tensor, Tensor]:
        """See `MlpSimilarity`."""
        query = F.normalize(F.linear(x_BR, self.query), dim=-1)
        key = F.normalize(F.linear(x_BR, self.key), dim=-1)
        cosine = torch.linalg.vecdot(before_BW, key)
        return torch.logit((1 + cosine) / 2, eps=SMALLEST), query


def similarity_step(similarity: nn.Module, wide: torch.dtype) -> MlpSimilarity | CosineSimilarity:
    """Of either kind."""
    if isinstance(similarity, Mlp):
        return MlpSimilarity(similarity, wide)
    assert isinstance(similarity, Cosine)
    return CosineSimilarity(similarity, wide)


class RouterStep(Carried):
    """Logits of opening a chunk.

    Carries `earlier`, what the similarity needs of the position before, and for a learned
    complexity the sums of the window and the memory of those before.
    """

    names = ("earlier", "sums", "count", "memory", "complexity")

    def __init__(self, router: Router, rows: int) -> None:
        self.router, self.norm = router, NormStep(router.norm)
        like = router.norm.weight
        self.wide = compute_dtype(like)
        self.similarity = similarity_step(router.similarity, self.wide)
        self.sums = torch.zeros(rows, len(like), dtype=self.wide, device=like.device)
        self.earlier = self.sums.new_zeros(rows, self.similarity.width)
        self.memory, self.count = self.sums.clone(), self.sums[:, :1].clone()
        self.mean = router.rate.complexity.to(self.wide)
        self.complexity = self.mean.expand(rows).clone()
        self.offset = router.threshold_logit / router.temperature + router.rate.shift.to(self.wide)

    def logits(self, x_BH: Tensor, now: Now) -> Tensor:
        """Of a position [B, H] in the active rows: [B]."""
        router, active = self.router, now.active_B
        x = self.norm((x_BH if now.features_BR is None else now.features_BR).to(self.wide))
        z, earlier = self.similarity(self.earlier, x)
        self.earlier = keep(active, earlier, self.earlier)
        logits = torch.add(self.offset, z, alpha=-1 / router.temperature)
        if not router.adaptive:
            return logits
        if router.complexity is not None:
            self.sums = keep(active, self.sums + x, self.sums)
            self.count = keep(active, self.count + 1, self.count)
            complexity = self.complexity
        else:
            assert now.complexity_B is not None
            complexity = now.complexity_B.to(self.wide)
        return logits + router.gamma * (complexity - self.mean)

    def idle(self, active_B: Tensor) -> None:
        """An empty position passes."""
        self.earlier = self.earlier.masked_fill(active_B[:, None], 0.0)

    def close(self, closing_B: Tensor) -> None:
        """A window ends."""
        if self.router.complexity is None:
            return
        mean = self.sums / self.count.clamp(min=1.0)
        memory = MEMORY * self.memory + (1 - MEMORY) * mean
        self.memory = keep(closing_B, memory, self.memory)
        self.sums = self.sums.masked_fill(closing_B[:, None], 0.0)
        self.count = self.count.masked_fill(closing_B[:, None], 0.0)
        self._estimate(closing_B)

    def _estimate(self, rows_B: Tensor) -> None:
        """The complexity of the window that begins, from the memory."""
        estimator = self.router.complexity
        assert isinstance(estimator, Complexity)
        weight, bias, out, offset = (
            w.to(self.wide)
            for w in (
                *(estimator.weight_in, estimator.bias_in),
                *(estimator.weight_out, estimator.bias_out),
            )
        )
        hidden = torch.relu(F.linear(self.memory, weight, bias))
        self.complexity = keep(rows_B, torch.sigmoid(hidden @ out + offset), self.complexity)

    def take(self, past: Past) -> None:
        """Begin behind whole windows."""
        self.earlier = past.take()[0].to(self.wide)
        if self.router.complexity is not None:
            past.take()  # what is carried between slices; the window's own memory follows
            self.memory = past.take()[0].to(self.wide)
            self._estimate(torch.ones_like(self.earlier[:, 0], dtype=torch.bool))

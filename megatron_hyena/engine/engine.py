"""One optimizer step, whatever the layout: the seam between the loop and DeepSpeed.

The loss is normalised over the *global* batch: the sum of weighted nats over all ranks and
micro-batches, divided by the sum of all weights. DeepSpeed divides by accumulation steps and
averages over replicas, so each micro-batch is multiplied by both beforehand. Ranks that share a
sequence are given the whole of it; the model takes its stretch.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import torch
import torch.distributed as dist
from torch import Tensor, nn

from megatron_hyena.config import Config
from megatron_hyena.engine.groups import parameter_groups
from megatron_hyena.engine.moments import prepare_moments, restart_waiting
from megatron_hyena.engine.norm import gradient_norm
from megatron_hyena.engine.rates import MergingRates
from megatron_hyena.engine.schedule import learning_rate
from megatron_hyena.engine.zero import MeshUnit, accumulation_steps, deepspeed_config
from megatron_hyena.errors import UserError
from megatron_hyena.parallel.mesh import Mesh
from megatron_hyena.parallel.traffic import Direction


class Sequences(Protocol):
    """A micro-batch; see `data.loader.Batch`. All [B, L]."""

    @property
    def input_ids(self) -> Tensor:
        """Byte values, int64."""
        ...

    @property
    def targets(self) -> Tensor:
        """The bytes to predict, int64."""
        ...

    @property
    def weights(self) -> Tensor:
        """Weights of the losses, fp32."""
        ...

    @property
    def documents(self) -> Tensor | None:
        """The document of each input position, int64; None for one per row."""
        ...

    @property
    def tracks(self) -> Mapping[str, Tensor]:
        """Numbers beside the bytes, by name."""
        ...


@dataclass(frozen=True)
class StepResult:
    """What one optimizer step did.

    Attributes:
        loss: nats per unmasked byte of the global batch, before the update.
        grad_norm: norm of the whole gradient before clipping.
        lr: peak-group learning rate used.
        tokens: input bytes in the global batch.
        sent: bytes that this rank's layers sent to others: {kind: {direction: bytes}}.
        ratio_loss: what is added to the loss to keep merging at its rate, nats per byte.
        merging: figures of each merged stage; see `layers.merging.rate.Rate.update`.
    """

    loss: float
    grad_norm: float
    lr: float
    tokens: int
    sent: dict[str, dict[Direction, int]]
    ratio_loss: float = 0.0
    merging: tuple[dict[str, float], ...] = ()


class Engine:
    """A model under DeepSpeed.

    Args:
        model: one rank's share, with `weighted_losses`; its merged stages have a `rate`.
        config: the run.
        mesh: its groups.
        device: of this rank.
        rates: of merged stages `start` at the first batch's, `keep` those that the model has and
            go on, or stay `still`.
    """

    def __init__(
        self,
        model: nn.Module,
        config: Config,
        mesh: Mesh,
        device: torch.device,
        rates: Literal["start", "keep", "still"] = "start",
    ) -> None:
        import deepspeed

        # A compiled shared-memory all-reduce, built at run time if a compiler is found: results
        # would depend on the machine, and gloo is fast enough here.
        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
        logging.getLogger("DeepSpeed").setLevel(logging.WARNING)
        self.model, self.config, self.mesh, self.device = model, config, mesh, device
        self.step = 0
        moved = nn.Module() if rates == "still" else model
        self.rates = MergingRates(moved, mesh, config.parallel.sequence)
        self.calibrates = rates == "start"
        optim = config.optim
        optimizer = torch.optim.AdamW(
            parameter_groups(model, optim),
            lr=optim.lr,
            betas=(optim.beta1, optim.beta2),
            eps=optim.eps,
        )
        self.deepspeed, self.optimizer, _, _ = deepspeed.initialize(
            model=_Loss(model.to(device), config.train.precision),
            optimizer=optimizer,
            config=deepspeed_config(config, mesh.data_size, mesh.context_size),
            mpu=MeshUnit(mesh),
            dist_init_required=False,
        )
        prepare_moments(self.optimizer, config.parallel.zero_stage)

    def train_step(self, batches: Sequence[Sequences]) -> StepResult:
        """Forward, backward and update over this rank's micro-batches of one global batch.

        Raises:
            UserError: on every rank, if the loss is not finite.
        """
        expected = accumulation_steps(self.config, self.mesh.data_size)
        assert len(batches) == expected, f"{len(batches)} micro-batches, {expected} expected"
        self.deepspeed.train()
        lr = learning_rate(self.step, self.config.train.steps, self.config.optim)
        for group in self.optimizer.param_groups:
            waits = group["begins"] > self.step
            group["lr"] = 0.0 if waits else lr * group["lr_factor"]
        sums = torch.stack([b.weights.sum(dtype=torch.float64) for b in batches]).sum()
        sums = _sum_over(self.mesh.data, sums.to(self.device))
        weight = sums.clamp(min=1e-12)  # with nothing to score, loss and gradient are 0
        scale = len(batches) * self.mesh.replica_size / weight
        total = torch.zeros(2, dtype=torch.float64, device=self.device)
        if self.step == 0 and self.calibrates:
            self.rates.calibrate(lambda: self._forward_all(batches))
        self.mesh.traffic.take()  # a validation's, or of the calibration
        for batch in batches:
            losses = self._losses(batch)
            self.deepspeed.backward(losses.sum() * scale.to(losses.dtype))
            if self.config.parallel.zero_stage == 0 and batch is batches[-1]:
                # Without ZeRO, DeepSpeed clips but does not tell the norm.
                norm = gradient_norm(self.model, self.mesh)
            self.deepspeed.step()
            total += losses.detach().double()
        if self.config.parallel.zero_stage > 0:
            norm = self.deepspeed.get_global_grad_norm()
        total = _sum_over(self.mesh.replicas, total)
        if self.config.parallel.sequence:  # each tensor rank has the ratio loss of its slice
            total[1] = _sum_over(self.mesh.tensor, total[1])
        loss_value, ratio_loss = (total / weight).tolist()
        if not math.isfinite(loss_value):
            raise UserError(
                f"the loss of step {self.step + 1} is {loss_value}; lower optim.lr or "
                "optim.grad_clip and start again: the last checkpoint is intact"
            )
        restart_waiting(self.optimizer, self.config.parallel.zero_stage, self.step)
        self.step += 1
        tokens = sum(b.input_ids.numel() for b in batches) * self.mesh.data_size
        merging = self.rates.update()
        sent = self.mesh.traffic.take()
        return StepResult(loss_value, float(norm), lr, tokens, sent, ratio_loss, merging)

    @torch.no_grad()
    def evaluate(self, batches: Sequence[Sequences]) -> tuple[float, float]:
        """(sum of weighted nats, sum of weights) over the batches of all data ranks.

        Every data rank must bring the same number of batches.
        """
        self.deepspeed.eval()
        nats, weight = torch.zeros(2, dtype=torch.float64, device=self.device)
        for batch in batches:
            nats += self._losses(batch)[0].double()
            weight += batch.weights.sum().double()
        nats, weight = _sum_over(self.mesh.replicas, nats), _sum_over(self.mesh.data, weight)
        return nats.item(), weight.item()

    @torch.no_grad()
    def predictions(self, batch: Sequences) -> Tensor:
        """What the model's `predictions` gives for the ids of a micro-batch, in evaluation mode."""
        self.deepspeed.eval()
        found: Tensor = self.deepspeed(batch.input_ids, function="predictions")
        return found

    def any_rank(self, flag: bool) -> bool:
        """True on every rank if `flag` is true on one."""
        value = torch.tensor(float(flag), device=self.device)
        dist.all_reduce(value, dist.ReduceOp.MAX)
        return bool(value.item())

    def _losses(self, batch: Sequences) -> Tensor:
        """[language model, ratio loss] of a micro-batch: see `weighted_losses` of the model."""
        losses: Tensor = self.deepspeed(
            batch.input_ids, batch.targets, batch.weights, batch.documents, batch.tracks
        )
        return losses

    @torch.no_grad()
    def _forward_all(self, batches: Sequence[Sequences]) -> None:
        for batch in batches:
            self._losses(batch)


def _sum_over(group: dist.ProcessGroup, value: Tensor) -> Tensor:
    total = value.clone()
    dist.all_reduce(total, group=group)
    return total


class _Loss(nn.Module):
    """The forward pass that DeepSpeed wraps: by default sums of weighted nats of one micro-batch.

    Autocast to bfloat16 is entered here: DeepSpeed switches off one that is entered around it.
    """

    def __init__(self, model: nn.Module, precision: str) -> None:
        super().__init__()
        self.model, self.bf16 = model, precision == "bf16"

    def forward(self, *batch: Any, function: str = "weighted_losses") -> Tensor:
        device = batch[0].device.type
        with torch.autocast(device, torch.bfloat16, enabled=self.bf16):
            found: Tensor = getattr(self.model, function)(*batch)
        return found

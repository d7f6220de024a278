"""A language model's trunk under the heads of tasks, in every layout of pretraining.

The trunk is a rank's share, as in pretraining. Its states are gathered over the ranks that share a
sequence, and heads, which are replicated, read whole sequences; so a head has no part in the
layout. Each rank's loss is its share of the whole: one in so many as share a sequence. The
language model's own head takes no part and stays as it is. B batch, L bytes, d channels.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from megatron_hyena.config.alphabet import PAD
from megatron_hyena.errors import UserError
from megatron_hyena.layers.parameter import initialise, treatment_of
from megatron_hyena.model.heads import TaskHead
from megatron_hyena.model.hyena_glt import HyenaGLT
from megatron_hyena.model.task_head import task_head
from megatron_hyena.model.tasks import Task, loss_weights


class TaskModel(nn.Module):
    """Trunk and heads; what the engine trains.

    Args:
        trunk: the language model, dense or one rank's share.
        tasks: by name.
        balance: see `tasks.loss_weights`.
        seed: of the heads' weights and of dropout.

    Attributes:
        still: the trunk is not trained: nothing of it is kept for the backward pass.
        routed: the routers of merged stages are trained, so their loss counts.
    """

    def __init__(
        self, trunk: HyenaGLT, tasks: Mapping[str, Task], balance: str = "fixed", seed: int = 0
    ) -> None:
        super().__init__()
        self.trunk, self.tasks, self.seed = trunk, dict(tasks), seed
        width = trunk.config.hidden_size
        self.heads = nn.ModuleDict({name: task_head(task, width) for name, task in tasks.items()})
        initialise(self.heads, seed, rank=0, size=1)
        weights = {name: task.weight for name, task in tasks.items()}
        gaussian = {name: self.head(name).gaussian for name in tasks}
        self.balance = loss_weights(balance, weights, gaussian)
        if not trunk.config.tie_embeddings:
            trunk.head.requires_grad_(False)
        self.still, self.routed = False, True
        self.step, self.task = 0, next(iter(tasks))
        self._draws: Iterator[int] = iter(())

    def head(self, name: str) -> TaskHead:
        """The head of a task (UserError: there is no such task)."""
        if name not in self.heads:
            raise UserError(f"there is no task {name!r}; there are {', '.join(self.tasks)}")
        head = self.heads[name]
        assert isinstance(head, TaskHead)
        return head

    def begin(self, task: str, step: int = 0, rank: int = 0) -> None:
        """What follows is of `task`; in training, of optimizer step `step` on data rank `rank`.

        Dropout is a function of these and of the place among the micro-batches, so ranks that share
        a sequence drop the same.
        """
        self.head(task)
        self.task, self.step = task, step
        self._draws = _draws(f"{self.seed}:dropout:{step}:{rank}")

    def states(self, input_ids: Tensor) -> Tensor:
        """ids [B, L] -> final hidden states of whole sequences [B, L, d], on every rank."""
        return self._states(input_ids)[0]

    def _states(self, input_ids: Tensor) -> tuple[Tensor, Any]:
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.still):
            hidden, walk = self.trunk._run(input_ids, None, None)
            stream, context = self.trunk.provider.stream, self.trunk.provider.context
            if stream.size > 1:
                hidden = stream.whole(hidden, 0)
                # Tensor ranks that share a sequence each bring the whole gradient back.
                hidden = _ScaledGradient.apply(hidden, context.size / stream.size)
        return hidden[: input_ids.shape[1]].transpose(0, 1), walk

    def predictions(self, input_ids: Tensor) -> Tensor:
        """ids [B, L], PAD behind the end -> what the head of the task at hand gives."""
        return self._predictions(input_ids, self.states(input_ids))

    def _predictions(self, input_ids: Tensor, states: Tensor) -> Tensor:
        wide = states if states.dtype == torch.float64 else states.float()
        # A head is cheap, and its sums over a sequence are long: never in half precision.
        with self._dropout(states.device), torch.autocast(states.device.type, enabled=False):
            found: Tensor = self.head(self.task)(wide, input_ids != PAD)
        return found

    def weighted_losses(
        self,
        input_ids: Tensor,
        targets: Tensor,
        weights: Tensor,
        document_ids: Tensor | None = None,
        tracks: Mapping[str, Tensor] | None = None,
    ) -> Tensor:
        """Sums over a micro-batch of one task: [weighted loss, ratio loss], this rank's shares.

        Both are meant to be divided by the sum of all weights; see `HyenaGLT.weighted_losses`.

        Args:
            input_ids: bytes [B, L], PAD behind the end.
            targets: labels, as the task's head wants them.
            weights: of the labels, of their shape; 0 where there is none.
        """
        states, walk = self._states(input_ids)
        predictions = self._predictions(input_ids, states)
        each = self.head(self.task).each_loss(predictions, targets)
        summed, count = (each * weights).sum(), weights.sum().to(each.dtype)
        # Balanced as a mean of all, then a sum again: terms without a loss count once per weight.
        mean = self.balance({self.task: summed / count.clamp(min=1e-12)})
        context = self.trunk.provider.context.size
        loss = (mean * count + self._idle(states)) / context
        penalty = self._penalty(walk, input_ids, weights)
        return torch.stack([loss, penalty.to(loss.dtype)])

    def _penalty(self, walk: Any, input_ids: Tensor, weights: Tensor) -> Tensor:
        """The ratio loss of merging: each row's weight is spread over its bytes."""
        if self.still or not self.routed:
            return weights.new_zeros(())
        there = (input_ids != PAD).to(weights.dtype)
        rows = weights.reshape(len(weights), -1).sum(1, keepdim=True)
        rows = rows / there.sum(1, keepdim=True).clamp(min=1)
        return self.trunk._penalty(walk, input_ids, rows * there)

    def _idle(self, states: Tensor) -> Tensor:
        """0, with gradients of zero for the heads of other tasks: no rank waits for them."""
        total = states.new_zeros((), dtype=torch.float32)
        for name in self.heads:
            if name != self.task:
                total = total + 0.0 * self.head(name)(states[:1, :1].detach()).float().sum()
        return total

    def hold_waiting(self) -> None:
        """From now on, gradients of parameters whose step has not come are zero.

        So they do not count in norms and move no moments; call it once, before the engine is made.
        """
        for parameter in self.parameters():
            begins = treatment_of(parameter).begins
            if begins and parameter.requires_grad:
                parameter.register_hook(
                    lambda gradient, begins=begins: (
                        gradient if self.step >= begins else torch.zeros_like(gradient)
                    )
                )

    @contextmanager
    def _dropout(self, device: torch.device) -> Iterator[None]:
        if not self.training:
            yield
            return
        devices = [device] if device.type == "cuda" else []
        with torch.random.fork_rng(devices=devices):
            torch.manual_seed(next(self._draws, 0))
            yield


def padded_ids(rows: list[Tensor], multiple: int = 1) -> Tensor:
    """Bytes [n] each -> ids [B, L], PAD behind the end, L the longest n or the next multiple."""
    length = -(-max(len(row) for row in rows) // multiple) * multiple
    return torch.stack([F.pad(row.long(), (0, length - len(row)), value=PAD) for row in rows])


def _draws(key: str) -> Iterator[int]:
    """Seeds of 63 bits, one after the other."""
    number = 0
    while True:
        digest = hashlib.sha256(f"{key}:{number}".encode()).digest()
        yield int.from_bytes(digest[:8], "little") >> 1
        number += 1


class _ScaledGradient(torch.autograd.Function):
    """Identity whose backward multiplies by a number."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, factor: float) -> Tensor:
        ctx.factor = factor
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        return grads[0] * ctx.factor, None

"""Several tasks on one backbone: the whole model, shared layers, a head for each task."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from megatron_hyena.config.model import HyenaGLTConfig
from megatron_hyena.errors import UserError
from megatron_hyena.layers.parameter import drawn_seed, initialise
from megatron_hyena.layers.provider import DenseProvider
from megatron_hyena.layers.span import Span
from megatron_hyena.model.heads import TaskHead
from megatron_hyena.model.hyena_glt import Block, HyenaGLT
from megatron_hyena.model.task_head import task_head
from megatron_hyena.model.tasks import Task, loss_weights, task_of_step, task_probabilities
from megatron_hyena.ops.documents import Documents


class MultiTaskHyenaGLT(nn.Module):
    """Every task reads the last hidden states of the same backbone, never its embeddings alone.

    Args:
        config: of the backbone; shared layers are blocks of its last sign.
        tasks: by name, each a `Task` or a mapping of its fields.
        shared_layers: blocks between the backbone and the heads.
        balance: `fixed`, by each task's `weight`, or `uncertainty`, learned.
        temperature: of `task_of_step`.
        seed: of `task_of_step`, and of the backbone's weights.
    Raises:
        UserError: no task, a field that a task does not have, an unknown `balance`.
    """

    def __init__(
        self,
        config: HyenaGLTConfig,
        tasks: Mapping[str, Task | Mapping[str, Any]],
        shared_layers: int = 0,
        balance: str = "fixed",
        temperature: float = 1.0,
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.tasks = {name: _task(name, task) for name, task in tasks.items()}
        self.config, self.seed = config, seed
        examples = {name: task.examples for name, task in self.tasks.items()}
        self.probabilities = task_probabilities(examples, temperature)
        self.backbone = HyenaGLT(config, seed=seed)
        self.shared_layers = nn.ModuleList(
            Block(config.signs[-1], config, DenseProvider()) for _ in range(shared_layers)
        )
        initialise(self.shared_layers, drawn_seed(), rank=0, size=1)
        self.task_heads = nn.ModuleDict(
            {name: self.create_task_head(task) for name, task in self.tasks.items()}
        )
        self.balance = self._balance(balance)

    def create_task_head(self, task: Task) -> TaskHead:
        """The head of one task."""
        return task_head(task, self.config.hidden_size)

    def _balance(self, balance: str) -> nn.Module:
        weights = {name: task.weight for name, task in self.tasks.items()}
        gaussian = {name: self.head(name).gaussian for name in self.tasks}
        return loss_weights(balance, weights, gaussian)

    def head(self, task_name: str) -> TaskHead:
        """The head of a task (UserError: there is no such task)."""
        if task_name not in self.tasks:
            raise UserError(f"there is no task {task_name!r}; there are {', '.join(self.tasks)}")
        head = self.task_heads[task_name]
        assert isinstance(head, TaskHead)
        return head

    def hidden_states(
        self, input_ids: Tensor, document_ids: Tensor | None = None, **inputs: Any
    ) -> Tensor:
        """ids [B, L] -> states after backbone and shared layers, [B, L, d]."""
        output = self.backbone(input_ids, document_ids=document_ids, **inputs)
        x = output.last_hidden_state[:, : input_ids.shape[1]].transpose(0, 1)
        documents = None if document_ids is None else Documents.from_ids(document_ids.long())
        span = Span.of_rank(0, len(x), documents)
        for layer in self.shared_layers:
            x = layer(x, span)
        states: Tensor = x.transpose(0, 1)
        return states

    def forward(
        self,
        input_ids: Tensor,
        task_name: str,
        attention_mask: Tensor | None = None,
        document_ids: Tensor | None = None,
        **inputs: Any,
    ) -> Tensor:
        """Predictions of one task.

        Args:
            input_ids: bytes [B, L], int64.
            task_name: a key of `tasks`.
            attention_mask: [B, L], not 0 for bytes that the head is to read.
            document_ids: see `HyenaGLT`; `inputs` are its other inputs.
        Returns:
            What the task's head gives: see `model.heads`.
        Raises:
            UserError: there is no such task, or the mask has another shape.
        """
        head = self.head(task_name)
        states = self.hidden_states(input_ids, document_ids, **inputs)
        predictions: Tensor = head(states, attention_mask)
        return predictions

    def task_loss(self, task_name: str, predictions: Tensor, labels: Tensor) -> Tensor:
        """A task's own loss, unweighted."""
        return self.head(task_name).loss(predictions, labels)

    def total_loss(self, losses: Mapping[str, Tensor], all_heads: bool = False) -> Tensor:
        """One loss of those of the tasks in this step.

        Args:
            losses: by task; any of them.
            all_heads: heads without a loss take part with gradients of zero, as
                DistributedDataParallel wants where ranks could wait for them. AdamW then moves
                them by momentum and weight decay; otherwise it leaves them alone.
        """
        for name in losses:
            self.head(name)
        if not losses:
            raise UserError("a step needs the loss of at least one task")
        total: Tensor = self.balance(losses)
        if all_heads:
            idle = [self.head(name) for name in self.tasks if name not in losses]
            parameters = [p for head in idle for p in head.parameters()]
            parameters += list(self.balance.parameters())
            total = total + sum(p.sum() * 0.0 for p in parameters)
        return total

    def task_of_step(self, step: int) -> str:
        """The task to train in `step`: the same on every rank, and after a restart."""
        return task_of_step(self.probabilities, step, self.seed)


def _task(name: str, given: Task | Mapping[str, Any]) -> Task:
    if not name or "." in name:
        raise UserError(f"task name {name!r} must have a letter and no dot")
    if isinstance(given, Task):
        return given
    known = Task.__dataclass_fields__
    unknown = [field for field in given if field not in known]
    if unknown or "kind" not in given:
        problem = f"has no field {unknown[0]!r}" if unknown else "needs a kind"
        raise UserError(f"task {name!r} {problem}; a task has {', '.join(known)}")
    return Task(**given)

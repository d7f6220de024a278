"""Training through the real engine, rank by rank, and the dense reference in plain torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from datetime import timedelta

import torch
from torch import Tensor

from megatron_hyena.config import Config, load_config
from megatron_hyena.data.loader import Batch
from megatron_hyena.engine.groups import parameter_groups
from megatron_hyena.engine.schedule import learning_rate
from megatron_hyena.model.hyena_glt import HyenaGLT

# 91 positions are a multiple of no layout: whatever cuts the sequence has to pad it.
STEPS, LENGTH, GLOBAL_BATCH = 20, 91, 8
COMMON = {
    "model.mr_filter_length": 33,
    "model.max_sequence_length": 128,
    "model.attention_window": 16,
    "data.sequence_length": LENGTH,
    "train.global_batch_size": GLOBAL_BATCH,
    "train.steps": STEPS,
    "optim.lr": 4e-3,
    "optim.min_lr": 1e-3,
    "optim.warmup_steps": 3,
    "optim.grad_clip": 0.5,
    "optim.filter_lr_factor": 0.5,
}
EVEN = {
    "model.pattern": "SMLHGAW",
    "model.hidden_size": 32,
    "model.num_heads": 4,
    "model.num_filter_groups": 4,
    "model.vocab_size": 60,
    "model.hyena_filter_order": 8,
    "model.ffn_hidden_size": 48,
    "model.tie_embeddings": False,
}
# Odd sizes: what ZeRO shares out must be padded, and heads cannot be dealt out to context ranks.
# Tensor ranks cannot share this model.
ODD = {
    "model.pattern": "SMLHGAW",
    "model.hidden_size": 30,
    "model.num_heads": 3,
    "model.num_filter_groups": 5,
    "model.motifs": ["TATAWAW", "CANNTG"],
    "model.vocab_size": 61,
    "model.hyena_filter_order": 7,
    "model.ffn_hidden_size": 45,
}
# One layer for each way to reach other ranks, for the matrix of all layouts.
OF_SMALL = {"model.pattern": "MLHA", "model.ffn_hidden_size": -1, "model.tie_embeddings": True}
MODELS: dict[str, dict[str, object]] = {"even": EVEN, "odd": ODD, "small": EVEN | OF_SMALL}


@dataclass(frozen=True)
class Run:
    """A layout, and what is trained in it.

    Attributes:
        pieces: micro-batches of one data rank in one step.
        packed: rows hold several documents.
        model: a name of `MODELS`.
        steps: how many of the schedule's.
    """

    tensor: int = 1
    context: int = 1
    data: int = 1
    sequence: bool = False
    zero: int = 1
    pieces: int = 1
    recompute: str = "none"
    precision: str = "fp32"
    packed: bool = False
    model: str = "even"
    steps: int = STEPS

    @property
    def size(self) -> int:
        """Ranks."""
        return self.tensor * self.context * self.data

    @property
    def layout(self) -> str:
        """How the model is spread: tp2sp-cp2, say."""
        sizes = {"tp": self.tensor, "cp": self.context, "dp": self.data}
        parts = [f"{k}{n}{'sp' * (self.sequence and k == 'tp')}" for k, n in sizes.items() if n > 1]
        return "-".join(parts) or "alone"

    def __str__(self) -> str:
        shown = ("pieces", "recompute", "precision", "model", "steps")
        differing = [
            f for f in fields(self) if f.name in shown and getattr(self, f.name) != f.default
        ]
        extras = [f"{f.name}={getattr(self, f.name)}" for f in differing]
        return "-".join([f"{self.layout}-zero{self.zero}", *["packed"] * self.packed, *extras])

    def keys(self) -> dict[str, object]:
        """Of the configuration."""
        return MODELS[self.model] | {
            "parallel.tensor": self.tensor,
            "parallel.context": self.context,
            "parallel.sequence": self.sequence,
            "parallel.zero_stage": self.zero,
            "parallel.recompute": self.recompute,
            "train.precision": self.precision,
            "train.micro_batch_size": GLOBAL_BATCH // self.data // self.pieces,
        }


def configure(run: Run, more: Mapping[str, object] | None = None, seed: int = 5) -> Config:
    """The configuration of `run`; `more` goes before it."""
    keys = COMMON | {"run.seed": seed} | run.keys() | dict(more or {})
    return load_config(None, [f"{key}={value}" for key, value in keys.items()])


@dataclass(frozen=True)
class Trained:
    """Results of one run; `weights` are this tensor rank's parts."""

    losses: list[float]
    grad_norms: list[float]
    valid_loss: float
    weights: dict[str, Tensor]
    dtypes: set[torch.dtype]


def global_batch(step: int, vocab: int, packed: bool) -> Batch:
    """The whole batch of `step` [8, L].

    The first half of its rows is almost unscored, and of each row the end is: data ranks and
    context ranks have very different weights, and only a global normalisation is right.
    """
    generator = torch.Generator().manual_seed(100 + step)
    tokens = torch.randint(0, vocab, (GLOBAL_BATCH, LENGTH + 1), generator=generator)
    tokens %= 5  # few symbols of many: something to learn
    of_row = torch.where(torch.arange(GLOBAL_BATCH) < GLOBAL_BATCH // 2, 0.1, 0.9)
    keep = of_row[:, None] * torch.linspace(1, 0.1, LENGTH)
    weights = torch.rand(GLOBAL_BATCH, LENGTH, generator=generator) < keep
    documents = None
    if packed:
        numbers = _document_numbers(generator)
        weights &= numbers[:, 1:] == numbers[:, :-1]
        documents = numbers[:, :-1].contiguous()
    inputs, targets = tokens[:, :-1].contiguous(), tokens[:, 1:].contiguous()
    return Batch(inputs, targets, weights.float(), documents)


def _document_numbers(generator: torch.Generator) -> Tensor:
    """[8, L + 1]: begun at random, and on the first and last bytes of two and four stretches."""
    begins = torch.rand(GLOBAL_BATCH, LENGTH + 1, generator=generator) < 0.04
    begins[::2, [22, 23, 46, 68, 90]] = True
    begins[5] = False
    return begins.cumsum(1)


def micro_batches(
    config: Config, packed: bool, step: int, data_rank: int, data_size: int
) -> list[Batch]:
    """`data_rank`'s rows of the global batch, cut into micro-batches."""
    whole, share = global_batch(step, config.model.vocab_size, packed), GLOBAL_BATCH // data_size
    size, first = config.train.micro_batch_size, data_rank * share
    rows = [slice(at, at + size) for at in range(first, first + share, size)]
    return [
        Batch(
            whole.input_ids[r],
            whole.targets[r],
            whole.weights[r],
            None if whole.documents is None else whole.documents[r],
        )
        for r in rows
    ]


def engine_of(config: Config):
    """The engine of this rank, as the program builds it."""
    from megatron_hyena.runtime.process import Process
    from pretrain.run import build_engine

    process = Process(
        rank=torch.distributed.get_rank(),
        world_size=torch.distributed.get_world_size(),
        device=torch.device("cpu"),
        timeout=timedelta(seconds=300),
    )
    return build_engine(config, process)


def train_on_ranks(runs: list[Run]) -> dict[Run, Trained]:
    """On each rank: every run, one after the other."""
    from megatron_hyena.parallel.mesh import destroy_mesh

    results = {}
    for run in runs:
        config = configure(run)
        results[run] = train_engine(engine_of(config), run)
        destroy_mesh()
    return results


def train_engine(engine, run: Run) -> Trained:
    """The first steps, then one validation over the batch after the last."""
    from megatron_hyena.engine.state import read_state

    def batches(step: int) -> list[Batch]:
        ranks = engine.mesh.data_rank, engine.mesh.data_size
        return micro_batches(engine.config, run.packed, step, *ranks)

    done = [engine.train_step(batches(step)) for step in range(run.steps)]
    nats, weight = engine.evaluate(batches(run.steps))
    state = {name: kinds for name, kinds in read_state(engine)}
    return Trained(
        losses=[s.loss for s in done],
        grad_norms=[s.grad_norm for s in done],
        valid_loss=nats / weight,
        weights={name: kinds["weight"].detach().clone() for name, kinds in state.items()},
        dtypes={tensor.dtype for kinds in state.values() for tensor in kinds.values()},
    )


def train_dense(model_name: str, packed: bool = False, steps: int = STEPS) -> Trained:
    """The same in plain torch: one rank, one batch, no engine."""
    config = configure(Run(model=model_name))
    model = HyenaGLT(config.model, seed=config.run.seed)
    optim = config.optim
    optimizer = torch.optim.AdamW(
        parameter_groups(model, optim), betas=(optim.beta1, optim.beta2), eps=optim.eps
    )

    def loss_of(step: int) -> Tensor:
        batch = global_batch(step, config.model.vocab_size, packed)
        nll = model.token_losses(batch.input_ids, batch.targets, batch.documents)
        return (nll * batch.weights).sum() / batch.weights.sum()

    losses, norms = [], []
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, STEPS, optim) * group["lr_factor"]
        optimizer.zero_grad()
        loss = loss_of(step)
        loss.backward()
        norms.append(torch.nn.utils.clip_grad_norm_(model.parameters(), optim.grad_clip).item())
        optimizer.step()
        losses.append(loss.item())
    with torch.no_grad():
        valid = loss_of(steps).item()
    weights = {name: p.detach().clone() for name, p in model.named_parameters()}
    return Trained(losses, norms, valid, weights, {p.dtype for p in model.parameters()})

"""Training through the real engine, rank by rank, and the dense reference in plain torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from datetime import timedelta

import torch
from torch import Tensor

from megatron_hyena.config import Config, load_config
from megatron_hyena.engine.groups import parameter_groups
from megatron_hyena.engine.schedule import learning_rate
from megatron_hyena.layers.merging.rate import Rate, rate_state
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
# Whole windows on each of four ranks. The router sees bytes alone, so that rounding in one layout
# cannot open a chunk that it does not open in another.
OF_MERGED = {
    "model.pattern": "S(MLA)0.6S",
    "model.window": 8,
    "model.router_input": "trunk",
    "model.adaptive": True,
    "model.complexity": "window",
    "model.ffn_hidden_size": -1,
    "data.sequence_length": 96,
}
MODELS: dict[str, dict[str, object]] = {
    "even": EVEN,
    "odd": ODD,
    "small": EVEN | OF_SMALL,
    "merged": EVEN | OF_MERGED,
}


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
    """Results of one run; `weights` are this tensor rank's parts, `merging` the figures of each
    step, `rates` the final state of merged stages."""

    losses: list[float]
    grad_norms: list[float]
    valid_loss: float
    weights: dict[str, Tensor]
    dtypes: set[torch.dtype]
    merging: list[tuple[dict[str, float], ...]]
    rates: dict[str, Tensor]


@dataclass(frozen=True)
class Batch:
    """Ids of any vocabulary, with weights of their own: what the engine takes."""

    input_ids: Tensor
    targets: Tensor
    weights: Tensor
    documents: Tensor | None
    tracks: dict[str, Tensor] = field(default_factory=dict)


def global_batch(step: int, vocab: int, packed: bool, length: int = LENGTH) -> Batch:
    """The whole batch of `step` [8, L].

    The first half of its rows is almost unscored, and of each row the end is: data ranks and
    context ranks have very different weights, and only a global normalisation is right.
    """
    generator = torch.Generator().manual_seed(100 + step)
    tokens = torch.randint(0, vocab, (GLOBAL_BATCH, length + 1), generator=generator)
    tokens %= 5  # few symbols of many: something to learn
    of_row = torch.where(torch.arange(GLOBAL_BATCH) < GLOBAL_BATCH // 2, 0.1, 0.9)
    keep = of_row[:, None] * torch.linspace(1, 0.1, length)
    weights = torch.rand(GLOBAL_BATCH, length, generator=generator) < keep
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
    whole = global_batch(step, config.model.vocab_size, packed, config.data.sequence_length)
    share = GLOBAL_BATCH // data_size
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
        merging=[s.merging for s in done],
        rates={name: buffer.clone() for name, buffer in rate_state(engine.model).items()},
    )


def train_dense(model_name: str, packed: bool = False, steps: int = STEPS) -> Trained:
    """The same in plain torch: one rank, one batch, no engine."""
    config = configure(Run(model=model_name))
    model = HyenaGLT(config.model, seed=config.run.seed)
    optim = config.optim
    optimizer = torch.optim.AdamW(
        parameter_groups(model, optim), betas=(optim.beta1, optim.beta2), eps=optim.eps
    )

    rates = [module for module in model.modules() if isinstance(module, Rate)]

    def losses_of(step: int) -> Tensor:
        batch = global_batch(step, config.model.vocab_size, packed, config.data.sequence_length)
        sums = model.weighted_losses(batch.input_ids, batch.targets, batch.weights, batch.documents)
        return sums / batch.weights.sum()

    losses, norms, merging = [], [], []
    for rate in rates:  # one stage: nothing inside depends on it
        with torch.no_grad():
            losses_of(0)
        rate.start(rate.take())
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, STEPS, optim) * group["lr_factor"]
        optimizer.zero_grad()
        loss, penalty = losses_of(step)
        (loss + penalty).backward()
        norms.append(torch.nn.utils.clip_grad_norm_(model.parameters(), optim.grad_clip).item())
        optimizer.step()
        losses.append(loss.item())
        merging.append(tuple(rate.update(rate.take()) for rate in rates))
    model.eval()
    with torch.no_grad():
        valid = losses_of(steps)[0].item()
    weights = {name: p.detach().clone() for name, p in model.named_parameters()}
    dtypes = {p.dtype for p in model.parameters()}
    return Trained(losses, norms, valid, weights, dtypes, merging, rate_state(model))


def save_and_resume(folder: str) -> dict[str, object]:
    """On two ranks: three steps of the merged model, saved; the next step, straight and resumed."""
    from pathlib import Path

    from megatron_hyena.checkpoint.dense import load_dense
    from megatron_hyena.engine.saving import resume, save_checkpoint
    from megatron_hyena.parallel.mesh import destroy_mesh

    first = Run(tensor=2, sequence=True, zero=1, model="merged")
    engine = engine_of(configure(first))
    states, following = [], []

    def step(number: int) -> None:
        ranks = engine.mesh.data_rank, engine.mesh.data_size
        done = engine.train_step(micro_batches(engine.config, False, number, *ranks))
        following.append((done.loss, done.merging))

    for number in range(3):
        step(number)
    following.clear()
    states.append({name: b.clone() for name, b in rate_state(engine.model).items()})
    path = save_checkpoint(engine, Path(folder))
    step(3)
    destroy_mesh()
    for run in (first, Run(context=2, zero=3, model="merged")):
        engine = engine_of(configure(run, {"checkpoint.resume": str(path)}))
        assert resume(engine) == path
        states.append({name: b.clone() for name, b in rate_state(engine.model).items()})
        step(3)
        destroy_mesh()
    return {"rates": states, "next": following, "dense": rate_state(load_dense(path)[0])}

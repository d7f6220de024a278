"""Training through the real engine, rank by rank, and the dense reference in plain torch."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from megatron_hyena.config import Config, load_config
from megatron_hyena.data.loader import Batch
from megatron_hyena.engine.groups import parameter_groups
from megatron_hyena.engine.schedule import learning_rate
from megatron_hyena.model.hyena_glt import HyenaGLT

STEPS, LENGTH, GLOBAL_BATCH = 6, 96, 8
COMMON = [
    "model.pattern=SMLHAW",
    "model.mr_filter_length=33",
    "model.max_sequence_length=128",
    "model.attention_window=16",
    f"data.sequence_length={LENGTH}",
    f"train.global_batch_size={GLOBAL_BATCH}",
    f"train.steps={STEPS}",
    "optim.lr=4e-3",
    "optim.min_lr=1e-3",
    "optim.warmup_steps=3",
    "optim.grad_clip=0.5",
    "optim.filter_lr_factor=0.5",
]
# Odd sizes: what ZeRO shares out must be padded. Only the even model can be cut in two.
ODD = [
    "model.hidden_size=30",
    "model.num_heads=3",
    "model.num_filter_groups=5",
    "model.vocab_size=61",
    "model.hyena_filter_order=7",
    "model.ffn_hidden_size=45",
]
EVEN = [
    "model.hidden_size=32",
    "model.num_heads=4",
    "model.num_filter_groups=4",
    "model.vocab_size=60",
    "model.hyena_filter_order=8",
    "model.ffn_hidden_size=48",
    "model.tie_embeddings=false",
]


def layout(
    model: list[str],
    tensor: int = 1,
    sequence: bool = False,
    zero: int = 1,
    micro: int = 2,
    **more: object,
) -> list[str]:
    """Overrides of a run; `section_key=value` for further keys."""
    keys: dict[str, object] = {
        "parallel.tensor": tensor,
        "parallel.sequence": sequence,
        "parallel.zero_stage": zero,
        "train.micro_batch_size": micro,
    }
    keys |= {name.replace("_", ".", 1): value for name, value in more.items()}
    return [*model, *(f"{key}={value}" for key, value in keys.items())]


def configure(overrides: list[str], seed: int = 5) -> Config:
    """The run of the proofs with `overrides`."""
    return load_config(None, [*COMMON, f"run.seed={seed}", *overrides])


@dataclass(frozen=True)
class Trained:
    """Results of one run; `weights` are this tensor rank's parts."""

    losses: list[float]
    grad_norms: list[float]
    valid_loss: float
    weights: dict[str, Tensor]
    dtypes: set[torch.dtype]


def global_batch(step: int, vocab: int) -> Batch:
    """The whole batch of `step` [8, L]: the first half of its rows is almost unscored.

    Data ranks thus have very different weights, and only a global normalisation is right.
    """
    generator = torch.Generator().manual_seed(100 + step)
    tokens = torch.randint(0, vocab, (GLOBAL_BATCH, LENGTH + 1), generator=generator)
    tokens %= 5  # few symbols of many: something to learn
    keep = torch.where(torch.arange(GLOBAL_BATCH) < GLOBAL_BATCH // 2, 0.1, 0.9)
    weights = torch.rand(GLOBAL_BATCH, LENGTH, generator=generator) < keep[:, None]
    return Batch(tokens[:, :-1].contiguous(), tokens[:, 1:].contiguous(), weights.float())


def micro_batches(config: Config, step: int, data_rank: int, data_size: int) -> list[Batch]:
    """`data_rank`'s rows of the global batch, cut into micro-batches."""
    whole, share = global_batch(step, config.model.vocab_size), GLOBAL_BATCH // data_size
    size, first = config.train.micro_batch_size, data_rank * share
    rows = [slice(at, at + size) for at in range(first, first + share, size)]
    return [Batch(whole.input_ids[r], whole.targets[r], whole.weights[r]) for r in rows]


def train_on_ranks(runs: dict[str, list[str]]) -> dict[str, Trained]:
    """On each rank: every named run, one after the other, through `pretrain.build`."""
    from megatron_hyena.parallel.mesh import destroy_mesh
    from megatron_hyena.runtime.process import Process
    from pretrain.run import build_engine

    rank, size = torch.distributed.get_rank(), torch.distributed.get_world_size()
    results = {}
    for name, overrides in runs.items():
        config = configure(overrides)
        engine = build_engine(config, Process(rank, size, torch.device("cpu")))
        results[name] = train_engine(engine, config)
        destroy_mesh()
    return results


def train_engine(engine, config: Config) -> Trained:
    """All steps, then one validation over the batch after the last."""
    from megatron_hyena.engine.state import read_state

    ranks = engine.mesh.data_rank, engine.mesh.data_size
    steps = [engine.train_step(micro_batches(config, s, *ranks)) for s in range(STEPS)]
    nats, weight = engine.evaluate(micro_batches(config, STEPS, *ranks))
    state = {name: kinds for name, kinds in read_state(engine)}
    return Trained(
        losses=[s.loss for s in steps],
        grad_norms=[s.grad_norm for s in steps],
        valid_loss=nats / weight,
        weights={name: kinds["weight"].detach().clone() for name, kinds in state.items()},
        dtypes={tensor.dtype for kinds in state.values() for tensor in kinds.values()},
    )


def train_dense(overrides: list[str]) -> Trained:
    """The same run in plain torch: one rank, one batch, no engine."""
    config = configure(overrides)
    model = HyenaGLT(config.model, seed=config.run.seed)
    optim = config.optim
    optimizer = torch.optim.AdamW(
        parameter_groups(model, optim), betas=(optim.beta1, optim.beta2), eps=optim.eps
    )

    def loss_of(step: int) -> Tensor:
        batch = global_batch(step, config.model.vocab_size)
        nll = model.token_losses(batch.input_ids, batch.targets)
        return (nll * batch.weights).sum() / batch.weights.sum()

    losses, norms = [], []
    for step in range(STEPS):
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, STEPS, optim) * group["lr_factor"]
        optimizer.zero_grad()
        loss = loss_of(step)
        loss.backward()
        norms.append(torch.nn.utils.clip_grad_norm_(model.parameters(), optim.grad_clip).item())
        optimizer.step()
        losses.append(loss.item())
    with torch.no_grad():
        valid = loss_of(STEPS).item()
    weights = {name: p.detach().clone() for name, p in model.named_parameters()}
    return Trained(losses, norms, valid, weights, {p.dtype for p in model.parameters()})

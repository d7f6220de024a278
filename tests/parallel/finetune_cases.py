"""Fine-tuning through the real engine, rank by rank, and the dense reference in plain torch."""

from __future__ import annotations

import os
from dataclasses import dataclass, fields, replace
from datetime import timedelta
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.func import functional_call

from megatron_hyena import HyenaGLT, HyenaGLTConfig
from megatron_hyena.config.finetune import load_finetune
from megatron_hyena.engine.schedule import learning_rate
from megatron_hyena.finetune.examples import Example, TaskData
from megatron_hyena.layers.parameter import cut_of

STEPS, BATCH, LENGTH = 6, 4, 45
MODEL = HyenaGLTConfig(
    pattern="SMLA",
    hidden_size=32,
    num_heads=4,
    num_filter_groups=4,
    vocab_size=128,
    mr_filter_length=17,
    ffn_hidden_size=48,
    tie_embeddings=False,
    init_std=0.2,
)
# The router sees bytes alone, so that rounding in one layout cannot open another chunk.
MERGED = replace(
    MODEL, pattern="S(LA)0.6M", window=8, router_input="trunk", adaptive=True, complexity="window"
)
KINDS = ("token_classification", "classification", "regression")
OPTIM = {"optim.lr": 3e-3, "optim.min_lr": 1e-3, "optim.warmup_steps": 2, "optim.grad_clip": 0.5}


@dataclass(frozen=True)
class Tuning:
    """A layout and a method."""

    tensor: int = 1
    context: int = 1
    data: int = 1
    sequence: bool = False
    zero: int = 1
    pieces: int = 1
    recompute: str = "none"
    method: str = "full"
    balance: str = "fixed"
    dropout: float = 0.0

    @property
    def size(self) -> int:
        """Ranks."""
        return self.tensor * self.context * self.data

    def __str__(self) -> str:
        differing = [f for f in fields(self) if getattr(self, f.name) != f.default]
        return "-".join(f"{f.name}{getattr(self, f.name)}" for f in differing) or "alone"


def task_data(kind: str) -> TaskData:
    """A few random sequences of unequal lengths; two of the labels of bases are missing."""
    generator = np.random.default_rng(KINDS.index(kind))
    examples = []
    for number in range(10):
        length = int(generator.integers(LENGTH // 3, LENGTH + 1))
        bases = generator.choice(np.frombuffer(b"ACGT", np.uint8), length)
        if kind == "token_classification":
            label = ((bases == ord("A")) + 2 * (bases == ord("G"))).astype(np.int16) % 3
            label[:2] = -100
        elif kind == "classification":
            label = np.array(int((bases == ord("C")).mean() > 0.25), dtype=np.int64)
        else:
            label = np.array([(bases == ord("T")).mean(), np.nan if number % 3 else length / 10],
                             dtype=np.float32)  # fmt: skip
        examples.append(Example(f"{kind} {number}", bases, label))
    if kind == "regression":
        return TaskData(kind, kind, ("share", "length"), examples, examples[:3], mean=0.5, std=2.0)
    weights = (0.5, 2.0, 1.0) if kind == "token_classification" else (1.0, 3.0)
    names = ("other", "a", "g")[: len(weights)]
    return TaskData(kind, kind, names, examples, examples[:3], class_weights=weights)


def configure(tuning: Tuning, folder: str):
    """The run's configuration; data are given apart from it."""
    lines = ["tasks:"]
    for kind in KINDS:
        pooling = "attention" if kind == "classification" else "mean"
        lines.append(
            f"- {{name: {kind}, kind: {kind}, table: unread.tsv, weight: {1 + KINDS.index(kind)},"
            f" head: {{dropout: {tuning.dropout}, pooling: {pooling}}}}}"
        )
    path = Path(folder) / f"run_{tuning}_{os.getpid()}.yaml"  # ranks write theirs at one time
    path.write_text("\n".join(lines))
    keys = OPTIM | {
        "finetune.from": folder,
        "finetune.method": tuning.method,
        "finetune.balance": tuning.balance,
        "finetune.unfreeze_every": 1,
        "finetune.layer_decay": 0.7 if tuning.method == "gradual" else 1.0,
        "finetune.head_lr_factor": 2.0,
        "finetune.temperature": 50.0,
        "parallel.tensor": tuning.tensor,
        "parallel.context": tuning.context,
        "parallel.sequence": tuning.sequence,
        "parallel.zero_stage": tuning.zero,
        "parallel.recompute": tuning.recompute,
        "data.sequence_length": -(-LENGTH // 16) * 16,
        "train.steps": STEPS,
        "train.global_batch_size": BATCH,
        "train.micro_batch_size": BATCH // tuning.data // tuning.pieces,
    }
    return load_finetune(path, [f"{key}={value}" for key, value in keys.items()])


@dataclass(frozen=True)
class Tuned:
    """What a run leaves; `weights` are whole tensors by name."""

    losses: list[float]
    grad_norms: list[float]
    weights: dict[str, Tensor]
    predictions: dict[str, list[np.ndarray]]


def tune_on_ranks(tunings: list[Tuning], folder: str) -> dict[Tuning, Tuned]:
    """On each rank: every run, one after the other."""
    from megatron_hyena.engine.state import whole_weights
    from megatron_hyena.finetune.source import find_source
    from megatron_hyena.parallel.mesh import destroy_mesh
    from megatron_hyena.runtime.process import Process
    from pretrain.finetune_build import build, steps_of
    from pretrain.finetune_events import predict

    process = Process(
        rank=torch.distributed.get_rank(),
        world_size=torch.distributed.get_world_size(),
        device=torch.device("cpu"),
        timeout=timedelta(seconds=300),
    )
    results = {}
    for tuning in tunings:
        config, tasks = configure(tuning, folder), {kind: task_data(kind) for kind in KINDS}
        built = build(config, find_source(folder), tasks, process)
        done = [built.engine.train_step(b) for _, b in steps_of(config, tasks, built, 0)]
        weights = dict(whole_weights(built.engine))
        told = {kind: predict(built, task, "valid", 2) for kind, task in tasks.items()}
        results[tuning] = Tuned(
            [step.loss for step in done],
            [step.grad_norm for step in done],
            {name: w.clone() for name, w in weights.items()},
            {kind: [found[n] for n in range(3)] for kind, found in told.items()},
        )
        destroy_mesh()
    return results


def resume_on_ranks(first: Tuning, then: Tuning, folder: str, saved: str) -> tuple[list, list]:
    """Losses behind the third step: straight on, and from its checkpoint in another layout."""
    from megatron_hyena.engine.saving import resume, save_checkpoint
    from megatron_hyena.finetune.source import find_source
    from megatron_hyena.parallel.mesh import destroy_mesh
    from megatron_hyena.runtime.process import Process
    from pretrain.finetune_build import build, steps_of

    process = Process(
        rank=torch.distributed.get_rank(),
        world_size=torch.distributed.get_world_size(),
        device=torch.device("cpu"),
        timeout=timedelta(seconds=300),
    )
    tasks = {kind: task_data(kind) for kind in KINDS}
    built = build(configure(first, folder), find_source(folder), tasks, process)
    straight = []
    for step, batches in steps_of(configure(first, folder), tasks, built, 0):
        straight.append(built.engine.train_step(batches).loss)
        if step == 2:
            path = save_checkpoint(built.engine, Path(saved))
    destroy_mesh()
    config = configure(then, folder)
    config = replace(config, checkpoint=replace(config.checkpoint, resume=str(path)))
    built = build(config, find_source(folder), tasks, process)
    assert resume(built.engine) == path
    steps = steps_of(config, tasks, built, 3)
    resumed = [built.engine.train_step(batches).loss for _, batches in steps]
    destroy_mesh()
    return straight[3:], resumed


class DenseHeads(torch.nn.Module):
    """Heads of the three kinds, written anew in plain torch from their saved weights."""

    def __init__(self, weights: dict[str, Tensor]) -> None:
        super().__init__()
        self.parameter_of = {name: torch.nn.Parameter(w.clone()) for name, w in weights.items()}

    def of(self, kind: str, part: str) -> Tensor:
        return self.parameter_of[f"heads.{kind}.{part}"]

    def affine(self, x: Tensor, kind: str, part: str) -> Tensor:
        return x @ self.of(kind, f"{part}.weight").T + self.of(kind, f"{part}.bias")

    def predict(self, kind: str, states: Tensor) -> Tensor:
        """States of one sequence [n, d], without padding."""
        if kind == "token_classification":
            return self.affine(states, kind, "classifier")
        if kind == "classification":
            shares = (states @ self.of(kind, "pool.score")).softmax(0)
            pooled = torch.tanh(self.affine(shares @ states, kind, "pooler"))
            return self.affine(pooled, kind, "classifier")
        return (
            self.affine(self.affine(states.mean(0), kind, "inner").relu(), kind, "output") * 2 + 0.5
        )

    def loss_and_weight(self, kind: str, told: Tensor, label: np.ndarray, weights) -> tuple:
        if kind == "regression":
            wanted = torch.from_numpy(label)
            given = ~wanted.isnan()
            return (((told - wanted)[given] / 2) ** 2).sum(), int(given.sum())
        classes = torch.from_numpy(np.atleast_1d(label).astype(np.int64))
        rows = told[None] if kind == "classification" else told
        each = torch.tensor(weights)[classes.clamp(min=0)] * (classes >= 0)
        nll = -rows.log_softmax(-1).gather(1, classes.clamp(min=0)[:, None])[:, 0]
        return (nll * each).sum(), float(each.sum())


def additions(folder: str) -> dict[str, tuple[torch.nn.Parameter, torch.nn.Parameter]]:
    """(A, B) of each matrix, as a run of LoRA starts with; by the matrix's name."""
    from megatron_hyena.finetune.lora import Lora

    section = configure(Tuning(method="lora"), folder).finetune
    lora = Lora(
        HyenaGLT.from_pretrained(folder), section.lora_rank, section.lora_alpha,
        section.lora_targets, seed=0,
    )  # fmt: skip
    parts = [
        (lora.names[id(w.get_param())], w.lora_A["default"].weight, w.lora_B["default"].weight)
        for w in lora._wrappers()
    ]
    return {
        n: (torch.nn.Parameter(a.detach()), torch.nn.Parameter(b.detach())) for n, a, b in parts
    }


def tune_dense(folder: str, method: str, balance: str, start: dict[str, Tensor]) -> Tuned:
    """The same in plain torch: sequence by sequence, from the heads in `start`."""
    from megatron_hyena.data.order import draw_key
    from megatron_hyena.finetune.batches import TrainingExamples
    from megatron_hyena.model.tasks import task_of_step, task_probabilities

    trunk = HyenaGLT.from_pretrained(folder)
    heads = DenseHeads({name: w for name, w in start.items() if name.startswith("heads.")})
    added = additions(folder) if method == "lora" else {}

    def states(example: Example) -> Tensor:
        ids = torch.from_numpy(example.bases.astype(np.int64))[None]
        changed = {n: trunk.get_parameter(n) + 2.0 * b @ a for n, (a, b) in added.items()}
        found: Tensor = functional_call(trunk, changed, (ids,)).last_hidden_state[0]
        return found

    log_variance = torch.nn.Parameter(torch.zeros(3))
    tasks = {kind: task_data(kind) for kind in KINDS}
    config = configure(Tuning(method=method, balance=balance), folder)
    groups = _groups(trunk, heads, log_variance, method, balance)
    for parameter in (p for pair in added.values() for p in pair):
        groups.append({"params": [parameter], "factor": 1.0, "begins": 0, "weight_decay": 0.1})
    optimizer = torch.optim.AdamW(groups, betas=(0.9, 0.95), eps=1e-8)
    moved = [p for group in groups for p in group["params"]]
    shown, losses, norms = dict.fromkeys(KINDS, 0), [], []
    for step in range(STEPS):
        kind = task_of_step(task_probabilities({k: 10 for k in KINDS}, 50.0), step, 0)
        stream = TrainingExamples(tasks[kind], draw_key(0, KINDS.index(kind)))
        total, count = torch.zeros(()), 0.0
        for place in range(shown[kind], shown[kind] + BATCH):
            example = stream.example(place)
            told = heads.predict(kind, states(example))
            loss, weight = heads.loss_and_weight(
                kind, told, example.label, tasks[kind].class_weights
            )
            total, count = total + loss, count + weight
        shown[kind] += BATCH
        balanced = _balanced(total / count, kind, balance, log_variance)
        waiting = [g for g in groups if g["begins"] > step]
        for parameter in moved:
            parameter.grad = torch.zeros_like(parameter)
        balanced.backward()
        for group in waiting:
            for parameter in group["params"]:
                parameter.grad = None
        norms.append(torch.nn.utils.clip_grad_norm_(moved, config.optim.grad_clip).item())
        for group, own in zip(optimizer.param_groups, groups, strict=True):
            group["lr"] = learning_rate(step, STEPS, config.optim) * own["factor"]
        optimizer.step()
        losses.append(balanced.item())
    with torch.no_grad():
        predictions = {
            kind: [heads.predict(kind, states(example)).numpy() for example in task.valid]
            for kind, task in tasks.items()
        }
    weights = {f"trunk.{name}": p.detach() for name, p in trunk.named_parameters()}
    if method == "lora":  # its names are peft's
        weights = {}
    weights |= {name: p.detach() for name, p in heads.parameter_of.items()}
    return Tuned(losses, norms, weights, predictions)


def tune_modules(folder: str, tuning: Tuning) -> Tuned:
    """The same by the dense `TaskModel`, batch by batch: with its dropout and its merging."""
    from megatron_hyena.data.order import draw_key
    from megatron_hyena.engine.groups import parameter_groups
    from megatron_hyena.finetune.batches import TrainingExamples
    from megatron_hyena.model.task_model import TaskModel
    from megatron_hyena.model.tasks import task_of_step, task_probabilities
    from megatron_hyena.model.unfreezing import set_method
    from pretrain.finetune_build import head_of

    config, tasks = configure(tuning, folder), {kind: task_data(kind) for kind in KINDS}
    trunk = HyenaGLT.from_pretrained(folder)
    heads = {section.name: head_of(section, tasks[section.name]) for section in config.all_tasks}
    model = TaskModel(trunk, heads)
    set_method(model, tuning.method, head_lr_factor=2.0)
    groups = parameter_groups(model, config.optim)
    optimizer = torch.optim.AdamW(groups, betas=(0.9, 0.95), eps=1e-8)
    moved = [p for p in model.parameters() if p.requires_grad]
    shown, losses, norms = dict.fromkeys(KINDS, 0), [], []
    for step in range(STEPS):
        kind = task_of_step(task_probabilities({k: 10 for k in KINDS}, 50.0), step, 0)
        stream = TrainingExamples(tasks[kind], draw_key(0, KINDS.index(kind)))
        (batch,) = stream.batches(shown[kind], BATCH, 1)
        shown[kind] += BATCH
        model.begin(kind, step)
        found = model.weighted_losses(batch.input_ids, batch.targets, batch.weights)
        found = found / batch.weights.sum()
        optimizer.zero_grad()
        found.sum().backward()
        norms.append(torch.nn.utils.clip_grad_norm_(moved, config.optim.grad_clip).item())
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, STEPS, config.optim) * group["lr_factor"]
        optimizer.step()
        trunk.after_step()
        losses.append(found[0].item())
    return Tuned(losses, norms, {n: p.detach() for n, p in model.named_parameters()}, {})


def _balanced(mean: Tensor, kind: str, balance: str, log_variance: Tensor) -> Tensor:
    """A task's mean loss, weighted."""
    if balance == "fixed":
        return mean * (1 + KINDS.index(kind))
    s = log_variance[KINDS.index(kind)]
    return torch.exp(-s) * mean * (0.5 if kind == "regression" else 1.0) + s / 2


def _groups(trunk: HyenaGLT, heads: DenseHeads, log_variance, method: str, balance: str) -> list:
    """One group for each parameter that moves: decay, rate and first step."""
    groups = []

    def add(parameter, factor: float, begins: int, decay: bool) -> None:
        groups.append({"params": [parameter], "factor": factor, "begins": begins,
                       "weight_decay": 0.1 if decay else 0.0})  # fmt: skip

    for name, parameter in heads.parameter_of.items():
        add(parameter, 2.0, 0, not name.endswith("bias"))
    if balance == "uncertainty":
        add(log_variance, 2.0, 0, False)
    if method in ("frozen", "lora"):
        trunk.requires_grad_(False)
        return groups
    depth = len(MODEL.signs)
    for name, parameter in trunk.named_parameters():
        part, _, rest = name.partition(".")
        if part == "head":
            continue
        above = depth - 1 - int(rest.partition(".")[0]) if part == "blocks" else 0
        above = depth - 1 if part == "embedding" else above
        gradual = method == "gradual"
        decay = cut_of(parameter).role == "matrix"
        add(parameter, 0.7**above if gradual else 1.0, above + 1 if gradual else 0, decay)
    return groups


def relative(found: Tensor, wanted: Tensor) -> float:
    """Largest difference over the largest value."""
    return float((found - wanted).abs().max() / wanted.abs().max().clamp(min=1e-9))

"""What a fine-tuning run is: its own sections, those it shares with pretraining, and its rules."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path

from megatron_hyena.config.checks import check_layout
from megatron_hyena.config.model import SEQUENCE_TYPES, HyenaGLTConfig
from megatron_hyena.config.sections import (
    CheckpointSection,
    Config,
    DataSection,
    LogSection,
    OptimSection,
    ParallelSection,
    RunSection,
    TrainSection,
    require,
)
from megatron_hyena.errors import UserError
from megatron_hyena.yaml_sections import load_sections

METHODS = ("full", "frozen", "gradual", "lora")
KINDS = ("classification", "token_classification", "regression")
LOSSES, POOLINGS = ("mse", "huber", "poisson"), ("mean", "cls", "last", "max", "attention")
METRICS = {
    "classification": ("mcc", "accuracy", "f1", "auroc", "loss"),
    "token_classification": ("mcc", "accuracy", "f1", "auroc", "loss"),
    "regression": ("spearman", "pearson", "r2", "loss"),
}
"""By kind of task what is measured; the first chooses the best checkpoint."""
FEATURES = {
    "coding": 3,
    "coding_plus": 1,
    "coding_minus": 2,
    "trna": 4,
    "rrna": 8,
    "other_rna": 16,
    "rna": 28,
    "gene": 32,
    "repeat": 64,
    "exon": 128,
}
"""Classes that a genome store's track `features` can give, and the flags that mark them."""


@dataclass(frozen=True)
class FinetuneSection:
    """What is trained, from what, and what counts as best."""

    from_: str = ""
    """Where the weights come from: a run folder, one checkpoint, a folder of `save_pretrained`, or
    another fine-tuning run, whose best is taken."""
    random: bool = False
    """Take the architecture of `finetune.from` with random weights: what pretraining is compared
    with."""
    heads: str = "new"
    """`new` heads, or `keep` those of `finetune.from`, which must have one for each task."""
    method: str = "full"
    """`full` trains all weights, `frozen` the heads alone, `gradual` unfreezes one block after the
    other from the top, `lora` trains low-rank additions to the projections (needs peft)."""
    unfreeze_every: int = 100
    """Of `gradual`: steps until the next block; the embedding goes with the first one."""
    layer_decay: float = 1.0
    """Factor on the learning rate from each block to the one below it."""
    head_lr_factor: float = 1.0
    """Factor on the learning rate of the heads."""
    lora_rank: int = 8
    """Rank of the additions."""
    lora_alpha: float = 16.0
    """The additions are scaled by this over the rank."""
    lora_targets: tuple[str, ...] = ("projection", "output", "gate_value")
    """Matrices of the blocks that get an addition, by the last word of their names."""
    balance: str = "fixed"
    """How the losses of several tasks are weighed: `fixed` by each task's `weight`, or
    `uncertainty`, learned."""
    temperature: float = 1.0
    """Of several tasks, each step draws one with a probability of examples^(1 / temperature)."""
    metric: str = ""
    """What chooses the best checkpoint; empty for `mcc` of classes and `spearman` of numbers. Of
    several tasks, the mean."""
    patience: int = 0
    """Stop after so many validations without a better one; 0 never."""

    def __post_init__(self) -> None:
        for name, known in (("method", METHODS), ("heads", ("new", "keep"))):
            _one_of(f"finetune.{name}", getattr(self, name), known)
        _one_of("finetune.balance", self.balance, ("fixed", "uncertainty"))
        for name in ("unfreeze_every", "lora_rank"):
            require(getattr(self, name) >= 1, f"finetune.{name} must be 1 or more")
        for name in ("head_lr_factor", "lora_alpha", "temperature"):
            require(getattr(self, name) > 0, f"finetune.{name} must be greater than 0")
        require(0 < self.layer_decay <= 1, "finetune.layer_decay must be above 0 and at most 1")
        require(self.patience >= 0, "finetune.patience must be 0 or more")
        require(
            not (self.random and self.heads == "keep"),
            "finetune.random=true forgets the weights, and finetune.heads=keep keeps some; set one",
        )


@dataclass(frozen=True)
class HeadSection:
    """What turns the states of a sequence into predictions; see `megatron_hyena.model.heads`."""

    dropout: float = 0.1
    """Before the last layer."""
    pooling: str = "mean"
    """From bases to a sequence: mean, cls, last, max or attention."""
    loss: str = "mse"
    """Of numbers: `mse`, `huber` or `poisson` (counts)."""
    delta: float = 1.0
    """Of `huber`: where it becomes linear, in standard deviations of the training targets."""

    def __post_init__(self) -> None:
        _one_of("head.loss", self.loss, LOSSES)
        _one_of("head.pooling", self.pooling, POOLINGS)
        require(0 <= self.dropout < 1, f"head.dropout={self.dropout} is not in [0, 1)")
        require(self.delta > 0, "head.delta must be greater than 0")


@dataclass(frozen=True)
class TaskSection:
    """One task: where its labels are, and its head."""

    name: str = "task"
    """Name in metrics and files."""
    kind: str = "classification"
    """`classification` (a class per sequence), `token_classification` (a class per base) or
    `regression` (numbers per sequence)."""
    table: str = ""
    """Labels: a table with a header, set apart by tabs (`.csv`: commas), plain or gzip."""
    sequence_column: str = "sequence"
    """Column with the bases; not used with `fasta`."""
    label_column: str = "label"
    """Column with the label; for several numbers, columns parted by commas. Of tokens, one
    character per base, `.` for none."""
    name_column: str = "name"
    """Column that names the rows; needed with `fasta`, where it names the record."""
    split_column: str = "split"
    """Column that says train, valid or test; without it, splits are drawn."""
    fasta: str = ""
    """Sequences of the table's rows, by name."""
    store: str = ""
    """Labels per base: a genome store, whose track `features` is read."""
    annotation: str = ""
    """GFF3, GTF, GenBank or BED (`TYPE=FILE`) to read instead of the store's own track."""
    shards: str = ""
    """Labels per base: a folder with the shards of `train`, `valid` and `test`, written by
    `tools.make_shards --features`, whose splits are taken."""
    features: tuple[str, ...] = ("coding",)
    """Classes of a store or shards, the first that fits counts: coding, coding_plus, coding_minus,
    trna, rrna, other_rna, rna, gene, repeat, exon. All else is class `other`, number 0."""
    valid_contigs: tuple[str, ...] = ()
    """Contigs of the store to validate on; empty for the end of each, as in `tools.make_shards`."""
    test_contigs: tuple[str, ...] = ()
    """Contigs of the store to test on."""
    classes: tuple[str, ...] = ()
    """Labels in the order of their numbers; empty for those in training, sorted."""
    class_weights: str = "none"
    """Weights of classes in the loss: `none`, `balanced` (each class weighs the same), or numbers
    parted by commas."""
    weight: float = 1.0
    """Fixed factor on the loss, among several tasks."""
    head: HeadSection = field(default_factory=HeadSection)

    def __post_init__(self) -> None:
        here = f"task {self.name!r}:"
        _one_of(f"{here} kind", self.kind, KINDS)
        require(self.weight > 0, f"{here} weight={self.weight} must be greater than 0")
        for name in self.features:
            _one_of(f"{here} features", name, tuple(FEATURES))
        require(
            bool(self.name) and not {*self.name} & {*"./ "},
            f"{here} a name needs a letter and has no dot, slash or blank",
        )


@dataclass(frozen=True)
class LabelSection:
    """How labelled sequences are cut, split and shown."""

    sequence_length: int = 1024
    """Longest sequence; a genome store is cut into windows of it."""
    truncate: bool = False
    """Cut longer sequences of a table to `data.sequence_length` instead of refusing them."""
    type: str = ""
    """For a model that knows types of sequence (`model.type_embedding`): what these are, `dna`,
    `rna`, `protein` or `mixed`; empty for what the model takes for granted."""
    upper_case: bool = False
    """Show upper case alone."""
    reverse_complement: bool = False
    """Read each training sequence from a strand drawn at random; labels per base turn round, and
    `coding_plus` and `coding_minus` change places."""
    valid_fraction: float = 0.1
    """Without a split column: share of the sequences, by a hash of their letters, so that equal
    ones stay together; of a store, of the end of each contig."""
    test_fraction: float = 0.1
    """The same for testing."""
    duplicates: str = "refuse"
    """Equal sequences in two splits: `refuse`, `drop` them from training (and validation), or
    `keep`."""

    def __post_init__(self) -> None:
        require(self.sequence_length >= 2, "data.sequence_length must be 2 or more")
        _one_of("data.type", self.type, ("", *SEQUENCE_TYPES))
        _one_of("data.duplicates", self.duplicates, ("refuse", "drop", "keep"))
        shares = (self.valid_fraction, self.test_fraction)
        require(
            min(shares) >= 0 and sum(shares) < 1,
            f"data.valid_fraction={shares[0]} and data.test_fraction={shares[1]} must be 0 or "
            "more and leave something to train on",
        )


@dataclass(frozen=True)
class FinetuneConfig:
    """A whole fine-tuning run."""

    run: RunSection = field(default_factory=lambda: RunSection(output_dir="runs/finetuned"))
    finetune: FinetuneSection = field(default_factory=FinetuneSection)
    task: TaskSection = field(default_factory=TaskSection)
    tasks: list[TaskSection] = field(default_factory=list)
    parallel: ParallelSection = field(default_factory=ParallelSection)
    data: LabelSection = field(default_factory=LabelSection)
    train: TrainSection = field(default_factory=TrainSection)
    optim: OptimSection = field(default_factory=OptimSection)
    checkpoint: CheckpointSection = field(default_factory=CheckpointSection)
    log: LogSection = field(default_factory=LogSection)

    @property
    def all_tasks(self) -> list[TaskSection]:
        """The tasks of `tasks`, else the one of `task`."""
        return self.tasks or [self.task]


def load_finetune(path: str | Path | None, overrides: Iterable[str] = ()) -> FinetuneConfig:
    """Read and check a fine-tuning run's configuration; errors as `config.load_config`."""
    config = load_sections(FinetuneConfig, path, overrides, "configs/run/finetune_*.yaml")
    for task in config.all_tasks:
        _check_task(task)
    _check_whole(config)
    return config


def run_config(config: FinetuneConfig, model: HyenaGLTConfig) -> Config:
    """The same run as the engine and the layout rules know it."""
    if config.data.type:
        model = replace(model, type_embedding=config.data.type)
    typed = model.type_embedding != "none"
    return Config(
        run=config.run,
        model=model,
        parallel=config.parallel,
        data=DataSection(
            sequence_length=config.data.sequence_length, tracks=("type",) if typed else ()
        ),
        train=replace(config.train, objective="clm" if model.causal else "mlm"),
        optim=config.optim,
        checkpoint=config.checkpoint,
        log=config.log,
    )


def check_finetune(config: FinetuneConfig, model: HyenaGLTConfig, world_size: int) -> None:
    """Refuse what cannot be trained on `world_size` ranks; raises UserError."""
    parallel, stages = config.parallel, "(" in model.pattern
    if config.finetune.method == "lora" and (parallel.tensor > 1 or parallel.zero_stage == 3):
        raise UserError(
            "finetune.method=lora adds to whole matrices, but parallel.tensor="
            f"{parallel.tensor} and parallel.zero_stage={parallel.zero_stage} share them out; set "
            "parallel.tensor=1 and parallel.zero_stage to 0, 1 or 2 (data and context ranks may "
            "be many)"
        )
    if stages and model.merger == "precomputed":
        raise UserError(
            "model.merger=precomputed reads chunks from the track boundaries, which labelled "
            "sequences do not have; fine-tune a model whose merger finds them"
        )
    if config.data.type and model.type_embedding == "none":
        raise UserError(
            f"data.type={config.data.type}, but the model knows no types of sequence "
            "(model.type_embedding=none); leave data.type out"
        )
    check_layout(run_config(config, model), world_size)


def _check_task(task: TaskSection) -> None:
    here = f"task {task.name!r}:"
    named = [name for name in ("table", "store", "shards") if getattr(task, name)]
    if len(named) != 1:
        what = " and ".join(named) if named else "neither table, store nor shards"
        raise UserError(f"{here} has {what}; name the one that holds its labels")
    if not task.table and task.kind != "token_classification":
        raise UserError(
            f"{here} kind={task.kind} has a label per sequence, and {named[0]} gives one per base; "
            "set kind=token_classification or give a table"
        )
    if not task.store and (task.annotation or task.valid_contigs or task.test_contigs):
        raise UserError(
            f"{here} annotation, valid_contigs and test_contigs are of a genome store, and "
            f"{named[0]} has labels and splits of its own; leave them out"
        )
    if task.kind == "regression" and (task.classes or task.class_weights != "none"):
        raise UserError(f"{here} kind=regression has no classes; leave classes and weights out")
    if "," in task.label_column and task.kind != "regression":
        raise UserError(f"{here} label_column={task.label_column} is several; name one column")


def _check_whole(config: FinetuneConfig) -> None:
    names = [task.name for task in config.all_tasks]
    twice = [name for name in names if names.count(name) > 1]
    if twice:
        raise UserError(f"two tasks are named {twice[0]!r}; give each its own name")
    if config.tasks and config.task != TaskSection():
        raise UserError("task and tasks are both given; write all tasks into the list tasks")
    if not config.finetune.from_:
        raise UserError(
            "finetune.from is empty; name the run folder, checkpoint or save_pretrained folder "
            "to start from"
        )
    for task in config.all_tasks:
        if config.finetune.metric:
            _one_of(f"finetune.metric of a {task.kind}", config.finetune.metric, METRICS[task.kind])


def _one_of(name: str, value: str, known: tuple[str, ...]) -> None:
    *most, last = known
    require(value in known, f"{name}={value!r} is unknown; use {', '.join(most)} or {last}")

"""The sections of a run's configuration: frozen, small, free of torch and of input/output.

The string under a field is its documentation; `docs/configuration.md` is generated from it.
Rules about one section are in its `__post_init__`; rules that span sections are in `checks`.
"""

from __future__ import annotations

from dataclasses import dataclass, field, fields

from megatron_hyena.config.model import HyenaGLTConfig
from megatron_hyena.config.pattern import SIGNS, chooses
from megatron_hyena.errors import UserError


def require(condition: bool, message: str) -> None:
    """Raise `UserError(message)` unless `condition` holds."""
    if not condition:
        raise UserError(message)


@dataclass(frozen=True)
class RunSection:
    """Which run this is."""

    output_dir: str = "runs/default"
    """Folder of the run: configuration, metrics, TensorBoard events, checkpoints, plots."""
    seed: int = 0
    """Seed of the initial weights and of the order of the data; a run is a function of it."""


@dataclass(frozen=True)
class ExchangeSection:
    """What each kind of layer exchanges between context-parallel ranks; empty takes the first
    exchange of its list that the layout allows."""

    S: str = ""
    """Hyena-SE: `halo` fetches the last taps of the ranks to the left, `all_to_all` trades
    sequence for channels."""
    M: str = ""
    """Hyena-MR: `halo` or `all_to_all`."""
    L: str = ""
    """Hyena-LI: `state` hands on the modal state of each stretch, or `all_to_all`."""
    H: str = ""
    """Hyena of order N: only `all_to_all`."""
    G: str = ""
    """Hyena of order N with genomic branches: only `all_to_all`; its branches use a halo and a
    state besides."""
    A: str = ""
    """Attention: `all_to_all` over heads, or `all_gather` of keys and values."""
    W: str = ""
    """Sliding-window attention: only `halo`, the keys and values of the window."""

    def __post_init__(self) -> None:
        for sign in (f.name for f in fields(self)):
            name, known = getattr(self, sign), SIGNS[sign].exchanges
            require(
                name == "" or name in known,
                f"parallel.exchange.{sign}={name!r} is unknown; use {' or '.join(known)}, or "
                "leave it empty",
            )


@dataclass(frozen=True)
class ParallelSection:
    """How one model is spread over ranks; data-parallel ranks are what is left over."""

    tensor: int = 1
    """Ranks that share each layer's channels, heads and filter groups (tensor parallelism)."""
    sequence: bool = False
    """Between layers, each tensor rank keeps a slice of the sequence (Megatron's sequence
    parallelism): less memory, the same traffic. Needs `parallel.tensor` of 2 or more."""
    context: int = 1
    """Ranks that share one sequence, each of them an equal stretch (context parallelism)."""
    zero_stage: int = 1
    """DeepSpeed ZeRO stage 0 to 3: what data-parallel ranks share out (1 optimizer state,
    2 and gradients, 3 and parameters)."""
    recompute: str = "none"
    """`block` stores only each block's input and computes the rest again in the backward
    pass (activation checkpointing); signs of `model.pattern`, such as `A` or `SM`, do so for
    blocks of these kinds only; `none` stores everything."""
    exchange: ExchangeSection = field(default_factory=ExchangeSection)

    def __post_init__(self) -> None:
        require(self.tensor >= 1, "parallel.tensor must be 1 or more")
        require(self.context >= 1, "parallel.context must be 1 or more")
        require(self.zero_stage in (0, 1, 2, 3), "parallel.zero_stage must be 0, 1, 2 or 3")
        signs = set(self.recompute)
        require(
            self.recompute in ("none", "block")
            or (0 < len(signs) == len(self.recompute) and signs <= set(SIGNS)),
            f"parallel.recompute={self.recompute!r} is unknown; use none, block, or signs of "
            "model.pattern, each once, such as SM",
        )

    def recomputes(self, sign: str) -> bool:
        """Whether blocks of kind `sign` are computed again in the backward pass."""
        return chooses(self.recompute, sign)


@dataclass(frozen=True)
class DataSection:
    """Where the bytes come from."""

    train: str = "corpus/shards/train"
    """Folder of shards, or a glob of such folders, to train on; several corpora are parted by
    commas, `dna/shards/train,proteins/shards/train`, and mixed in proportion to their size but
    for `data.weights` and `data.temperature`. `s3://…`, `http://…` and `https://…` name folders
    of a store."""
    weights: tuple[float, ...] = ()
    """Share of each corpus that `data.train` names, such as `[0.7, 0.3]`, in any unit; empty for
    the proportion of sizes. With stages, the shares of one stage after the other."""
    stages: tuple[int, ...] = ()
    """Steps at which the next row of `data.weights` begins to hold; empty for one row."""
    temperature: float = 1.0
    """Without `data.weights`, corpora have shares of size^(1 / temperature): 1 is in proportion,
    more gives small corpora more."""
    valid: str = ""
    """Folders of shards to validate on; empty for none."""
    test: str = ""
    """Folders of shards that `pretrain.evaluate` scores; empty for none."""
    tracks: tuple[str, ...] = ()
    """What to read beside the bases: tracks that the shards hold, such as `conservation`, their
    labels, `features`, which come with each batch for heads to learn and no model reads, and
    `type`, the sequence type of each byte (0 DNA, 1 RNA, 2 protein, 3 mixed), which all shards
    tell."""
    sequence_length: int = 1024
    """Bases in one training sequence."""
    reverse_complement: bool = True
    """Read each training window (with `data.pack`, each document) of DNA from a strand drawn at
    random, a pure function of the seed; RNA and protein are always read as they stand."""
    pack: bool = False
    """Fill training sequences with documents laid end to end (contigs, or their stretches between
    long runs of N), none of which sees another, so that short ones cost no padding; `false` cuts
    each sequence from one document and fills it up with padding where the document ends."""
    soft_mask_weight: float = 0.1
    """Weight in the training loss of a base in lower case, which marks repeats; 1 for all bases
    alike. Validation and evaluation weigh all bases alike."""
    upper_case: bool = False
    """Show and ask of the model upper case alone; `false` keeps case as it is in the shards."""
    shuffle_among: int = 0
    """Sequences that are shuffled among one another, from 16 stretches of neighbours at a time, so
    that few shards are needed at once; 0 shuffles all of an epoch. For shards of a store that do
    not fit into `data.cache_gigabytes`."""
    workers: int = 1
    """Threads that prepare batches ahead on each rank; 0 prepares them when they are needed."""
    mask_fraction: float = 0.15
    """With `train.objective=mlm`, the share of the known bases that are to be predicted; of them
    80 % are hidden, 10 % replaced by a base drawn from the window, 10 % shown as they are."""
    mask_span: int = 1
    """Neighbouring bases that are chosen together."""
    cache_dir: str = ""
    """Where shards of a store are kept, best on a disk of the machine itself; empty for
    `megatron-hyena/shards` in the user's cache directory (`$XDG_CACHE_HOME`, or `~/.cache`)."""
    cache_gigabytes: float = 0.0
    """10⁹ bytes of shards to keep there at most, besides what is being fetched; those used longest
    ago go first. 0 for no bound."""
    on_corrupt: str = "stop"
    """What a shard of `data.train` does that differs from its index or cannot be had: `stop` ends
    the run with its name, `skip` goes on, shows its bases as padding, which no loss counts, and
    counts them in `summary.json`. Ranks that share a sequence (`parallel.tensor`,
    `parallel.context`) could disagree, so `skip` is for one rank per sequence."""

    def __post_init__(self) -> None:
        require(self.sequence_length >= 2, "data.sequence_length must be 2 or more")
        require(
            0 < self.mask_fraction < 1,
            f"data.mask_fraction={self.mask_fraction} is not in (0, 1)",
        )
        require(self.mask_span >= 1, "data.mask_span must be 1 or more")
        require(
            0 <= self.soft_mask_weight <= 1,
            f"data.soft_mask_weight={self.soft_mask_weight} is not in [0, 1]",
        )
        for name in ("workers", "shuffle_among"):
            require(getattr(self, name) >= 0, f"data.{name} must be 0 or more")
        require(self.temperature > 0, "data.temperature must be greater than 0")
        require(
            not self.weights or self.temperature == 1,
            f"data.weights and data.temperature={self.temperature} both choose shares; keep one",
        )
        require(
            list(self.stages) == sorted({*self.stages} - {0}) and min(self.stages, default=1) > 0,
            f"data.stages={list(self.stages)} must be rising steps above 0",
        )
        require(
            not self.stages or len(self.weights) % (len(self.stages) + 1) == 0 < len(self.weights),
            f"data.weights has {len(self.weights)} numbers, which are not {len(self.stages) + 1} "
            "rows of one share for each corpus, as data.stages wants; give a row for each stage",
        )
        require(self.cache_gigabytes >= 0, "data.cache_gigabytes must be 0 (no bound) or more")
        require(
            self.on_corrupt in ("stop", "skip"),
            f"data.on_corrupt={self.on_corrupt!r} is unknown; use stop or skip",
        )
        twice = [name for name in self.tracks if self.tracks.count(name) > 1]
        require(not twice, f"data.tracks names {''.join(twice[:1])!r} twice; keep one")


@dataclass(frozen=True)
class CurriculumSection:
    """Training that begins with short sequences: each of `data.sequence_length` is shown in equal
    pieces, so bytes, targets and tokens of a step stay; see `config.curriculum`."""

    initial_length: int = 0
    """Bases in a sequence of the first step; 0 for no curriculum. It must divide
    `data.sequence_length` and be a multiple of what the layout and the model need."""
    growth: str = "linear"
    """How the length grows: `linear` in the step, or `doubling` after equally many steps each;
    rounded down to a multiple of `initial_length` that divides `data.sequence_length`."""
    steps: int = 0
    """Steps until sequences have their full length; 0 takes half of `train.steps`."""

    def __post_init__(self) -> None:
        for name in ("initial_length", "steps"):
            require(getattr(self, name) >= 0, f"curriculum.{name} must be 0 or more")
        require(self.initial_length != 1, "curriculum.initial_length must be 0 (none), 2 or more")
        require(
            self.growth in ("linear", "doubling"),
            f"curriculum.growth={self.growth!r} is unknown; use linear or doubling",
        )
        require(
            self.initial_length > 0 or self.steps == 0,
            f"curriculum.steps={self.steps} without curriculum.initial_length; set both or neither",
        )


@dataclass(frozen=True)
class TrainSection:
    """How long, how much at once, how exactly."""

    steps: int = 1000
    """Optimizer steps of the whole schedule."""
    objective: str = "clm"
    """`clm` predicts each byte from those before it; `mlm`, for `model.causal=false`, predicts
    chosen bytes, most of them hidden, from both sides (see `data.mask_fraction`)."""
    stop_after: int = 0
    """Stop, saved, after this step of the same schedule; 0 runs to the end."""
    global_batch_size: int = 8
    """Sequences in one optimizer step, over all ranks."""
    micro_batch_size: int = 1
    """Sequences a rank computes at once; the rest is accumulated."""
    precision: str = "fp32"
    """`fp32`, or `bf16`: matrix products in bfloat16 over fp32 parameters; filters, norms'
    statistics, gates of the long convolutions and the loss stay in fp32."""
    valid_every: int = 0
    """Validate every so many steps; 0 only at the end."""
    valid_sequences: int = 32
    """Validation windows scored each time, spread over the validation split; 0 means all."""

    def __post_init__(self) -> None:
        for name in ("steps", "global_batch_size", "micro_batch_size"):
            require(getattr(self, name) >= 1, f"train.{name} must be 1 or more")
        for name in ("stop_after", "valid_every", "valid_sequences"):
            require(getattr(self, name) >= 0, f"train.{name} must be 0 or more")
        require(
            self.objective in ("clm", "mlm"),
            f"train.objective={self.objective!r} is unknown; use clm or mlm",
        )
        require(
            self.precision in ("fp32", "bf16"),
            f"train.precision={self.precision!r} is unknown; use fp32 or bf16",
        )


@dataclass(frozen=True)
class OptimSection:
    """AdamW with linear warm-up and cosine decay."""

    lr: float = 1e-3
    """Peak learning rate."""
    min_lr: float = 1e-4
    """Learning rate at the end of the schedule."""
    warmup_steps: int = 100
    """Steps of linear warm-up."""
    weight_decay: float = 0.1
    """Decoupled weight decay of matrices; norms, biases, filters and routers have none."""
    beta1: float = 0.9
    """Decay of the first moment."""
    beta2: float = 0.95
    """Decay of the second moment."""
    eps: float = 1e-8
    """Added to the root of the second moment."""
    grad_clip: float = 1.0
    """Largest norm of the gradient of all parameters together; 0 for no clipping."""
    filter_lr_factor: float = 1.0
    """Factor on the learning rate of filter taps, modes and skips."""
    router_lr_factor: float = 0.3
    """Factor on the learning rate of the routers of merged stages: slower routers keep their rate
    more closely."""

    def __post_init__(self) -> None:
        require(self.lr > 0, "optim.lr must be greater than 0")
        require(0 <= self.min_lr <= self.lr, "optim.min_lr must lie between 0 and optim.lr")
        factors = ("filter_lr_factor", "router_lr_factor")
        for name in ("warmup_steps", "weight_decay", "grad_clip", *factors):
            require(getattr(self, name) >= 0, f"optim.{name} must be 0 or more")
        for name in ("beta1", "beta2"):
            require(0 <= getattr(self, name) < 1, f"optim.{name} must be at least 0 and below 1")
        require(self.eps > 0, "optim.eps must be greater than 0")


@dataclass(frozen=True)
class CheckpointSection:
    """What is saved, and where a run starts from."""

    every: int = 500
    """Save every so many steps, and at the end; 0 only at the end."""
    keep: int = 2
    """Newest checkpoints to keep; 0 keeps all."""
    resume: str = "auto"
    """`auto` goes on from the newest complete checkpoint of the run, `none` starts anew, a
    path starts from that checkpoint."""

    def __post_init__(self) -> None:
        for name in ("every", "keep"):
            require(getattr(self, name) >= 0, f"checkpoint.{name} must be 0 or more")
        require(bool(self.resume), "checkpoint.resume is empty; use auto, none or a path")


@dataclass(frozen=True)
class LogSection:
    """What is written down."""

    every: int = 10
    """Steps between logged lines."""

    def __post_init__(self) -> None:
        require(self.every >= 1, "log.every must be 1 or more")


@dataclass(frozen=True)
class Config:
    """A whole run."""

    run: RunSection = field(default_factory=RunSection)
    model: HyenaGLTConfig = field(default_factory=HyenaGLTConfig)
    parallel: ParallelSection = field(default_factory=ParallelSection)
    data: DataSection = field(default_factory=DataSection)
    curriculum: CurriculumSection = field(default_factory=CurriculumSection)
    train: TrainSection = field(default_factory=TrainSection)
    optim: OptimSection = field(default_factory=OptimSection)
    checkpoint: CheckpointSection = field(default_factory=CheckpointSection)
    log: LogSection = field(default_factory=LogSection)

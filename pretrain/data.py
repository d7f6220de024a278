"""The batches of a run. Opened, and found good, before the expensive imports."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from itertools import chain
from typing import TYPE_CHECKING

import numpy as np

from megatron_hyena.config.curriculum import length_schedule
from megatron_hyena.config.merging import merging_multiple
from megatron_hyena.data.batch import Batch, Case
from megatron_hyena.data.blend import BlendedStream, by_weight, tempered, within
from megatron_hyena.data.corrupt import CorruptShards
from megatron_hyena.data.loader import BatchIterator, evaluation_batches
from megatron_hyena.data.masking import TRAINING, VALIDATION, Masking
from megatron_hyena.data.order import draw_key
from megatron_hyena.data.packing import PackedStream
from megatron_hyena.data.shard_cache import ShardCache
from megatron_hyena.data.shard_reader import open_runs
from megatron_hyena.data.sources import ShardSource
from megatron_hyena.data.stream import RunStream, TrainingStream
from megatron_hyena.data.window import check_tracks
from megatron_hyena.data.windows import ChosenWindows, SequentialWindows, WindowStream
from megatron_hyena.errors import UserError

if TYPE_CHECKING:
    from megatron_hyena.config import Config
    from megatron_hyena.parallel.mesh import Mesh


@dataclass(frozen=True)
class Data:
    """The windows of a run, the same on every rank; `valid` is None without `data.valid`."""

    train: TrainingStream
    valid: ChosenWindows | None
    corrupt: CorruptShards
    """What this rank met of shards of `data.train` that are left out."""


def open_data(config: Config) -> Data:
    """Open the shards; their checksums are verified, of a store's when they are fetched.

    `data.pack` chooses the order of training only: validation keeps windows of one run each.
    Packed documents begin where merged stages can have them begin.

    Raises:
        UserError: a missing or damaged shard or track, or fewer sequences than one global batch.
    """
    cache = ShardCache(config.data.cache_dir, config.data.cache_gigabytes)
    corrupt = CorruptShards(config.data.on_corrupt)
    stream = _training_stream(config, ShardSource(config.data.train, cache, corrupt))
    stream.check_global_batch(config.train.global_batch_size)
    if not config.data.valid:
        return Data(stream, None, corrupt)
    windows = SequentialWindows(
        ShardSource(config.data.valid, cache),
        config.data.sequence_length,
        context=1,
        tracks=config.data.tracks,
    )
    return Data(stream, ChosenWindows(windows, config.train.valid_sequences), corrupt)


def _training_stream(config: Config, source: ShardSource) -> TrainingStream:
    """One stream over all corpora, or, where their shares are chosen, a blend of several.

    `data.weights` and `data.temperature` choose the shares of the corpora that `data.train` names.
    Shards of different weights are streams of their own: a base of weight 2 is shown twice as
    often as one of weight 1 within the same corpus, and in all where nothing else is chosen.
    """
    data, seed = config.data, config.run.seed
    kind: Callable[..., RunStream] = WindowStream
    if data.pack:
        kind = partial(PackedStream, align=merging_multiple(config.model))
    kind = partial(
        kind,
        sequence_length=data.sequence_length,
        augment_reverse_complement=data.reverse_complement,
        tracks=data.tracks,
        among=data.shuffle_among,
    )
    chosen = data.temperature != 1 or bool(data.weights)
    corpora = [open_runs(part) for part in (source.parts() if chosen else [source])]
    check_tracks([*chain(*corpora)], data.tracks, both_strands=data.reverse_complement)
    groups = [(n, runs) for n, one in enumerate(corpora) for runs in by_weight(one)]
    if len(groups) == 1 and not data.weights:
        stream = kind(groups[0][1], seed=seed)
        stream.source = str(source)
        return stream
    streams = [kind(runs, seed=draw_key(seed, i)) for i, (_, runs) in enumerate(groups)]
    begins = [0, *(step * config.train.global_batch_size for step in data.stages)]
    if data.weights and len(data.weights) != len(begins) * len(corpora):
        raise UserError(
            f"data.weights has {len(data.weights)} numbers, but data.train names {len(corpora)} "
            f"corpora and data.stages makes {len(begins)} rows; give {len(begins)} x {len(corpora)}"
        )
    sizes = [sum(run.length for run in runs) for runs in corpora]
    weights = data.weights or tempered(sizes, data.temperature)
    shares = np.reshape(weights, (len(begins), -1))[:, [n for n, _ in groups]]
    shares = shares * within([n for n, _ in groups], streams)
    return BlendedStream(streams, shares.tolist(), begins, seed)


def case_of(config: Config, *, training: bool) -> Case:
    """What lower case means: bases in it weigh less in training alone."""
    weight = config.data.soft_mask_weight if training else 1.0
    return Case(weight, config.data.upper_case)


def masking_of(config: Config, purpose: int) -> Masking | None:
    """What hides bases from a masked model; None for a causal one."""
    if config.train.objective == "clm":
        return None
    data = config.data
    return Masking(data.mask_fraction, data.mask_span, config.run.seed, purpose)


def training_batches(
    stream: TrainingStream, config: Config, mesh: Mesh, start_step: int
) -> BatchIterator:
    """This data rank's micro-batches from `start_step` to the end of the schedule.

    Each step's sequences have the length that the curriculum gives it.
    """
    return BatchIterator(
        stream,
        start_step,
        global_batch_size=config.train.global_batch_size,
        micro_batch_size=config.train.micro_batch_size,
        data_rank=mesh.data_rank,
        data_size=mesh.data_size,
        stop_step=config.train.steps,
        length_at=length_schedule(config).at,
        masking=masking_of(config, TRAINING),
        case=case_of(config, training=True),
        workers=config.data.workers,
    )


def validation_batches(
    windows: ChosenWindows | None, config: Config, mesh: Mesh
) -> Callable[[], list[Batch]] | None:
    """A function giving this data rank's validation batches; None without windows."""
    if windows is None:
        return None
    size = config.train.micro_batch_size
    masking = masking_of(config, VALIDATION)
    case = case_of(config, training=False)
    return lambda: list(
        evaluation_batches(windows, size, mesh.data_rank, mesh.data_size, masking, case)
    )

"""Rules that span sections or need the number of ranks: each a small function, run early.

A layout that breaks one is refused with the nearest possible layouts named.
"""

from __future__ import annotations

from collections.abc import Callable

from megatron_hyena.config.alphabet import LABELS, TRACKS
from megatron_hyena.config.curriculum import (
    curriculum_divides,
    curriculum_ends,
    curriculum_fits,
)
from megatron_hyena.config.exchange import misfit, overridden_exchange
from megatron_hyena.config.merging import merging_multiple
from megatron_hyena.config.nearest import nearest_batches, nearest_layouts, nearest_ranks
from megatron_hyena.config.pattern import SIGNS
from megatron_hyena.config.sections import Config
from megatron_hyena.errors import UserError

Rule = Callable[[Config, int], "str | None"]
"""What is wrong with a configuration on so many ranks; None if nothing is."""


def length_fits(config: Config, world_size: int) -> str | None:
    """Filters of `H` and `G` that reach over the whole sequence have a longest one."""
    model, length = config.model, config.data.sequence_length
    if model.longest_sequence is not None and length > model.longest_sequence:
        long = [sign for sign in "HG" if sign in model.signs]
        return (
            f"data.sequence_length = {length} exceeds model.max_sequence_length = "
            f"{model.max_sequence_length}, which the filters of {' and '.join(long)} are made for; "
            "raise the latter"
        )
    return None


def objective_fits(config: Config, world_size: int) -> str | None:
    """A model that sees a byte cannot be asked for it, and hidden bytes want both sides."""
    if config.train.objective == "mlm" and config.model.causal:
        return (
            "train.objective = mlm predicts hidden bytes from both sides, but model.causal = true "
            "sees one; set model.causal=false or train.objective=clm"
        )
    if config.train.objective == "clm" and not config.model.causal:
        return (
            "train.objective = clm predicts the next byte, but model.causal = false sees it; set "
            "model.causal=true or train.objective=mlm"
        )
    return None


def mask_spans_fit(config: Config, world_size: int) -> str | None:
    """Something is left to predict hidden bytes from."""
    span, length = config.data.mask_span, config.data.sequence_length
    if config.train.objective == "mlm" and span > length:
        return (
            f"data.mask_span = {span} exceeds data.sequence_length = {length}; lower the former "
            "or raise the latter"
        )
    return None


def recompute_is_used(config: Config, world_size: int) -> str | None:
    """Recomputation of a kind of block that the model lacks is a mistake."""
    recompute, signs = config.parallel.recompute, config.model.signs
    absent = [] if recompute in ("none", "block") else [s for s in recompute if s not in signs]
    if absent:
        return (
            f"parallel.recompute = {recompute} names {' and '.join(absent)}, which model.pattern = "
            f"{config.model.pattern} lacks; name only {' '.join(dict.fromkeys(signs))}"
        )
    return None


def ranks_divide(config: Config, world_size: int) -> str | None:
    """Data-parallel ranks must come out whole."""
    model_ranks = config.parallel.tensor * config.parallel.context
    if world_size % model_ranks:
        return (
            f"{_ranks(world_size)} cannot be split into groups of parallel.tensor x "
            f"parallel.context = {model_ranks}"
        )
    return None


def tensor_divides(config: Config, world_size: int) -> str | None:
    """Each tensor rank takes the same number of channels, heads, groups and token ids."""
    size, model = config.parallel.tensor, config.model
    parts = {"model.hidden_size": model.hidden_size, "model.vocab_size": model.vocab_size}
    if set("SM") & set(model.signs):
        parts["the filter groups (model.num_filter_groups)"] = model.groups
    if set("AW") & set(model.signs):
        parts["model.num_heads"] = model.num_heads
    if model.ffn:
        parts["model.ffn_hidden_size"] = model.ffn
    for name, value in parts.items():
        if value % size:
            return f"{name} = {value} is not a multiple of parallel.tensor = {size}"
    return None


def sequence_needs_tensor(config: Config, world_size: int) -> str | None:
    """Sequence parallelism is among the tensor ranks."""
    if config.parallel.sequence and config.parallel.tensor == 1:
        return "parallel.sequence=true needs parallel.tensor of 2 or more; set one of them"
    return None


def context_has_bytes(config: Config, world_size: int) -> str | None:
    """A sequence has a byte for each context rank."""
    length, size = config.data.sequence_length, config.parallel.context
    if length < size:
        return f"data.sequence_length = {length} is smaller than parallel.context = {size}"
    return None


def windows_fit(config: Config, world_size: int) -> str | None:
    """Every rank's share of a sequence is whole windows of the merged stages."""
    unit, length = merging_multiple(config.model), config.data.sequence_length
    ranks = config.parallel.context * (config.parallel.tensor if config.parallel.sequence else 1)
    if unit == 1 or length % (unit * ranks) == 0:
        return None
    below, above = length // (unit * ranks), -(-length // (unit * ranks))
    return (
        f"data.sequence_length = {length} is not a multiple of the merged stages' windows x ranks "
        f"that share a sequence = {unit} x {ranks}; nearest lengths: "
        f"{_joined([n * unit * ranks for n in (below, above) if n])}"
    )


def precomputed_has_track(config: Config, world_size: int) -> str | None:
    """Chunks that the data bring are read from it."""
    model, tracks = config.model, config.data.tracks
    if "(" not in model.pattern or model.merger != "precomputed" or "boundaries" in tracks:
        return None
    return (
        "model.merger = precomputed reads where chunks open from the track boundaries, which "
        f"data.tracks = [{','.join(tracks)}] does not name; add it (tools.make_patches writes it "
        "into a genome store), or choose another model.merger"
    )


def types_are_read(config: Config, world_size: int) -> str | None:
    """A model that knows types of sequence is told them."""
    if config.model.type_embedding == "none" or "type" in config.data.tracks:
        return None
    return (
        f"model.type_embedding = {config.model.type_embedding} needs the track `type`, but "
        f"data.tracks = {list(config.data.tracks)}; add type to it"
    )


def tracks_are_known(config: Config, world_size: int) -> str | None:
    """A track that nothing reads is a mistake."""
    known = sorted((*TRACKS, *LABELS))
    strange = [name for name in config.data.tracks if name not in known]
    if strange:
        return (
            f"data.tracks = [{','.join(config.data.tracks)}] names {strange[0]}, which no model "
            f"reads; name only {', '.join(known[:-1])} and {known[-1]}"
        )
    return None


def exchanges_fit(config: Config, world_size: int) -> str | None:
    """Every kind of layer has a way to exchange data between context ranks."""
    if config.parallel.context == 1:
        return None
    for sign in dict.fromkeys(config.model.signs):
        overridden = overridden_exchange(config, sign)
        possible = (overridden,) if overridden else SIGNS[sign].exchanges
        problems = [misfit(config, sign, exchange) for exchange in possible]
        if not problems:
            return (
                f"layers of kind {sign} need the whole sequence, but parallel.context = "
                f"{config.parallel.context}"
            )
        if None not in problems:
            named = f", set by parallel.exchange.{sign}" if overridden else ""
            return f"{problems[0]}{named}"
    return None


def batch_divides(config: Config, world_size: int) -> str | None:
    """The global batch is a whole number of micro-batches on each data rank."""
    data_ranks = world_size // (config.parallel.tensor * config.parallel.context)
    if config.train.global_batch_size % (config.train.micro_batch_size * data_ranks):
        return (
            f"train.global_batch_size = {config.train.global_batch_size} is not a multiple of "
            f"train.micro_batch_size x data ranks = {config.train.micro_batch_size} x "
            f"{data_ranks}; nearest global batch sizes: "
            f"{_joined(nearest_batches(config, data_ranks))}"
        )
    return None


def skipping_agrees(config: Config, world_size: int) -> str | None:
    """Ranks that read the same sequence could each leave out what the others show."""
    tensor, context = config.parallel.tensor, config.parallel.context
    if config.data.on_corrupt == "stop" or tensor * context == 1:
        return None
    return (
        "data.on_corrupt = skip needs one rank for each sequence, but parallel.tensor x "
        f"parallel.context = {tensor} x {context} ranks read each for themselves and a shard may "
        "be damaged for one alone; set data.on_corrupt=stop"
    )


ANY_LAYOUT: tuple[Rule, ...] = (
    tracks_are_known,
    types_are_read,
    length_fits,
    objective_fits,
    mask_spans_fit,
    recompute_is_used,
    precomputed_has_track,
    curriculum_divides,
    curriculum_ends,
)
"""Rules that no change of the layout mends."""
RULES: tuple[Rule, ...] = (
    *ANY_LAYOUT,
    ranks_divide,
    tensor_divides,
    sequence_needs_tensor,
    context_has_bytes,
    windows_fit,
    curriculum_fits,
    exchanges_fit,
    skipping_agrees,
    batch_divides,
)


def check_layout(config: Config, world_size: int) -> None:
    """Refuse what cannot run on `world_size` ranks.

    Raises:
        UserError: the first rule that `config` breaks, and the nearest layouts that break none.
    """
    for rule in RULES:
        message = rule(config, world_size)
        if message and rule in ANY_LAYOUT:
            raise UserError(message)
        if message:
            raise UserError("; ".join([message, *_nearest(config, world_size, rule)]))


def fits(config: Config, world_size: int) -> bool:
    """Whether `config` breaks no rule on `world_size` ranks."""
    return not any(rule(config, world_size) for rule in RULES)


def _nearest(config: Config, world_size: int, rule: Rule) -> list[str]:
    found = []
    if rule is ranks_divide and (ranks := nearest_ranks(config, world_size, fits)):
        found.append(f"nearest numbers of ranks: {_joined(ranks)}")
    layouts = nearest_layouts(config, world_size, fits, keep_batch=rule is batch_divides)
    if layouts:
        found.append(f"nearest layouts for {_ranks(world_size)}: {_joined(layouts)}")
    return found


def _ranks(count: int) -> str:
    return f"{count} rank" if count == 1 else f"{count} ranks"


def _joined(values: list[int] | list[str]) -> str:
    return ", ".join(map(str, values))

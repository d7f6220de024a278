"""Rules that span sections or need the number of ranks: each a small function, run early."""

from __future__ import annotations

from collections.abc import Callable

from megatron_hyena.config.sections import Config
from megatron_hyena.errors import UserError

Rule = Callable[[Config, int], "str | None"]


def ranks_divide(config: Config, world_size: int) -> str | None:
    """Data-parallel ranks must come out whole."""
    model_ranks = config.parallel.tensor * config.parallel.context
    if world_size % model_ranks:
        return (
            f"{world_size} ranks cannot be split into groups of parallel.tensor x "
            f"parallel.context = {model_ranks}; start a multiple of {model_ranks} ranks"
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
            return f"{name} = {value} is not a multiple of parallel.tensor = {size}; change one"
    return None


def sequence_divides(config: Config, world_size: int) -> str | None:
    """Sequence parallelism gives each tensor rank an equal slice."""
    size, length = config.parallel.tensor, config.data.sequence_length
    if not config.parallel.sequence:
        return None
    if size == 1:
        return "parallel.sequence=true needs parallel.tensor of 2 or more; set one of them"
    if length % size:
        return (
            f"data.sequence_length = {length} is not a multiple of parallel.tensor = {size}, "
            f"which parallel.sequence needs; use {length - length % size}"
        )
    return None


def batch_divides(config: Config, world_size: int) -> str | None:
    """The global batch is a whole number of micro-batches on each data rank."""
    data_ranks = world_size // (config.parallel.tensor * config.parallel.context)
    unit = config.train.micro_batch_size * data_ranks
    if config.train.global_batch_size % unit:
        return (
            f"train.global_batch_size = {config.train.global_batch_size} is not a multiple of "
            f"train.micro_batch_size x data ranks = {config.train.micro_batch_size} x "
            f"{data_ranks}; change it to a multiple of {unit}"
        )
    return None


def length_fits(config: Config, world_size: int) -> str | None:
    """`H` filters are defined up to a fixed length."""
    model, length = config.model, config.data.sequence_length
    if "H" in model.signs and length > model.max_sequence_length:
        return (
            f"data.sequence_length = {length} exceeds model.max_sequence_length = "
            f"{model.max_sequence_length}, which the filters of H are made for; raise the latter"
        )
    return None


RULES: tuple[Rule, ...] = (
    ranks_divide,
    tensor_divides,
    sequence_divides,
    batch_divides,
    length_fits,
)


def check_layout(config: Config, world_size: int) -> None:
    """Raise `UserError` with the first rule that `config` breaks on `world_size` ranks."""
    for rule in RULES:
        message = rule(config, world_size)
        if message:
            raise UserError(message)

"""Which exchange each kind of layer uses when a sequence is split over context-parallel ranks.

The table is `SIGNS[sign].exchanges`; `parallel.exchange` overrides it; a layout can rule one out.
"""

from __future__ import annotations

from megatron_hyena.config.pattern import SIGNS
from megatron_hyena.config.sections import Config
from megatron_hyena.errors import UserError


def exchange_of(config: Config, sign: str) -> str:
    """The exchange of layers of kind `sign`: "local" where sequences are not split.

    Raises:
        UserError: `parallel.context` is above 1 and no exchange of `sign` is possible.
    """
    if config.parallel.context == 1:
        return "local"
    overridden = overridden_exchange(config, sign)
    if overridden:
        return overridden
    for name in SIGNS[sign].exchanges:
        if misfit(config, sign, name) is None:
            return name
    raise UserError(
        f"layers of kind {sign} cannot be split over parallel.context = "
        f"{config.parallel.context} ranks; set parallel.context=1"
    )


def overridden_exchange(config: Config, sign: str) -> str:
    """What `parallel.exchange` names for `sign`; empty for nothing."""
    return str(getattr(config.parallel.exchange, sign, ""))


def divided_key(sign: str) -> str:
    """What an all-to-all of `sign` deals out to context ranks: a key of the model section."""
    return "num_heads" if sign in "AW" else "hidden_size"


def misfit(config: Config, sign: str, exchange: str) -> str | None:
    """Why `exchange` is impossible for `sign` in this layout; None if it is possible.

    An all-to-all gives each context rank the same number of a tensor rank's channels (heads).
    """
    if exchange != "all_to_all":
        return None
    model, parallel = config.model, config.parallel
    key = divided_key(sign)
    value = getattr(model, key)
    unit = parallel.tensor * parallel.context
    if value % unit == 0:
        return None
    return (
        f"model.{key} = {value} is not a multiple of parallel.tensor x parallel.context = {unit}, "
        f"which the all_to_all of {sign} needs"
    )

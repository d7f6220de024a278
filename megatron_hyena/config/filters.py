"""Names of the long filters of `H` and `G`: a configuration holds a name, so it can be saved.

The classes are in `layers.filters` and `layers.hyena_order`; `register_hyena_filter` adds others.
"""

from __future__ import annotations

import difflib

from megatron_hyena.errors import UserError

BUILT_IN_FILTERS = ("implicit", "genomic")
HYENA_FILTERS = list(BUILT_IN_FILTERS)
"""Every name that `model.hyena_filter` may have in this process."""


def check_hyena_filter(name: str) -> None:
    """Refuse a name that no filter is registered under.

    Raises:
        UserError: with the nearest name.
    """
    if name not in HYENA_FILTERS:
        (nearest,) = difflib.get_close_matches(name, HYENA_FILTERS, n=1, cutoff=0.0)
        raise UserError(
            f"model.hyena_filter={name!r} is unknown; did you mean {nearest}? Known are "
            f"{', '.join(HYENA_FILTERS)}, and what the program registers before it reads the "
            "configuration (register_hyena_filter)"
        )

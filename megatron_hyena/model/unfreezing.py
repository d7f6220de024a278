"""What of a trunk is trained, from when on, and how fast.

Gradual unfreezing and rates that fall from block to block follow ULMFiT (Howard and Ruder,
arXiv:1801.06146). Parameters carry their treatment, so optimizer groups need no names.
"""

from __future__ import annotations

from torch import nn

from megatron_hyena.layers.parameter import Treatment, treat
from megatron_hyena.model.task_model import TaskModel


def set_method(
    model: TaskModel,
    method: str,
    unfreeze_every: int = 100,
    layer_decay: float = 1.0,
    head_lr_factor: float = 1.0,
) -> None:
    """Let each parameter of `model` carry its treatment; once, before the engine is made.

    Args:
        method: `full`; `frozen`: the heads alone; `gradual`: the top block from step
            `unfreeze_every` on, the next one as many steps later; with the first block the
            embedding. `lora` freezes what is there now; additions come afterwards.
        layer_decay: factor on the learning rate from each block to the one below it.
        head_lr_factor: on that of the heads.
    """
    for parameter in (*model.heads.parameters(), *model.balance.parameters()):
        treat(parameter, Treatment(0, head_lr_factor))
    if method in ("frozen", "lora"):
        model.trunk.requires_grad_(False)
        model.still, model.routed = method == "frozen", False
        return
    for depth, parameters in _by_depth(model.trunk):
        begins = unfreeze_every * (depth + 1) if method == "gradual" else 0
        for parameter in parameters:
            treat(parameter, Treatment(begins, layer_decay**depth))
    if method == "gradual":
        model.hold_waiting()


def _by_depth(trunk: nn.Module) -> list[tuple[int, list[nn.Parameter]]]:
    """(blocks above, parameters): the final norm and merged stages go with the top block."""
    blocks = list(trunk.get_submodule("blocks").children())
    inside = [list(block.parameters()) for block in blocks]
    first = list(trunk.get_submodule("embedding").parameters())
    if getattr(trunk, "types", None) is not None:
        first += trunk.get_submodule("types").parameters()
    known = {id(p) for group in (*inside, first) for p in group}
    rest = [p for p in trunk.parameters() if id(p) not in known and p.requires_grad]
    last = len(blocks) - 1
    found = [(last - number, parameters) for number, parameters in enumerate(inside)]
    return [(0, rest), *found, (max(last, 0), first)]

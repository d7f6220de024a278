"""A format as a table: which tensors of ours are which of theirs, and how the numbers change.

An `Entry` joins names by a `Form`, a pair of functions. The same table serves both ways, tells all
shapes without loading anything (the functions also run on tensors without data), and knows every
name, so that a tensor too many or too few is found before anything is written.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from megatron_hyena.checkpoint.exchange.lossy import Losses, some_of
from megatron_hyena.checkpoint.exchange.tensors import Kind, Tensors
from megatron_hyena.errors import UserError

Function = Callable[..., tuple[Tensor, ...]]


@dataclass(frozen=True)
class Form:
    """How tensors change: `out` from ours to theirs, `back` from theirs to ours.

    `exact`: there and back gives the same bits, whichever way one begins. Of what is not, the
    stored numbers are kept beside a native folder (`origin`).
    """

    out: Function
    back: Function
    exact: bool = True


@dataclass(frozen=True)
class Entry:
    """Tensors of ours, by name, that are tensors of theirs."""

    ours: tuple[str, ...]
    theirs: tuple[str, ...]
    form: Form


Table = Sequence[Entry]


def to_theirs(table: Table, ours: Tensors, where: Path) -> Tensors:
    """Theirs, made of ours when asked for; in ours' dtypes."""
    made_by = {name: (entry, at) for entry in table for at, name in enumerate(entry.theirs)}

    def make(name: str, read: Callable[[str], Tensor]) -> Tensor:
        entry, at = made_by[name]
        return entry.form.out(*(read(own) for own in entry.ours))[at]

    return _made(made_by, make, ours, where)


def to_ours(table: Table, theirs: Tensors, where: Path) -> Tensors:
    """Ours in fp32, made of theirs when asked for."""
    made_by = {name: (entry, at) for entry in table for at, name in enumerate(entry.ours)}

    def make(name: str, read: Callable[[str], Tensor]) -> Tensor:
        entry, at = made_by[name]
        return entry.form.back(*(read(own).float() for own in entry.theirs))[at].float()

    return _made(made_by, make, theirs, where)


def _made(
    names: Iterable[str],
    make: Callable[[str, Callable[[str], Tensor]], Tensor],
    source: Tensors,
    where: Path,
) -> Tensors:
    kinds = {}
    for name in names:
        try:
            shadow = make(name, lambda own: source.kinds[own].meta())
        except (RuntimeError, IndexError, TypeError, ValueError) as error:
            raise UserError(
                f"{where}: {name} cannot be made of tensors of these shapes "
                f"({str(error).splitlines()[0]}); give the settings it was made with"
            ) from error
        kinds[name] = Kind(tuple(shadow.shape), shadow.dtype)
    return Tensors(kinds, lambda name: make(name, source.__getitem__).contiguous())


def check_theirs(table: Table, theirs: Tensors, where: Path, losses: Losses) -> Tensors:
    """Their tensors that the table knows.

    One too many is a loss; raises `UserError` where one is missing, or is not of the shape that
    the settings say (`kinds` of both are given).
    """
    wanted = {name for entry in table for name in entry.theirs}
    if missing := sorted(wanted - theirs.kinds.keys()):
        raise UserError(
            f"{where}: {len(missing)} of {len(wanted)} tensors are missing: {some_of(missing)}; "
            "give the whole checkpoint, and the settings it was made with"
        )
    if unused := sorted(theirs.kinds.keys() - wanted):
        losses.add("unused", f"{len(unused)} tensors of {where} ({some_of(unused)})")
    return theirs.only(wanted)


def check_shapes(made: Tensors, wanted: Tensors, table: Table, where: Path) -> None:
    """Raise `UserError` where what is made of theirs has another shape than the model's tensors."""
    sources = {name: entry.theirs for entry in table for name in entry.ours}
    for name, kind in wanted.kinds.items():
        if made.kinds[name].shape != kind.shape:
            raise UserError(
                f"{where}: {some_of(sources[name])} makes {name} {list(made.kinds[name].shape)}, "
                f"and the settings say {list(kind.shape)}; give the settings it was made with"
            )


def same(tensor: Tensor) -> tuple[Tensor]:
    """The tensor itself."""
    return (tensor,)


SAME = Form(same, same)
COLUMN = Form(lambda t: (t.unsqueeze(1),), lambda t: (t.squeeze(1),))
"""[n, K] and [n, 1, K]."""
HALVES = Form(lambda t: t.chunk(2), lambda *halves: (torch.cat(halves),))
"""`gate_value` and its two matrices."""
ABSENT = Form(lambda *_: (), lambda: ())


def rows(order: Tensor) -> Form:
    """Their row i is our row `order`[i]."""
    inverse = torch.argsort(order)
    return Form(lambda t: (t[order.to(t.device)],), lambda t: (t[inverse.to(t.device)],))


def then(first: Form, second: Form) -> Form:
    """`first` and then `second`, of one tensor each, on the way out."""
    return Form(
        lambda t: second.out(*first.out(t)),
        lambda t: first.back(*second.back(t)),
        first.exact and second.exact,
    )


def zeros(shape: tuple[int, ...]) -> Form:
    """Ours where they have nothing: zeros on the way in, dropped on the way out."""
    return Form(lambda t: (), lambda: (torch.zeros(shape),))

"""Files of `torch.save` that hold objects of programs which are not here, read without them.

DeepSpeed's states hold loss scalers, enumerations and random states beside the tensors. Only what
makes up tensors and plain containers is built; every other object becomes an empty stand-in, and
no code that the file names is run.
"""

from __future__ import annotations

import pickle
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from megatron_hyena.errors import UserError

_BUILT = {
    ("collections", "OrderedDict"),
    ("torch", "Size"),
    ("torch", "device"),
    ("torch._utils", "_rebuild_tensor"),
    ("torch._utils", "_rebuild_tensor_v2"),
    ("torch._utils", "_rebuild_parameter"),
    ("builtins", "set"),
}


class StandIn(dict[Any, Any]):
    """In the place of an object whose class is not loaded."""

    def __new__(cls, *_: Any, **__: Any) -> StandIn:
        """Takes whatever the object's class was given."""
        return super().__new__(cls)

    def __init__(self, *_: Any, **__: Any) -> None:
        super().__init__()

    def __setstate__(self, state: Any) -> None:
        """Forgets the object's state."""

    def append(self, item: Any) -> None:
        """Forgets what a list would hold."""

    def extend(self, items: Any) -> None:
        """Forgets what a list would hold."""


def _without_attributes(rebuild: Callable[..., Any], _: Any, arguments: Any, __: Any) -> Any:
    """A tensor with attributes (torch._tensor._rebuild_from_type_v2), less these."""
    return rebuild(*arguments)


def _of_parameter(data: Any, *_: Any) -> Any:
    """A parameter with attributes (torch._utils._rebuild_parameter_with_state), as a tensor."""
    return data


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if name == "_rebuild_from_type_v2":
            return _without_attributes
        if name == "_rebuild_parameter_with_state":
            return _of_parameter
        if (module, name) in _BUILT:
            return super().find_class(module, name)
        if module == "torch" and isinstance(getattr(torch, name, None), torch.dtype):
            return getattr(torch, name)
        return StandIn


_pickle = types.ModuleType("inert_pickle")
_pickle.Unpickler = _Unpickler  # type: ignore[attr-defined]


def load_inert(path: Path) -> Any:
    """What `torch.save` wrote, tensors mapped into memory, foreign objects as `StandIn`.

    Raises:
        UserError: missing or damaged.
    """
    if not path.is_file():
        raise UserError(f"{path}: not found; give the whole checkpoint")
    try:
        return torch.load(
            path, map_location="cpu", mmap=True, weights_only=False, pickle_module=_pickle
        )
    except Exception as error:
        first = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise UserError(f"{path}: damaged ({first}); copy it again") from error

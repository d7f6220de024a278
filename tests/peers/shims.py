"""What the peers need to run on a CPU: stand-ins for CUDA, Triton and flash-attn, in one place.

They change `sys.modules` and `torch.cuda`, so only processes of `tests.peers.process` install them.
Each counts how often it served; a test asserts that those it relies on did.

| stand-in | for | who needs it |
|---|---|---|
| `rotary` | a Triton kernel, replaced by its formula | vortex, and attention in stripedhyena |
| `device` | `torch.cuda.device(cpu)`, which raises without CUDA | vortex |
| `flash_attn` | flash-attn's attention: vortex's copy of it in plain torch | stripedhyena |
| `evo2_device` | functions of Evo 2 that default to `cuda:0` | evo2 |
"""

from __future__ import annotations

import sys
from collections import Counter
from contextlib import nullcontext
from functools import partial
from importlib import import_module
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

SERVED: Counter[str] = Counter()


def install() -> None:
    """Put the stand-ins that both families of peers need in place, before they are imported."""
    _replace_rotary()
    _replace_device()


def lend_flash_attn() -> None:
    """Give stripedhyena, by flash-attn's names, the classes that vortex copied from flash-attn."""
    for name, source in (
        ("flash_attn", None),
        ("flash_attn.layers", None),
        ("flash_attn.modules", None),
        ("flash_attn.layers.rotary", "vortex.model.rotary"),
        ("flash_attn.modules.mha", "vortex.model.attention"),
    ):
        sys.modules[name] = import_module(source) if source else ModuleType(name)
    attention = sys.modules["flash_attn.modules.mha"].MHA
    whole = attention.forward

    def forward(self: Any, *args: Any, **kwargs: Any) -> Any:
        SERVED["flash_attn"] += 1
        return whole(self, *args, **kwargs)

    attention.forward = forward


def keep_evo2_on_the_cpu() -> None:
    """`Evo2` passes no device on, and what it calls then takes `cuda:0`."""
    models = import_module("evo2.models")
    for name in ("vortex_generate", "score_sequences", "score_sequences_rc"):
        setattr(models, name, _counted(partial(getattr(models, name), device="cpu")))


def _counted(function: Any) -> Any:
    def call(*args: Any, **kwargs: Any) -> Any:
        SERVED["evo2_device"] += 1
        return function(*args, **kwargs)

    return call


def _replace_rotary() -> None:
    """By the module's whole name, so that its package, which wants flash-attn, is never opened."""
    module = ModuleType("vortex.ops.embedding.rotary")
    module.apply_rotary = apply_rotary  # type: ignore[attr-defined]
    sys.modules[module.__name__] = module


def apply_rotary(
    x: Tensor,
    cos: Tensor,
    sin: Tensor,
    seqlen_offsets: int = 0,
    cu_seqlens: None = None,
    max_seqlen: int | None = None,
    interleaved: bool = False,
    inplace: bool = False,
    conjugate: bool = False,
) -> Tensor:
    """RoPE of `x` [B, L, heads, hd] by `cos`, `sin` [positions, hd'/2], where hd' <= hd.

    The two halves of the first hd' numbers turn as pairs; no ragged batches, no interleaved pairs.
    """
    if cu_seqlens is not None or interleaved:
        raise NotImplementedError("the stand-in knows whole batches and half-split pairs only")
    SERVED["rotary"] += 1
    length, half = x.shape[1], cos.shape[1]
    cos, sin = (t[seqlen_offsets : seqlen_offsets + length, None] for t in (cos, sin))
    sin = -sin if conjugate else sin
    first, second, rest = x[..., :half], x[..., half : 2 * half], x[..., 2 * half :]
    turned = torch.cat([first * cos - second * sin, first * sin + second * cos, rest], -1)
    return x.copy_(turned) if inplace else turned


def _replace_device() -> None:
    real = torch.cuda.device

    def device(where: Any) -> Any:
        if torch.device(where).type == "cuda":
            return real(where)
        SERVED["device"] += 1
        return nullcontext()

    torch.cuda.device = device  # type: ignore[assignment, misc]

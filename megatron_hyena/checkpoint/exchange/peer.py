"""Reading and writing models of the StripedHyena family: what vortex and stripedhyena share."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import torch

from megatron_hyena.checkpoint.exchange.lossy import Losses, some_of
from megatron_hyena.checkpoint.exchange.mapping import (
    Table,
    check_shapes,
    check_theirs,
    to_ours,
    to_theirs,
)
from megatron_hyena.checkpoint.exchange.origin import Origin, make_origin, with_stored
from megatron_hyena.checkpoint.exchange.rope import Rope, stored_rope
from megatron_hyena.checkpoint.exchange.settings import Settings
from megatron_hyena.checkpoint.exchange.tensors import MappedFile, Tensors
from megatron_hyena.checkpoint.exchange.weights import Weights, expected
from megatron_hyena.config import HyenaGLTConfig

FINE = (
    *("poles", "log_poles", "residues", "inv_freq"),
    *("filter.p", "filter.gamma", "filter.R", "filter.decay", "filter.t"),
)
"""Tensors that stay in fp32 whatever the dtype of the file, as these programs keep them."""
MLP_NORMS = ("post_norm.scale", "pre_mlp_layernorm.scale", "pre_mlp_layernorm.weight")
"""Ends of the names of norms before MLPs, in vortex, stripedhyena and savanna."""
TOKENS = 512
"""Ids of the tokenizers of both programs."""


def flat_tensors(path: Path, losses: Losses, scales: str | None = None) -> Tensors:
    """Tensors of a flat .pt file; what else it holds is a loss.

    Names that end in `scales` are those of FP8 passes: no weight needs them, and the user is told.
    """
    file = MappedFile(path, dict)
    fp8 = [name for name in file.others if scales and name.endswith(scales)]
    if fp8:
        losses.tell(f"left out: the scales of FP8 passes ({len(fp8)}), which no weight needs")
    if unknown := sorted(set(file.others) - set(fp8)):
        losses.add("unused", f"what is no tensor in {path} ({some_of(unknown)})")
    return file.tensors()


def told_by(theirs: Tensors, config: HyenaGLTConfig, said: Rope, losses: Losses) -> HyenaGLTConfig:
    """`config` as the tensors have it: RoPE of the stored frequencies, which these programs use.

    Without MLPs, where all of them are zeros behind norms of ones.
    """
    names = [name for name in theirs if name.endswith("rotary_emb.inv_freq")]
    rope = stored_rope({name: theirs[name] for name in names}, said, losses)
    return dataclasses.replace(
        config,
        rope_base=rope.base,
        rope_scaling=rope.scaling,
        rope_bf16=rope.rounded,
        ffn_hidden_size=-1 if _idle(theirs) else config.ffn_hidden_size,
    )


def _idle(theirs: Tensors) -> bool:
    """Whether no MLP does anything; reads as many as it takes to know."""
    inside = [name for name in theirs if ".mlp.l" in name or ".mlp.w" in name]
    norms = [name for name in theirs if name.endswith(MLP_NORMS)]
    return (
        bool(inside)
        and not any(bool(theirs[name].any()) for name in inside)
        and all(bool((theirs[name] == 1).all()) for name in norms)
    )


def read_by(
    table: Table,
    theirs: Tensors,
    config: HyenaGLTConfig,
    name: str,
    settings: Settings,
    where: Path,
    losses: Losses,
) -> Weights:
    """The model in their tensors; refuses what is missing, unused or of another shape."""
    used = check_theirs(table, theirs, where, losses)
    losses.check()
    ours = to_ours(table, used, where)
    check_shapes(ours, expected(config), table, where)
    origin = make_origin(name, settings.values, config, table, used)
    return Weights(config, ours, where, origin).check()


def written_by(
    table: Table, ours: Tensors, origin: Origin | None, dtype: torch.dtype | None, where: Path
) -> tuple[Tensors, list[str]]:
    """Their tensors, and notes: in the dtypes of the origin if there is one, else fp32.

    With a `dtype`, in that one, but for `FINE`.
    """
    notes: list[str] = []
    theirs = to_theirs(table, ours, where)
    if origin is not None:
        theirs, notes = with_stored(theirs, table, ours, origin, dtypes=dtype is None)
    if dtype is not None:
        coarse = {n: d for n in theirs if not n.endswith(FINE) for d in [dtype]}
        plain = theirs
        theirs = plain.cast(lambda name: coarse.get(name, plain.kinds[name].dtype))
    return theirs, notes


def notes_on(config: HyenaGLTConfig, program: str) -> list[str]:
    """What users should know of a model without MLPs or of another vocabulary than `TOKENS`."""
    notes = []
    if not config.ffn:
        notes.append("blocks without an MLP are written with one of zeros, which changes nothing")
    if config.vocab_size == TOKENS:
        return notes
    return [
        *notes,
        f"model.vocab_size={config.vocab_size}: {program} reads and scores with it, but its own "
        f"tokenizer has {TOKENS} ids, so it generates only with model.vocab_size={TOKENS}",
    ]

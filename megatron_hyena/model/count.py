"""What a model costs, before it is built: parameters, FLOPs, memory.

Parameters are exact (the model is built on torch's meta device). FLOPs count multiply and add as
two. Memory is an estimate of the tensors that a step must hold on one rank; allocators add to it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import nn

from megatron_hyena.config import Config, HyenaGLTConfig
from megatron_hyena.config.merging import block_shares, stage_shares
from megatron_hyena.layers.parameter import cut_of
from megatron_hyena.model.hyena_glt import LOSS_SLICE, HyenaGLT, mixer_class

GIB = 1 << 30


@dataclass(frozen=True)
class Cost:
    """Cost of a run.

    Attributes:
        parameters: of the whole model.
        parameters_per_rank: of one tensor rank.
        flops_per_token: forward and backward, recomputation not counted.
        state_gb: weights, gradients and Adam moments on one rank, GiB.
        activations_gb: stored for one micro-batch on one rank, GiB.
    """

    parameters: int
    parameters_per_rank: int
    flops_per_token: float
    state_gb: float
    activations_gb: float


def meta_model(config: HyenaGLTConfig) -> HyenaGLT:
    """The dense model without storage."""
    with torch.device("meta"):
        return HyenaGLT(config)


def flops_per_token(config: HyenaGLTConfig, length: int) -> float:
    """Forward and backward FLOPs per byte: three times the forward's.

    The forward's are 2 per element of each matrix that multiplies every position of its axis (the
    embedding is a look-up; the head counts), plus each mixer's own. Blocks in merged stages have
    fewer positions: the slots of their windows, filled or not.
    """
    model, products = meta_model(config), 0.0
    for block, share in zip(model.blocks, block_shares(config), strict=True):
        products += float(share) * _matrix_elements(block)
    for stage, share in zip(model.stages, stage_shares(config), strict=True):
        products += float(share) * _matrix_elements(stage)
    products += model.head.weight.numel()
    mixing = sum(
        float(share) * mixer_class(sign, config.causal).mixing_flops(config, int(length * share))
        for sign, share in zip(config.signs, block_shares(config), strict=True)
    )
    return 3 * (2 * products + mixing)


def _matrix_elements(module: nn.Module) -> int:
    """Elements of the matrices that multiply positions."""
    cuts = [cut_of(parameter) for parameter in module.parameters()]
    return sum(
        math.prod(cut.shape) for cut in cuts if cut.role in ("matrix", "router") and cut.shape[1:]
    )


def cost(config: Config, replicas: int) -> Cost:
    """Cost of `config` on as many `replicas` of each tensor rank (data times context)."""
    parallel, model = config.parallel, meta_model(config.model)
    sizes = [
        (p.numel(), p.numel() if cut_of(p).dim is None else p.numel() // parallel.tensor)
        for p in model.parameters()
    ]
    total, local = (sum(column) for column in zip(*sizes, strict=True))
    # fp32 numbers per parameter: weight, gradient, two moments, ZeRO's flat copy of the weights.
    numbers = (1, 1, 2, 1 if parallel.zero_stage else 0)
    shares = [replicas if parallel.zero_stage >= stage else 1 for stage in (3, 2, 1, 1)]
    bytes_each = sum(4 * count / share for count, share in zip(numbers, shares, strict=True))
    return Cost(
        parameters=total,
        parameters_per_rank=local,
        flops_per_token=flops_per_token(config.model, config.data.sequence_length),
        state_gb=local * bytes_each / GIB,
        activations_gb=_activation_bytes(config) / GIB,
    )


WORKING_SHARE = 1.35
"""Peak of a block's backward pass, over what its forward pass stored: gradients in flight."""


STAGE_STREAMS = 8
"""Of the size of the residual stream at its entry, what a merged stage stores: its input for the
router, normed, projected twice, for the skip, and its output and their sums."""


def _activation_bytes(config: Config) -> float:
    """Largest activations of one micro-batch on one rank, in bytes.

    Per sublayer, the residual stream and its sum in fp32, the gathered input of the first product,
    and the rank's own channels; at the end the logits, their softmax and both gradients. With
    recomputation, a block's input, the working set of one block, and one slice of the logits.
    """
    model, parallel = config.model, config.parallel
    own = 1 / parallel.tensor
    stream = 4 * model.hidden_size * (own if parallel.sequence else 1.0)
    positions = config.train.micro_batch_size * -(-config.data.sequence_length // parallel.context)
    recomputed = [parallel.recomputes(sign) for sign in model.signs]
    kept = working = 0.0
    for sign, again, share in zip(model.signs, recomputed, block_shares(model), strict=True):
        stored, entry = float(share) * _block_bytes(sign, config), float(share) * stream
        if again:
            working = max(working, kept + entry + WORKING_SHARE * stored)
        kept += entry if again else stored
    kept += sum(float(share) * STAGE_STREAMS * stream for share in stage_shares(model))
    logits = 4 * 4 * model.vocab_size * own
    logits *= min(1.0, LOSS_SLICE / positions) if any(recomputed) else 1.0
    return positions * max(working, kept + stream + logits)


def _block_bytes(sign: str, config: Config) -> float:
    """Stored by one block for its backward pass, in bytes per position."""
    model, parallel = config.model, config.parallel
    own = 1 / parallel.tensor
    stream = own if parallel.sequence else 1.0
    width = 2 if config.train.precision == "bf16" else 4
    fixed, products = mixer_class(sign, model.causal).stored_rows(model)
    rows = 4 * (2 * stream + fixed * own) + width * (1 + products * own)
    mlp = model.hidden_size * (4 * 2 * stream + width) + 4 * model.ffn * width * own
    return model.hidden_size * rows + (mlp if model.ffn else 0)

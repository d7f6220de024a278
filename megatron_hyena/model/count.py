"""What a model costs, before it is built: parameters, FLOPs, memory.

Parameters are exact (the model is built on torch's meta device). FLOPs count multiply and add as
two. Memory is an estimate of the tensors that a step must hold on one rank; allocators add to it.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from megatron_hyena.config import Config, HyenaGLTConfig
from megatron_hyena.layers.parameter import cut_of
from megatron_hyena.model.hyena_glt import HyenaGLT, mixer_class

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

    The forward's are 2 per element of each matrix that multiplies every position (the embedding
    is a look-up; the head counts), plus each mixer's own.
    """
    model = meta_model(config)
    matrices = sum(
        p.numel()
        for p in model.parameters()
        if cut_of(p).role == "matrix" and p is not model.embedding.weight
    )
    matrices += model.head.weight.numel() if config.tie_embeddings else 0
    mixing = sum(mixer_class(sign).mixing_flops(config, length) for sign in config.signs)
    return 3 * (2 * matrices + mixing)


def cost(config: Config, data_size: int) -> Cost:
    """Cost of `config` with `data_size` data-parallel ranks."""
    parallel, model = config.parallel, meta_model(config.model)
    sizes = [
        (p.numel(), p.numel() if cut_of(p).dim is None else p.numel() // parallel.tensor)
        for p in model.parameters()
    ]
    total, local = (sum(column) for column in zip(*sizes, strict=True))
    # Bytes per parameter: weight, gradient, two moments; ZeRO adds its flat copy of the weights.
    shares = [data_size if parallel.zero_stage >= stage else 1 for stage in (3, 2, 1, 1)]
    bytes_each = sum(4 * width / share for width, share in zip((1, 1, 2, 1), shares, strict=True))
    return Cost(
        parameters=total,
        parameters_per_rank=local,
        flops_per_token=flops_per_token(config.model, config.data.sequence_length),
        state_gb=local * bytes_each / GIB,
        activations_gb=_activation_bytes(config) / GIB,
    )


def _activation_bytes(config: Config) -> float:
    """Stored activations of one micro-batch: per block, and the logits with their softmax.

    A block without recomputation keeps, in units of hidden-size rows: two norm inputs and two
    norm outputs, and of its own channels about 12 for the mixer (projections, features, gates,
    convolution) and 4 of the inner width for the MLP. With recomputation, one input per block and
    one block's working set.
    """
    model, parallel = config.model, config.parallel
    positions = config.train.micro_batch_size * config.data.sequence_length
    own = 1 / parallel.tensor
    stream = own if parallel.sequence else 1.0
    width = 2 if config.train.precision == "bf16" else 4
    block = model.hidden_size * (4 * stream + 2 + 12 * own) + 4 * model.ffn * own
    blocks = len(model.signs)
    if parallel.recompute == "block":
        rows = blocks * model.hidden_size * stream + block
    else:
        rows = blocks * block
    return positions * (width * rows + 4 * 3 * model.vocab_size * own)

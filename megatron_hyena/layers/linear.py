"""Weights of the matrix products at the edges of the region where channels are split.

`column` weights [out, in] are cut by output, `row` weights by input; the products themselves are
in `ops.linear` (channel-first) or `torch.nn.functional.linear` (sequence-first).
"""

from __future__ import annotations

import math

from torch import nn

from megatron_hyena.config.model import HyenaGLTConfig
from megatron_hyena.layers.parameter import Cut, constant, cut_parameter, normal


def column_weight(
    config: HyenaGLTConfig, out_features: int, size: int, blocks: int = 1
) -> nn.Parameter:
    """[out / size, hidden]: each rank makes its own channels."""
    shape = (out_features, config.hidden_size)
    return cut_parameter(Cut(shape, normal(config.init_std), dim=0, blocks=blocks), size)


def projection_bias(config: HyenaGLTConfig, out_features: int, size: int) -> nn.Parameter | None:
    """[out / size], of each rank's own channels; None where the model has none."""
    if not config.projection_bias:
        return None
    return cut_parameter(Cut((out_features,), constant(0.0), dim=0, role="vector"), size)


def row_weight(config: HyenaGLTConfig, in_features: int, size: int) -> nn.Parameter:
    """[hidden, in / size]: each rank adds its channels' share to the residual stream."""
    std = config.init_std / math.sqrt(2 * len(config.signs))
    return cut_parameter(Cut((config.hidden_size, in_features), normal(std), dim=1), size)


def output_bias(config: HyenaGLTConfig) -> nn.Parameter:
    """[hidden]: added once, after the ranks' shares are summed."""
    cut = Cut((config.hidden_size,), constant(0.0), sequence_partial=True, role="vector")
    return cut_parameter(cut, 1)

"""Modules with random weights for the tests: no parameter stays at a start that hides an error."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from megatron_hyena.config import HyenaGLTConfig
from megatron_hyena.layers.mixer import Mixer
from megatron_hyena.layers.parameter import cut_of, initialise
from megatron_hyena.layers.provider import DenseProvider
from megatron_hyena.model.hyena_glt import HyenaGLT, mixer_class
from tests.oracles.operators import Weights


def small_config(pattern: str = "S", **changes: object) -> HyenaGLTConfig:
    """Eight channels in two filter groups, two heads, windows shorter than most inputs."""
    values: dict[str, object] = {
        "pattern": pattern,
        "hidden_size": 8,
        "num_heads": 2,
        "ffn_hidden_size": 12,
        "num_filter_groups": 2,
        "hyena_filter_order": 6,
        "max_sequence_length": 251,
        "attention_window": 24,
        "motifs": ("CG", "palindrome"),
        "init_std": 0.3,
    }
    return HyenaGLTConfig(**{**values, **changes})  # type: ignore[arg-type]


@torch.no_grad()
def disturb(module: nn.Module, seed: int = 0) -> None:
    """Add noise to every parameter, so that ones, zeros and copies become telling numbers."""
    generator = torch.Generator().manual_seed(seed)
    for parameter in module.parameters():
        shape = cut_of(parameter).shape
        noise = torch.randn(shape, generator=generator, dtype=torch.float64)
        parameter.add_(0.3 * noise)


@torch.no_grad()
def open_branches(module: nn.Module, rank: int = 0, size: int = 1) -> None:
    """Random numbers, the same in every layout, for what begins at 0: G's branches, biases."""
    for index, (name, parameter) in enumerate(module.named_parameters()):
        opened = (".scale", "conservation.weight", "conservation.bias")
        if name.endswith((*opened, "projection_bias", "featurizer_bias")):
            cut = cut_of(parameter)
            generator = torch.Generator().manual_seed(index)
            full = torch.randn(cut.shape, generator=generator, dtype=torch.float64)
            parameter.copy_(cut.take(full, rank, size))


def small_mixer(config: HyenaGLTConfig, seed: int = 0) -> Mixer:
    """The mixer of a pattern of one sign, in fp64."""
    mixer = mixer_class(config.signs[0], config.causal)(config, DenseProvider())
    initialise(mixer, seed, rank=0, size=1)
    mixer.double()
    disturb(mixer, seed)
    return mixer


def small_model(config: HyenaGLTConfig, seed: int = 0) -> HyenaGLT:
    """The whole model, in fp64."""
    model = HyenaGLT(config, seed=seed).double()
    disturb(model, seed)
    return model


def weights(module: nn.Module) -> Weights:
    """Parameters as plain fp64 arrays."""
    return {n: p.detach().double().numpy() for n, p in module.named_parameters()}


def draw(*shape: int, seed: int = 0) -> Tensor:
    """fp64 normal numbers."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


def draw_bytes(batch: int, length: int, seed: int = 0) -> Tensor:
    """Random bytes [B, L], int64."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (batch, length), generator=generator)

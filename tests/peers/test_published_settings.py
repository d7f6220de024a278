"""The settings that the peers ship for published models say architectures that ours can be."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

import pytest

from megatron_hyena.checkpoint.exchange import stripedhyena, vortex
from megatron_hyena.checkpoint.exchange.lossy import Losses
from megatron_hyena.checkpoint.exchange.settings import read_settings
from megatron_hyena.checkpoint.exchange.tensors import held
from megatron_hyena.config import HyenaGLTConfig
from megatron_hyena.model.count import meta_model

# Of each: file, blocks, billions of parameters by its name or paper, base and scaling of RoPE.
EVO2 = [
    ("evo2-1b-8k", 25, (1.0, 1.2), 1e4, 1),
    ("evo2-7b-8k", 32, (6.4, 7.0), 1e4, 1),
    ("evo2-7b-262k", 32, (6.4, 7.0), 1e4, 32),
    ("evo2-7b-1m", 32, (6.4, 7.0), 1e4, 128),
    ("evo2-20b-1m", 24, (19.0, 21.0), 1e6, 128),
    ("evo2-40b-8k", 50, (39.0, 41.0), 1e6, 1),
    ("evo2-40b-1m", 50, (39.0, 42.0), 1e6, 128),
]
EVO1 = [("evo-1-8k-base", 1), ("evo-1-131k-base", 16)]


def folder(package: str) -> Path:
    found = find_spec(package)
    if found is None or found.origin is None:
        pytest.skip(f"{package} is not installed")
    return Path(found.origin).parent / "configs"


def billions(config: HyenaGLTConfig) -> float:
    return sum(tensor.numel() for tensor in meta_model(config).stored().values()) / 1e9


@pytest.mark.parametrize(("name", "blocks", "size", "base", "scaling"), EVO2)
def test_evo2(
    name: str, blocks: int, size: tuple[float, float], base: float, scaling: float
) -> None:
    settings = read_settings(folder("evo2") / f"{name}.yml")
    config = vortex.read_config(settings, Losses("native"))
    assert len(config.signs) == blocks and config.pattern.startswith("SMLASML")
    assert size[0] < billions(config) < size[1]
    assert (config.rope_base, config.rope_scaling) == (base, scaling)
    assert config.mlp_activation == "evo2" and config.norm_eps_outside
    layout = vortex.read_layout(settings, unembed=True)
    assert layout.rows == "interleaved" and layout.qkv_by_head


@pytest.mark.parametrize(("name", "scaling"), EVO1)
def test_evo1(name: str, scaling: float) -> None:
    settings = read_settings(folder("evo") / f"{name}_inference.yml")
    config = stripedhyena.read_config(settings, held({}))
    assert config.pattern == "LLLLLLLLALLLLLLLALLLLLLLALLLLLLL"
    assert config.ffn == 10928 and config.li_modes == 8 and config.mlp_activation == "gelu"
    assert config.rope_scaling == scaling
    assert 6.4 < billions(config) < 6.5

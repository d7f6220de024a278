"""Models of ours for the peers, random and briefly trained, and conversions as a user runs them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml

from megatron_hyena import HyenaGLT, HyenaGLTConfig
from tests.oracles.drawing import disturb
from tests.peers.process import Arrays
from tools.convert_checkpoint import main

VOCABULARY = 512
TOLERANCE = 1e-4
"""Of the largest logit, in fp32."""


def of_evo2(**fields: Any) -> HyenaGLTConfig:
    """A small model of ours that vortex can hold."""
    common: dict[str, Any] = dict(
        pattern="SMLA",
        hidden_size=32,
        num_heads=2,
        vocab_size=VOCABULARY,
        ffn_hidden_size=48,
        num_filter_groups=4,
        norm_eps_outside=True,
        mlp_activation="evo2",
    )
    return HyenaGLTConfig(**(common | fields))


def of_evo1(**fields: Any) -> HyenaGLTConfig:
    """A small model of ours that stripedhyena can hold."""
    common: dict[str, Any] = dict(
        pattern="LAL",
        hidden_size=32,
        num_heads=2,
        vocab_size=VOCABULARY,
        ffn_hidden_size=48,
        li_modes=8,
        li_poles="complex",
        norm_eps_outside=True,
        projection_bias=True,
    )
    return HyenaGLTConfig(**(common | fields))


def random_model(config: HyenaGLTConfig) -> HyenaGLT:
    """No weight is 0, 1 or near it, so that every one has a say."""
    model = HyenaGLT(config, seed=3).eval()
    disturb(model)
    return model


def trained_model(config: HyenaGLTConfig) -> HyenaGLT:
    """30 steps on random DNA."""
    model = HyenaGLT(config, seed=1)
    draw = torch.Generator().manual_seed(2)
    letters = torch.tensor(list(b"ACGT"))
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    for _ in range(30):
        ids = letters[torch.randint(4, (4, 48), generator=draw)]
        loss = model(ids, labels=ids).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return model.eval()


def convert(source: Path, to: str, output: Path, *more: str) -> Path:
    """What `tools.convert_checkpoint` writes; fails where it does."""
    assert main(["--from", str(source), "--to", to, "--output", str(output), *more]) == 0
    return output


def logits_of(model: HyenaGLT, ids: np.ndarray) -> np.ndarray:
    """[B, L] or [L] ids -> [..., V]."""
    with torch.inference_mode():
        found = model(torch.from_numpy(np.atleast_2d(ids))).logits.numpy()
    return found if ids.ndim == 2 else found[0]


def apart(found: np.ndarray, wanted: np.ndarray) -> float:
    """Largest difference, as a share of the largest logit."""
    return float(np.abs(found - wanted).max() / np.abs(wanted).max())


def arrays_of(path: Path) -> Arrays:
    """The tensors of a .pt file, in fp32."""
    return {n: t.float().numpy() for n, t in torch.load(path, weights_only=True).items()}


def write_peer(folder: Path, weights: Arrays, config: dict[str, Any]) -> Path:
    """A peer's own model as a .pt file and its YAML."""
    folder.mkdir()
    torch.save({name: torch.from_numpy(a) for name, a in weights.items()}, folder / "peer.pt")
    (folder / "peer.yml").write_text(yaml.safe_dump(config))
    return folder / "peer.pt"


def settings_of(path: Path) -> dict[str, Any]:
    """The YAML beside a .pt file."""
    found: dict[str, Any] = yaml.safe_load(path.with_suffix(".yml").read_text())
    return found

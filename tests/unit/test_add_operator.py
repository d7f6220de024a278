"""The operator of CONTRIBUTING.md, taken from the page and tried out as a user would add it."""

from __future__ import annotations

import dataclasses
import importlib.util
import re
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from megatron_hyena import HyenaGLT, HyenaGLTConfig
from megatron_hyena.config import SIGNS, Config, Sign
from megatron_hyena.config.sections import OptimSection
from megatron_hyena.engine.groups import parameter_groups
from megatron_hyena.errors import UserError
from megatron_hyena.layers.provider import DenseProvider
from megatron_hyena.model.count import cost, flops_per_token
from tests.oracles.drawing import draw, small_config, small_mixer, weights

PAGE = Path(__file__).parents[2] / "CONTRIBUTING.md"
BLOCKS = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
MODULES = ("megatron_hyena.ops.moving_average", "megatron_hyena.layers.moving_average")


@pytest.fixture
def sign(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The two files and the line of the page, for the length of one test."""
    *files, line = BLOCKS
    for name, text in zip(MODULES, files, strict=True):
        path = tmp_path / f"{name}.py"
        path.write_text(text)
        spec = importlib.util.spec_from_file_location(name, path)
        assert spec is not None and spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        monkeypatch.setitem(sys.modules, name, module)
        spec.loader.exec_module(module)
    ((letter, entry),) = eval(f"{{{line}}}", {"Sign": Sign}).items()
    assert letter not in SIGNS
    monkeypatch.setitem(SIGNS, letter, entry)
    return letter


def test_without_its_line_the_sign_is_unknown() -> None:
    with pytest.raises(UserError, match="unknown sign 'E'"):
        HyenaGLTConfig(pattern="SE")


def test_it_equals_its_equation(sign: str) -> None:
    mixer, x = small_mixer(small_config(sign)), draw(90, 2, 8).numpy()
    w = weights(mixer)
    decay = np.exp(-np.exp(w["log_rate"]))
    z = np.einsum("di,tbi->tbd", w["projection"], x)
    average, rows = np.zeros_like(z[0]), []
    for t in range(90):
        average = decay * average + (1 - decay) * z[t]
        rows.append(average @ w["output"].T)
    found = mixer(torch.from_numpy(x)).detach().numpy()
    np.testing.assert_allclose(found, np.stack(rows), rtol=0, atol=1e-12)


def test_it_trains_beside_the_others(sign: str) -> None:
    model = HyenaGLT(HyenaGLTConfig(pattern=f"[{sign}A]2", hidden_size=32, num_heads=2))
    ids = torch.tensor([list(b"ACGTTGCA" * 16)])
    groups = parameter_groups(model, OptimSection())
    assert model.blocks[0].mixer.log_rate in set(groups[-1]["params"])
    optimizer = torch.optim.AdamW(groups, lr=1e-2)
    losses = []
    for _ in range(20):
        loss = model(ids, labels=ids).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.6 * losses[0]
    assert model.blocks[0].mixer.log_rate.grad.abs().min() > 0


def test_it_is_causal(sign: str) -> None:
    model = HyenaGLT(small_config(f"[{sign}]2")).double().eval()
    ids = torch.randint(0, 256, (1, 130), generator=torch.Generator().manual_seed(0))
    changed = ids.clone()
    changed[0, 70] = (changed[0, 70] + 1) % 256
    with torch.no_grad():
        before, after = model(ids).logits, model(changed).logits
    assert torch.equal(before[:, :70], after[:, :70])
    assert not torch.equal(before[:, 70:], after[:, 70:])


def test_it_is_counted(sign: str) -> None:
    config = small_config(sign)
    found = cost(Config(model=config), replicas=1)
    assert found.parameters == sum(p.numel() for p in HyenaGLT(config).parameters())
    matrices = 256 * 8 + 2 * 8 * 8 + 3 * 12 * 8
    assert flops_per_token(config, 1000) == 3 * (2 * matrices + 4 * 8)
    assert found.activations_gb > 0


def test_it_is_cut_like_the_others(sign: str) -> None:
    """Two shares of one layer, added up, are the layer."""

    class Share(DenseProvider):
        def __init__(self, rank: int) -> None:
            self.rank, self.size = rank, 2

    config = dataclasses.replace(small_config(sign), ffn_hidden_size=-1)
    whole, parts = HyenaGLT(config), [HyenaGLT(config, Share(rank)) for rank in range(2)]
    x = draw(20, 1, 8).float()
    expected = whole.blocks[0].mixer(x)
    found = sum(part.blocks[0].mixer(x) for part in parts)
    torch.testing.assert_close(found, expected)

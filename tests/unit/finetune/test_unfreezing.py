"""Which parameters are trained, from when on, and at which rate."""

from __future__ import annotations

import pytest
import torch

from megatron_hyena import HyenaGLT, HyenaGLTConfig
from megatron_hyena.config.sections import OptimSection
from megatron_hyena.engine.groups import parameter_groups
from megatron_hyena.model.task_model import TaskModel
from megatron_hyena.model.tasks import Task
from megatron_hyena.model.unfreezing import set_method

CONFIG = HyenaGLTConfig(pattern="S(A)0.5L", hidden_size=8, num_heads=2, window=4, vocab_size=128)


def model_of(method: str, **options) -> TaskModel:
    model = TaskModel(HyenaGLT(CONFIG), {"t": Task("classification", dropout=0.0)})
    set_method(model, method, **options)
    return model


def treated(model: TaskModel) -> dict[str, tuple[int, float]]:
    """(first step, factor) of each trained parameter, as the optimizer has it."""
    optim = OptimSection(router_lr_factor=1.0)
    names = {id(p): name for name, p in model.named_parameters()}
    return {
        names[id(p)]: (group["begins"], group["lr_factor"])
        for group in parameter_groups(model, optim)
        for p in group["params"]
    }


def depth_of(name: str) -> int:
    part = name.removeprefix("trunk.")
    if part.startswith("embedding"):
        return 2
    return 2 - int(part.split(".")[1]) if part.startswith("blocks") else 0


def test_all_of_it_slower_below():
    model = model_of("full", layer_decay=0.5, head_lr_factor=3.0)
    found = treated(model)
    assert set(found) == {name for name, _ in model.named_parameters()}
    for name, treatment in found.items():
        wanted = 3.0 if name.startswith("heads") else 0.5 ** depth_of(name)
        assert treatment == (0, wanted), name


def test_block_after_block_from_the_top():
    found = treated(model_of("gradual", unfreeze_every=10))
    for name, (begins, _) in found.items():
        assert begins == (0 if name.startswith("heads") else 10 * (depth_of(name) + 1)), name


def test_heads_alone():
    model = model_of("frozen")
    assert all(name.startswith("heads") for name in treated(model))
    ids = torch.randint(65, 90, (2, 8))
    model.begin("t", 0)
    losses = model.weighted_losses(ids, torch.tensor([0, 1]), torch.ones(2))
    losses.sum().backward()
    assert all(p.grad is None for p in model.trunk.parameters())
    assert losses[1] == 0, "routers that do not learn are not pulled"


@pytest.mark.parametrize("step", [0, 9, 10, 25, 30])
def test_what_waits_has_gradients_of_zero(step):
    model = model_of("gradual", unfreeze_every=10)
    model.begin("t", step)
    ids = torch.randint(65, 90, (2, 8))
    model.weighted_losses(ids, torch.tensor([0, 1]), torch.ones(2)).sum().backward()
    for name, (begins, _) in treated(model).items():
        gradient = model.get_parameter(name).grad
        if gradient is not None:
            assert (gradient.abs().max() > 0) <= (begins <= step), name
    top = model.get_parameter("trunk.blocks.2.mixer.output").grad
    assert top is not None and (top.abs().max() > 0) == (step >= 10)


def test_a_head_of_its_own_for_prediction_is_left_alone():
    config = HyenaGLTConfig(pattern="S", hidden_size=8, tie_embeddings=False)
    model = TaskModel(HyenaGLT(config), {"t": Task("classification")})
    set_method(model, "full")
    assert "trunk.head.weight" not in treated(model)
    assert "trunk.embedding.weight" in treated(model)

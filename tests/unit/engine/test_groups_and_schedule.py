"""What the optimizer is told: groups, learning rates, and DeepSpeed's configuration."""

from __future__ import annotations

import math

import pytest

from megatron_hyena.config import HyenaGLTConfig, load_config
from megatron_hyena.config.sections import OptimSection
from megatron_hyena.engine.groups import parameter_groups
from megatron_hyena.engine.schedule import learning_rate
from megatron_hyena.engine.zero import accumulation_steps, deepspeed_config
from megatron_hyena.model.hyena_glt import HyenaGLT

OPTIM = OptimSection(lr=1e-2, min_lr=1e-3, warmup_steps=4, filter_lr_factor=0.25)


def test_only_matrices_decay_and_filters_have_their_own_rate():
    model = HyenaGLT(HyenaGLTConfig(pattern="SMLHA", hidden_size=32, num_heads=2))
    groups = {group["name"]: group for group in parameter_groups(model, OPTIM)}
    assert [g["weight_decay"] for g in groups.values()] == [OPTIM.weight_decay, 0.0, 0.0]
    assert [g["lr_factor"] for g in groups.values()] == [1.0, 1.0, 0.25]
    names = {id(p): name for name, p in model.named_parameters()}
    members = {n: {names[id(p)] for p in g["params"]} for n, g in groups.items()}
    assert set.union(*members.values()) == set(names.values())
    assert sum(map(len, members.values())) == len(names)
    ending = {n: {name.rpartition(".")[2] for name in found} for n, found in members.items()}
    assert ending["vector"] == {"weight", "bias"}  # norms, output biases
    assert {"taps", "skip", "log_rate", "residue", "featurizer", "frequency"} <= ending["filter"]
    assert "embedding.weight" in members["matrix"]
    assert {"projection", "output", "gate_value"} <= ending["matrix"]


def test_empty_groups_are_left_out():
    model = HyenaGLT(HyenaGLTConfig(pattern="A", hidden_size=32, num_heads=2))
    assert [g["name"] for g in parameter_groups(model, OPTIM)] == ["matrix", "vector"]


def test_the_schedule_warms_up_and_falls_along_half_a_cosine():
    rates = [learning_rate(step, 21, OPTIM) for step in range(21)]
    assert rates[:4] == pytest.approx([0.0025, 0.005, 0.0075, 0.01])
    assert rates[4] == pytest.approx(OPTIM.lr)
    assert rates[12] == pytest.approx((OPTIM.lr + OPTIM.min_lr) / 2)
    assert rates[20] == pytest.approx(OPTIM.min_lr)
    assert rates[8] == pytest.approx(1e-3 + 9e-3 * (1 + math.cos(math.pi / 4)) / 2)
    assert sorted(rates[4:], reverse=True) == rates[4:]
    assert learning_rate(500, 21, OPTIM) == pytest.approx(OPTIM.min_lr)


def test_a_schedule_without_warm_up_begins_at_the_peak():
    optim = OptimSection(lr=1e-2, min_lr=0.0, warmup_steps=0)
    assert learning_rate(0, 1, optim) == pytest.approx(1e-2)
    assert learning_rate(9, 10, optim) == 0.0


def test_what_deepspeed_is_told():
    overrides = ["train.global_batch_size=24", "train.micro_batch_size=2", "optim.grad_clip=0.7"]
    config = load_config(None, [*overrides, "parallel.zero_stage=2"])
    assert accumulation_steps(config, 3) == 4
    assert deepspeed_config(config, 3, 1) == {
        "train_batch_size": 24,
        "train_micro_batch_size_per_gpu": 2,
        "gradient_accumulation_steps": 4,
        "gradient_clipping": 0.7,
        "zero_optimization": {
            "stage": 2,
            "contiguous_gradients": True,
            "overlap_comm": False,
            "reduce_scatter": True,
            "stage3_param_persistence_threshold": 0,
        },
        "zero_allow_untested_optimizer": True,
        "steps_per_print": 1 << 60,
    }

"""Every rule of the configuration, broken once, and the sentence the user reads."""

from __future__ import annotations

import pytest

from megatron_hyena.config import check_layout, load_config
from megatron_hyena.config.checks import RULES
from megatron_hyena.errors import UserError

SECTION_RULES = [
    ("parallel.tensor=0", "parallel.tensor must be 1 or more"),
    (
        "parallel.context=2",
        "parallel.context=2 is not available in this version; set it to 1",
    ),
    ("parallel.zero_stage=4", "parallel.zero_stage must be 0, 1, 2 or 3"),
    ("parallel.recompute=full", "parallel.recompute='full' is unknown; use none or block"),
    ("data.sequence_length=1", "data.sequence_length must be 2 or more"),
    ("train.steps=0", "train.steps must be 1 or more"),
    ("train.global_batch_size=0", "train.global_batch_size must be 1 or more"),
    ("train.micro_batch_size=-1", "train.micro_batch_size must be 1 or more"),
    ("train.stop_after=-1", "train.stop_after must be 0 or more"),
    ("train.valid_every=-1", "train.valid_every must be 0 or more"),
    ("train.valid_sequences=-1", "train.valid_sequences must be 0 or more"),
    ("train.precision=fp16", "train.precision='fp16' is unknown; use fp32 or bf16"),
    ("optim.lr=0", "optim.lr must be greater than 0"),
    ("optim.lr=nan", "optim.lr must be greater than 0"),
    ("optim.min_lr=1", "optim.min_lr must lie between 0 and optim.lr"),
    ("optim.min_lr=-1", "optim.min_lr must lie between 0 and optim.lr"),
    ("optim.warmup_steps=-1", "optim.warmup_steps must be 0 or more"),
    ("optim.weight_decay=-1", "optim.weight_decay must be 0 or more"),
    ("optim.grad_clip=-1", "optim.grad_clip must be 0 or more"),
    ("optim.filter_lr_factor=-1", "optim.filter_lr_factor must be 0 or more"),
    ("optim.beta1=1", "optim.beta1 must be at least 0 and below 1"),
    ("optim.beta2=-0.1", "optim.beta2 must be at least 0 and below 1"),
    ("optim.eps=0", "optim.eps must be greater than 0"),
    ("checkpoint.every=-1", "checkpoint.every must be 0 or more"),
    ("checkpoint.keep=-1", "checkpoint.keep must be 0 or more"),
    ("checkpoint.resume=", "checkpoint.resume is empty; use auto, none or a path"),
    ("log.every=0", "log.every must be 1 or more"),
    *(
        (f"model.{name}=0", f"model.{name}=0 must be 1 or more")
        for name in (
            "hidden_size",
            "num_heads",
            "vocab_size",
            "se_filter_length",
            "mr_filter_length",
            "li_modes",
            "hyena_order",
            "hyena_filter_order",
            "max_sequence_length",
            "attention_window",
        )
    ),
    ("model.rope_base=0", "model.rope_base=0.0 must be greater than 0"),
    ("model.norm_eps=0", "model.norm_eps=0.0 must be greater than 0"),
    ("model.init_std=-1", "model.init_std=-1.0 must be greater than 0"),
    (
        "model.num_filter_groups=-1",
        "model.num_filter_groups=-1 must be 0 (one group for 16 channels) or more",
    ),
    (
        "model.num_heads=7",
        "model.hidden_size=256 must be a multiple of twice model.num_heads=7: "
        "RoPE turns pairs of channels of each head",
    ),
    (
        "model.num_filter_groups=7",
        "model.hidden_size=256 is not a multiple of the filter groups (7); "
        "change model.num_filter_groups",
    ),
    ("model.mr_decay=slow", "model.mr_decay='slow': use weak, normal or strong"),
    ("model.mlp_activation=relu", "model.mlp_activation='relu': use gelu, silu or identity"),
    ("model.pattern=Q", "model.pattern 'Q': unknown sign 'Q' at position 1"),
]


@pytest.mark.parametrize(("override", "sentence"), SECTION_RULES)
def test_rules_of_one_section(override: str, sentence: str) -> None:
    with pytest.raises(UserError) as caught:
        load_config(None, [override])
    assert str(caught.value).startswith(sentence)


TENSOR_2 = "parallel.tensor=2"
LAYOUT_RULES = [
    (
        "ranks_divide",
        [TENSOR_2],
        3,
        "3 ranks cannot be split into groups of parallel.tensor x parallel.context = 2; "
        "start a multiple of 2 ranks",
    ),
    (
        "tensor_divides",
        [TENSOR_2, "model.pattern=L", "model.hidden_size=255"],
        2,
        "model.hidden_size = 255 is not a multiple of parallel.tensor = 2; change one",
    ),
    (
        "tensor_divides",
        [TENSOR_2, "model.vocab_size=257"],
        2,
        "model.vocab_size = 257 is not a multiple of parallel.tensor = 2; change one",
    ),
    (
        "tensor_divides",
        [TENSOR_2, "model.pattern=M", "model.num_filter_groups=1"],
        2,
        "the filter groups (model.num_filter_groups) = 1 is not a multiple of parallel.tensor",
    ),
    (
        "tensor_divides",
        [TENSOR_2, "model.pattern=A", "model.num_heads=1"],
        2,
        "model.num_heads = 1 is not a multiple of parallel.tensor = 2; change one",
    ),
    (
        "tensor_divides",
        [TENSOR_2, "model.ffn_hidden_size=301"],
        2,
        "model.ffn_hidden_size = 301 is not a multiple of parallel.tensor = 2; change one",
    ),
    (
        "sequence_divides",
        ["parallel.sequence=true"],
        1,
        "parallel.sequence=true needs parallel.tensor of 2 or more; set one of them",
    ),
    (
        "sequence_divides",
        [TENSOR_2, "parallel.sequence=true", "data.sequence_length=1001"],
        2,
        "data.sequence_length = 1001 is not a multiple of parallel.tensor = 2, which "
        "parallel.sequence needs; use 1000",
    ),
    (
        "batch_divides",
        [TENSOR_2, "train.global_batch_size=9", "train.micro_batch_size=2"],
        4,
        "train.global_batch_size = 9 is not a multiple of train.micro_batch_size x data ranks "
        "= 2 x 2; change it to a multiple of 4",
    ),
    (
        "length_fits",
        ["model.pattern=H", "model.max_sequence_length=100", "data.sequence_length=200"],
        1,
        "data.sequence_length = 200 exceeds model.max_sequence_length = 100, which the filters "
        "of H are made for; raise the latter",
    ),
]


@pytest.mark.parametrize(("rule", "overrides", "ranks", "sentence"), LAYOUT_RULES)
def test_rules_across_sections(rule: str, overrides: list[str], ranks: int, sentence: str) -> None:
    config = load_config(None, overrides)
    with pytest.raises(UserError) as caught:
        check_layout(config, ranks)
    assert str(caught.value).startswith(sentence)
    breaking = next(r for r in RULES if r(config, ranks))
    assert breaking.__name__ == rule


def test_every_rule_across_sections_is_tried_here() -> None:
    assert {rule.__name__ for rule in RULES} == {name for name, *_ in LAYOUT_RULES}


@pytest.mark.parametrize(
    ("overrides", "ranks"),
    [
        ([], 1),
        ([], 8),
        ([TENSOR_2, "parallel.sequence=true"], 2),
        ([TENSOR_2, "parallel.sequence=true"], 8),
        # What a pattern does not use need not be divisible.
        ([TENSOR_2, "model.pattern=L", "model.num_heads=1", "model.num_filter_groups=1"], 2),
        (["model.pattern=A", "model.num_heads=7", "model.hidden_size=56"], 1),
        ([TENSOR_2, "model.ffn_hidden_size=-1"], 2),
        (["data.sequence_length=100000"], 1),
    ],
)
def test_sound_layouts_pass(overrides: list[str], ranks: int) -> None:
    check_layout(load_config(None, overrides), ranks)

"""Every rule of the configuration, broken once, and the sentence the user reads."""

from __future__ import annotations

import dataclasses

import pytest

from megatron_hyena.config import SIGNS, check_layout, load_config
from megatron_hyena.config.checks import RULES
from megatron_hyena.errors import UserError

SECTION_RULES = [
    ("parallel.tensor=0", "parallel.tensor must be 1 or more"),
    ("parallel.context=0", "parallel.context must be 1 or more"),
    ("parallel.zero_stage=4", "parallel.zero_stage must be 0, 1, 2 or 3"),
    *(
        (
            f"parallel.recompute={text}",
            f"parallel.recompute={text!r} is unknown; use none, block, or signs of model.pattern, "
            "each once, such as SM",
        )
        for text in ("full", "", "SS", "SX", "S M", "all", "Block")
    ),
    (
        "parallel.exchange.L=halo",
        "parallel.exchange.L='halo' is unknown; use state or all_to_all, or leave it empty",
    ),
    (
        "parallel.exchange.W=all_to_all",
        "parallel.exchange.W='all_to_all' is unknown; use halo, or leave it empty",
    ),
    ("parallel.exchange.H=state", "parallel.exchange.H='state' is unknown; use all_to_all, or"),
    ("parallel.exchange.A=ring", "parallel.exchange.A='ring' is unknown; use all_to_all or all_ga"),
    ("parallel.exchange.S=state", "parallel.exchange.S='state' is unknown; use halo or all_to_all"),
    ("parallel.exchange.M=Halo", "parallel.exchange.M='Halo' is unknown; use halo or all_to_all"),
    ("data.sequence_length=1", "data.sequence_length must be 2 or more"),
    ("train.steps=0", "train.steps must be 1 or more"),
    ("train.global_batch_size=0", "train.global_batch_size must be 1 or more"),
    ("train.micro_batch_size=-1", "train.micro_batch_size must be 1 or more"),
    ("train.stop_after=-1", "train.stop_after must be 0 or more"),
    ("train.valid_every=-1", "train.valid_every must be 0 or more"),
    ("train.valid_sequences=-1", "train.valid_sequences must be 0 or more"),
    ("train.objective=bert", "train.objective='bert' is unknown; use clm or mlm"),
    ("data.mask_fraction=0", "data.mask_fraction=0.0 is not in (0, 1)"),
    ("data.mask_fraction=1", "data.mask_fraction=1.0 is not in (0, 1)"),
    ("data.mask_span=0", "data.mask_span must be 1 or more"),
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
    ("model.mr_decay=slow", "model.mr_decay='slow': use weak, normal, strong or none"),
    ("model.mlp_activation=relu", "model.mlp_activation='relu': use gelu, silu, identity or evo2"),
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
        "nearest numbers of ranks: 2, 4, 8; nearest layouts for 3 ranks: tensor 1 x context 3",
    ),
    (
        "tensor_divides",
        [TENSOR_2, "model.pattern=L", "model.hidden_size=255"],
        2,
        "model.hidden_size = 255 is not a multiple of parallel.tensor = 2; nearest layouts for 2 "
        "ranks: tensor 1 x context 1, tensor 1 x context 2",
    ),
    (
        "tensor_divides",
        [TENSOR_2, "model.vocab_size=257"],
        2,
        "model.vocab_size = 257 is not a multiple of parallel.tensor = 2; nearest layouts",
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
        "model.num_heads = 1 is not a multiple of parallel.tensor = 2; nearest layouts",
    ),
    (
        "tensor_divides",
        [TENSOR_2, "model.ffn_hidden_size=301"],
        2,
        "model.ffn_hidden_size = 301 is not a multiple of parallel.tensor = 2; nearest layouts",
    ),
    (
        "skipping_agrees",
        ["data.on_corrupt=skip", TENSOR_2],
        4,
        "data.on_corrupt = skip needs one rank for each sequence, but parallel.tensor x "
        "parallel.context = 2 x 1 ranks read each for themselves and a shard may be damaged for "
        "one alone; set data.on_corrupt=stop; nearest layouts for 4 ranks: tensor 1 x context 1",
    ),
    (
        "skipping_agrees",
        ["data.on_corrupt=skip", "parallel.context=2"],
        2,
        "data.on_corrupt = skip needs one rank for each sequence, but parallel.tensor x "
        "parallel.context = 1 x 2 ranks",
    ),
    (
        "sequence_needs_tensor",
        ["parallel.sequence=true"],
        2,
        "parallel.sequence=true needs parallel.tensor of 2 or more; set one of them; nearest "
        "layouts for 2 ranks: tensor 1 x context 1 (with parallel.sequence=false), tensor 1 x "
        "context 2 (with parallel.sequence=false), tensor 2 x context 1",
    ),
    (
        "context_has_bytes",
        ["parallel.context=8", "data.sequence_length=5"],
        8,
        "data.sequence_length = 5 is smaller than parallel.context = 8; nearest layouts for 8 "
        "ranks: tensor 1 x context 4, tensor 1 x context 2, tensor 2 x context 4",
    ),
    (
        "windows_fit",
        ["model.pattern=S(L)S", "model.window=64", "data.sequence_length=1000"],
        1,
        "data.sequence_length = 1000 is not a multiple of the merged stages' windows x ranks that "
        "share a sequence = 64 x 1; nearest lengths: 960, 1024",
    ),
    (
        "windows_fit",
        [
            "model.pattern=S(L)S",
            "model.window=64",
            "data.sequence_length=128",
            "parallel.context=4",
            "parallel.tensor=2",
            "parallel.sequence=true",
        ],
        8,
        "data.sequence_length = 128 is not a multiple of the merged stages' windows x ranks that "
        "share a sequence = 64 x 8; nearest lengths: 512; nearest layouts for 8 ranks: tensor 1 x "
        "context 2 (with parallel.sequence=false)",
    ),
    (
        "precomputed_has_track",
        ["model.pattern=S(L)S", "model.merger=precomputed", "data.tracks=[type,conservation]"],
        1,
        "model.merger = precomputed reads where chunks open from the track boundaries, which "
        "data.tracks = [type,conservation] does not name; add it (tools.make_patches writes it "
        "into a genome store), or choose another model.merger",
    ),
    (
        "exchanges_fit",
        ["parallel.context=4", "model.pattern=LH", "model.hidden_size=66", "model.vocab_size=255"],
        4,
        "model.hidden_size = 66 is not a multiple of parallel.tensor x parallel.context = 4, "
        "which the all_to_all of H needs; nearest layouts for 4 ranks: tensor 1 x context 2, "
        "tensor 1 x context 1",
    ),
    (
        "exchanges_fit",
        ["parallel.context=16", "model.pattern=LA", "parallel.exchange.A=all_to_all"],
        16,
        "model.num_heads = 8 is not a multiple of parallel.tensor x parallel.context = 16, which "
        "the all_to_all of A needs, set by parallel.exchange.A; nearest layouts for 16 ranks: "
        "tensor 1 x context 8, tensor 1 x context 4, tensor 1 x context 2",
    ),
    (
        "exchanges_fit",
        ["parallel.context=3", "parallel.exchange.L=all_to_all"],
        3,
        "model.hidden_size = 256 is not a multiple of parallel.tensor x parallel.context = 3, "
        "which the all_to_all of L needs, set by parallel.exchange.L; nearest layouts for 3 ranks: "
        "tensor 1 x context 1 (with train.global_batch_size=9)",
    ),
    (
        "objective_fits",
        ["train.objective=mlm"],
        1,
        "train.objective = mlm predicts hidden bytes from both sides, but model.causal = true",
    ),
    (
        "objective_fits",
        ["model.causal=false"],
        1,
        "train.objective = clm predicts the next byte, but model.causal = false sees it; set",
    ),
    (
        "mask_spans_fit",
        ["train.objective=mlm", "model.causal=false", "data.mask_span=1025"],
        1,
        "data.mask_span = 1025 exceeds data.sequence_length = 1024; lower the former or raise",
    ),
    (
        "recompute_is_used",
        ["parallel.recompute=WSH", "model.pattern=[SL]2"],
        1,
        "parallel.recompute = WSH names W and H, which model.pattern = [SL]2 lacks; name only S L",
    ),
    (
        "batch_divides",
        [TENSOR_2, "train.global_batch_size=9", "train.micro_batch_size=2"],
        4,
        "train.global_batch_size = 9 is not a multiple of train.micro_batch_size x data ranks "
        "= 2 x 2; nearest global batch sizes: 8, 12",
    ),
    (
        "batch_divides",
        ["train.global_batch_size=2", "train.micro_batch_size=1"],
        4,
        "train.global_batch_size = 2 is not a multiple of train.micro_batch_size x data ranks "
        "= 1 x 4; nearest global batch sizes: 4; nearest layouts for 4 ranks: tensor 1 x context "
        "2, tensor 2 x context 1, tensor 1 x context 4",
    ),
    # More of these in test_curriculum_schedule.py.
    (
        "curriculum_divides",
        ["curriculum.initial_length=100"],
        1,
        "data.sequence_length = 1024 is not a multiple of curriculum.initial_length = 100; nearest",
    ),
    (
        "curriculum_ends",
        ["curriculum.initial_length=512", "curriculum.steps=70", "train.steps=40"],
        1,
        "curriculum.steps = 70 leaves no step of the full length, for train.steps = 40",
    ),
    (
        "curriculum_fits",
        ["curriculum.initial_length=2", "parallel.context=4"],
        4,
        "curriculum.initial_length = 2 is shorter than 4 (parallel.context = 4); nearest initial "
        "lengths: 4; nearest layouts for 4 ranks: tensor 1 x context 2, ",
    ),
    (
        "tracks_are_known",
        ["data.tracks=[type,phylop]"],
        1,
        "data.tracks = [type,phylop] names phylop, which no model reads; name only boundaries, "
        "conservation, features and type",
    ),
    (
        "types_are_read",
        ["model.type_embedding=rna", "data.tracks=[conservation]"],
        1,
        "model.type_embedding = rna needs the track `type`, but data.tracks = ['conservation']; "
        "add type to it",
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
    assert "\n" not in str(caught.value)
    breaking = next(r for r in RULES if r(config, ranks))
    assert breaking.__name__ == rule


def test_a_kind_of_layer_without_an_exchange_is_not_split(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = dataclasses.replace(SIGNS["S"], exchanges=())
    monkeypatch.setitem(SIGNS, "E", whole)
    config = load_config(None, ["model.pattern=SE", "parallel.context=2"])
    with pytest.raises(UserError) as caught:
        check_layout(config, 2)
    assert str(caught.value).startswith(
        "layers of kind E need the whole sequence, but parallel.context = 2; nearest layouts for "
        "2 ranks: tensor 1 x context 1, tensor 2 x context 1"
    )
    check_layout(load_config(None, ["model.pattern=SE"]), 2)


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
        # A length that a layout does not divide is padded at the end.
        ([TENSOR_2, "parallel.sequence=true", "data.sequence_length=1001"], 2),
        (["parallel.context=3", "data.sequence_length=1000"], 3),
        (["parallel.context=4", "data.sequence_length=4"], 4),
        (["parallel.context=7", "model.pattern=SMLAW"], 7),
        (["parallel.context=4", "parallel.tensor=2", "model.pattern=H"], 16),
        # An override of a kind that the model lacks does not matter.
        (["parallel.context=3", "model.pattern=S", "parallel.exchange.L=all_to_all"], 3),
        (["parallel.exchange.L=all_to_all", "model.hidden_size=255", "model.pattern=L"], 1),
        (["parallel.recompute=AS"], 1),
        (["model.pattern=S(L)S", "model.merger=precomputed", "data.tracks=[boundaries]"], 1),
        (["model.pattern=SL", "model.merger=precomputed"], 1),
        (["model.pattern=S(L)S", "model.window=64", "parallel.context=2"], 2),
        (["parallel.recompute=block"], 1),
    ],
)
def test_sound_layouts_pass(overrides: list[str], ranks: int) -> None:
    check_layout(load_config(None, overrides), ranks)

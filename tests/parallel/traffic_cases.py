"""What layers say they send, and what the counters of real ranks come to."""

from __future__ import annotations

from megatron_hyena.config import Config, exchange_of, load_config

COMMON = [
    "model.pattern=SMLHGAW",
    "model.hidden_size=32",
    "model.num_heads=4",
    "model.num_filter_groups=4",
    "model.vocab_size=64",
    "model.mr_filter_length=64",
    "model.hyena_filter_order=8",
    "model.max_sequence_length=256",
    "model.attention_window=48",
    "model.motif_length=50",
    "data.sequence_length=150",
    "train.micro_batch_size=2",
    "train.global_batch_size=8",
]
OTHERS = [f"parallel.exchange.{sign}=all_to_all" for sign in "SML"] + [
    "parallel.exchange.A=all_gather"
]
CASES = {
    "cp4": ["parallel.context=4"],
    "cp4 others": ["parallel.context=4", *OTHERS],
    "cp4 recompute": ["parallel.context=4", "parallel.recompute=block"],
    "cp4 no mlp": ["parallel.context=4", "parallel.recompute=LA", "model.ffn_hidden_size=-1"],
    "cp4 bf16": ["parallel.context=4", "train.precision=bf16"],
    "tp2": ["parallel.tensor=2"],
    "tp2 few taps": ["parallel.tensor=2", "model.hyena_filter_size=40"],
    "tp2cp2 genomic filter": [
        *("parallel.tensor=2", "parallel.context=2"),
        *("model.hyena_filter=genomic", "model.hyena_order=3"),
    ],
    "tp4sp": ["parallel.tensor=4", "parallel.sequence=true", "parallel.recompute=block"],
    "tp2cp2": ["parallel.tensor=2", "parallel.context=2", "parallel.recompute=SH"],
    "tp2spcp2": ["parallel.tensor=2", "parallel.sequence=true", "parallel.context=2"],
    "tp2spcp2 no mlp, bf16": [
        *("parallel.tensor=2", "parallel.sequence=true", "parallel.context=2", *OTHERS),
        *("model.ffn_hidden_size=-1", "parallel.recompute=block", "train.precision=bf16"),
    ],
}
MERGED = ["model.window=10", "model.slots=6", "data.sequence_length=160"]
CASES |= {
    "merged cp4": ["parallel.context=4", "model.pattern=S(SMLHAW)S", *MERGED],
    "merged nested tp2spcp2": [
        *("parallel.tensor=2", "parallel.sequence=true", "parallel.context=2"),
        *("model.pattern=S(M(LA)H)S", "model.adaptive=true", "model.complexity=window", *MERGED),
    ],
    "merged trunk tp4sp": [
        *("parallel.tensor=4", "parallel.sequence=true", "parallel.recompute=block"),
        *("model.pattern=S(LA)", "model.router_input=trunk", "model.merge_fn=mean", *MERGED),
    ],
    "merged scores tp2spcp2": [
        *("parallel.tensor=2", "parallel.sequence=true", "parallel.context=2", *MERGED),
        *("model.pattern=S(L(G)S)S", "data.tracks=[conservation,type]"),
    ],
    "merged hnet tp2": ["parallel.tensor=2", "model.pattern=S(LA)", "model.merger=hnet", *MERGED],
}
MASKED = ["model.causal=false", "train.objective=mlm"]
CASES |= {
    "both ways cp4": ["parallel.context=4", *MASKED],
    "both ways tp2spcp2": [
        *("parallel.tensor=2", "parallel.sequence=true", "parallel.context=2", *MASKED, *OTHERS),
        "parallel.recompute=block",
    ],
    "both ways merged cp4": [
        *("parallel.context=4", "model.pattern=S(LA)S", "model.adaptive=true"),
        *("model.complexity=global", *MASKED, *MERGED),
    ],
}


def configure(name: str) -> Config:
    """The run of a case."""
    width = "model.ffn_hidden_size=48"
    more = [] if "model.ffn_hidden_size=-1" in CASES[name] else [width]
    own = [item.partition("=")[0] for item in CASES[name]]
    common = [item for item in COMMON if item.partition("=")[0] not in own]
    return load_config(None, [*common, *more, *CASES[name]])


def count_all() -> dict[str, tuple[int, int, dict]]:
    """On four ranks: (context rank, tensor rank, counted bytes) of one micro-batch of each case."""
    return {name: _count(configure(name)) for name in CASES}


def _count(config: Config) -> tuple[int, int, dict]:
    import torch

    from megatron_hyena.model.hyena_glt import HyenaGLT
    from megatron_hyena.parallel.mesh import build_mesh, destroy_mesh
    from megatron_hyena.parallel.provider import MegatronProvider

    mesh = build_mesh(config.parallel.tensor, config.parallel.context)
    exchanges = {sign: exchange_of(config, sign) for sign in config.model.signs}
    provider = MegatronProvider(mesh, config.parallel.sequence, exchanges)
    model = HyenaGLT(config.model, provider, recompute=config.parallel.recompute).train()
    ids = torch.zeros(2, config.data.sequence_length, dtype=torch.int64)
    tracks = {
        name: torch.zeros(ids.shape, dtype=torch.float32 if name == "conservation" else torch.int64)
        for name in config.data.tracks
    }
    with torch.autocast("cpu", torch.bfloat16, enabled=config.train.precision == "bf16"):
        loss = model.weighted_losses(ids, ids, torch.ones(ids.shape), tracks=tracks).sum()
    loss.backward()
    destroy_mesh()
    return provider.context.rank, provider.rank, mesh.traffic.take()

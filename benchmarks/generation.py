"""Writing base by base: time of a base early and late, and beside the published implementations.

    python -m benchmarks.generation [--width 256 --bases 2000]

Steps of the model alone, B = 1, random weights, no sampling. The peers (tests/peers) run their own
cached decoding at the same shapes: `stripedhyena` with L and A, `vtx` with S, M, L and A. Bases one
hundred and twenty thousand are timed in turns. Written to benchmarks/results/generation.md.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

from benchmarks.measure import clock_for, interleaved, median_ratio, table, write_result

if TYPE_CHECKING:
    from collections.abc import Callable

    from megatron_hyena import Decoder, HyenaGLT

CONSTANT = ("[SML]2", "[SMLW]2", "SS([SML]2)SS", "[SMLA]2")
"""Patterns timed early and late; all but the last are held to `DRIFT`."""
EARLY, LATE = 100, 20_000
DRIFT, FASTER = 1.10, 3.0
"""Most that a late base may take of an early one; least ratio to the peers."""
STEPS = 256
"""Bases that are timed at a time: two windows of a merged stage."""


def main(argv: list[str] | None = None) -> int:
    """Measure, print, record; 1 where a bar is missed."""
    import torch

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--width", type=int, default=256)
    parser.add_argument("--bases", type=int, default=2000)
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args(argv)
    torch.set_num_threads(1)
    clock, clock_name = clock_for(1)
    passed, early_late = constant(arguments, clock)
    faster, beside = peers(arguments, clock)
    notes = (
        f"Width {arguments.width}, fp32, B = 1; {clock_name}. Early and late: medians of "
        f"{arguments.rounds} rounds of {STEPS} bases in turns. Peers: {arguments.bases:,} bases "
        "behind a prompt of 128, once each."
    )
    write_result("generation", "Writing base by base", notes, f"{early_late}\n{beside}")
    return 0 if passed and faster else 1


def model_of(pattern: str, width: int, **changes: Any) -> HyenaGLT:
    """Random weights."""
    from megatron_hyena import HyenaGLT, HyenaGLTConfig
    from megatron_hyena.generation.column_first import column_first

    settings = {"pattern": pattern, "hidden_size": width, "num_heads": width // 32, **changes}
    return column_first(HyenaGLT(HyenaGLTConfig(**settings)).eval())


def behind(model: HyenaGLT, length: int) -> Decoder:
    """A decoder behind a random prompt."""
    import torch

    from megatron_hyena import Decoder

    generator = torch.Generator().manual_seed(1)
    ids = torch.tensor(list(b"ACGT"))[torch.randint(4, (length,), generator=generator)]
    return Decoder.read(model, [ids], room=1)


def steps(decoder: Decoder, count: int) -> Callable[[], None]:
    """`count` bases more, the same as their numbers do not matter."""
    import torch

    base = torch.tensor([ord("A")])

    def run() -> None:
        for _ in range(count):
            decoder.step(base)

    return run


def constant(arguments: argparse.Namespace, clock: Callable[[], float]) -> tuple[bool, str]:
    """Bases early and late."""
    rows, passed = [], True
    for pattern in CONSTANT:
        model = model_of(pattern, arguments.width)
        decoders = {place: behind(model, place) for place in (EARLY, LATE)}
        memory = decoders[LATE].memory_bytes / 1024
        cases = {str(place): steps(one, STEPS) for place, one in decoders.items()}
        seconds = interleaved(cases, arguments.rounds, clock)
        ratio = median_ratio(seconds[str(LATE)], seconds[str(EARLY)])
        passed = passed and ("A" in pattern or ratio <= DRIFT)
        times = [f"{median(found) / STEPS * 1e6:,.0f}" for found in seconds.values()]
        rows.append([pattern, *times, f"{ratio:.2f}", f"{memory:,.0f}"])
    names = [f"base {place:,}, µs" for place in (EARLY, LATE)]
    return passed, table(["pattern", *names, "ratio", "state, KiB"], rows)


def peers(arguments: argparse.Namespace, clock: Callable[[], float]) -> tuple[bool, str]:
    """Ours beside each peer; in a folder of its own, since vortex opens a log wherever it is."""
    from tests.peers import shims

    shims.install()
    rows, passed, here = [], True, Path.cwd()
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        try:
            for name, ours, theirs in _pairs(arguments.width):
                times = interleaved(
                    {
                        "ours": steps(behind(ours, 128), arguments.bases),
                        "theirs": _peer_steps(theirs, arguments.bases),
                    },
                    1,
                    clock,
                )
                ratio = median_ratio(times["theirs"], times["ours"])
                passed = passed and ratio >= FASTER
                cells = [f"{times[k][0] / arguments.bases * 1e6:,.0f}" for k in ("theirs", "ours")]
                rows.append([name, ours.config.pattern, *cells, f"{ratio:.1f}"])
        finally:
            os.chdir(here)
    return passed, table(["peer", "pattern", "theirs, µs per base", "ours", "ratio"], rows)


def _pairs(width: int) -> list[tuple[str, HyenaGLT, Any]]:
    """Of each peer, our model and theirs, of the same shape."""
    from tests.peers import stripedhyena_cases, vtx_cases
    from tests.peers.tiny import EVO1, EVO2

    inner, heads = -(-8 * width // 3 // 64) * 64, width // 32
    shared = {
        **{"hidden_size": width, "num_filters": width, "num_attention_heads": heads},
        **{"inner_mlp_size": inner, "num_layers": 8, "max_seqlen": 8192},
    }
    ours = {"vocab_size": 512, "ffn_hidden_size": inner, "norm_eps_outside": True}
    first = model_of("[LLLA]2", width, li_modes=8, li_poles="complex", projection_bias=True, **ours)
    evo1 = EVO1 | shared | {"attn_layer_idxs": [3, 7], "hyena_layer_idxs": [0, 1, 2, 4, 5, 6]}
    second = model_of("[SMLA]2", width, mr_decay="none", mlp_activation="evo2", **ours)
    places = {f"hc{k}_layer_idxs": [n, n + 4] for n, k in enumerate("sml")}
    groups = {f"hc{k}_filter_groups": width // 16 for k in "sm"} | {"hcl_filter_groups": width}
    evo2 = EVO2 | shared | places | groups | {"attn_layer_idxs": [3, 7]}
    return [
        ("stripedhyena", first, stripedhyena_cases.build(evo1, {})[0]),
        ("vtx", second, vtx_cases.build(evo2, {})[0]),
    ]


def _peer_steps(model: Any, count: int) -> Callable[[], None]:
    """Their cached decoding: the prompt in one, then a base at a time."""
    import torch

    ids = torch.tensor(list(b"ACGT" * 32))[None]

    def run() -> None:
        with torch.inference_mode():
            state = model.initialize_inference_params()
            model(ids, inference_params_dict=state)
            for at in range(ids.shape[1], ids.shape[1] + count):
                for part in state.values():
                    part.seqlen_offset = at
                model(ids[:, :1], inference_params_dict=state)

    return run


if __name__ == "__main__":
    sys.exit(main())

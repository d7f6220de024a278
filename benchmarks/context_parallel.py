"""What splitting the sequence costs and saves: bytes sent, time, memory; a million bytes at once.

    python -m benchmarks.context_parallel [--part layer|memory|million]

layer    one Hyena-LI layer, CP 4, 8,192 positions per rank: the modal state against all-to-all, in
         interleaved rounds of one job. Bars: bytes sent <= 1/30, time (forward + backward) lower.
memory   peak resident memory of a rank beyond the built model, forward and backward of one sequence
         of 16,384: CP 4 against CP 1. Bar: <= 0.32.
million  one sequence of 1,000,000 real bytes through [SML]2 of width 64, forward and backward with
         recomputation: CP 2 against CP 1. Bars: all ranks together within 16 GiB, losses equal.

Gloo ranks of one thread on this machine, fp32. Each part is written to
benchmarks/results/context_parallel_<part>.md; returns 1 where a bar is missed.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from benchmarks.measure import median_ratio, table, write_result
from benchmarks.ranks import on_ranks, peak_since_reset
from megatron_hyena.config import SIGNS, HyenaGLTConfig
from megatron_hyena.formats.fasta import read_fasta
from megatron_hyena.model.hyena_glt import HyenaGLT

GENOME = Path("examples/chlamydia/ct.fasta.gz")
LAYER = HyenaGLTConfig(pattern="L", hidden_size=256, ffn_hidden_size=-1)
MEMORY = HyenaGLTConfig(pattern="[SMLA]2", hidden_size=128)
MILLION = HyenaGLTConfig(pattern="[SML]2", hidden_size=64)
GIB = 2**30


def main(argv: list[str] | None = None) -> int:
    """Measure, print, record."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--part", choices=list(PARTS), help="only this one")
    parser.add_argument("--rounds", type=int, default=7)
    arguments = parser.parse_args(argv)
    passed = []
    for part in [arguments.part] if arguments.part else list(PARTS):
        tables, good = PARTS[part](arguments.rounds)
        notes = __doc__.split("\n\n", 2)[2].strip()
        write_result(f"context_parallel_{part}", f"Context parallelism: {part}", notes, tables)
        passed.append(good)
    return 0 if all(passed) else 1


def compare_exchanges(rounds: int) -> tuple[str, bool]:
    """LI by `state` and by `all_to_all`."""
    ranks = on_ranks(_layer_rounds, 4, rounds)
    sent = {name: max(rank[name][1] for rank in ranks) for name in ("state", "all_to_all")}
    seconds = ranks[0]
    ratio = median_ratio(seconds["all_to_all"][0], seconds["state"][0])
    rows = [
        [name, f"{sent[name]:,}", f"{1e3 * statistics.median(seconds[name][0]):,.1f}"]
        for name in sent
    ]
    fewer = sent["all_to_all"] / sent["state"]
    rows += [["all_to_all / state", f"{fewer:.1f}", f"{ratio:.2f}"], ["bar", "30", "> 1"]]
    head = ["LI, d = 256, CP 4, l = 8,192", "bytes sent by a rank", "ms forward + backward"]
    return table(head, rows), fewer >= 30 and ratio > 1


def _layer_rounds(rounds: int) -> dict[str, tuple[list[float], int]]:
    from megatron_hyena.layers.parameter import initialise
    from megatron_hyena.layers.span import Span
    from megatron_hyena.model.hyena_glt import mixer_class
    from megatron_hyena.parallel.mesh import build_mesh
    from megatron_hyena.parallel.provider import MegatronProvider

    mesh, length = build_mesh(1, 4), 8192
    x = torch.randn(length, 1, LAYER.hidden_size)
    span = Span.of_rank(dist.get_rank(mesh.context), length, None)
    cases = {}
    for name in ("state", "all_to_all"):
        provider = MegatronProvider(mesh, False, {"L": name}).of_layer("L")
        cases[name] = mixer_class("L")(LAYER, provider)
        initialise(cases[name], 0, 0, 1)
    seconds: dict[str, list[float]] = {name: [] for name in cases}
    sent = {}
    for _ in range(rounds + 1):
        for name, layer in cases.items():
            dist.barrier()
            mesh.traffic.take()
            begin = time.perf_counter()
            layer(x.requires_grad_(), span).sum().backward()
            dist.barrier()
            seconds[name].append(time.perf_counter() - begin)
            sent[name] = sum(sum(kind.values()) for kind in mesh.traffic.take().values())
    return {name: (times[1:], sent[name]) for name, times in seconds.items()}


def compare_memory(rounds: int) -> tuple[str, bool]:
    """Activations of a rank, CP 1 and CP 4."""
    length = 16384
    peaks = {size: max(on_ranks(_peak, size, length, size)) for size in (1, 4)}
    ratio = peaks[4] / peaks[1]
    rows = [[f"CP {size}", f"{peak / 2**20:,.0f}", ""] for size, peak in peaks.items()]
    rows.append(["CP 4 / CP 1 (bar 0.32)", "", f"{ratio:.3f}"])
    return table(
        ["[SMLA]2, d = 128, L = 16,384", "peak MiB of a rank", "ratio"], rows
    ), ratio <= 0.32


def _peak(length: int, size: int) -> int:
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(65, 69, (1, length), generator=generator)
    model = _model(MEMORY, size, "none")
    _step(model, ids[:, :128])  # gradients exist, libraries are loaded
    before = peak_since_reset(reset=True)
    _step(model, ids)
    return peak_since_reset() - before


def one_million(rounds: int) -> tuple[str, bool]:
    """A sequence of a million bytes, CP 1 and CP 2."""
    results = {size: on_ranks(_million, size, size) for size in (1, 2)}
    rows, losses = [], []
    for size, ranks in results.items():
        memory, seconds = sum(r["peak"] for r in ranks) / GIB, max(r["seconds"] for r in ranks)
        losses.append(sum(r["nats"] for r in ranks) / 1e6)
        rows.append([f"CP {size}", f"{losses[-1]:.9f}", f"{memory:.2f}", f"{seconds:,.0f}"])
    difference = abs(losses[1] - losses[0]) / losses[0]
    rows.append(["relative difference of losses", f"{difference:.1e}", "", ""])
    head = ["[SML]2, d = 64, L = 1,000,000", "nats per byte", "GiB, all ranks", "seconds"]
    within = sum(r["peak"] for r in results[2]) <= 16 * GIB
    return table(head, rows), within and difference <= 1e-6


def _million(size: int) -> dict[str, float]:
    bases = b"".join(bases.tobytes() for _, bases in read_fasta(GENOME))[:1_000_001]
    tokens = torch.frombuffer(bytearray(bases), dtype=torch.uint8).long()[None]
    assert tokens.shape[1] == 1_000_001, f"{GENOME} has only {tokens.shape[1]:,} bases"
    model = _model(MILLION, size, "block")
    peak_since_reset(reset=True)
    begin = time.perf_counter()
    nats = _step(model, tokens[:, :-1], tokens[:, 1:])
    return {"nats": nats, "seconds": time.perf_counter() - begin, "peak": peak_since_reset()}


def _model(config: HyenaGLTConfig, size: int, recompute: str) -> HyenaGLT:
    """One rank's share under context parallelism of `size`; the dense model for 1."""
    if size == 1:
        return HyenaGLT(config, recompute=recompute).train()
    from megatron_hyena.parallel.mesh import build_mesh
    from megatron_hyena.parallel.provider import MegatronProvider

    exchanges = {sign: SIGNS[sign].exchanges[0] for sign in config.signs}
    provider = MegatronProvider(build_mesh(1, size), False, exchanges)
    return HyenaGLT(config, provider, recompute=recompute).train()


def _step(model: HyenaGLT, ids: Tensor, targets: Tensor | None = None) -> float:
    """Forward and backward; the sum of nats over this rank's stretch."""
    targets = ids if targets is None else targets
    weights = model.stretch(torch.ones(targets.shape))
    losses = model.token_losses(ids, targets) * weights
    (losses.sum() / targets.numel()).backward()
    return losses.detach().double().sum().item()


PARTS: dict[str, Any] = {
    "layer": compare_exchanges,
    "memory": compare_memory,
    "million": one_million,
}

if __name__ == "__main__":
    sys.exit(main())

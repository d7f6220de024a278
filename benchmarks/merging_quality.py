"""Bits per base of merged, static-stride and unmerged models after equal time of training.

    python -m benchmarks.merging_quality --genome bacterium=ct.fasta.gz --genome fly=chr2R.fa.gz

Each model trains for the same process CPU time of one thread (`--seconds`) on the first nine tenths
of the bases of a FASTA file, with a learning rate that is a cosine of the share of the time spent,
and is scored on windows of the last tenth. All have the same blocks, and the same number of
parameters within a hundredth: the MLPs of those without a router are widened. `--only` trains some
of the variants.
Written to benchmarks/results/merging_quality.md; returns 1 where a bar is missed: merged at most as
many bits as static, and as unmerged + 0.01, in the mean over seeds of every genome.
"""

from __future__ import annotations

import argparse
import gzip
import math
import statistics
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from itertools import product
from multiprocessing import get_context
from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks.measure import table, write_result

if TYPE_CHECKING:
    from torch import Tensor

    from megatron_hyena import HyenaGLT, HyenaGLTConfig

LENGTH, ROWS, WARM_UP, LR = 1024, 4, 0.05, 4e-3
TEST_WINDOWS = 64
NEAR = 0.01
"""Bits per base by which merged may exceed unmerged."""


@dataclass(frozen=True)
class Result:
    """One trained model."""

    bits: float
    steps: int
    kept: float


def main(argv: list[str] | None = None) -> int:
    """Train all, print, record."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--genome", action="append", required=True, metavar="NAME=FASTA")
    parser.add_argument("--seconds", type=float, default=90.0, help="CPU time of each training")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--width", type=int, default=64)
    parser.add_argument("--ratio", type=float, default=0.5)
    parser.add_argument("--pattern", default="SM([SLA]2)S", help="with one merged stage")
    parser.add_argument("--processes", type=int, default=2, help="genomes at a time")
    parser.add_argument("--only", nargs="*", help="variants to train")
    arguments = parser.parse_args(argv)
    with ProcessPoolExecutor(arguments.processes, get_context("spawn")) as pool:
        found = list(pool.map(partial(one_genome, arguments), arguments.genome))
    rows = [row for table_rows, _ in found for row in table_rows]
    missed = any(bar for _, bar in found)
    header = ["genome", "variant", "bits per base", "spread", "kept", "steps", "parameters"]
    notes = (
        f"{arguments.seconds:.0f} s of CPU time of one thread each, {arguments.seeds} seeds, width "
        f"{arguments.width}, merge_ratio {arguments.ratio:.3f}, blocks {arguments.pattern}, "
        f"{ROWS} x {LENGTH} bases a step. Spread: largest minus smallest over the seeds."
    )
    write_result(
        "merging_quality", "Merged, static and unmerged models", notes, table(header, rows)
    )
    return int(missed)


def one_genome(arguments: argparse.Namespace, genome: str) -> tuple[list[list[str]], bool]:
    """Rows of the table, and whether a bar is missed."""
    name, _, path = genome.partition("=")
    bases = read_bases(Path(path))
    wanted = arguments.only or list(variants(arguments))
    chosen = {v: config for v, config in variants(arguments).items() if v in wanted}
    found: dict[str, list[Result]] = {variant: [] for variant in chosen}
    # Variants take turns: what slows the machine for a while slows all of them.
    for seed, (variant, config) in product(range(arguments.seeds), chosen.items()):
        found[variant].append(train(config, bases, arguments.seconds, seed))
        print(f"{name}, {variant}, seed {seed}: {found[variant][-1]}", flush=True)
    rows = [_row(name, variant, results, chosen[variant]) for variant, results in found.items()]
    mean = {v: statistics.mean(r.bits for r in results) for v, results in found.items()}
    if mean.keys() < {"merged", "static", "unmerged"}:
        return rows, False
    return rows, mean["merged"] > min(mean["static"], mean["unmerged"] + NEAR)


def variants(arguments: argparse.Namespace) -> dict[str, HyenaGLTConfig]:
    """Models of equal blocks and, nearly, equal size."""
    from megatron_hyena import HyenaGLTConfig

    merged = HyenaGLTConfig(
        pattern=arguments.pattern,
        hidden_size=arguments.width,
        num_heads=max(1, arguments.width // 32),
        ffn_hidden_size=arguments.width,
        merge_ratio=arguments.ratio,
    )
    static = replace(merged, merger="static")
    plain = replace(merged, pattern=arguments.pattern.replace("(", "").replace(")", ""))
    target = parameters_of(merged)
    return {
        "merged": merged,
        "merged, trunk": replace(merged, router_input="trunk"),
        "merged, adaptive": replace(merged, adaptive=True),
        "static": widened(static, target),
        "unmerged": widened(plain, target),
    }


def parameters_of(config: HyenaGLTConfig) -> int:
    """Parameters of a model."""
    from megatron_hyena.model.count import meta_model

    return sum(p.numel() for p in meta_model(config).parameters())


def widened(config: HyenaGLTConfig, target: int) -> HyenaGLTConfig:
    """With MLPs so wide that the model has about `target` parameters."""
    per_unit = 3 * config.hidden_size * len(config.signs)
    more = round((target - parameters_of(config)) / per_unit)
    return replace(config, ffn_hidden_size=config.ffn + more)


def read_bases(path: Path) -> Tensor:
    """The bytes A, C, G, T (upper case) of a FASTA file, all records end to end: int64."""
    import torch

    opened = gzip.open if path.suffix == ".gz" else open
    with opened(path, "rb") as file:
        lines = [line.strip() for line in file if not line.startswith(b">")]
    raw = torch.frombuffer(bytearray(b"".join(lines).upper()), dtype=torch.uint8)
    known = torch.isin(raw, torch.tensor(list(b"ACGT"), dtype=torch.uint8))
    return raw[known].long()


def train(config: HyenaGLTConfig, bases: Tensor, seconds: float, seed: int) -> Result:
    """Train for `seconds`, then score."""
    import torch

    from megatron_hyena import HyenaGLT
    from megatron_hyena.config.sections import OptimSection
    from megatron_hyena.engine.groups import parameter_groups
    from megatron_hyena.layers.merging.rate import Rate
    from megatron_hyena.runtime.allocator import keep_freed_memory

    keep_freed_memory()
    torch.set_num_threads(1)
    model = HyenaGLT(config, seed=seed).train()
    optimizer = torch.optim.AdamW(parameter_groups(model, OptimSection()), betas=(0.9, 0.95))
    rates = [module for module in model.modules() if isinstance(module, Rate)]
    split = len(bases) * 9 // 10
    generator = torch.Generator().manual_seed(seed)
    weights = torch.ones(ROWS, LENGTH)
    kept: list[float] = []

    def losses() -> Tensor:
        starts = torch.randint(0, split - LENGTH - 1, (ROWS,), generator=generator).tolist()
        windows = torch.stack([bases[at : at + LENGTH + 1] for at in starts])
        sums: Tensor = model.weighted_losses(windows[:, :-1], windows[:, 1:], weights)
        return sums / weights.sum()

    for rate in rates:
        with torch.no_grad():
            losses()
        rate.start(rate.take())
    begin, steps = time.process_time(), 0
    while (share := (time.process_time() - begin) / seconds) < 1:
        for group in optimizer.param_groups:
            cosine = 0.05 + 0.95 * 0.5 * (1 + math.cos(math.pi * share))
            group["lr"] = LR * group["lr_factor"] * min(1.0, share / WARM_UP, cosine)
        optimizer.zero_grad()
        losses().sum().backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        kept += [rate.update(rate.take()).get("kept", 1.0) for rate in rates]
        steps += 1
    recent = kept[len(kept) // 2 :]
    return Result(score(model, bases[split:]), steps, statistics.mean(recent) if recent else 1.0)


def score(model: HyenaGLT, bases: Tensor) -> float:
    """Bits per base of the second halves of windows spread evenly over `bases`."""
    import torch

    starts = torch.linspace(0, len(bases) - LENGTH - 1, TEST_WINDOWS).long().tolist()
    nats = []
    model.eval()
    with torch.no_grad():
        for at in starts:
            window = bases[at : at + LENGTH + 1][None]
            nats.append(model.token_losses(window[:, :-1], window[:, 1:])[:, LENGTH // 2 :].mean())
    return float(torch.stack(nats).mean()) / math.log(2)


def _row(genome: str, variant: str, results: list[Result], config: HyenaGLTConfig) -> list[str]:
    bits = [result.bits for result in results]
    return [
        genome,
        variant,
        f"{statistics.mean(bits):.4f}",
        f"{max(bits) - min(bits):.4f}",
        f"{statistics.mean(r.kept for r in results):.3f}",
        f"{statistics.mean(r.steps for r in results):.0f}",
        f"{parameters_of(config):,}",
    ]


if __name__ == "__main__":
    sys.exit(main())

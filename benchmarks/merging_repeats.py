"""Whether adaptive merging keeps fewer chunks in repeats, on a soft-masked genome.

    python -m benchmarks.merging_repeats --fasta chr2R.fa [--steps 1000 --seeds 2]

Bases in lower case are repeats (RepeatMasker and TRF write them so). Small models, S(L)S, train on
random windows of the first nine tenths of the bases, in upper case, without and with the two kinds
of causal complexity. The total is the mean over the second half of the steps; the kept fractions in
repeats and elsewhere, and behind the quarter of lowest 3-mer entropy, are counted with the last
weights in windows spread over the last tenth. Written to benchmarks/results/merging_repeats.md;
returns 1 where an adaptive model keeps more in repeats than elsewhere, or another total than the
plain one by more than 0.03.
"""

from __future__ import annotations

import argparse
import gzip
import statistics
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.measure import table, write_result

if TYPE_CHECKING:
    from torch import Tensor

    from megatron_hyena import HyenaGLT

VARIANTS: dict[str, dict[str, Any]] = {
    "not adaptive": {},
    "kmer": {"adaptive": True, "complexity": "kmer"},
    "window": {"adaptive": True, "complexity": "window"},
}
LENGTH, ROWS, WIDTH, LR, WARM_UP = 512, 4, 32, 2e-3, 100
RATIO, TEST_WINDOWS, TOTAL_BAR = 0.5, 256, 0.03


def main(argv: list[str] | None = None) -> int:
    """Train all, count, record."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--fasta", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--gamma", type=float, default=2.0)
    arguments = parser.parse_args(argv)
    bases, masked = read_masked(arguments.fasta)
    rows, missed, plain = [], False, 0.0
    for name, changes in VARIANTS.items():
        kept = [
            train_and_count(bases, masked, {**changes, "gamma": arguments.gamma}, arguments, seed)
            for seed in range(arguments.seeds)
        ]
        total, repeats, unique, simple = (statistics.mean(part) for part in zip(*kept, strict=True))
        rows.append([name, *(f"{part:.3f}" for part in (total, repeats, unique, simple))])
        print("|", " | ".join(rows[-1]), "|", flush=True)
        plain = total if not changes else plain
        missed |= abs(total - plain) > TOTAL_BAR or (bool(changes) and repeats >= unique)
    header = ["complexity", "kept", "in repeats", "elsewhere", "behind low 3-mer entropy"]
    notes = (
        f"{arguments.fasta.name}, {100 * float(masked.double().mean()):.1f} % in lower case; "
        f"{arguments.seeds} seeds, {arguments.steps} steps of {ROWS} x {LENGTH} bases, S(L)S of "
        f"width {WIDTH}, merge_ratio {RATIO}, gamma {arguments.gamma}; kept: mean over "
        f"the second half of the steps; the others in {TEST_WINDOWS} windows of {LENGTH} held-out "
        f"bases. Means over the seeds. Bars: with complexity, repeats "
        f"keep less than the rest, and the total is the plain one's +-{TOTAL_BAR}: "
        f"{'missed' if missed else 'held'}."
    )
    write_result("merging_repeats", "Adaptive merging in repeats", notes, table(header, rows))
    return int(missed)


def read_masked(path: Path) -> tuple[Tensor, Tensor]:
    """The bytes A, C, G, T of all records end to end, upper case int64, and which were lower."""
    import torch

    opened = gzip.open if path.suffix == ".gz" else open
    with opened(path, "rb") as file:
        joined = b"".join(line.strip() for line in file if not line.startswith(b">"))
    raw = torch.frombuffer(bytearray(joined), dtype=torch.uint8)
    raw = raw[torch.isin(raw, torch.tensor(list(b"ACGTacgt"), dtype=torch.uint8))]
    lower = raw >= ord("a")
    return torch.where(lower, raw - 32, raw).long(), lower


def train_and_count(
    bases: Tensor, masked: Tensor, changes: dict[str, Any], sizes: argparse.Namespace, seed: int
) -> tuple[float, float, float, float]:
    """Kept fractions: in training, in repeats, elsewhere, and behind low 3-mer entropy."""
    import torch

    from megatron_hyena.layers.merging.kmers import kmer_complexity

    split = len(bases) * 9 // 10
    model, total = trained(bases[:split], changes, sizes.steps, seed)
    starts = torch.linspace(split, len(bases) - LENGTH, TEST_WINDOWS).long().tolist()
    ids = torch.stack([bases[at : at + LENGTH] for at in starts])
    lower = torch.stack([masked[at : at + LENGTH] for at in starts])
    with torch.no_grad():
        opens = model(ids).merges[0].chunks.opens_nWB.flatten(0, 1).t().double()
    places = torch.arange(LENGTH).expand_as(ids)
    entropy = kmer_complexity(ids, places, 0, LENGTH).t()
    simple = entropy <= entropy[places >= 64].quantile(0.25)
    repeats, unique, low = (float(opens[part].mean()) for part in (lower, ~lower, simple))
    return total, repeats, unique, low


def trained(
    bases: Tensor, changes: dict[str, Any], steps: int, seed: int
) -> tuple[HyenaGLT, float]:
    """A model after `steps`, in eval mode, and the kept fraction of the second half of them."""
    import torch

    from megatron_hyena import HyenaGLT, HyenaGLTConfig
    from megatron_hyena.config.sections import OptimSection
    from megatron_hyena.engine.groups import parameter_groups
    from megatron_hyena.layers.merging.rate import Rate

    torch.set_num_threads(1)
    config = HyenaGLTConfig(
        pattern="S(L)S", hidden_size=WIDTH, num_heads=2, merge_ratio=RATIO, **changes
    )
    model = HyenaGLT(config, seed=seed).train()
    optimizer = torch.optim.AdamW(parameter_groups(model, OptimSection()), betas=(0.9, 0.95))
    (rate,) = [module for module in model.modules() if isinstance(module, Rate)]
    generator = torch.Generator().manual_seed(seed)
    weights, kept = torch.ones(ROWS, LENGTH), []
    for step in range(steps):
        starts = torch.randint(0, len(bases) - LENGTH - 1, (ROWS,), generator=generator).tolist()
        windows = torch.stack([bases[at : at + LENGTH + 1] for at in starts])
        if step == 0:
            with torch.no_grad():
                model.hidden(windows[:, :-1])
            rate.start(rate.take())
        for group in optimizer.param_groups:
            cooled = 1.0 - 0.9 * step / steps  # as runs end; decisions then change slowly
            group["lr"] = LR * group["lr_factor"] * min(cooled, (step + 1) / WARM_UP)
        optimizer.zero_grad()
        losses = model.weighted_losses(windows[:, :-1], windows[:, 1:], weights)
        (losses.sum() / weights.sum()).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        kept.append(rate.update(rate.take())["kept"])
    return model.eval(), statistics.mean(kept[steps // 2 :])


if __name__ == "__main__":
    sys.exit(main())

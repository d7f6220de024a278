"""The one table at the end of an evaluation: the model beside uniform guessing and Markov models.

All figures are bits per base on the same held-out bases: each A, C, G or T but the first of every
run (`megatron_hyena.evaluation.markov`). Among the Markov variants the *test* figure decides which
one is shown for an order and which order is marked best; that choice favours the baseline.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path

from megatron_hyena.errors import UserError
from megatron_hyena.evaluation.markov import MarkovRow

UNIFORM_BITS = 2.0


@dataclass(frozen=True)
class EvaluationReport:
    """Bits per base of a model and of its baselines on the same bases.

    Raises UserError if a figure is not finite or there is no Markov row.
    """

    model_name: str
    model_bits: float
    scored_bases: int
    markov: tuple[MarkovRow, ...]
    """All fitted variants; `best_per_order` picks from them."""

    def __post_init__(self) -> None:
        if not self.markov:
            raise UserError("an evaluation report needs at least one Markov row; fit one first")
        figures = {self.model_name: self.model_bits} | {
            describe_markov(row): row.bits_per_base for row in self.markov
        }
        for name, bits in figures.items():
            if not math.isfinite(bits):
                raise UserError(
                    f"{name} has {bits} bits per base;"
                    " check metrics.jsonl for a loss that stopped being finite"
                )

    def best_per_order(self) -> list[MarkovRow]:
        """The variant of fewest bits of each order, by order."""
        best: dict[int, MarkovRow] = {}
        for row in self.markov:
            if row.order not in best or row.bits_per_base < best[row.order].bits_per_base:
                best[row.order] = row
        return [best[order] for order in sorted(best)]

    @property
    def best_markov(self) -> MarkovRow:
        """The Markov model of fewest bits per base; of equal ones the lowest order."""
        return min(self.best_per_order(), key=lambda row: row.bits_per_base)

    @property
    def margin(self) -> float:
        """Bits per base by which the model beats the best Markov model; negative if it loses."""
        return self.best_markov.bits_per_base - self.model_bits


def describe_markov(row: MarkovRow) -> str:
    """`order 5, interpolated, both strands`."""
    strands = "both strands" if row.both_strands else "one strand"
    return f"order {row.order}, {row.smoothing}, {strands}"


def verdict(report: EvaluationReport) -> str:
    """One sentence: by how much the model beats, or loses to, the best Markov model."""
    margin = round(report.margin, 4)
    rival = f"the best Markov model ({describe_markov(report.best_markov)})"
    if margin == 0:
        return f"{report.model_name} equals {rival} to four decimals."
    verb = "beats" if margin > 0 else "LOSES to"
    percent = abs(report.margin) / report.best_markov.bits_per_base
    return f"{report.model_name} {verb} {rival} by {abs(margin):.4f} bits per base ({percent:.2%})."


def format_report(report: EvaluationReport) -> str:
    """The table as aligned plain text of several lines, ending with `verdict`."""
    lines = [("uniform", UNIFORM_BITS, "")]
    for row in report.best_per_order():
        fitted = describe_markov(row).partition(", ")[2]
        mark = "   <- best Markov" if row is report.best_markov else ""
        lines.append((f"Markov order {row.order}", row.bits_per_base, fitted + mark))
    lines.append((report.model_name, report.model_bits, "trained model"))

    width = max(len(name) for name, _, _ in lines)
    header = f"  {'':{width}}  bits/base  vs uniform"
    text = [
        f"Bits per base on {report.scored_bases:,} held-out bases (lower is better)",
        "",
        header,
    ]
    rule = "  " + "-" * (len(header) - 2)
    for place, (name, bits, note) in enumerate(lines):
        if place in (1, len(lines) - 1):
            text.append(rule)
        change = "" if place == 0 else f"{bits - UNIFORM_BITS:+.4f}"
        text.append(f"  {name:{width}}  {bits:9.4f}  {change:>10}  {note}".rstrip())
    return "\n".join([*text, "", verdict(report)])


def write_report(report: EvaluationReport, path: Path) -> None:
    """Writes the report as JSON, by atomic rename; `read_report` reads it back."""
    content = {
        "model": {"name": report.model_name, "bits_per_base": report.model_bits},
        "scored_bases": report.scored_bases,
        "uniform_bits_per_base": UNIFORM_BITS,
        "best_markov": asdict(report.best_markov),
        "margin_bits_per_base": report.margin,
        "markov": [asdict(row) for row in report.markov],
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_text(json.dumps(content, indent=2, allow_nan=False) + "\n")
    os.replace(temporary, path)


def read_report(path: Path) -> EvaluationReport:
    """Reads what `write_report` wrote; UserError if the file is missing or something else."""
    try:
        content = json.loads(path.read_text())
        return EvaluationReport(
            content["model"]["name"],
            content["model"]["bits_per_base"],
            content["scored_bases"],
            tuple(_markov_rows(content["markov"])),
        )
    except FileNotFoundError as error:
        raise UserError(f"{path} does not exist; run pretrain.evaluate first") from error
    except (json.JSONDecodeError, KeyError, TypeError) as error:
        raise UserError(
            f"{path} is no evaluation report; run pretrain.evaluate again to replace it"
        ) from error


def _markov_rows(rows: Iterable[dict]) -> Iterable[MarkovRow]:
    for row in rows:
        yield MarkovRow(**{**row, "parameters": tuple(row["parameters"])})

"""The model card: what the model is, what it was trained on, how well it does, how to open it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor

from megatron_hyena.checkpoint.format import PROVENANCE
from megatron_hyena.config.alphabet import COMPACT
from megatron_hyena.config.model import HyenaGLTConfig
from megatron_hyena.errors import UserError

AUTO_CLASSES = {
    "HyenaGLTForCausalLM": "AutoModelForCausalLM",
    "HyenaGLTForMaskedLM": "AutoModelForMaskedLM",
    "HyenaGLTForSequenceClassification": "AutoModelForSequenceClassification",
    "HyenaGLTForTokenClassification": "AutoModelForTokenClassification",
}


@dataclass(frozen=True)
class Described:
    """What is known of a model beside its architecture.

    Attributes:
        step: optimizer steps done; None: untold.
        data: `provenance.json` of its checkpoint.
        figures: `summary.json` of its run, where it is of the same step.
        evaluation: `evaluation.json` of its run, likewise.
    """

    step: int | None = None
    data: list[dict[str, Any]] = field(default_factory=list)
    figures: dict[str, Any] = field(default_factory=dict)
    evaluation: dict[str, Any] = field(default_factory=dict)


def described_by(checkpoint: Path, step: int) -> Described:
    """What lies in a checkpoint and in its run's folder.

    Raises:
        UserError: one of the files is not JSON.
    """
    run = checkpoint.parent.parent
    figures = _json(run / "summary.json")
    if figures.get("steps") != step:  # of the run's end, or of something else
        figures = {}
    evaluation = _json(run / "evaluation.json") if figures else {}
    data = _json(checkpoint / PROVENANCE) or []
    return Described(step, data, figures, evaluation)


def _json(path: Path) -> Any:
    if not path.is_file():
        return {}
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"{path}: not JSON ({error}); restore or delete it") from error


def model_card(
    config: HyenaGLTConfig, architecture: str, about: Described, tensors: Mapping[str, Tensor]
) -> str:
    """Text of `README.md`.

    Args:
        config: the architecture.
        architecture: the class that opens the folder's weights without a missing one.
        about: what else is known.
        tensors: of the folder, for the number of parameters (any device).
    """
    count = sum(t.numel() for t in tensors.values() if t.dtype.is_floating_point)
    sections = [
        "---\nlibrary_name: transformers\ntags: [genomics, hyena]\n"
        "# license: state the licence of these weights here\n---\n",
        f"# Hyena-GLT `{config.pattern}`, {_short(count)} parameters\n",
        _what(config),
        "## How to open it\n\n" + _opening(config, architecture),
        "## Training data\n\n" + _data(about),
        "## Figures\n\n" + _figures(about),
        "## Licence\n\nTo be stated by whoever publishes these weights; the code beside them is "
        "Apache-2.0.\n",
    ]
    return "\n".join(sections)


def _short(count: int) -> str:
    for size, unit in ((10**9, "B"), (10**6, "M"), (10**3, "k")):
        if count >= size:
            return f"{count / size:.3g} {unit}"
    return str(count)


def _what(config: HyenaGLTConfig) -> str:
    reads = "from left to right" if config.causal else "both sides"
    merged = " Blocks in parentheses see merged positions." if "(" in config.pattern else ""
    tokens = (
        "Ids 0 to 3 are the letters A, T, G, C; there is no tokenizer in the folder."
        if config.vocab_size <= COMPACT
        else "A token is a byte, and its id is the byte's value; 0 ends a document, 1 pads."
    )
    return (
        f"A language model of biological sequences, one byte at a time, that reads {reads}: "
        f"{len(config.signs)} blocks of {config.hidden_size} channels, one sign of the pattern "
        f"each.{merged} {tokens}\n"
    )


def _opening(config: HyenaGLTConfig, architecture: str) -> str:
    auto = AUTO_CLASSES[architecture]
    lines = [
        f"from transformers import {auto}, AutoTokenizer",
        "",
        f'model = {auto}.from_pretrained(".", trust_remote_code=True)',
        'tokenizer = AutoTokenizer.from_pretrained(".", trust_remote_code=True)',
        'batch = tokenizer(["ATGACCGATTAA", "ATGTAA"], padding=True, return_tensors="pt")',
        "print(model(**batch).logits.shape)",
    ]
    if config.vocab_size <= COMPACT:
        lines = [
            "import torch",
            f"from transformers import {auto}",
            "",
            lines[2],
            "print(model(torch.tensor([[0, 1, 2, 3]])).logits.shape)",
        ]
    code = "\n".join(lines)
    return (
        f"```python\n{code}\n```\n\n"
        "The folder carries its own code and needs torch and transformers. `AutoModel` gives the "
        "final states; `AutoModelForSequenceClassification` and `AutoModelForTokenClassification` "
        "put a head on them, a new one unless the weights of one are here. Padding stands at the "
        "end.\n"
    )


def _data(about: Described) -> str:
    if not about.data:
        return "Not recorded.\n"
    lines = []
    for one in about.data:
        made = one.get("provenance") or {}
        lines.append(f"- `{one.get('folder')}` (digest `{str(one.get('digest'))[:16]}`)")
        for source in made.get("sources") or []:
            name, role = source.get("file"), source.get("role")
            lines.append(f"  - {role}: `{name}`, SHA-256 `{source.get('sha256')}`")
        if made.get("options"):
            lines.append(f"  - prepared with `{json.dumps(made['options'], sort_keys=True)}`")
    return "\n".join(lines) + "\n"


def _figures(about: Described) -> str:
    rows: list[tuple[str, Any]] = [("optimizer steps", about.step)]
    for key in ("train_loss", "valid_loss", "valid_bits_per_base"):
        rows.append((key.replace("_", " "), about.figures.get(key)))
    model, markov = about.evaluation.get("model"), about.evaluation.get("best_markov")
    if model and markov:
        rows.append(("test bits per base", model.get("bits_per_base")))
        name = f"best Markov model (order {markov.get('order')}) on the same bases"
        rows.append((name, markov.get("bits_per_base")))
    told = [(name, value) for name, value in rows if value is not None]
    if not told:
        return "Not recorded.\n"
    body = "\n".join(f"| {n} | {v if isinstance(v, int) else f'{v:.4f}'} |" for n, v in told)
    return f"| | |\n|---|---|\n{body}\n"

"""Write sequences with a trained model.

    python -m tools.generate --from runs/mine --prompt ATGACC --length 600 --output out.fa
    python -m tools.generate --from runs/mine --prompts starts.fa --samples 4 --length 600 \\
        --temperature 0.8 --top-k 3 --seed 7 --output out.fa
    python -m tools.generate --from runs/mine --prompt AGGAGG --prefix ATG --codons 11 \\
        --until-stop --length 1500 --output gene.fa
    python -m tools.generate --from runs/mine --prompt AGGAGG --codons 11 --protein MKVLA* \\
        --output gene.fa

`--prompts` is FASTA (or 2bit, GenBank, EMBL; plain or gzip), or text with one prompt in each line;
prompts may be of any lengths. Each sequence is drawn from the seed and its own name, whatever its
batch. A reading frame (`--codons`) counts from the first letter that is written, the prefix
included. A file holds what was written, the prefix included; each header says how it ended.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from megatron_hyena.errors import UserError

if TYPE_CHECKING:
    from megatron_hyena.data.alphabet import SequenceType
    from megatron_hyena.generation.constraints import Constraint
    from megatron_hyena.generation.writing import Order
    from megatron_hyena.model.hyena_glt import HyenaGLT


def main(argv: list[str] | None = None) -> int:
    """Write one file; 0 done, 2 after a user's mistake."""
    try:
        line = run(_parser().parse_args(argv))
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(line)
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m tools.generate", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    add = parser.add_argument
    add("--from", dest="source", type=Path, required=True, help="run folder or checkpoint")
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--prompt", help="what to go on from")
    source.add_argument("--prompts", type=Path, help="file of prompts")
    add("--length", type=int, help="letters to write; of a --protein, three for each amino acid")
    add("--samples", type=int, default=1, help="sequences for each prompt")
    add("--temperature", type=float, default=1.0, help="0: always the likeliest letter")
    add("--top-k", type=int, default=0, help="only the k likeliest letters; 0: all")
    add("--top-p", type=float, default=1.0, help="only the likeliest that reach p; 1: all")
    add("--seed", type=int, default=0)
    add("--batch", type=int, default=16, help="sequences side by side")
    add("--prefix", default="", help="what every sequence begins with, behind the prompt")
    add("--codons", type=int, metavar="TABLE", help="genetic code: a frame without stop codons")
    add("--protein", help="amino acids whose codons are written, or a FASTA file of one; * a stop")
    add("--until-stop", action="store_true", help="allow a stop codon, and end behind it")
    add("--until-eod", action="store_true", help="let the model end a sequence")
    add("--type", default="dna", help="dna, rna or protein: its letters, and the model's type")
    add("--letters", help="letters that may be drawn (default: those of the type)")
    add("--fit-modes", type=int, default=0, help="modes for the long filters of H and G; 0: exact")
    add("--fit-error", type=float, default=1e-3, help="largest relative error of a fitted filter")
    add("--with-prompt", action="store_true", help="put the prompt before what was written")
    add("--device", default="cpu", help="such as cuda")
    add("--output", type=Path, required=True, help="FASTA file to write")
    add("--overwrite", action="store_true", help="replace an earlier file")
    return parser


def run(arguments: argparse.Namespace) -> str:
    """Write; what to say about it.

    Raises:
        UserError: see `main`; before anything is written.
    """
    from megatron_hyena.data.alphabet import SequenceType
    from megatron_hyena.generation.files import check_output, write_fasta
    from megatron_hyena.generation.fitting import Fit
    from megatron_hyena.generation.sampling import Sampling
    from megatron_hyena.generation.writing import LETTERS, write_sequences
    from megatron_hyena.observe.progress import progress

    check_output(arguments.output, arguments.overwrite)
    kind = SequenceType.named(arguments.type)
    sampling = Sampling(arguments.temperature, arguments.top_k, arguments.top_p, arguments.seed)
    fit = Fit(arguments.fit_modes, arguments.fit_error) if arguments.fit_modes else None
    orders = _orders(arguments, kind)
    model = _model(arguments)
    total = sum(order.length - len(order.prefix) for order in orders)
    with progress(description="writing", total=total, unit="letter") as bar:
        sequences = write_sequences(
            model,
            orders,
            sampling,
            arguments.letters or LETTERS[kind],
            kind,
            arguments.until_eod,
            arguments.batch,
            fit,
            watch=bar.update,
        )
        count = write_fasta(arguments.output, sequences, arguments.with_prompt)
    fitted = f"; filters fitted within {max(fit.errors):.2g}" if fit and fit.errors else ""
    return f"{count} sequences written to {arguments.output}{fitted}"


def _model(arguments: argparse.Namespace) -> HyenaGLT:
    import torch

    from megatron_hyena.checkpoint.dense import load_dense
    from megatron_hyena.generation.column_first import column_first

    try:
        device = torch.device(arguments.device)
        torch.zeros(1, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(f"--device {arguments.device} cannot be used here: {reason}") from error
    model = load_dense(arguments.source)[0].to(device)
    return column_first(model) if device.type == "cpu" else model


def _orders(arguments: argparse.Namespace, kind: SequenceType) -> list[Order]:
    """What is to be written."""
    from megatron_hyena.generation.files import check_letters, read_prompts
    from megatron_hyena.generation.writing import Order

    if arguments.samples < 1:
        raise UserError(f"--samples {arguments.samples} must be 1 or more")
    if arguments.prompts is not None:
        prompts = read_prompts(arguments.prompts, kind)
    else:
        check_letters(arguments.prompt, kind, "--prompt")
        prompts = [("written", arguments.prompt)]
    check_letters(arguments.prefix, kind, "--prefix")
    constraint = _constraints(arguments, kind)
    orders = []
    for name, prompt in prompts:
        for sample in range(1, arguments.samples + 1):
            own, length = constraint(), arguments.length
            if length is None:
                length = getattr(own, "length", None)
            if length is None:
                raise UserError("give --length, the letters to write; only --protein implies it")
            called = name if arguments.samples == 1 else f"{name}_{sample}"
            orders.append(Order(called, prompt, length, arguments.prefix, own))
    return orders


def _constraints(
    arguments: argparse.Namespace, kind: SequenceType
) -> Callable[[], Constraint | None]:
    """What makes a constraint for each sequence."""
    from megatron_hyena.generation.constraints import OpenFrame, ProteinFrame

    table, protein = arguments.codons, arguments.protein
    if table is None:
        if protein is not None or arguments.until_stop:
            option = "--until-stop" if protein is None else "--protein"
            raise UserError(f"{option} needs --codons, the number of the genetic code, such as 1")
        return lambda: None
    if not kind.is_nucleic:
        raise UserError(f"--codons {table} needs --type dna or rna, not {arguments.type}")
    if protein is None:
        return lambda: OpenFrame(table, arguments.until_stop)
    if arguments.until_stop:
        raise UserError("--until-stop and --protein exclude each other; end the protein with *")
    name, amino_acids = _protein(protein)
    return lambda: ProteinFrame(table, amino_acids, name)


def _protein(given: str) -> tuple[str, str]:
    """Name and amino acids of an option, or of the only record of a file."""
    from megatron_hyena.data.alphabet import SequenceType
    from megatron_hyena.generation.files import read_prompts

    if not Path(given).is_file():
        return "--protein", given
    records = read_prompts(Path(given), SequenceType.PROTEIN)
    if len(records) != 1:
        raise UserError(f"{given} holds {len(records)} proteins; give a file of one")
    return records[0]


if __name__ == "__main__":
    sys.exit(main())

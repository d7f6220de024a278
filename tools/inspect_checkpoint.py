"""Show what a checkpoint holds, and which layouts can load it.

    python -m tools.inspect_checkpoint runs/quickstart [--tensors]

The argument is a run folder (its newest checkpoint is taken) or one checkpoint. Sizes of files are
verified; of their tensors only the headers are read.
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Iterator
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path

from megatron_hyena.checkpoint.format import (
    MANIFEST,
    Manifest,
    read_manifest,
    resolve_checkpoint,
    tensor_file,
)
from megatron_hyena.config import SIGNS, Config, LengthSchedule, config_of
from megatron_hyena.config.checks import tensor_divides
from megatron_hyena.config.exchange import divided_key
from megatron_hyena.errors import UserError

STATE = {"weight": "weights", "exp_avg": "Adam's first moments", "exp_avg_sq": "its second moments"}
"""What each kind of tensor is; the kinds of a checkpoint that a run goes on from."""


@dataclass(frozen=True)
class Found:
    """A checkpoint as it lies on disk.

    Attributes:
        folder: where it is.
        manifest: what it says of itself.
        config: the run that saved it.
        dtypes: {kind: {parameter: dtype}}, as the headers say.
    """

    folder: Path
    manifest: Manifest
    config: Config
    dtypes: dict[str, dict[str, str]]


def main(argv: list[str] | None = None) -> int:
    """Print the description; 0 done, 2 after a user's mistake."""
    parser = argparse.ArgumentParser(prog="tools.inspect_checkpoint", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("checkpoint", type=Path, help="run folder or checkpoint")
    parser.add_argument("--tensors", action="store_true", help="also list every parameter")
    arguments = parser.parse_args(argv)
    try:
        found = find(arguments.checkpoint)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(found.folder)
    for title, rows in (("holds", holds(found)), ("can be loaded with", loads(found.config))):
        print(f"\n{title}")
        print("\n".join(f"  {name:<12}{text}" for name, text in rows))
    if arguments.tensors:
        print("\nparameters")
        print("\n".join(_tensor_rows(found)))
    return 0


def find(path: Path) -> Found:
    """The checkpoint meant by `path`, its files verified.

    Raises:
        UserError: none there, not whole, or its files do not hold what the manifest says.
    """
    folder = resolve_checkpoint(path)
    manifest = read_manifest(folder)
    if not {"run", "parallel", "data", "train"} <= manifest.run.keys():
        raise UserError(
            f"{folder / MANIFEST}: it lacks the configuration of the run that saved it; use a "
            "checkpoint written by pretrain.train"
        )
    config = config_of({**manifest.run, "model": manifest.model}, str(folder / MANIFEST))
    return Found(folder, manifest, config, _read_headers(folder, manifest))


def _read_headers(folder: Path, manifest: Manifest) -> dict[str, dict[str, str]]:
    from safetensors import SafetensorError, safe_open

    wanted = {f"{kind}/{name}" for kind in STATE for name in manifest.parameters}
    dtypes: dict[str, dict[str, str]] = {kind: {} for kind in STATE}
    for file in (tensor_file(r, manifest.tensor_size) for r in range(manifest.tensor_size)):
        try:
            with safe_open(folder / file, framework="np") as tensors:
                keys = set(tensors.keys())
                read = {key: tensors.get_slice(key).get_dtype() for key in keys & wanted}
        except (SafetensorError, OSError) as error:
            raise UserError(
                f"{folder / file}: not a file of tensors ({error}); restore it or use another "
                "checkpoint"
            ) from error
        if missing := sorted(wanted - keys):
            raise UserError(
                f"{folder / file}: {missing[0]} is not in it; restore the file or use another "
                "checkpoint"
            )
        for key, dtype in read.items():
            kind, _, name = key.partition("/")
            dtypes[kind][name] = dtype
    return dtypes


def holds(found: Found) -> Iterator[tuple[str, str]]:
    """(name, text) of what is saved."""
    manifest, config = found.manifest, found.config
    model, parallel, length = config.model, config.parallel, config.data.sequence_length
    written = datetime.fromtimestamp((found.folder / MANIFEST).stat().st_mtime)
    shapes = [described["shape"] for described in manifest.parameters.values()]
    yield "step", f"{manifest.step:,} of {config.train.steps:,}"
    yield "consumed", f"{manifest.sequences:,} sequences, {manifest.sequences * length:,} tokens"
    yield "written", f"{written:%Y-%m-%d %H:%M:%S} (time of the file)"
    yield "run", config.run.output_dir
    yield (
        "model",
        f"{model.pattern}: {len(model.signs)} blocks, width {model.hidden_size}, "
        f"{sum(map(math.prod, shapes)):,} parameters in {len(shapes)} tensors",
    )
    yield (
        "saved with",
        f"tensor {manifest.tensor_size} x context {parallel.context}, sequence parallel "
        f"{'on' if parallel.sequence else 'off'}, ZeRO stage {parallel.zero_stage}, recompute "
        f"{parallel.recompute}",
    )
    for name, size in manifest.files.items():
        yield "file", f"{name}  {size:,} bytes"
    for kind, text in STATE.items():
        yield "state", f"{text} ({', '.join(sorted(set(found.dtypes[kind].values())))})"
    yield "state", f"place in the schedule of the learning rate: step {manifest.step:,}"
    yield (
        "state",
        f"place in the data: sequence {manifest.sequences:,} of the order of run.seed = "
        f"{config.run.seed}; there is no other random state",
    )
    if len(manifest.lengths) > 1:
        lengths = LengthSchedule(tuple((first, n) for first, n in manifest.lengths))
        yield (
            "state",
            f"sequence length of the next step: {lengths.at(manifest.step):,} (of {lengths})",
        )


def loads(config: Config) -> Iterator[tuple[str, str]]:
    """(name, text) of the layouts that can go on, any of them with any other."""
    train, data = config.train, config.data
    sizes = possible_tensor_sizes(config)
    sequence = ", parallel.sequence on or off from 2 on" if len(sizes) > 1 else ""
    yield "tensor", f"{_ranks(sizes)}{sequence}"
    shortest, divided = config.curriculum.initial_length or data.sequence_length, ""
    if config.curriculum.initial_length:
        divided = f" with context (x tensor, with parallel.sequence) dividing {shortest:,}"
    yield "context", f"1 to {shortest:,} ranks{divided}, by kind of layer:"
    for sign in dict.fromkeys(config.model.signs):
        yield "", f"{sign}  {_context_limit(config, sign)}"
    yield (
        "data",
        f"{_ranks(_divisors(train.global_batch_size // train.micro_batch_size))} with "
        f"train.micro_batch_size = {train.micro_batch_size}",
    )
    if train.micro_batch_size > 1:
        yield "", f"{_ranks(_divisors(train.global_batch_size))} with 1"
    yield "ZeRO", "stage 0, 1, 2 or 3; any recomputation"
    yield (
        "unchanged",
        f"the model, train.global_batch_size = {train.global_batch_size}, "
        f"data.sequence_length = {data.sequence_length}"
        + (", the lengths of the curriculum" if config.curriculum.initial_length else ""),
    )


def possible_tensor_sizes(config: Config) -> list[int]:
    """Every `parallel.tensor` that the model can be cut for."""
    return [
        size
        for size in _divisors(config.model.hidden_size)
        if not tensor_divides(
            replace(config, parallel=replace(config.parallel, tensor=size, sequence=False)), size
        )
    ]


def _context_limit(config: Config, sign: str) -> str:
    """Which numbers of context ranks layers of kind `sign` can do with, and how."""
    exchanges = SIGNS[sign].exchanges
    key = divided_key(sign)
    dealt = f"where tensor x context divides model.{key} = {getattr(config.model, key)}"
    parts = [f"{e} {dealt if e == 'all_to_all' else 'for any number'}" for e in exchanges]
    return ", ".join(parts) or "only 1"


def _divisors(number: int) -> list[int]:
    return [n for n in range(1, number + 1) if number % n == 0]


def _ranks(counts: list[int]) -> str:
    *first, last = map(str, counts)
    return f"{', '.join(first)} or {last} ranks" if first else f"{last} rank"


def _tensor_rows(found: Found) -> Iterator[str]:
    """One line for each parameter: name, full shape, how it is cut over tensor ranks, dtype."""
    parameters = found.manifest.parameters
    width = max(map(len, parameters), default=0) + 2
    for name, described in parameters.items():
        cut = "whole"
        if described["dim"] is not None:
            blocks = described["blocks"]
            cut = f"cut along dim {described['dim']}"
            cut += f" in {blocks} blocks" if blocks > 1 else ""
        shape = " x ".join(map(str, described["shape"]))
        yield f"  {name:<{width}}{shape:<16}{found.dtypes['weight'][name]:<5}{cut}"


if __name__ == "__main__":
    sys.exit(main())

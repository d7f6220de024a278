"""Where a run starts from, and whether it can: needs nothing but the manifest."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path

from megatron_hyena.checkpoint.format import (
    Manifest,
    check_architecture,
    find_checkpoints,
    read_manifest,
    resolve_checkpoint,
)
from megatron_hyena.config import Config, LengthSchedule, config_dict, length_schedule
from megatron_hyena.errors import UserError

PLACE = (
    ("train", "global_batch_size"),
    ("data", "sequence_length"),
    ("data", "pack"),
    ("data", "reverse_complement"),
    ("data", "shuffle_among"),
    ("data", "weights"),
    ("data", "stages"),
    ("data", "temperature"),
    ("run", "seed"),
)
"""Keys without which a number of sequences is no place in the data."""


@dataclass(frozen=True)
class Start:
    """A checkpoint that a run may go on from."""

    folder: Path
    manifest: Manifest


def find_start(config: Config) -> Start | None:
    """The checkpoint that `checkpoint.resume` means; None for a new start.

    Raises:
        UserError: none at the path given, an incomplete one, or one of another architecture,
            batch size or sequence length, of packed sequences and this one is not, or of
            another curriculum.
    """
    wanted = config.checkpoint.resume
    if wanted == "none":
        return None
    if wanted == "auto":
        found = find_checkpoints(Path(config.run.output_dir) / "checkpoints")
        if not found:
            return None
        folder = found[-1]
    else:
        folder = resolve_checkpoint(wanted)
    manifest = read_manifest(folder)
    check_architecture(manifest.model, config.model, folder)
    _check_position(manifest, config, folder)
    _check_curriculum(manifest, config, folder)
    return Start(folder, manifest)


def check_data(start: Start | None, config: Config, digests: Sequence[str]) -> None:
    """Refuse to go on by itself on other data; a path in `checkpoint.resume` may name another run.

    `digests`: of the folders of training data, in order. Raises UserError.
    """
    if start is None or config.checkpoint.resume != "auto" or not start.manifest.data:
        return
    for number, (saved, found) in enumerate(zip_longest(start.manifest.data, digests)):
        if saved is None or found != saved["digest"]:
            was = f"{saved['folder']} ({saved['digest'][:12]}…)" if saved else "nothing"
            now = f"{found[:12]}…" if found else "nothing"
            raise UserError(
                f"{start.folder}: folder {number + 1} of data.train was {was}, now {now}, so its "
                "place in the data is undefined; give the same shards or start another "
                "run.output_dir"
            )


def _check_position(manifest: Manifest, config: Config, folder: Path) -> None:
    values = config_dict(config)
    defaults = config_dict(Config())  # of a key that the saving version did not have
    for section, key in PLACE:
        saved = manifest.run[section].get(key, defaults[section][key])
        asked = values[section][key]
        if saved != asked:
            raise UserError(
                f"{folder}: saved with {section}.{key}={saved}, now {asked}, so its place in the "
                f"data is undefined; set {section}.{key}={saved} or start another run.output_dir"
            )


def _check_curriculum(manifest: Manifest, config: Config, folder: Path) -> None:
    """The lengths are compared, not the keys: another `train.steps` may change or keep them."""
    full = config.data.sequence_length
    saved = LengthSchedule(tuple((first, n) for first, n in manifest.lengths) or ((0, full),))
    asked = length_schedule(config)
    if saved != asked:
        raise UserError(
            f"{folder}: saved in a run of sequence lengths {saved}, now {asked}; set "
            f"{_curriculum_keys(manifest)} or start another run.output_dir"
        )


def _curriculum_keys(manifest: Manifest) -> str:
    """What gives the saved run's lengths, whatever `train.steps` is."""
    if len(manifest.lengths) < 2:
        return "curriculum.initial_length=0 and curriculum.steps=0"
    (_, initial), (last, _) = manifest.lengths[0], manifest.lengths[-1]
    growth = manifest.run["curriculum"]["growth"]
    return (
        f"curriculum.initial_length={initial}, curriculum.growth={growth} and "
        f"curriculum.steps={last}"
    )

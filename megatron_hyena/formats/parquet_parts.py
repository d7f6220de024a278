"""Long work that ends in one Parquet file, saved part by part: a run that was killed goes on.

    scores.parquet.parts/settings.json      what decides the rows; another run must agree
    scores.parquet.parts/part-00007.parquet one part, whole once it has its name
    scores.parquet                          all parts in order, once there is none missing

Several processes may write parts of one file. Whichever finds the last one there joins them.
"""

from __future__ import annotations

import importlib
import json
import os
import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from megatron_hyena.errors import UserError
from megatron_hyena.runtime.lock import exclusive

SETTINGS = "settings.json"


def needed(module: str) -> Any:
    """An optional library of the extra `variants`; raises UserError where it is not installed."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise UserError(
            f"{module.partition('.')[0]} is not installed; pip install 'megatron-hyena[variants]'"
        ) from error


def goes_on(
    work: Path, before: Mapping[str, Any], asked: Mapping[str, Any], overwrite: bool
) -> bool:
    """Whether unfinished work is of the settings that are asked for, both as JSON has them.

    Raises:
        UserError: it is not, and is not to be overwritten.
    """
    asked = json.loads(json.dumps(asked))
    changed = sorted(key for key in {*before, *asked} if before.get(key) != asked.get(key))
    if changed and not overwrite:
        key = changed[0]
        raise UserError(
            f"{work} was begun with {key} = {before.get(key)!r}, now it is {asked.get(key)!r}; ask "
            "for the same, choose another --output, or pass --overwrite to begin anew"
        )
    return not changed


class Parts:
    """The parts of one output.

    Args:
        output: the file that is wanted.
        settings: what the rows depend on, for JSON.
        count: number of parts.
        overwrite: replace an output, and parts of other settings.
    Raises:
        UserError: the output is there already, or parts of other settings are.
    """

    def __init__(
        self, output: Path, settings: Mapping[str, Any], count: int, overwrite: bool = False
    ) -> None:
        self.output, self.count = output, count
        self.folder = output.with_name(f"{output.name}.parts")
        if output.exists() and not overwrite:
            raise UserError(f"{output} exists already; pass --overwrite to replace it")
        described = self.folder / SETTINGS
        if described.is_file():
            self._check(described, settings, overwrite)
        if not described.is_file():
            self.folder.mkdir(parents=True, exist_ok=True)
            partial = self.folder / f".{SETTINGS}.{os.getpid()}"
            partial.write_text(json.dumps(settings, indent=1) + "\n", encoding="utf-8")
            os.replace(partial, described)

    def _check(self, described: Path, settings: Mapping[str, Any], overwrite: bool) -> None:
        """Keep the parts of the same settings; remove others, or refuse to."""
        before = json.loads(described.read_text(encoding="utf-8"))
        if not goes_on(self.folder, before, settings, overwrite):
            shutil.rmtree(self.folder)

    def missing(self) -> list[int]:
        """Numbers of the parts that are not there."""
        return [number for number in range(self.count) if not self._path(number).is_file()]

    def write(self, number: int, tables: Iterable[Any]) -> None:
        """Write one part of pyarrow tables, at least one, each as a row group."""
        path = self._path(number)
        partial = path.with_name(f".{path.name}.{os.getpid()}")
        _write_tables(partial, tables)
        os.replace(partial, path)

    def join(self, metadata: Mapping[str, Any]) -> bool:
        """Make the output of all parts, `metadata` in its schema; False while some are missing."""
        if not self.folder.is_dir():  # another process has joined them
            return self.output.is_file()
        if self.missing():
            return False
        parquet = needed("pyarrow.parquet")
        with exclusive(self.folder / ".lock"):
            if (self.folder / SETTINGS).is_file():  # else another process was faster
                partial = self.output.with_name(f".{self.output.name}.partial")
                files = (parquet.ParquetFile(self._path(n)) for n in range(self.count))
                tables = (f.read_row_group(i) for f in files for i in range(f.num_row_groups))
                _write_tables(partial, tables, metadata)
                os.replace(partial, self.output)
            shutil.rmtree(self.folder, ignore_errors=True)
        return True

    def _path(self, number: int) -> Path:
        return self.folder / f"part-{number:05d}.parquet"


def _write_tables(
    path: Path, tables: Iterable[Any], metadata: Mapping[str, Any] | None = None
) -> None:
    parquet, writer = needed("pyarrow.parquet"), None
    try:
        for table in tables:
            if writer is None:
                schema = table.schema.with_metadata(
                    {k: str(v) for k, v in (metadata or {}).items()}
                )
                writer = parquet.ParquetWriter(path, schema, compression="zstd")
            writer.write_table(table.cast(schema))
        if writer is None:
            raise ValueError(f"{path}: no table to write")
    finally:
        if writer is not None:
            writer.close()

"""The scores beside the records they belong to: VCF or BCF with INFO fields."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from itertools import groupby
from pathlib import Path
from typing import Any

from megatron_hyena.errors import UserError
from megatron_hyena.formats.parquet_parts import needed
from megatron_hyena.variants.reading import open_variants, read_lines
from megatron_hyena.variants.rows import DELTAS

_MODES = {".vcf": "w", ".vcf.gz": "wz", ".bcf": "wb"}
_FIELDS = {
    "DLL": ("Float", "delta_ll", "log p(ALT window) - log p(REF window), nats"),
    "DLLB": ("Float", "delta_ll_per_base", "difference of the means per base, nats"),
    "DLLF": ("Float", "delta_ll_following", "difference over the same bases behind, nats"),
    "DLLS": ("String", "status", "scored, or why there is no score"),
}
"""INFO key → type, column of the table, description."""
assert {column for _, column, _ in _FIELDS.values()} >= set(DELTAS)


def check_vcf_output(path: Path, overwrite: bool) -> Path:
    """`path`; raises UserError where it exists, or its ending is none of those that are known."""
    if _mode(path) is None:
        raise UserError(f"{path}: --vcf-output ends in {', '.join(_MODES)}; rename it")
    if path.exists() and not overwrite:
        raise UserError(f"{path} exists already; pass --overwrite to replace it")
    return path


def _mode(path: Path) -> str | None:
    return next((mode for end, mode in _MODES.items() if path.name.endswith(end)), None)


def write_vcf(vcf: Path, table: Path, output: Path, settings: Mapping[str, Any]) -> None:
    """Copy `vcf` to `output` with the scores of `table`; the file appears whole."""
    pysam = needed("pysam")
    partial = output.with_name(f".{os.getpid()}.partial.{output.name}")
    output.parent.mkdir(parents=True, exist_ok=True)
    header = _header(vcf, settings)
    with open_variants(vcf) as file:
        file.header.merge(header)
        with pysam.VariantFile(str(partial), _mode(output), header=file.header) as into:
            for record, rows in zip(read_lines(vcf, file), _by_record(table), strict=True):
                for key, (_, column, _) in _FIELDS.items():
                    if record.alts:
                        record.info[key] = tuple(row[column] for row in rows)
                into.write(record)
    os.replace(partial, output)


def _header(vcf: Path, settings: Mapping[str, Any]) -> Any:
    """The file's header, with what its records name and the header does not, and the scores."""
    with open_variants(vcf) as file:
        for _ in read_lines(vcf, file):
            pass
        header = file.header.copy()
    for key, (kind, _, description) in _FIELDS.items():
        if key not in header.info:
            header.info.add(key, "A", kind, description)
        elif (header.info[key].number, header.info[key].type) != ("A", kind):  # not ours
            raise UserError(
                f"{vcf} has an INFO field {key} of its own, which --vcf-output would write; rename "
                "it (bcftools annotate), or leave --vcf-output out"
            )
    if "END" not in header.info:  # pysam declares it at the first symbolic ALT, which is too late
        header.info.add("END", 1, "Integer", "End of the variant")
    told = ("model_sha256", "window", "strands", "dtype")
    header.add_meta(
        "scores", items=[("ID", "megatron_hyena"), *((key, str(settings[key])) for key in told)]
    )
    return header


def _by_record(table: Path) -> Iterator[list[dict[str, Any]]]:
    """The rows of each record, in order; memory holds a row group."""
    parquet = needed("pyarrow.parquet")
    columns = ["record", *(column for _, column, _ in _FIELDS.values())]
    batches = parquet.ParquetFile(table).iter_batches(columns=columns)
    rows = (row for batch in batches for row in batch.to_pylist())
    for _, some in groupby(rows, key=lambda row: row["record"]):
        yield list(some)

"""Records of VCF and BCF files, and whether they belong to the reference."""

from __future__ import annotations

import gzip
import tempfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from megatron_hyena.errors import UserError
from megatron_hyena.formats.compressed import read_blocks, read_start
from megatron_hyena.formats.parquet_parts import needed
from megatron_hyena.formats.reference import Reference


@dataclass(frozen=True)
class Record:
    """One line: `number` from 1, `position` 1-based as in the file; no `alts` where it has none."""

    number: int
    contig: str
    position: int
    name: str
    ref: str
    alts: tuple[str, ...]

    def __str__(self) -> str:
        return f"record {self.number} ({self.contig}:{self.position})"


@dataclass(frozen=True)
class Survey:
    """What a file holds; `mismatched` is the number of records whose REF the reference has not."""

    records: int
    contigs: tuple[str, ...]
    mismatched: int

    @property
    def match_rate(self) -> float:
        """Share of records whose REF is what the reference has."""
        return 1 - self.mismatched / self.records


def open_variants(path: Path) -> Any:
    """A `pysam.VariantFile` to read from; what is not bgzip but plain gzip is unpacked for it.

    Raises:
        UserError: missing, empty, cut short, compressed otherwise, or neither VCF nor BCF.
    """
    pysam = needed("pysam")
    read_start(path)
    before = pysam.set_verbosity(0)  # what it would print becomes a sentence here
    try:
        try:
            return pysam.VariantFile(str(path))
        except NotImplementedError:  # htslib reads plain gzip from its beginning alone
            with tempfile.TemporaryFile() as file:
                file.writelines(read_blocks(path))
                file.seek(0)
                return pysam.VariantFile(file)
    except (ValueError, OSError) as error:
        raise UserError(
            f"{path} is no VCF or BCF file ({error}); give one that begins with ##fileformat=VCF"
        ) from error
    finally:
        pysam.set_verbosity(before)


def read_lines(path: Path, file: Any) -> Iterator[Any]:
    """Yield the `pysam.VariantRecord`s of an open file in order.

    Raises:
        UserError: a line that cannot be read, by the one before it.
    """
    pysam, last = needed("pysam"), None
    before = pysam.set_verbosity(0)
    try:
        while True:  # a loop over the file itself would want to seek
            last = next(file)
            yield last
    except StopIteration:
        return
    except (OSError, ValueError, UnicodeDecodeError) as error:
        where = f"behind {last.contig}:{last.pos}" if last else "in its first record"
        raise UserError(
            f"{path} is cut short or damaged {where}: {error}; fetch or write it again"
        ) from error
    finally:
        pysam.set_verbosity(before)


def read_records(path: Path) -> Iterator[Record]:
    """Yield all records in order, without genotypes.

    Raises:
        UserError: as `open_variants` and `read_lines`; records out of order.
    """
    last, seen = None, set[str]()
    with open_variants(path) as file:
        file.subset_samples([])
        for number, line in enumerate(read_lines(path, file), 1):
            alts = tuple(line.alts or ())
            record = Record(number, line.contig, line.pos, line.id or ".", line.ref or "", alts)
            _check_order(path, last, record, seen)
            last = record
            yield record


def _check_end(path: Path) -> None:
    """Refuse a file that is cut within its compression, by the last record that is whole."""
    try:
        for _ in read_blocks(path):
            pass
    except UserError as error:
        last = b""
        try:
            with gzip.open(path, "rb") as file:
                for line in file:
                    last = line if line.endswith(b"\n") else last
        except (EOFError, OSError, zlib.error):
            pass  # as was to be expected
        if len(columns := last.split(b"\t")) < 8 or last.startswith(b"#"):
            raise
        name, place = (column.decode("utf-8", "replace") for column in columns[:2])
        raise UserError(f"{error}; the last record that is whole is {name}:{place}") from error


def _check_order(path: Path, last: Record | None, record: Record, seen: set[str]) -> None:
    if last is not None and last.contig == record.contig:
        if record.position < last.position:
            raise UserError(f"{path}: {record} stands behind {last}; sort the file (bcftools sort)")
        return
    if record.contig in seen:
        raise UserError(
            f"{path}: {record} comes back to {record.contig} behind {last}; sort the file "
            "(bcftools sort)"
        )
    seen.add(record.contig)


def matches(record: Record, reference: Reference) -> bool:
    """Whether the reference has REF there, in either case."""
    start = record.position - 1
    end = start + len(record.ref)
    if start < 0 or end > reference.lengths[record.contig]:
        return False
    found = reference.read(record.contig, start, end).tobytes().decode("latin-1")
    return found.upper() == record.ref.upper()


def survey(path: Path, reference: Reference, max_mismatch: float) -> Survey:
    """Read the whole file once and compare every REF.

    Raises:
        UserError: as `read_records`; a contig that the reference has not; no records; more REFs
            that differ than `max_mismatch` allows, with the first.
    """
    records = mismatched = 0
    _check_end(path)
    first, contigs = None, dict[str, None]()
    for record in read_records(path):
        if record.contig not in reference.lengths:
            raise UserError(f"{path}: {record}: {reference.unknown(record.contig)}")
        records = record.number
        contigs[record.contig] = None
        if not matches(record, reference):
            mismatched, first = mismatched + 1, first or record
    if not records:
        raise UserError(f"{path} holds no records; give a file with variants")
    if first is not None and mismatched > max_mismatch * records:
        raise UserError(_mismatch(path, reference, first, mismatched, records, max_mismatch))
    return Survey(records, tuple(contigs), mismatched)


def _mismatch(
    path: Path, reference: Reference, first: Record, count: int, records: int, limit: float
) -> str:
    length, start = reference.lengths[first.contig], first.position - 1
    found = f"ends at base {length}"
    if 0 <= start < length:
        stretch = reference.read(first.contig, start, min(length, start + len(first.ref)))
        found = f"has {stretch.tobytes().decode('latin-1')}"
    return (
        f"{path}: REF of {count} of {records} records ({count / records:.1%}, --max-mismatch "
        f"{limit:.1%}) is not what {reference.path} has; the first is {first}, REF {first.ref}, "
        f"where the reference {found}; give the assembly that the variants were called on"
    )

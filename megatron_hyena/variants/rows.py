"""From records to rows: one for each ALT, scored, or with the reason why not."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from megatron_hyena.formats.parquet_parts import needed
from megatron_hyena.formats.reference import Reference
from megatron_hyena.variants.alleles import Change, contextual
from megatron_hyena.variants.reading import Record, matches
from megatron_hyena.variants.scoring import Scorer, Sums
from megatron_hyena.variants.windows import Passage, Windows, windows_of

SCORED = "scored"
_LETTERS = frozenset("ACGTN")
_TEXT = ("contig", "id", "ref", "alt", "status")
_WHOLE = ("record", "position", "alt_number", "window_start", "left", "right")
_BASES = ("ref_bases", "alt_bases")
DELTAS = ("delta_ll", "delta_ll_per_base", "delta_ll_following")
_SUMS = ("ref_ll_forward", "alt_ll_forward", "ref_ll_reverse", "alt_ll_reverse")
COLUMNS = (
    *("record", "contig", "position", "id", "ref", "alt", "alt_number", "status", *DELTAS, *_SUMS),
    *(*_BASES, "window_start", "left", "right"),
)


@dataclass(frozen=True, eq=False)
class _Row:
    """An ALT: its windows, or why there are none."""

    record: Record
    alt: str
    number: int
    status: str
    windows: Windows | None = None


def rows_of(
    records: Sequence[Record],
    reference: Reference,
    window: int,
    scorer: Scorer,
    both: bool,
    done: Callable[[float], object] = lambda share: None,
) -> Any:
    """A pyarrow table with a row for each ALT of `records`; see `docs/variants.md`.

    Args:
        both: score both strands.
        done: told what share of the work was done since it was last told.
    """
    rows = [row for record in records for row in _rows(record, reference, window)]
    passages: list[Passage] = []
    for row in rows:
        if row.windows is not None:
            for forward in (True, False)[: 1 + both]:
                passages += row.windows.passages(forward)
    sums, at = scorer.sums(passages, lambda n: done(n / len(passages))), 0
    found = []
    for row in rows:
        taken = 2 * (1 + both) if row.windows is not None else 0
        found.append(_values(row, passages[at : at + taken], sums[at : at + taken]))
        at += taken
    return _table(found)


def _rows(record: Record, reference: Reference, window: int) -> Iterator[_Row]:
    known = matches(record, reference)
    for number, alt in enumerate(record.alts or (".",), 1):
        status = _status(record, alt) if known else "ref_mismatch"
        change = None
        if status == SCORED:
            change = _change(record, alt, reference, window)
            if change is None:
                status = "unchanged"
            elif change.longest > window // 2:
                status, change = "too_long", None
        windows = None if change is None else windows_of(change, reference, record.contig, window)
        if windows is not None and not _has_context(windows):
            status, windows = "no_context", None
        yield _Row(record, alt, number, status, windows)


def _has_context(windows: Windows) -> bool:
    """Whether at least one base of every window counts, on both strands."""
    pairs = (windows.passages(forward) for forward in (True, False))
    return all(passage.scored for pair in pairs for passage in pair)


def _status(record: Record, alt: str) -> str:
    if alt == ".":
        return "missing"
    if alt == "*":
        return "overlapping_deletion"
    if alt.startswith("<"):
        return "symbolic"
    if "[" in alt or "]" in alt:
        return "breakend"
    return SCORED if {*alt.upper(), *record.ref.upper()} <= _LETTERS else "not_bases"


def _change(record: Record, alt: str, reference: Reference, window: int) -> Change | None:
    """The contextual form, looked for as far as a window reaches; None if nothing changes."""
    start = record.position - 1
    end = start + len(record.ref)
    low, high = max(0, start - window), min(reference.lengths[record.contig], end + window)
    around = reference.read(record.contig, low, high).tobytes().upper()
    found = contextual(around, start - low, end - low, alt.upper().encode())
    if found is None:
        return None
    return Change(found.start + low, found.end + low, found.alt)


def _values(row: _Row, passages: Sequence[Passage], sums: Sums) -> dict[str, Any]:
    record, windows = row.record, row.windows
    values: dict[str, Any] = dict.fromkeys(COLUMNS)
    values |= {
        **{"record": record.number, "contig": record.contig, "position": record.position},
        **{"id": record.name, "ref": record.ref, "alt": row.alt, "alt_number": row.number},
        "status": row.status,
    }
    if windows is None:
        return values
    values |= {"window_start": windows.start, "left": windows.left, "right": windows.right}
    counts = np.array([passage.scored for passage in passages], dtype=np.float64)
    per_base = sums[:, 0] / counts
    means = (sums[1::2, 0] - sums[::2, 0], per_base[1::2] - per_base[::2])
    deltas = (*means, sums[1::2, 1] - sums[::2, 1])
    values |= {name: float(d.mean()) for name, d in zip(DELTAS, deltas, strict=True)}
    values |= {name: float(s) for name, s in zip(_SUMS, sums[:, 0], strict=False)}
    return values | {"ref_bases": int(counts[0]), "alt_bases": int(counts[1])}


def _table(found: Sequence[dict[str, Any]]) -> Any:
    pyarrow = needed("pyarrow")
    kinds = dict.fromkeys(_TEXT, pyarrow.string())
    kinds |= dict.fromkeys((*_WHOLE, *_BASES), pyarrow.int64())
    schema = pyarrow.schema([(name, kinds.get(name, pyarrow.float64())) for name in COLUMNS])
    return pyarrow.Table.from_pylist(list(found), schema=schema)

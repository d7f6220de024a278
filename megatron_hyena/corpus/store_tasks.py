"""The tasks of a sample: its genome store, and the records of what is in it."""

from __future__ import annotations

import hashlib
from functools import partial
from pathlib import Path
from typing import Any

from megatron_hyena.corpus.curation import survey
from megatron_hyena.corpus.downloads import Downloads
from megatron_hyena.corpus.options import CorpusOptions
from megatron_hyena.corpus.prepare import write_store
from megatron_hyena.corpus.records import write_records
from megatron_hyena.corpus.samples import Sample
from megatron_hyena.corpus.tasks import Progress, Task
from megatron_hyena.data.store import GenomeStore
from megatron_hyena.formats.sheet import Location
from megatron_hyena.yaml_sections import plain_values


def store_path(root: Path, sample: str) -> Path:
    """The store of a sample's name."""
    return root / "stores" / f"{sample}.zarr"


def records_stem(root: Path, sample: str) -> Path:
    """Of the two files with a sample's records."""
    return root / "records" / sample


def store_chain(root: Path, sample: Sample, options: CorpusOptions) -> list[Task]:
    """The store's task and, behind it, that of its records.

    A source is known by its name, size and time of change, so that finding out whether a store is
    up to date reads no sequence; and one of another machine by its URL alone.
    """
    store = Task(
        name=f"store/{sample.name}",
        outputs=(str(store_path(Path(), sample.name)),),
        inputs={
            "files": [[role, *_identity(place)] for role, place in sample.files],
            "type": sample.row.type.name,
            "annotation": [str(place) for place in sample.row.annotation],  # with types of rows
            "maf_reference": sample.maf_reference,
        },
        work=partial(_make_store, sample),
        size=sample.bytes,
    )
    # What `survey` goes by; another choice of taxa or of duplicates needs no other survey.
    rules = {k: getattr(options.curation, k) for k in ("minimum_length", "unknown_run", "iupac")}
    stem = records_stem(Path(), sample.name)
    records = Task(
        name=f"records/{sample.name}",
        outputs=(f"{stem}.npz", f"{stem}.json"),
        inputs={
            "store": store.key,
            "sample": sample.name,
            "taxon": sample.row.taxon,
            "curation": rules,
            "sketch": plain_values(options.sketch) if options.needs_sketches else None,
        },
        work=partial(_make_records, root, sample, options),
        size=sample.bytes,
    )
    return [store, records]


def _identity(place: Location) -> list[Any]:
    if isinstance(place, str):
        return [place]
    stat = place.stat()
    return [place.name, stat.st_size, stat.st_mtime_ns]


def _make_store(sample: Sample, scratch: Path, progress: Progress) -> dict[str, Any]:
    downloads = Downloads(scratch / ".downloads")
    store = write_store(
        store_path(scratch, sample.name),
        [downloads.local(place) for place in sample.sequences],
        [downloads.local(place) for place in sample.row.annotation],
        kind=sample.row.type,
        tracks={name: downloads.local(place) for name, place in sample.row.tracks.items()},
        maf_reference=sample.maf_reference,
        progress=progress,
    )
    described = store.attributes["sources"]
    return {
        "sources": [
            {
                "sample": sample.name,
                "location": str(place),
                **told,
                "md5": md5_of(downloads.copies[place] if isinstance(place, str) else place),
            }
            for (_, place), told in zip(sample.files, described, strict=True)
        ],
        "contigs": len(store.contigs),
        "composition": store.attributes["composition"],
        "tracks": {name: store.track(name).array.dtype.name for name in store.tracks},
    }


def _make_records(
    root: Path, sample: Sample, options: CorpusOptions, scratch: Path, progress: Progress
) -> dict[str, Any]:
    store = GenomeStore.open(store_path(root, sample.name))
    sketch = options.sketch if options.needs_sketches else None
    taxon = sample.row.taxon
    records = survey(store, sample.name, taxon, options.curation, sketch, progress)
    write_records(records_stem(scratch, sample.name), records)
    return {"records": len(records)}


def md5_of(path: Path) -> str:
    """Hexadecimal MD5 of a file: what archives publish beside it."""
    digest = hashlib.md5(usedforsecurity=False)
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()

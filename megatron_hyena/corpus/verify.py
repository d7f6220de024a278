"""Is every byte the one that was written? A corpus, a part of one, folders of shards, or a store.

What is compared: with `manifest.json`, in the folder or above it, or else with the `index.json` of
shards and the `zarr.json` of stores that were made without a corpus. All notice a change of
themselves.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from megatron_hyena.corpus.manifest import FORMAT, MANIFEST, Files, Manifest
from megatron_hyena.corpus.store_sums import STORE_FILE, DamagedStoreError, is_store, read_sums
from megatron_hyena.corpus.tasks import WORK
from megatron_hyena.data.atomic import sha256_of
from megatron_hyena.data.shard_index import INDEX_FILE, ShardIndex
from megatron_hyena.errors import UserError


@dataclass(frozen=True)
class Check:
    """What is to be compared, and what was wrong before that began."""

    folder: Path
    """Names of `expected` are relative to it."""
    below: str
    """Of it, the part that is looked at."""
    expected: Files
    origin: str
    """The file that says what is expected."""
    ignored: tuple[str, ...]
    """Files that are right to be there and are not compared."""
    findings: tuple[str, ...] = ()
    content: str = ""
    """The digest that the shards' indices must name."""

    @property
    def total(self) -> int:
        """Bytes expected."""
        return sum(size for size, _ in self.expected.values())


def open_check(folder: Path) -> list[Check]:
    """What `folder` is to be compared with.

    A manifest or an index that cannot be relied on is a finding, and nothing is compared with it.
    Raises UserError where there is none.
    """
    if not folder.is_dir():
        raise UserError(f"{folder} is no folder; name a corpus, a store or a folder of shards")
    whole = folder.resolve()
    for root in (whole, *whole.parents):
        if _is_ours(root / MANIFEST, nearby=root == whole):
            try:
                return [_corpus_check(root, whole, Manifest.read(root))]
            except UserError as error:
                return [Check(root, "", {}, MANIFEST, (), findings=(str(error),))]
    stores = [folder for folder in (whole, *sorted(whole.glob("*"))) if is_store(folder)]
    beside = "shards/*/" if stores else "*/"  # as tools.make_shards is told to write them
    indices = sorted({*whole.glob(INDEX_FILE), *whole.glob(f"{beside}{INDEX_FILE}")})
    if not indices and not stores:
        raise UserError(
            f"{folder}: neither it nor a folder above it has a {MANIFEST}, and it holds no shards "
            f"with an {INDEX_FILE} and no genome store; finish it with tools.prepare_corpus, or "
            "name another folder"
        )
    return [
        *(_store_check(store) for store in stores),
        *_index_checks([path.parent for path in indices]),
    ]


def _store_check(store: Path) -> Check:
    """Of a store alone. Raises UserError where it has no checksums."""
    try:
        sums = read_sums(store)
    except DamagedStoreError as error:
        return Check(store, "", {}, STORE_FILE, (), findings=(str(error),))
    return Check(store, "", sums, STORE_FILE, (STORE_FILE,))


def _is_ours(path: Path, nearby: bool) -> bool:
    """Whether it is a manifest; one far above may belong to something else."""
    return path.is_file() and (nearby or FORMAT.encode() in path.read_bytes())


def _corpus_check(root: Path, part: Path, manifest: Manifest) -> Check:
    below = "" if part == root else str(part.relative_to(root))
    expected = {
        name: found for name, found in manifest.files.items() if Path(name).is_relative_to(below)
    }
    if not expected:
        raise UserError(f"{root / MANIFEST} lists nothing in {below}; name a folder of the corpus")
    return Check(root, below, expected, MANIFEST, (MANIFEST,), content=manifest.content)


def _index_checks(folders: list[Path]) -> list[Check]:
    checks = []
    first = None
    for folder in folders:
        try:
            index = ShardIndex.read(folder)
        except UserError as error:
            checks.append(Check(folder, "", {}, INDEX_FILE, (), findings=(str(error),)))
            continue
        files = {shard.file: (shard.bytes, shard.sha256) for shard in index.shards}
        first = first or index
        findings: tuple[str, ...] = ()
        if index.provenance != first.provenance:
            findings = (
                f"{folder / INDEX_FILE}: made of other sources, options or versions than the "
                f"shards in {folders[0]}; the folders are mixed",
            )
        checks.append(Check(folder, "", files, INDEX_FILE, (INDEX_FILE,), findings))
    return checks


def findings_of(
    check: Check, *, quick: bool = False, progress: Callable[[int], object] = lambda size: None
) -> Iterator[str]:
    """One sentence for each thing that is wrong, in the order of the files' names.

    `quick`: sizes only. `progress` is told the bytes of each file that was looked at.
    """
    yield from check.findings
    if check.findings and not check.expected:
        return
    found = {name for name in _files_below(check.folder, check.below) if name not in check.ignored}
    names = sorted(found | set(check.expected))
    with ThreadPoolExecutor(os.cpu_count() or 1) as pool:  # hashing lets other threads run

        def look(name: str) -> str | None:
            return _finding(check, name, name in found, quick)

        for name, finding in zip(names, pool.map(look, names), strict=True):
            if finding:
                yield f"{check.folder / name}: {finding}"
            progress(check.expected.get(name, (0, ""))[0])


def _finding(check: Check, name: str, present: bool, quick: bool) -> str | None:
    if name not in check.expected:
        return f"not in {check.origin}; it belongs to something else: remove it"
    size, sha256 = check.expected[name]
    path = check.folder / name
    if not present:
        return f"in {check.origin} but missing"
    if path.name == INDEX_FILE and check.content and (other := _other_corpus(path, check.content)):
        return other
    actual = path.stat().st_size
    if actual != size:
        return f"{actual} bytes, not {size} as {check.origin} says"
    if not quick and sha256_of(path) != sha256:
        return f"damaged: its SHA-256 is not the one in {check.origin}"
    return None


def _other_corpus(path: Path, content: str) -> str | None:
    """What to say of an intact index that was written for another corpus."""
    try:
        named = ShardIndex.read(path.parent).provenance.get("corpus", "")
    except UserError:
        return None  # damaged: its size or its SHA-256 tells
    if named == content:
        return None
    return (
        f"of another version of the corpus: its content is {named[:12] or 'unnamed'}, not "
        f"{content[:12]} as {MANIFEST} says"
    )


def _files_below(folder: Path, below: str) -> Iterator[str]:
    for place, folders, files in os.walk(folder / below):
        if Path(place) == folder and WORK in folders:
            folders.remove(WORK)
        yield from (str((Path(place) / file).relative_to(folder)) for file in files)

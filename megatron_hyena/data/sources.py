"""What a name of shards stands for: folders, globs and URLs, each with its index."""

from __future__ import annotations

import glob
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from megatron_hyena.data.corrupt import CorruptShards
from megatron_hyena.data.remote import find, is_remote, read_object
from megatron_hyena.data.remote_errors import MissingError
from megatron_hyena.data.shard_cache import ShardCache
from megatron_hyena.data.shard_index import INDEX_FILE, Shard, ShardIndex
from megatron_hyena.errors import UserError


class ShardSource(str):
    """A name of shards that knows how they are had; it goes wherever the plain name may go.

    The name: folders, globs, s3:// or http(s):// URLs, parted by commas.
    """

    cache: ShardCache
    """Where shards of a store are kept."""
    corrupt: CorruptShards
    """What becomes of shards that are damaged, and how many there were."""

    def __new__(
        cls,
        name: Path | str,
        cache: ShardCache | None = None,
        corrupt: CorruptShards | None = None,
    ) -> ShardSource:
        """`cache` None: the user's, without bound; `corrupt` None: the first one ends the run."""
        source = super().__new__(cls, name)
        source.cache = cache or ShardCache()
        source.corrupt = corrupt or CorruptShards()
        return source

    def parts(self) -> list[ShardSource]:
        """The names parted by commas, each had in the same way.

        Raises UserError where one is empty.
        """
        if "," not in self or Path(self).exists():
            return [self]
        names = [name.strip() for name in self.split(",")]
        if "" in names:
            raise UserError(f"{str(self)!r} names a folder of shards too few; mind its commas")
        return [ShardSource(name, self.cache, self.corrupt) for name in names]


@dataclass(frozen=True)
class Found:
    """A folder, its index, and those of its shards that are asked for."""

    folder: str
    index: ShardIndex
    shards: tuple[Shard, ...]

    @property
    def remote(self) -> bool:
        """Whether the folder is of a store."""
        return is_remote(self.folder)

    def name_of(self, shard: Shard) -> str:
        """The path or URL of one of its shards."""
        return f"{self.folder}/{shard.file}"


def resolve(source: ShardSource) -> list[Found]:
    """What `source` names, in order; raises UserError where nothing matches or an index lacks."""
    retry = source.cache.retry

    def named(name: str) -> list[Found]:
        if not is_remote(name):
            return _local(name)
        return _remote(name, lambda url: read_object(url, retry))

    found = [one for part in source.parts() for one in named(str(part))]
    folders = [one.folder if one.remote else str(Path(one.folder).resolve()) for one in found]
    if twice := [folder for folder in folders if folders.count(folder) > 1]:
        raise UserError(f"{source} names {twice[0]} twice; keep one")
    return found


def _local(pattern: str) -> list[Found]:
    """Folders and, of each, the shards that a folder's name or a glob names."""
    if Path(pattern).is_dir():
        return [_select(pattern, ShardIndex.read(Path(pattern)), None)]
    matches = [(match, Path(match).is_dir()) for match in glob.glob(pattern, recursive=True)]
    chosen = _by_folder(pattern, matches)
    return [_select(f, ShardIndex.read(Path(f)), files) for f, files in chosen.items()]


def _remote(pattern: str, read: Callable[[str], bytes]) -> list[Found]:
    """The same of a store; the name of a single tar file stands for itself."""
    pattern = pattern.rstrip("/")
    if any(sign in pattern for sign in "*?["):
        chosen = _by_folder(pattern, find(pattern))
    else:
        chosen = _by_folder(pattern, [(pattern, not pattern.endswith((".tar", ".tar.gz")))])
    return [_select(f, _read_index(f, read), files) for f, files in chosen.items()]


def _by_folder(pattern: str, matches: list[tuple[str, bool]]) -> dict[str, set[str] | None]:
    """Each folder, with None for all of its shards or the names of some."""
    if not matches:
        raise UserError(
            f"{pattern} matches no shards; name a folder that tools.make_shards wrote, or a glob"
        )
    chosen: dict[str, set[str] | None] = {}
    for match, is_folder in sorted(matches):
        if is_folder:
            chosen[match] = None
            continue
        folder, _, name = match.rpartition("/")
        if name != INDEX_FILE:
            files = chosen.setdefault(folder or ".", set())
            if files is not None:
                files.add(name)
    return chosen


def _read_index(folder: str, read: Callable[[str], bytes]) -> ShardIndex:
    url = f"{folder}/{INDEX_FILE}"
    try:
        try:
            return ShardIndex.parse(read(url), url)
        except MissingError:
            raise
        except UserError:  # damaged on its way, perhaps: there is no checksum of it
            return ShardIndex.parse(read(url), url)
    except MissingError as error:
        raise UserError(
            f"{folder} has no {INDEX_FILE}; name a folder of one split, such as "
            "s3://bucket/corpus/train, that tools.make_shards wrote to the end"
        ) from error


def _select(folder: str, index: ShardIndex, files: set[str] | None) -> Found:
    """The shards of `folder`, all or those named."""
    if files is None:
        return Found(folder, index, index.shards)
    if strangers := files - {shard.file for shard in index.shards}:
        raise UserError(
            f"{folder}/{min(strangers)} is not in the folder's {INDEX_FILE}; narrow the glob "
            "or run tools.make_shards again"
        )
    return Found(folder, index, tuple(shard for shard in index.shards if shard.file in files))

"""`manifest.json`: every file of a corpus with its size and SHA-256, and where it all comes from.

It is written last, so a corpus without one is not finished, and it notices a change of itself
(`data.sealed`). `content`, the digest of the data files, names the corpus in the shards' indices.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from megatron_hyena.corpus.tasks import digest_of
from megatron_hyena.data.sealed import unseal, write_sealed
from megatron_hyena.data.shard_index import INDEX_FILE
from megatron_hyena.errors import UserError

MANIFEST = "manifest.json"
FORMAT = "megatron-hyena corpus"
FORMAT_VERSION = 1

Files = dict[str, tuple[int, str]]
"""Path relative to the corpus → size in bytes and SHA-256."""


@dataclass(frozen=True)
class Manifest:
    """What a corpus is and of what it was made."""

    tool_version: str
    content: str
    """`content_digest` of its data files."""
    options: dict[str, Any]
    samples: list[dict[str, Any]]
    sources: list[dict[str, Any]]
    """The files it was made of: sample, role, name, location, size, MD5 and SHA-256."""
    files: Files
    """All files but this one."""

    def write(self, root: Path) -> None:
        """Write `manifest.json` into `root`; the same corpus gives the same bytes."""
        content = {"format": FORMAT, "format_version": FORMAT_VERSION, **asdict(self)}
        content["files"] = dict(sorted(self.files.items()))
        write_sealed(root / MANIFEST, content)

    @classmethod
    def read(cls, root: Path) -> Manifest:
        """The manifest of `root`. Raises UserError where it is missing, damaged or of another
        version."""
        path = root / MANIFEST
        if not path.is_file():
            raise UserError(f"{path} is missing; the corpus is unfinished: prepare it again")
        try:
            content = unseal(path.read_bytes())
            found = (content.pop("format"), content.pop("format_version"))
            if found == (FORMAT, FORMAT_VERSION):
                files = {name: (size, sha256) for name, (size, sha256) in content["files"].items()}
                return cls(**{**content, "files": files})
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise UserError(
                f"{path} is damaged ({error}); copy it again, or delete it and run "
                "tools.prepare_corpus again"
            ) from error
        raise UserError(
            f"{path} has format {found[0]!r}, version {found[1]!r}, not {FORMAT!r}, version "
            f"{FORMAT_VERSION}; delete it and run tools.prepare_corpus again"
        )


def content_digest(files: Files) -> str:
    """Of the stores, records, plan and tar files: equal where these are equal byte for byte."""
    data = {name: found for name, found in files.items() if Path(name).name != INDEX_FILE}
    return digest_of(data)

"""JSON files that notice any changed byte of themselves: indices, manifests, records of tasks.

The last key, `digest`, is the SHA-256 of the file's own bytes with the digest's 64 characters left
out. So a flip anywhere, white space and the digest included, is found without another file.
"""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from typing import Any

_EMPTY = b'"digest": ""'


def seal(content: dict[str, Any]) -> bytes:
    """The file's bytes: `content`, whose keys keep their order, and its digest."""
    text = json.dumps({**content, "digest": ""}, indent=1) + "\n"
    head, empty, tail = text.encode("utf-8").rpartition(_EMPTY)
    digest = hashlib.sha256(head + empty + tail).hexdigest()
    return head + _named(digest) + tail


def unseal(data: bytes, *, required: bool = True) -> dict[str, Any]:
    """The content that `seal` was given.

    `required`: whether a file without a digest is refused. Raises ValueError for bytes that are
    no JSON object or do not match their digest.
    """
    content = json.loads(data)
    if not isinstance(content, dict):
        raise ValueError("it is no JSON object")
    digest = content.pop("digest", None)
    if digest is None and not required:
        return content
    head, found, tail = data.rpartition(_named(digest))
    if not found or hashlib.sha256(head + _EMPTY + tail).hexdigest() != digest:
        raise ValueError("its digest does not match its content")
    return content


def write_sealed(path: Path, content: dict[str, Any]) -> str:
    """Write `content` to `path`, which appears whole; returns the digest."""
    data = seal(content)
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    partial.write_bytes(data)
    os.replace(partial, path)
    return str(json.loads(data)["digest"])


def _named(digest: object) -> bytes:
    return b'"digest": "%s"' % str(digest).encode("utf-8")

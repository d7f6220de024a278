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
_LEVELS = 4
"""Down to the samples of an index."""


def seal(content: dict[str, Any]) -> bytes:
    """The file's bytes: `content`, whose keys keep their order, and its digest."""
    text = _text({**content, "digest": ""}, _LEVELS) + "\n"
    head, empty, tail = text.encode("utf-8").rpartition(_EMPTY)
    digest = hashlib.sha256(head + empty + tail).hexdigest()
    return head + _named(digest) + tail


def _text(value: Any, levels: int, margin: str = "\n") -> str:
    """JSON with a line for each item of so many levels; what lies deeper shares the item's line.

    A line for everything is written by Python code alone, thirty times slower, and a large index
    has a million samples.
    """
    if not levels or not value or not isinstance(value, (dict, list, tuple)):
        return json.dumps(value)
    inner = margin + " "
    if isinstance(value, dict):
        items = (f"{json.dumps(k)}: {_text(v, levels - 1, inner)}" for k, v in value.items())
        return "{" + inner + f",{inner}".join(items) + margin + "}"
    parts = (_text(item, levels - 1, inner) for item in value)
    return "[" + inner + f",{inner}".join(parts) + margin + "]"


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

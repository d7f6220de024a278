"""Objects of a store, named s3:// or http(s)://: read, listed and written, failures retried.

S3 needs s3fs, which finds endpoint, region and credentials by the standard means: the variables
AWS_ENDPOINT_URL, AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY …, ~/.aws, or the machine's role; without
any credentials, buckets are read as the public reads them. HTTP needs nothing.

What may pass (5xx, 408, 429, timeouts, cut connections, short bodies) is tried again after growing
pauses, each reported on stderr; what will not (403, 404, a wrong certificate) is not.
"""

from __future__ import annotations

import random
import re
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, TypeVar

from megatron_hyena.data.remote_errors import (
    MissingError,
    ShortError,
    UnreachableError,
    given_up,
    raise_lasting,
    reason_of,
    status_of,
)
from megatron_hyena.errors import UserError

TIMEOUT = 60
"""Seconds without an answer, or without a byte of it, after which an attempt has failed."""
_RANGE, _BLOCK = 1 << 24, 1 << 20
_SUM = "sha256"
"""Name, in an object's metadata, of the checksum of its bytes."""

T = TypeVar("T")


@dataclass(frozen=True)
class Retry:
    """How often, and how long apart: pauses double and are drawn between half and whole."""

    attempts: int = 8
    """Failures in a row, without a mebibyte gained between them, after which to give up."""
    first: float = 0.5
    """Seconds before the second attempt, at most."""
    longest: float = 30.0
    """Seconds of any pause, at most."""

    def wait(self, name: str, failures: int, reason: str) -> None:
        """Report failure number `failures` of `name` on stderr and sleep before the next attempt.

        The pause is drawn so that ranks which failed together do not come back together.
        """
        pause = min(self.longest, self.first * 2 ** (failures - 1)) * random.uniform(0.5, 1)
        sys.stderr.write(
            f"{name}: attempt {failures} of {self.attempts} failed ({reason}); "
            f"trying again in {pause:.1f} s\n"
        )
        time.sleep(pause)


def is_remote(location: Path | str) -> bool:
    """Whether `location` is a URL; raises UserError for one of a scheme that is not read."""
    found = re.match(r"([a-zA-Z][a-zA-Z0-9+.-]*)://", str(location))
    if found and found[1] not in ("s3", "http", "https"):
        raise UserError(
            f"{location}: {found[1]}:// is not read; use s3://, http://, https:// or a folder"
        )
    return found is not None


def read_object(url: str, retry: Retry | None = None) -> bytes:
    """The whole of a small object. Raises MissingError, UnreachableError, or UserError where
    the store refuses."""

    def read() -> bytes:
        if _is_s3(url):
            return _s3().cat_file(url)
        with urllib.request.urlopen(_request(url), timeout=TIMEOUT) as response:
            return response.read()

    return _retried(read, url, retry or Retry())


def read_range(url: str, begin: int, end: int, retry: Retry | None = None) -> Iterator[bytes]:
    """Bytes [begin, end) of an object, in order; a body that breaks off is taken up there.

    Raises, besides what `read_object` raises, ShortError where the object ends before `end`.
    """
    retry, at, gained, failures = retry or Retry(), begin, begin, 0
    part = _s3_part if _is_s3(url) else _http_part
    while at < end:
        try:
            for block in part(url, at, end):
                at += len(block)
                yield block
            error: Exception | None = None
        except Exception as caught:
            error = caught
        if at >= end:
            return
        if at - gained >= _BLOCK:
            gained, failures = at, 0
            if error is None:
                continue
        failures += 1
        if error is None or status_of(error) == 416:
            final: type[UserError] = ShortError
            reason = f"the body ends after {at} of {end} bytes"
        else:
            raise_lasting(error, url)
            final, reason = UnreachableError, reason_of(error)
        if failures >= retry.attempts or status_of(error) == 416:
            raise given_up(final, url, failures, reason) from error
        retry.wait(url, failures, reason)


def size_of(url: str, retry: Retry | None = None) -> int:
    """Bytes of an object, as its store tells; raises as `read_object`, and where it does not."""

    def ask() -> int:
        if _is_s3(url):
            return int(_s3().info(url)["size"])
        request = _request(url)
        request.method = "HEAD"
        with urllib.request.urlopen(request, timeout=TIMEOUT) as response:
            return int(response.headers.get("Content-Length", -1))

    size = _retried(ask, url, retry or Retry())
    if size < 0:
        raise UserError(f"{url}: the server does not tell its size; download it by hand")
    return size


def find(pattern: str, retry: Retry | None = None) -> list[tuple[str, bool]]:
    """(URL, whether it is a folder) of what an s3:// glob matches, sorted.

    Raises UserError for a glob of http, where nothing can be listed.
    """
    if not _is_s3(pattern):
        raise UserError(
            f"{pattern}: a web server lists no files; name the folder itself, whose index.json "
            "names its shards"
        )
    found = _retried(lambda: _s3().glob(pattern, detail=True), pattern, retry or Retry())
    return sorted((f"s3://{name}", one["type"] == "directory") for name, one in found.items())


def upload(path: Path, url: str, retry: Retry | None = None, *, sha256: str = "") -> None:
    """Write a file as an object of an s3:// store; whole or not at all.

    `sha256` of the file, where it is given, is kept with the object for `holds`.
    """
    told = {"Metadata": {_SUM: sha256}} if sha256 else {}
    _retried(lambda: _s3().put_file(str(path), url, **told), url, retry or Retry())


def holds(url: str, size: int, sha256: str, retry: Retry | None = None) -> bool:
    """Whether an s3:// store has this object, by its size and the SHA-256 kept by `upload`."""

    def ask() -> dict[str, Any]:
        bucket, key, _ = _s3().split_path(url)
        return _s3().call_s3("head_object", Bucket=bucket, Key=key)

    try:
        found = _retried(ask, url, retry or Retry())
    except MissingError:
        return False
    return found["ContentLength"] == size and found.get("Metadata", {}).get(_SUM) == sha256


def remove(url: str, retry: Retry | None = None) -> None:
    """Remove an object of an s3:// store."""
    _retried(lambda: _s3().rm_file(url), url, retry or Retry())


def _is_s3(url: str) -> bool:
    return url.startswith("s3://")


def _s3() -> Any:
    """The file system of this process and thread's settings; s3fs keeps one and minds forks."""
    try:
        import s3fs
    except ImportError as error:
        raise UserError(
            "s3:// needs s3fs, which is not installed; install it with: "
            "pip install 'megatron-hyena[remote]'"
        ) from error
    system = s3fs.S3FileSystem(
        anon=_is_anonymous(),
        use_listings_cache=False,
        config_kwargs={
            "connect_timeout": TIMEOUT,
            "read_timeout": TIMEOUT,
            "retries": {"total_max_attempts": 1},
        },
    )
    system.retries = 1  # attempts are counted and reported here
    return system


@lru_cache(maxsize=1)
def _is_anonymous() -> bool:
    """Whether no credentials are to be found."""
    from botocore.session import get_session

    return get_session().get_credentials() is None


def _s3_part(url: str, begin: int, end: int) -> Iterator[bytes]:
    """Bytes from `begin` on in ranges, up to the first that comes short."""
    for at in range(begin, end, _RANGE):
        stop = min(end, at + _RANGE)
        block = _s3().cat_file(url, start=at, end=stop)
        yield block[: stop - at]
        if len(block) < stop - at:
            return


def _http_part(url: str, begin: int, end: int) -> Iterator[bytes]:
    """Bytes from `begin` on until the body ends; a server may ignore the range that is asked."""
    with urllib.request.urlopen(_request(url, (begin, end)), timeout=TIMEOUT) as response:
        at = begin if response.status == 206 else 0
        while at < end and (block := response.read(min(_BLOCK, end - at))):
            if at + len(block) > begin:
                yield block[max(0, begin - at) :]
            at += len(block)


def _request(url: str, span: tuple[int, int] | None = None) -> urllib.request.Request:
    headers = {"User-Agent": "megatron-hyena"}
    if span:
        headers["Range"] = f"bytes={span[0]}-{span[1] - 1}"
    return urllib.request.Request(url, headers=headers)


def _retried(action: Callable[[], T], url: str, retry: Retry) -> T:
    """What `action` returns, tried until it does not fail, or lastingly, or too often."""
    failures = 0
    while True:
        try:
            return action()
        except Exception as error:
            raise_lasting(error, url)
            failures += 1
            if failures >= retry.attempts:
                raise given_up(UnreachableError, url, failures, reason_of(error)) from error
            retry.wait(url, failures, reason_of(error))

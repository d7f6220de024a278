"""What a store's failures mean: which may pass, which will not, and the sentence for each."""

from __future__ import annotations

import errno
import http.client
import ssl
import sys
import urllib.error

from megatron_hyena.errors import UserError

_PASSING = (408, 425, 429, 500, 502, 503, 504, 507, 509)


class MissingError(UserError):
    """The store answered that it has no such object."""


class UnreachableError(UserError):
    """An object could not be had in all attempts."""


class ShortError(UserError):
    """An object ends before the size that its index tells, whenever it is asked for."""


def given_up(kind: type[UserError], url: str, attempts: int, reason: str) -> UserError:
    """The error of an object that failed `attempts` times, the last time for `reason`."""
    times = f"{attempts} attempt{'s' if attempts > 1 else ''}"
    advice = (
        "write it there again"
        if kind is ShortError
        else "check the store and the network, then start the same command again"
    )
    return kind(f"{url}: no success in {times} (the last: {reason}); {advice}")


def raise_lasting(error: Exception, url: str) -> None:
    """Raise what waiting does not mend: a UserError, or `error` where it is no store's answer."""
    if isinstance(error, UserError):
        raise error
    status = status_of(error)
    if status in _PASSING:
        return
    if status in (404, 410) or isinstance(error, FileNotFoundError):
        raise MissingError(f"{url} does not exist ({reason_of(error)}); check the name") from error
    if status in (401, 403) or isinstance(error, PermissionError):
        raise UserError(
            f"{url}: the store refuses ({reason_of(error)}); check the name and the credentials, "
            "for s3:// AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY and AWS_ENDPOINT_URL"
        ) from error
    if status is not None or _is_mistake(error):
        raise UserError(f"{url}: {reason_of(error)}; mend the name or the settings") from error
    if not _is_passing(error):
        raise error


def status_of(error: BaseException | None) -> int | None:
    """The HTTP status that an answer had, if there was an answer."""
    if isinstance(error, urllib.error.HTTPError):
        return error.code
    for one in (error, getattr(error, "__cause__", None)):
        response = getattr(one, "response", None)
        if isinstance(response, dict):
            return response.get("ResponseMetadata", {}).get("HTTPStatusCode")
    return None


def _inner(error: BaseException) -> BaseException:
    """What urllib wrapped, or the error itself."""
    reason = getattr(error, "reason", None)
    return reason if isinstance(reason, BaseException) else error


def _is_mistake(error: Exception) -> bool:
    """Whether settings are wrong: names, certificates, credentials, endpoints."""
    if isinstance(_inner(error), ssl.SSLCertVerificationError | http.client.InvalidURL):
        return True
    known = sys.modules.get("botocore.exceptions")
    return known is not None and isinstance(error, known.BotoCoreError) and not _is_passing(error)


def _is_passing(error: Exception) -> bool:
    """Whether a connection failed in a way that may pass."""
    botocore, aiohttp = (sys.modules.get(name) for name in ("botocore.exceptions", "aiohttp"))
    kinds: tuple[type[BaseException], ...] = (TimeoutError, http.client.HTTPException, EOFError)
    if botocore is not None:
        kinds += (botocore.HTTPClientError, botocore.ConnectionError, botocore.IncompleteReadError)
    if aiohttp is not None:
        kinds += (aiohttp.ClientError,)
    inner = _inner(error)
    if isinstance(error, kinds) or isinstance(inner, kinds):
        return True
    return isinstance(inner, OSError) and inner.errno not in (errno.ENOSPC, errno.EMFILE)


def reason_of(error: BaseException) -> str:
    """One line that says what happened."""
    if isinstance(error, urllib.error.HTTPError):
        return f"{error.code} {error.reason}"
    inner, status = _inner(error), status_of(error)
    text = " ".join(str(inner).split())[:200]
    return f"{status or type(inner).__name__}: {text}" if text else type(inner).__name__

"""Object stores for tests: moto's S3 in a process of its own, a folder by HTTP, and trouble.

`Trouble` is a proxy between a client and either of them that answers chosen requests with errors,
cut connections or short bodies, and counts what was asked.
"""

from __future__ import annotations

import functools
import http.client
import http.server
import os
import re
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType

CREDENTIALS = {
    "AWS_ACCESS_KEY_ID": "tester",
    "AWS_SECRET_ACCESS_KEY": "secret",
    "AWS_DEFAULT_REGION": "us-east-1",
}


@contextmanager
def s3_process(log: Path) -> Iterator[int]:
    """The port of a fresh S3 store on this machine."""
    environment = {k: v for k, v in os.environ.items() if not k.startswith("AWS_")}
    with log.open("w") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", "0"],
            stdout=output,
            stderr=subprocess.STDOUT,
            env=environment,
        )
    try:
        yield _announced_port(process, log)
    finally:
        process.kill()
        process.wait()


def _announced_port(process: subprocess.Popen[bytes], log: Path) -> int:
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and process.poll() is None:
        if found := re.search(r"http://127\.0\.0\.1:(\d+)", log.read_text()):
            return int(found[1])
        time.sleep(0.05)
    raise AssertionError(f"no store: {log.read_text()}")


class _Server:
    """A server in a thread, of a free port."""

    def __init__(self, handler: type[http.server.BaseHTTPRequestHandler] | functools.partial):
        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self._server.daemon_threads = True
        self.port = self._server.server_address[1]
        self.url = f"http://127.0.0.1:{self.port}"

    def __enter__(self):
        threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True).start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._server.shutdown()
        self._server.server_close()


class _Silent(http.server.SimpleHTTPRequestHandler):
    def log_message(self, format: str, *arguments: object) -> None:
        pass


class WebFolder(_Server):
    """A folder as a plain web server gives it: no ranges, no sizes before the body."""

    def __init__(self, folder: Path) -> None:
        super().__init__(functools.partial(_Silent, directory=str(folder)))


class Trouble(_Server):
    """A proxy before the server at `port`.

    `plan(part, "503", "cut", …)` troubles the next requests whose path has `part`, one kind each,
    in order: a status, `cut` (half of the body, then the connection breaks), `short` (half of
    the body, told as the whole), `flip` (a byte in the middle differs), `refuse` (the connection
    closes without an answer), `hang` (the same after a while) or nothing. A kind that ends in `*`
    stays for good.
    """

    def __init__(self, port: int) -> None:
        self.behind = port
        self.asked: list[str] = []
        self._plans: dict[str, list[str]] = {}
        self._lock = threading.Lock()
        super().__init__(functools.partial(_Proxy, self, port))

    def plan(self, part: str, *kinds: str, method: str = "GET") -> None:
        self._plans[f"{method} {part}"] = list(kinds)

    def clear(self) -> None:
        self._plans.clear()
        self.asked.clear()

    def times(self, part: str, method: str = "GET") -> int:
        """How often a path with `part` was asked for."""
        return sum(one.startswith(method) and part in one for one in self.asked)

    def next(self, method: str, path: str) -> str:
        with self._lock:
            self.asked.append(f"{method} {path}")
            for key, kinds in self._plans.items():
                wanted, part = key.split(" ", 1)
                if wanted == method and part in path and kinds:
                    return kinds[0][:-1] if kinds[0].endswith("*") else kinds.pop(0)
        return ""


class Bucket:
    """A bucket of the store behind a proxy, filled and looked into by boto3, without retries."""

    def __init__(self, name: str, trouble: Trouble) -> None:
        from boto3.session import Session  # one of its own: boto3's remembers other credentials

        self.url, self.trouble, self._name = f"s3://{name}", trouble, name
        self._client = Session().client("s3", endpoint_url=f"http://127.0.0.1:{trouble.behind}")
        self._client.create_bucket(Bucket=name)

    def put(self, key: str, body: bytes) -> str:
        """The URL of a new object, which everybody may read."""
        self._client.put_object(Bucket=self._name, Key=key, Body=body, ACL="public-read")
        return f"{self.url}/{key}"

    def put_folder(self, folder: Path, prefix: str) -> str:
        """The URL of a folder whose files were put there."""
        for path in sorted(p for p in folder.rglob("*") if p.is_file()):
            self.put(f"{prefix}/{path.relative_to(folder)}", path.read_bytes())
        return f"{self.url}/{prefix}"

    def objects(self) -> dict[str, bytes]:
        """Everything in it, by key."""
        listed = self._client.list_objects_v2(Bucket=self._name).get("Contents", [])
        keys = [one["Key"] for one in listed]
        assert len(keys) < 1000
        read = self._client.get_object
        return {key: read(Bucket=self._name, Key=key)["Body"].read() for key in keys}


class _Proxy(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def __init__(self, trouble: Trouble, port: int, *arguments: object) -> None:
        self.trouble, self.port = trouble, port
        super().__init__(*arguments)  # type: ignore[arg-type]

    def log_message(self, format: str, *arguments: object) -> None:
        pass

    def _pass_on(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        kind = self.trouble.next(self.command, self.path)
        if kind == "hang":
            time.sleep(1)
        if kind in ("refuse", "hang"):
            self.close_connection = True
        elif kind.isdigit():
            self._answer(int(kind), [], b"")
        else:
            self._answer(*self._asked(body), kind=kind)

    def _asked(self, body: bytes) -> tuple[int, list[tuple[str, str]], bytes]:
        upstream = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        headers = {k: v for k, v in self.headers.items() if k.lower() != "connection"}
        upstream.request(self.command, self.path, body or None, headers)
        response = upstream.getresponse()
        found = response.status, response.getheaders(), response.read()
        upstream.close()
        return found

    def _answer(
        self, status: int, headers: list[tuple[str, str]], body: bytes, kind: str = ""
    ) -> None:
        if kind == "flip" and body:
            middle = len(body) // 2
            body = body[:middle] + bytes([body[middle] ^ 1]) + body[middle + 1 :]
        sent = body[: len(body) // 2] if kind in ("cut", "short") else body
        told = len(sent) if kind == "short" else len(body)
        dropped = ("content-length", "transfer-encoding", "connection", "date", "server")
        self.send_response(status)
        for name, value in headers:
            if name.lower() not in dropped and not (kind and "checksum" in name.lower()):
                self.send_header(name, value)
        if self.command == "HEAD":
            told = int(dict((k.lower(), v) for k, v in headers).get("content-length", 0))
        self.send_header("Content-Length", str(told))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(sent)
        if kind == "cut":
            self.close_connection = True

    do_GET = do_PUT = do_HEAD = do_POST = do_DELETE = _pass_on

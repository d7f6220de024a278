"""OpenStack Swift with its S3 interface for tests: Debian's, as processes below one folder.

One account, container and object server with one device each, a proxy with s3api and tempauth, and
the memcached that tempauth asks for. Of Swift only the library is installed, so that nothing of it
runs but what a test starts.
"""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from megatron_hyena.errors import UserError

CREDENTIALS = {
    "AWS_ACCESS_KEY_ID": "test:tester",
    "AWS_SECRET_ACCESS_KEY": "testing",
    "AWS_DEFAULT_REGION": "us-east-1",
}
_PYTHON = "/usr/bin/python3"
"""Debian's, which alone sees Debian's libraries."""
_PACKAGES = ("python3-swift", "memcached")
_STORES = ("account", "container", "object")

_COMMON = """[DEFAULT]
bind_ip = 127.0.0.1
bind_port = {port}
user = root
swift_dir = {root}
devices = {root}/devices
mount_check = false
fallocate_reserve = 0
workers = 0
"""
_STORE = """
[pipeline:main]
pipeline = {name}-server
[app:{name}-server]
use = egg:swift#{name}
"""
_PROXY = """
[pipeline:main]
pipeline = catch_errors gatekeeper healthcheck cache listing_formats s3api tempauth slo proxy-server
[app:proxy-server]
use = egg:swift#proxy
account_autocreate = true
[filter:catch_errors]
use = egg:swift#catch_errors
[filter:gatekeeper]
use = egg:swift#gatekeeper
[filter:healthcheck]
use = egg:swift#healthcheck
[filter:cache]
use = egg:swift#memcache
memcache_servers = 127.0.0.1:{memcached}
[filter:listing_formats]
use = egg:swift#listing_formats
[filter:s3api]
use = egg:swift#s3api
location = us-east-1
[filter:tempauth]
use = egg:swift#tempauth
user_test_tester = testing .admin
[filter:slo]
use = egg:swift#slo
"""
_RINGS = """
import sys
from swift.common import utils
utils.set_swift_dir(sys.argv[1])
from swift.common.ring import RingBuilder
for pair in sys.argv[2:]:
    name, port = pair.split("=")
    builder = RingBuilder(4, 1, 0)
    place = {"region": 1, "zone": 1, "ip": "127.0.0.1", "port": int(port), "device": "disk"}
    builder.add_dev({**place, "id": 0, "weight": 1.0, "meta": ""})
    builder.rebalance()
    builder.get_ring().save(f"{sys.argv[1]}/{name}.ring.gz")
"""
_SERVE = """
import sys
from swift.common import utils, wsgi
utils.set_swift_dir(sys.argv[1])
sys.exit(wsgi.run_wsgi(f"{sys.argv[1]}/{sys.argv[2]}.conf", f"{sys.argv[2]}-server", verbose=True))
"""


def missing_requirement(folder: Path) -> str | None:
    """Why Swift cannot run on this machine with its files in `folder`, or None if it can."""
    probe = folder / "probe"
    probe.touch()
    try:
        os.setxattr(probe, "user.probe", b"1")
    except OSError as error:
        return f"Swift keeps extended attributes, and {folder} has none ({error.strerror})"
    finally:
        probe.unlink()
    if _installed():
        return None
    if os.geteuid() != 0:
        return f"{' and '.join(_PACKAGES)} are not installed, which needs root"
    if shutil.which("apt-get") is None:
        return f"{' and '.join(_PACKAGES)} are not installed, and there is no apt-get"
    return None


def install() -> None:
    """Install what is missing, without starting services. Raises UserError where that fails."""
    if _installed():
        return
    # RUNLEVEL=1 keeps the packages' scripts from starting system services.
    environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive", "RUNLEVEL": "1"}
    apt_get = ["apt-get", "-qq", "-o", "DPkg::Lock::Timeout=300"]
    packages = ["install", "--yes", "--no-install-recommends", *_PACKAGES]
    for arguments in (["update"], packages):
        reply = subprocess.run(
            [*apt_get, *arguments], env=environment, capture_output=True, text=True
        )
        if reply.returncode != 0:
            reason = (reply.stderr.strip().splitlines() or ["no reason given"])[-1]
            raise UserError(f"apt-get {arguments[0]} failed ({reason}): install Swift by hand")


def _installed() -> bool:
    found = subprocess.run([_PYTHON, "-Ic", "import swift, xattr"], capture_output=True)
    return found.returncode == 0 and shutil.which("memcached") is not None


@contextmanager
def swift_processes(root: Path) -> Iterator[int]:
    """The port of a fresh store whose files lie below `root`, an empty folder."""
    (root / "devices" / "disk").mkdir(parents=True)
    (root / "swift.conf").write_text("[swift-hash]\nswift_hash_path_suffix = of_this_test\n")
    names = (*_STORES, "proxy", "memcached")
    ports = dict(zip(names, _free_ports(len(names)), strict=True))
    for name in (*_STORES, "proxy"):
        text = _COMMON + (_PROXY if name == "proxy" else _STORE)
        place = {"root": root, "name": name, "port": ports[name], "memcached": ports["memcached"]}
        (root / f"{name}.conf").write_text(text.format(**place))
    rings = [f"{name}={ports[name]}" for name in _STORES]
    subprocess.run([_PYTHON, "-Ic", _RINGS, root, *rings], check=True)
    commands: dict[str, list[str | Path]] = {}
    for name in (*_STORES, "proxy"):
        commands[name] = [_PYTHON, "-Ic", _SERVE, root, name]
    listen = ["-l", "127.0.0.1", "-p", str(ports["memcached"]), "-u", "root"]
    commands["memcached"] = ["memcached", *listen]
    with ExitStack() as stack:
        logs = {name: root / f"{name}.log" for name in names}
        started = {n: stack.enter_context(_running(commands[n], logs[n])) for n in names}
        for name, process in started.items():
            _wait_for(ports[name], process, logs[name])
        yield ports["proxy"]


@contextmanager
def _running(command: list[str | Path], log: Path) -> Iterator[subprocess.Popen[bytes]]:
    with log.open("w") as output:
        process = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT)
    try:
        yield process
    finally:
        process.kill()
        process.wait()


def _free_ports(count: int) -> list[int]:
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]


def _wait_for(port: int, process: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and process.poll() is None:
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.05)
    raise AssertionError(f"no server: {log.read_text()}")

"""Single files out of Debian packages, for tests on real data; nothing is installed.

A folder named by `MEGATRON_HYENA_DATA` is looked at first, and keeps what is fetched.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

from megatron_hyena.errors import UserError

FOLDER = "MEGATRON_HYENA_DATA"


def file_of(package: str, path: str, folder: Path) -> Path:
    """The file `path` of a package, in the kept folder or else in `folder`.

    Raises:
        UserError: it is not there and cannot be fetched.
    """
    kept = Path(os.environ.get(FOLDER, folder))
    found = kept / Path(path).name
    if found.is_file():
        return found
    for program in ("apt-get", "dpkg-deb"):
        if shutil.which(program) is None:
            raise UserError(f"{found} is missing, and there is no {program} to fetch it by")
    kept.mkdir(parents=True, exist_ok=True)
    work = kept / f".{package}.{os.getpid()}"
    work.mkdir()
    try:
        _run(["apt-get", "-qq", "download", package], work, package)
        (archive,) = work.glob("*.deb")
        _run(["dpkg-deb", "--extract", archive.name, "files"], work, package)
        os.replace(work / "files" / path, found)
    finally:
        shutil.rmtree(work)
    return found


def _run(command: list[str], folder: Path, package: str) -> None:
    reply = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    if reply.returncode != 0:
        reason = (reply.stderr.strip().splitlines() or ["no reason given"])[-1]
        raise UserError(f"{command[0]} could not get {package} ({reason}); set {FOLDER}")

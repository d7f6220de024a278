"""Work in tasks that can be killed at any point and are never done twice.

    DIR/stores/ecoli.zarr           what a task makes, renamed into its place when it is whole
    DIR/.work/stamps/store/ecoli.json    written behind it: the task's key, and size and SHA-256 of
                                    every file it made
    DIR/.work/partial/…             what tasks at work have written so far

A task's key is the SHA-256 of everything its outcome depends on, so it is done where a stamp with
its key is found and the files are there. Two processes must not do one task at the same time.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import signal
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from megatron_hyena import __version__
from megatron_hyena.data.atomic import sha256_of
from megatron_hyena.data.sealed import unseal, write_sealed
from megatron_hyena.errors import UserError
from megatron_hyena.runtime.parent import end_with_creator

WORK = ".work"
"""The folder of stamps and unfinished files, beside what is made."""

Progress = Callable[[int], object]


@dataclass(frozen=True)
class Task:
    """One piece of work, which other processes can do."""

    name: str
    """Of its stamp, such as `store/ecoli`; no two tasks share one."""
    outputs: tuple[str, ...]
    """Files and folders that it makes, relative to the corpus, in the order they appear."""
    inputs: dict[str, Any]
    """Everything that its outcome depends on, as JSON."""
    work: Callable[[Path, Progress], dict[str, Any]]
    """Given an empty folder, makes every output in it, under the same relative path (whose folders
    are there), and returns what later tasks want to know; picklable."""
    size: int = 0
    """In the unit of the progress bar."""

    @property
    def key(self) -> str:
        """Hexadecimal SHA-256 of the inputs."""
        return digest_of({"tool_version": __version__, **self.inputs})


@dataclass(frozen=True)
class Stamp:
    """What a finished task left behind."""

    key: str
    files: dict[str, tuple[int, str]]
    """Path relative to the corpus → size in bytes and SHA-256."""
    result: dict[str, Any]

    @property
    def digest(self) -> str:
        """Of the contents of all its files."""
        return digest_of(self.files)


def digest_of(value: Any) -> str:
    """Hexadecimal SHA-256 of a JSON value."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode("utf-8")).hexdigest()


def stamp_of(root: Path, task: Task) -> Stamp | None:
    """The stamp of a task that is done, or None: no such stamp, or its files are not there."""
    stamp = read_stamp(_stamp_path(root, task.name))
    if stamp is None or stamp.key != task.key:
        return None
    whole = all(_size(root / name) == size for name, (size, _) in stamp.files.items())
    return stamp if whole else None


def read_stamp(path: Path) -> Stamp | None:
    """The stamp in a file, None where it is missing or damaged."""
    try:
        content = unseal(path.read_bytes())
        files = {name: (size, sha256) for name, (size, sha256) in content["files"].items()}
        return Stamp(content["key"], files, content["result"])
    except (OSError, ValueError, KeyError):
        return None  # not done, or not known to be: the task is done again


def run_tasks(
    root: Path,
    chains: Sequence[Sequence[Task]],
    jobs: int = 1,
    progress: Progress = lambda size: None,
) -> None:
    """Do what is not done of `chains`, in `jobs` processes; tasks of a chain in their order.

    The first error ends it, once the tasks at work are finished; what is finished stays.
    """
    waiting = []
    for chain in chains:
        left = [task for task in chain if stamp_of(root, task) is None]
        progress(sum(task.size for task in chain) - sum(task.size for task in left))
        waiting += [left] if left else []
    if jobs == 1 or len(waiting) < 2:
        for chain in waiting:
            for task in chain:
                execute(root, task, progress)
        return
    context = get_context("forkserver")
    context.set_forkserver_preload(["megatron_hyena.corpus.build", "zarr"])
    workers = min(jobs, len(waiting))
    with ProcessPoolExecutor(workers, mp_context=context, initializer=_begin_worker) as pool:
        futures = {pool.submit(_execute_chain, root, chain): chain for chain in waiting}
        try:
            for future in _finished(futures):
                progress(sum(task.size for task in futures[future]))
        except BaseException:
            pool.shutdown(wait=True, cancel_futures=True)  # what is at work is finished
            raise


def execute(root: Path, task: Task, progress: Progress) -> Stamp:
    """Do a task: work in a folder of its own, rename, stamp.

    `progress` is told the task's size altogether, in the pieces that the work reports.
    """
    scratch = root / WORK / "partial" / f"{task.name.replace('/', '-')}-{os.getpid()}"
    shutil.rmtree(scratch, ignore_errors=True)
    for output in task.outputs:
        (scratch / output).parent.mkdir(parents=True, exist_ok=True)
    told = 0

    def tell(size: int) -> None:
        nonlocal told
        size = min(size, task.size - told)
        told += size
        progress(size)

    try:
        result = task.work(scratch, tell)
        files: dict[str, tuple[int, str]] = {}
        for output in task.outputs:
            for path in _files(scratch / output):
                files[str(path.relative_to(scratch))] = (path.stat().st_size, sha256_of(path))
        stamp, path = Stamp(task.key, files, result), _stamp_path(root, task.name)
        write_sealed(scratch / ".stamp", {"key": stamp.key, "files": files, "result": result})
        before = read_stamp(path)
        for name in set(before.files) - set(files) if before else ():
            (root / name).unlink(missing_ok=True)  # of other outputs, under other options
        path.unlink(missing_ok=True)
        for number, output in enumerate(task.outputs):
            place = root / output
            place.parent.mkdir(parents=True, exist_ok=True)
            if place.is_dir():
                os.replace(place, scratch / f".old-{number}")
            os.replace(scratch / output, place)
        path.parent.mkdir(parents=True, exist_ok=True)
        os.replace(scratch / ".stamp", path)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    progress(task.size - told)
    return stamp


def remove_strangers(root: Path, tasks: Sequence[Task]) -> None:
    """Remove what tasks that are none of `tasks` made and stamped, and unfinished files."""
    shutil.rmtree(root / WORK / "partial", ignore_errors=True)
    known = {_stamp_path(root, task.name) for task in tasks}
    ours = {output for task in tasks for output in task.outputs}
    for path in sorted((root / WORK / "stamps").rglob("*.json")):
        if path in known:
            continue
        stamp = read_stamp(path)
        for name in stamp.files if stamp else ():
            if not any(Path(name).is_relative_to(output) for output in ours):
                (root / name).unlink(missing_ok=True)
                _remove_empty(root, (root / name).parent)
        path.unlink()


def _remove_empty(root: Path, folder: Path) -> None:
    while folder != root and folder.is_dir() and not any(folder.iterdir()):
        folder.rmdir()
        folder = folder.parent


def _stamp_path(root: Path, name: str) -> Path:
    return root / WORK / "stamps" / f"{name}.json"


def _files(path: Path) -> list[Path]:
    """The file itself, or all files of a folder."""
    if path.is_file():
        return [path]
    found = sorted(file for file in path.rglob("*") if file.is_file())
    if not found:
        raise ValueError(f"a task was to make {path}")
    return found


def _size(path: Path) -> int | None:
    try:
        return path.stat().st_size
    except OSError:
        return None


def _begin_worker() -> None:
    end_with_creator()
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # the parent tells what happened


def _execute_chain(root: Path, chain: Sequence[Task]) -> None:
    for task in chain:
        execute(root, task, lambda size: None)


def _finished(futures: Iterable[Future[None]]) -> Iterator[Future[None]]:
    """Futures as they finish; raises the first error."""
    for future in as_completed(futures):
        try:
            future.result()
        except BrokenProcessPool as error:
            raise UserError(
                "a worker process was killed, often for want of memory; run the same command with "
                "fewer --jobs: what is finished is kept"
            ) from error
        yield future

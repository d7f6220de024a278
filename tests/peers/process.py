"""Run a function of a `*_cases.py` in a process of its own, where the peers and shims are loaded.

    run_in_peer("vtx_cases", folder, settings, {"ids": ids})

calls `main(settings, inputs)` of `tests.peers.vtx_cases` there, with `folder` as its working
directory (vortex opens a log file wherever it is imported), and returns its arrays by name. What
served of `shims` comes along as `served.NAME`.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).parents[2]
Arrays = dict[str, np.ndarray]
# vortex takes every GPU that it sees; here all run on the CPU.
ENVIRONMENT = {
    "PYTHONPATH": str(ROOT),
    "OMP_NUM_THREADS": "1",
    "CUDA_VISIBLE_DEVICES": "",
    "HF_HUB_OFFLINE": "1",
}


def run_in_peer(
    cases: str, folder: Path, settings: dict[str, Any], inputs: Arrays, timeout: float = 240
) -> Arrays:
    """Arrays that `main` of `tests.peers.{cases}` returned; fails with its output if it did not."""
    (folder / "settings.json").write_text(json.dumps(settings))
    np.savez(folder / "inputs.npz", **inputs)  # type: ignore[arg-type]
    result = subprocess.run(
        [sys.executable, "-m", "tests.peers.process", cases],
        cwd=folder,
        env=os.environ | ENVIRONMENT,
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )
    assert result.returncode == 0, f"{cases} ended with {result.returncode}:\n{result.stderr}"
    return read(folder / "outputs.npz")


def read(path: Path) -> Arrays:
    """All arrays of an .npz file."""
    with np.load(path) as arrays:
        return {name: arrays[name] for name in arrays.files}


def with_prefix(arrays: Arrays, prefix: str) -> Arrays:
    """Arrays whose name starts with `prefix`, named by what follows it."""
    return {name.removeprefix(prefix): a for name, a in arrays.items() if name.startswith(prefix)}


def write_as_resource(config: dict[str, Any], package: str) -> str:
    """Write `config` as tiny.yml; its path, as a module of `package` finds files of its own."""
    import yaml

    file = Path("tiny.yml")
    file.write_text(yaml.safe_dump(config))
    origin = find_spec(package).origin  # type: ignore[union-attr]
    return os.path.relpath(file.resolve(), Path(str(origin)).resolve().parent)


def main(cases: str) -> None:
    """The other side."""
    from tests.peers import shims

    shims.install()
    program = import_module(f"tests.peers.{cases}")
    settings = json.loads(Path("settings.json").read_text())
    outputs = program.main(settings, read(Path("inputs.npz")))
    outputs |= {f"served.{name}": np.asarray(count) for name, count in shims.SERVED.items()}
    np.savez("outputs.npz", **outputs)


if __name__ == "__main__":
    main(sys.argv[1])

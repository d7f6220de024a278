"""Tensors are loaded one at a time, and files written so are those that the libraries write."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import weakref
import zipfile
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from megatron_hyena import HyenaGLT
from megatron_hyena.checkpoint.exchange import tensors as lazy
from megatron_hyena.checkpoint.exchange.tensors import (
    Kind,
    Tensors,
    from_safetensors,
    from_torch,
    held,
)
from megatron_hyena.checkpoint.exchange.writing import write_safetensors, write_torch
from megatron_hyena.checkpoint.huggingface.shards import write_shards
from megatron_hyena.errors import UserError
from tests.peers.converting import of_evo2

MIXED = {
    "a": torch.randn(3, 5),
    "b": torch.randn(7).bfloat16(),
    "c": torch.arange(4),
    "d": torch.randn(2, 1, 3, dtype=torch.float64),
    "empty": torch.zeros(0, 4),
    "number": torch.tensor(3.5),
}


def assert_same(found: dict[str, Tensor] | Tensors) -> None:
    assert set(found) == set(MIXED)
    for name, tensor in MIXED.items():
        assert found[name].dtype == tensor.dtype and torch.equal(found[name], tensor), name


def test_safetensors_and_torch_read_what_is_written(tmp_path: Path) -> None:
    write_safetensors(tmp_path / "x.safetensors", held(MIXED))
    assert_same(load_file(tmp_path / "x.safetensors"))
    assert_same(from_safetensors(tmp_path / "x.safetensors"))
    write_torch(tmp_path / "x.pt", held(MIXED))
    assert_same(torch.load(tmp_path / "x.pt", weights_only=True))
    assert_same(torch.load(tmp_path / "x.pt", weights_only=True, mmap=True))
    assert_same(from_torch(tmp_path / "x.pt"))
    with zipfile.ZipFile(tmp_path / "x.pt") as archive:
        assert archive.testzip() is None


def test_tensors_lie_where_they_are_arranged(tmp_path: Path) -> None:
    def arrange(t: dict[str, Tensor]) -> dict[str, object]:
        return {"module": {"first": t["a"], "more": [t["b"], {"deep": t["d"]}]}, "step": 7}

    write_torch(tmp_path / "x.pt", held(MIXED), arrange)  # type: ignore[arg-type]
    found = torch.load(tmp_path / "x.pt", weights_only=True)
    assert found["step"] == 7
    assert torch.equal(found["module"]["first"], MIXED["a"])
    assert torch.equal(found["module"]["more"][0], MIXED["b"])
    assert torch.equal(found["module"]["more"][1]["deep"], MIXED["d"])
    inside = from_torch(tmp_path / "x.pt", lambda content: {"x": content["module"]["first"]})
    assert torch.equal(inside["x"], MIXED["a"])


def test_a_file_is_mapped_anew_when_much_was_taken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened = []
    real = lazy.load_torch

    def load(path: Path) -> object:
        opened.append(path)
        return real(path)

    monkeypatch.setattr(lazy, "load_torch", load)
    monkeypatch.setattr(lazy, "KEPT_MAPPED", 100)
    torch.save({str(n): torch.full((20,), float(n)) for n in range(10)}, tmp_path / "x.pt")
    found = from_torch(tmp_path / "x.pt")
    assert all(torch.equal(found[str(n)], torch.full((20,), float(n))) for n in range(10))
    assert len(opened) == 5  # 160 bytes are more than 100


def test_one_tensor_is_in_memory_at_a_time(tmp_path: Path) -> None:
    """Of a model of 40 tensors; no more than the one written, and the one before it."""
    alive: list[weakref.ref[Tensor]] = []
    most = 0

    def load(name: str) -> Tensor:
        nonlocal most
        tensor = torch.full((1000,), float(name))
        alive.append(weakref.ref(tensor))
        most = max(most, sum(ref() is not None for ref in alive))
        return tensor

    model = Tensors({str(n): Kind((1000,)) for n in range(40)}, load)
    write_torch(tmp_path / "x.pt", model)
    write_safetensors(tmp_path / "x.safetensors", model)
    write_shards(tmp_path, model, model.shadows(), 9000)
    assert len(alive) == 3 * 40 and most <= 2


PEAK = """
import re, sys
from pathlib import Path
from tools.convert_checkpoint import main
def peak():  # ru_maxrss would be the parent's, if that is larger
    return int(re.search(r"VmHWM:\\s+(\\d+) kB", Path("/proc/self/status").read_text())[1]) / 1024
def convert(name):
    for source, to, output in ((name, "vortex", name + ".pt"), (name + ".pt", "native", "back")):
        assert main(["--from", source, "--to", to, "--output", output]) == 0
convert("small")  # what is imported stays
before = peak()
convert("large")
print("MiB", peak() - before)
"""


@pytest.mark.slow
def test_memory_stays_far_below_the_model(tmp_path: Path) -> None:
    """405 MB of weights there and back, in a process that takes no more than 80 MiB for it."""
    large = {"pattern": "[SMLA]4", "hidden_size": 768, "num_heads": 12, "ffn_hidden_size": 2048}
    for name, fields in (("small", {}), ("large", large)):
        model = HyenaGLT(of_evo2(**fields))
        model.save_pretrained(tmp_path / name)
    assert sum(p.numel() * 4 for p in model.parameters()) > 400e6
    result = subprocess.run(
        [sys.executable, "-c", PEAK],
        cwd=tmp_path,
        env={"PYTHONPATH": str(Path(__file__).parents[3]), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=True,
    )
    grown = re.search(r"MiB (\S+)", result.stdout)
    assert grown and float(grown[1]) < 80, result.stdout


def test_damaged_files_are_one_sentence(tmp_path: Path) -> None:
    save_file({"a": torch.zeros(50)}, tmp_path / "model.safetensors")
    whole = (tmp_path / "model.safetensors").read_bytes()
    (tmp_path / "model.safetensors").write_bytes(whole[:-10])
    with pytest.raises(UserError, match="damaged"):
        from_safetensors(tmp_path)
    with pytest.raises(UserError, match="not found"):
        from_safetensors(tmp_path / "nothing.safetensors")
    torch.save({"a": torch.zeros(5)}, tmp_path / "x.pt")
    (tmp_path / "x.pt").write_bytes((tmp_path / "x.pt").read_bytes()[:200])
    with pytest.raises(UserError, match=r"x\.pt: cannot be read as tensors"):
        from_torch(tmp_path / "x.pt")
    index = tmp_path / "model.safetensors.index.json"
    save_file({"a": torch.zeros(2)}, tmp_path / "model-1.safetensors")
    index.write_text(json.dumps({"weight_map": {"b": "model-1.safetensors"}}))
    with pytest.raises(UserError, match="has no b, which"):
        from_safetensors(tmp_path)
    index.write_text("{")
    with pytest.raises(UserError, match="not an index of shards"):
        from_safetensors(tmp_path)


def test_code_in_a_file_is_not_run(tmp_path: Path) -> None:
    import pathlib

    torch.save({"a": torch.zeros(2), "who": pathlib.PurePosixPath("x")}, tmp_path / "x.pt")
    with pytest.raises(UserError, match="cannot be read as tensors"):
        from_torch(tmp_path / "x.pt")

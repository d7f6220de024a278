"""What `pretrain.train` says before any expensive work: dry run and mistakes."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from megatron_hyena import HyenaGLT
from megatron_hyena.config import load_config
from megatron_hyena.model.count import flops_per_token
from pretrain.train import main

QUICKSTART = str(Path(__file__).parents[3] / "configs/run/quickstart.yaml")


def test_dry_run_shows_what_would_run_and_writes_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main([QUICKSTART, "--dry-run", "train.steps=7"]) == 0
    text = capsys.readouterr().out
    assert "steps: 7" in text
    config = load_config(QUICKSTART)
    parameters = sum(p.numel() for p in HyenaGLT(config.model).parameters())
    assert f"{parameters:,} (" in text
    assert "2 = tensor 2 x context 1 x data 1, sequence parallel on" in text
    assert re.search(r"memory per rank\s+\d+\.\d+ GiB", text)
    assert list(tmp_path.iterdir()) == []


def test_dry_run_describes_the_curriculum(capsys: pytest.CaptureFixture[str]) -> None:
    keys = ["train.steps=100", "model.pattern=SMLA"]
    growing = ["curriculum.initial_length=256", "curriculum.steps=60"]
    assert main([QUICKSTART, "--dry-run", *keys, *growing]) == 0
    rows = _rows(capsys.readouterr().out)
    assert rows["lengths"] == "256 from step 1, 512 from step 21, 1,024 from step 61"
    assert rows["sequences"] == "32 in a step and 32 in a micro-batch at first, 8 and 8 at last"
    assert rows["tokens"] == "8,192 per step, 819,200 in all"
    model = load_config(QUICKSTART, keys).model
    spans = ((256, 20), (512, 40), (1024, 40))
    flops = sum(8192 * flops_per_token(model, length) * steps for length, steps in spans)
    whole = flops_per_token(model, 1024)
    assert rows["FLOPs"] == f"{whole:.3g} per token of the full length, {flops:.3g} in all"
    assert main([QUICKSTART, "--dry-run", *keys]) == 0
    rows = _rows(capsys.readouterr().out)
    assert "lengths" not in rows
    assert rows["FLOPs"] == f"{whole:.3g} per token, {whole * 819_200:.3g} in all"
    assert flops < 0.999 * whole * 819_200


def test_dry_run_describes_merged_stages(capsys: pytest.CaptureFixture[str]) -> None:
    keys = ["model.pattern=S[M]2(L(A)0.5S)0.6S", "model.window=64", "model.slots=40"]
    assert main([QUICKSTART, "--dry-run", *keys]) == 0
    rows = _rows(capsys.readouterr().out)
    assert rows["blocks"] == "S M M (L (A) S) S"
    slots = "window 64, slots 40, merge_ratio"
    assert rows["merged stage 0"] == f"{slots} 0.6, 1.6 bytes per slot"
    assert rows["merged stage 1"] == f"{slots} 0.5, 2.56 bytes per slot"
    assert main([QUICKSTART, "--dry-run", "model.pattern=SM"]) == 0
    assert not [name for name in _rows(capsys.readouterr().out) if "stage 0" in name]


def _rows(text: str) -> dict[str, str]:
    """What the dry run says behind the configuration."""
    described = text.partition("\n\n")[2].splitlines()
    return {line[:16].strip(): line[17:] for line in described}


@pytest.mark.parametrize(
    ("overrides", "ranks", "message"),
    [
        (["trian.steps=1"], "1", "unknown section 'trian'; did you mean train?"),
        (
            ["model.pattern=SQ"],
            "2",
            "unknown sign 'Q' at position 2; valid signs are S M L H G A W",
        ),
        (["parallel.tensor=3", "parallel.sequence=false"], "4", "4 ranks cannot be split"),
        (["model.num_heads=1"], "2", "model.num_heads = 1 is not a multiple"),
        (["model.vocab_size=257"], "2", "model.vocab_size = 257 is not a multiple"),
        (["model.num_filter_groups=1"], "2", "the filter groups (model.num_filter_groups) = 1"),
        (["train.global_batch_size=9"], "2", "train.global_batch_size = 9 is not a multiple"),
        (["curriculum.initial_length=1"], "2", "curriculum.initial_length must be 0 (none), 2 or"),
        (["curriculum.initial_length=300"], "2", "nearest initial lengths: 256, 512"),
        (["parallel.context=3"], "4", "4 ranks cannot be split"),
        (["parallel.recompute=L", "model.pattern=SA"], "2", "parallel.recompute"),
        (["parallel.exchange.L=halo"], "2", "parallel.exchange.L='halo' is unknown"),
    ],
)
def test_mistakes_are_one_sentence(
    overrides: list[str],
    ranks: str,
    message: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("WORLD_SIZE", ranks)
    assert main([QUICKSTART, *overrides]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and error.count("\n") == 1
    assert message in error


@pytest.mark.smoke
def test_missing_data_is_found_before_the_heavy_imports(tmp_path: Path) -> None:
    code = (
        "import sys\n"
        "from pretrain.train import main\n"
        f"status = main([{QUICKSTART!r}, 'parallel.tensor=1', 'parallel.sequence=false', "
        f"'data.train={tmp_path}/none', 'run.output_dir={tmp_path}/run'])\n"
        "import json\n"
        "print(json.dumps([status, 'deepspeed' in sys.modules]))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout.splitlines()[-1]) == [2, False]
    assert f"{tmp_path}/none" in done.stderr and "error: " in done.stderr
    assert not (tmp_path / "run").exists()

"""What the local cluster refuses, without starting one; tests/slurm runs it for real."""

from __future__ import annotations

from pathlib import Path

import pytest

from launch import local_cluster


def test_root_is_required(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.geteuid", lambda: 1000)
    assert local_cluster.missing_requirement() == "an emulated Slurm cluster needs root"


def test_control_groups_are_required(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("os.geteuid", lambda: 0)
    monkeypatch.setattr(local_cluster, "_CGROUPS", tmp_path)
    reason = local_cluster.missing_requirement()
    assert reason == f"slurmd needs control groups, and none are mounted at {tmp_path}"


def test_a_machine_without_slurm_and_apt_get_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.geteuid", lambda: 0)
    monkeypatch.setattr(local_cluster, "_CGROUPS", Path(__file__).parent)
    monkeypatch.setattr("shutil.which", lambda name, path=None: None)
    reason = local_cluster.missing_requirement()
    assert reason == "munged is not installed, and there is no apt-get to install it with"


def test_bad_clusters_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    running = tmp_path / "running"
    running.mkdir()
    (running / "slurm.conf").touch()
    for arguments, message in (
        (["--root", str(running)], "already holds a cluster: take it down first"),
        (["--root", str(tmp_path / ("x" * 110))], "is too long for a socket's path"),
        (["--root", str(tmp_path / "new"), "--nodes", "0"], "--nodes 0 is out of range"),
    ):
        assert local_cluster.main(["up", *arguments]) == 2
        assert message in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["running"]


def test_down_without_a_cluster_leaves_the_folder_alone(tmp_path: Path) -> None:
    (tmp_path / "log").mkdir()
    assert local_cluster.main(["down", "--root", str(tmp_path)]) == 0
    assert (tmp_path / "log").is_dir()

"""The first failure is told in full and once; whoever fails because of it says so in one line."""

from __future__ import annotations

import errno
import os
import socket
import subprocess
import sys
import time
from datetime import timedelta
from typing import Any

import pytest
import torch.distributed as dist
from torch.distributed.elastic.multiprocessing.errors import ProcessFailure

from megatron_hyena.errors import UserError
from megatron_hyena.runtime import failure
from megatron_hyena.runtime.failure import KEY, FailureBoard, describe
from megatron_hyena.runtime.process import collective_timeout, join_store

PAIR = "[/__w/pytorch/gloo/transport/tcp/pair.cc:553] "
CLOSED = f"{PAIR}Connection closed by peer [10.0.0.7]:19650. This is typically caused by a crash"
RESET = f"{PAIR}Read error [10.0.0.7]:45228: Connection reset by peer. This is typically"
WAITED = f"{PAIR}Timed out waiting 5000ms for recv operation to complete"


@pytest.fixture
def store():
    return dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)


def environment(port: int, rank: int) -> dict[str, str]:
    return {
        "RANK": str(rank),
        "WORLD_SIZE": "3",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "TORCHELASTIC_USE_AGENT_STORE": "True",
    }


@pytest.fixture
def board_of(store, monkeypatch):
    """board_of(rank): the board as this rank sees it before it has met the others."""
    monkeypatch.setattr(failure, "STEP_ASIDE", 0.0)

    def make(rank: int, port: int | None = None) -> FailureBoard:
        for name, value in environment(port or store.port, rank).items():
            monkeypatch.setenv(name, value)
        return FailureBoard()

    return make


def raised(error: Exception) -> Exception:
    try:
        raise error
    except Exception as caught:
        return caught


@pytest.mark.parametrize(
    ("error", "status", "consequence", "traced", "part"),
    [
        (UserError("mend it"), 2, False, False, "mend it"),
        (OSError(errno.ENOSPC, "No space left"), 2, False, False, "the disk is full"),
        (OSError(errno.EIO, "I/O error"), 1, False, True, "OSError: [Errno 5] I/O error"),
        (RuntimeError(CLOSED), 1, True, False, "(Connection closed by peer [10.0.0.7]:19650)"),
        (RuntimeError(RESET), 1, True, False, "45228: Connection reset by peer)"),
        (dist.DistBackendError("ncclRemoteError: died"), 1, True, False, "lost contact"),
        (RuntimeError(WAITED), 1, True, True, "(Timed out waiting 5000ms for recv"),
        (dist.DistStoreError("wait timeout after 5000ms, keys: /0/1"), 1, True, True, "missing"),
        (RuntimeError("size mismatch\nmore"), 1, False, True, "RuntimeError: size mismatch"),
        (ValueError(CLOSED), 1, False, True, "ValueError: Connection closed"),
    ],
)
def test_what_is_said_of_an_error(error, status, consequence, traced, part) -> None:
    found = describe(raised(error))
    assert (found.status, found.consequence) == (status, consequence)
    assert part in found.sentence and "\n" not in found.sentence and "pair.cc" not in found.sentence
    assert found.trace.startswith("Traceback") is traced
    assert ("in raised" in found.trace) is traced


def test_one_rank_alone_prints_like_any_program(monkeypatch, capsys) -> None:
    monkeypatch.delenv("RANK", raising=False)
    assert FailureBoard().report(raised(UserError("mend it"))) == 2
    assert capsys.readouterr().err == "error: mend it\n"
    assert FailureBoard().report(raised(KeyError("x"))) == 1
    text = capsys.readouterr().err
    assert text.startswith("error: KeyError: 'x'\nTraceback") and text.endswith("KeyError: 'x'\n")


def test_the_first_speaks_and_the_others_step_aside(board_of, capsys) -> None:
    assert board_of(1).report(raised(ZeroDivisionError("planted"))) == 1
    text = capsys.readouterr().err
    assert text.startswith("error: ZeroDivisionError: planted (rank 1)\nTraceback")
    assert board_of(0).report(raised(RuntimeError(CLOSED))) == 1
    assert capsys.readouterr().err == "rank 0: ends because rank 1 failed; its error is above\n"
    assert board_of(2).report(raised(UserError("another mistake"))) == 2
    assert capsys.readouterr().err == "rank 2: failed after rank 1: another mistake\n"


def test_the_same_mistake_on_all_ranks_is_told_once(board_of, capsys) -> None:
    assert [board_of(rank).report(raised(UserError("mend it"))) for rank in (2, 0, 1)] == [2, 2, 2]
    assert capsys.readouterr().err == "error: mend it (rank 2)\n"


def test_of_the_ranks_that_lost_a_killed_one_the_first_says_so(board_of, capsys) -> None:
    assert board_of(2).report(raised(RuntimeError(CLOSED))) == 1
    assert board_of(0).report(raised(RuntimeError(RESET))) == 1
    text = capsys.readouterr().err
    assert text.startswith("error: lost contact with another rank") and text.count("\n") == 1
    assert text.endswith("(rank 2)\n")


def test_ranks_that_were_started_again_find_an_empty_board(board_of, capsys, monkeypatch) -> None:
    for start in ("0", "1"):
        monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", start)
        board_of(1).report(raised(UserError(f"mistake {start}")))
    assert capsys.readouterr().err.splitlines() == [
        "error: mistake 0 (rank 1)",
        "error: mistake 1 (rank 1)",
    ]


@pytest.mark.parametrize("host", ["gone", "silent"])
def test_without_a_board_every_rank_speaks(host, board_of, capsys, monkeypatch) -> None:
    monkeypatch.setattr(failure, "PATIENCE", 0.5)
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        if host == "silent":
            listener.listen()
        started = time.monotonic()
        assert board_of(1, listener.getsockname()[1]).report(raised(UserError("mend it"))) == 2
        assert time.monotonic() - started < 60
    assert "error: mend it (rank 1)\n" in capsys.readouterr().err


def test_a_rank_that_lost_another_is_no_root_cause(board_of, tmp_path, monkeypatch) -> None:
    """It lets the launcher see first how the other ended."""
    board = board_of(0)
    monkeypatch.setattr(failure, "STEP_ASIDE", 0.3)
    monkeypatch.setenv("TORCHELASTIC_ERROR_FILE", str(tmp_path / "0"))
    started = time.monotonic()
    board.report(raised(RuntimeError(CLOSED)))
    assert time.monotonic() - started >= 0.3
    assert not (tmp_path / "0").exists()


def test_torchrun_finds_the_root_cause(board_of, tmp_path, monkeypatch) -> None:
    """torchrun's own reader, which takes the earliest failure."""
    for rank in (1, 0):
        monkeypatch.setenv("TORCHELASTIC_ERROR_FILE", str(tmp_path / str(rank)))
        board_of(rank).report(raised(UserError("mend it")))
    first = ProcessFailure(local_rank=1, pid=1, exitcode=2, error_file=str(tmp_path / "1"))
    message: Any = first.message
    assert message["message"] == "mend it"
    assert 0 <= time.time() - first.timestamp < 60
    assert not (tmp_path / "0").exists()


WAITER = """
import sys, time
from datetime import timedelta
from megatron_hyena.runtime import failure
from megatron_hyena.runtime.process import join_store
from pretrain.signals import StopRequest
failure.POLL = failure.PATIENCE = 0.2
StopRequest().install()
board, store = failure.FailureBoard(), join_store(timedelta(seconds=600))
board.watch(store)
if sys.argv[1] == "done":
    board.close()
store.set("ready", "")
if sys.argv[1] == "done":
    time.sleep(2)
else:
    store.wait(["never"])  # as in a collective: no Python runs, no signal is seen
"""


@pytest.mark.parallel
@pytest.mark.parametrize("behaviour", ["waits", "done"])
def test_a_rank_that_waits_for_a_failed_one_ends(behaviour, store) -> None:
    """Even after SIGTERM, which it takes for a wish to save; a rank that is done is left alone."""
    child = subprocess.Popen(
        [sys.executable, "-c", WAITER, behaviour],
        env=os.environ | environment(store.port, rank=0),
        stderr=subprocess.PIPE,
        text=True,
    )
    mine = dist.PrefixStore("start_0", store)
    mine.wait(["ready"], timedelta(seconds=60))
    child.terminate()
    mine.compare_set(KEY, "", '[1, "planted", false]')
    _, text = child.communicate(timeout=60)
    if behaviour == "waits":
        assert child.returncode == 1
        assert "rank 0: ends because rank 1 failed; its error is above" in text
    else:
        assert (child.returncode, text) == (0, "")


def test_how_long_ranks_wait_for_each_other(monkeypatch) -> None:
    monkeypatch.delenv("MEGATRON_HYENA_TIMEOUT", raising=False)
    assert collective_timeout() == timedelta(minutes=10)
    monkeypatch.setenv("MEGATRON_HYENA_TIMEOUT", "2.5")
    assert collective_timeout() == timedelta(seconds=2.5)
    for text in ("soon", "0", "-1", "nan", "1e300"):
        monkeypatch.setenv("MEGATRON_HYENA_TIMEOUT", text)
        with pytest.raises(UserError, match=f"MEGATRON_HYENA_TIMEOUT is '{text}'; give a number"):
            collective_timeout()


def test_without_torchrun_rank_0_is_the_host(monkeypatch) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    for name, value in environment(port, 0).items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("TORCHELASTIC_USE_AGENT_STORE")
    host = join_store(timedelta(seconds=5))
    host.set("from", "0")
    monkeypatch.setenv("RANK", "2")
    assert join_store(timedelta(seconds=5)).get("from") == b"0"

"""Start a program of training as a launcher would, one process per rank, and see how it ends."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch.distributed as dist

ROOT = Path(__file__).parents[2]


class Program:
    """`ranks` running processes of one training run; output in `log`_RANK.

    The ranks meet at a store held here, as under torchrun: no port is chosen beforehand.
    """

    def __init__(
        self,
        ranks: int,
        overrides: list[str],
        log: Path,
        limit: Callable[[], None] | None = None,
        module: str = "pretrain.train",
    ) -> None:
        self.store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
        self.logs = [log.with_name(f"{log.name}_{rank}") for rank in range(ranks)]
        self.processes = []
        for rank, path in enumerate(self.logs):
            with path.open("w") as output:
                self.processes.append(
                    subprocess.Popen(
                        [sys.executable, "-m", module, *overrides],
                        cwd=ROOT,
                        env=os.environ | self._environment(rank, ranks),
                        stdout=output,
                        stderr=subprocess.STDOUT,
                        preexec_fn=limit,
                    )
                )

    def _environment(self, rank: int, ranks: int) -> dict[str, str]:
        if ranks == 1:
            return {}
        return {
            "RANK": str(rank),
            "LOCAL_RANK": str(rank),
            "WORLD_SIZE": str(ranks),
            "LOCAL_WORLD_SIZE": str(ranks),
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(self.store.port),
            "TORCHELASTIC_USE_AGENT_STORE": "True",
        }

    def finish(self, timeout: float = 150) -> list[int]:
        """Exit status of each rank; a rank that is not done in time fails the test."""
        deadline = time.monotonic() + timeout
        try:
            return [p.wait(max(0.1, deadline - time.monotonic())) for p in self.processes]
        except subprocess.TimeoutExpired:
            raise AssertionError(f"not done after {timeout} s:\n{self.output()}") from None
        finally:
            self.kill()

    def kill(self) -> None:
        """`kill -9` to every rank."""
        for process in self.processes:
            process.kill()
            process.wait()

    def wait_for_step(self, run: Path, step: int, timeout: float = 120) -> None:
        """Return when `run` has logged `step`; fails if the program ends or takes longer."""
        deadline = time.monotonic() + timeout
        while not any(record["step"] >= step for record in metrics(run)):
            ended = [p.poll() for p in self.processes if p.poll() is not None]
            assert not ended, f"ended with {ended} before step {step}:\n{self.output()}"
            assert time.monotonic() < deadline, f"no step {step} in time:\n{self.output()}"
            time.sleep(0.005)

    def output(self) -> str:
        """What all ranks have printed."""
        return "\n".join(path.read_text() for path in self.logs)


def metrics(run: Path, name: str = "metrics.jsonl") -> list[dict[str, float]]:
    """Whole records of a run, without the one figure that is a matter of time."""
    path = run / name
    lines = path.read_text().split("\n")[:-1] if path.exists() else []
    records = [json.loads(line) for line in lines]
    return [{k: v for k, v in record.items() if k != "tokens_per_second"} for record in records]

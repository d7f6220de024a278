"""`pretrain.train` in which one rank fails: `FAULT RANK argument ...`.

The fault is planted from outside, into the places where real ones happen; the program is the one
that users run.
"""

from __future__ import annotations

import os
import runpy
import signal
import sys
from collections.abc import Callable

from megatron_hyena.errors import UserError

FAULTY_STEP = 3


def start() -> None:
    """A mistake found before the ranks meet."""
    import pretrain.data

    def open_data(config):
        raise UserError("planted mistake; mend it")

    pretrain.data.open_data = open_data


def data() -> None:
    """A damaged shard, found by the thread that prepares batches."""
    from megatron_hyena.data import loader

    prepare = loader.micro_batches

    def micro_batches(stream, step, *rest):
        if step == FAULTY_STEP:
            raise UserError("planted damage; make the shards again")
        return prepare(stream, step, *rest)

    loader.micro_batches = micro_batches


def backward() -> None:
    """A defect in the middle of a backward pass."""
    from megatron_hyena.runtime.console import quiet_libraries

    quiet_libraries()
    from megatron_hyena.engine.engine import Engine

    whole_step = Engine.train_step

    def fail(gradient):
        raise ZeroDivisionError("planted defect")

    def train_step(self, batches):
        if self.step == FAULTY_STEP:
            next(self.model.parameters()).register_hook(fail)
        return whole_step(self, batches)

    Engine.train_step = train_step  # type: ignore[method-assign]


def saving() -> None:
    """Killed while it writes its part of the second checkpoint."""
    from megatron_hyena.checkpoint import tensors

    write, calls = tensors.write_tensors, []

    def write_tensors(path, *rest):
        write(path, *rest)
        calls.append(path)
        if len(calls) == 2:
            os.truncate(path, path.stat().st_size // 2)
            os.kill(os.getpid(), signal.SIGKILL)

    tensors.write_tensors = write_tensors


FAULTS: dict[str, Callable[[], None]] = {f.__name__: f for f in (start, data, backward, saving)}

if __name__ == "__main__":
    fault, rank, *arguments = sys.argv[1:]
    if rank == os.environ["RANK"]:
        FAULTS[fault]()
    sys.argv[1:] = arguments
    runpy.run_module("pretrain.train", run_name="__main__", alter_sys=True)

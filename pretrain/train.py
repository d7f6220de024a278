"""Pretrain a model.

    torchrun --nproc-per-node N -m pretrain.train configs/run/X.yaml section.key=value ...
    python -m pretrain.train configs/run/X.yaml --dry-run

Resumes by itself from the newest checkpoint of the run. A run stopped by SIGTERM, SIGUSR1 or Ctrl-C
saves after the current step and exits with status 85; the same command goes on.
"""

from __future__ import annotations

import argparse
import os
import sys
from typing import TYPE_CHECKING

from megatron_hyena.runtime.failure import FailureBoard
from megatron_hyena.runtime.parent import end_with_parent
from pretrain.signals import StopRequest

if TYPE_CHECKING:
    from megatron_hyena.config import Config


def main(argv: list[str] | None = None) -> int:
    """Train (or describe) one run; 0 done, 85 stopped and saved, 2 a user's mistake, 1 failed."""
    parser = argparse.ArgumentParser(prog="pretrain.train", description=__doc__.splitlines()[0])
    parser.add_argument("config", help="the run's YAML file")
    parser.add_argument("overrides", nargs="*", metavar="section.key=value")
    parser.add_argument("--dry-run", action="store_true", help="describe the run, train nothing")
    arguments = parser.parse_intermixed_args(argv)
    from megatron_hyena.config import load_config

    stop, board = StopRequest(), FailureBoard()
    try:
        config = load_config(arguments.config, arguments.overrides)
        if arguments.dry_run:
            from pretrain.dry_run import describe

            print(describe(config, int(os.environ.get("WORLD_SIZE", "1"))))
            return 0
        if "TORCHELASTIC_RUN_ID" in os.environ:
            end_with_parent()
        return train_run(config, stop.install(), board)
    except Exception as error:
        return board.report(error)


def train_run(config: Config, stop: StopRequest, board: FailureBoard) -> int:
    """Check what can be checked, join the ranks, train, leave."""
    from megatron_hyena.checkpoint.start import check_data, find_start
    from megatron_hyena.config import check_layout
    from megatron_hyena.runtime.console import quiet_libraries
    from megatron_hyena.runtime.process import (
        collective_timeout,
        join_store,
        start_process,
        stop_process,
        world_size_from_environment,
    )
    from pretrain.data import open_data

    check_layout(config, world_size_from_environment())
    timeout = collective_timeout()
    start = find_start(config)
    data = open_data(config)
    check_data(start, config, [origin.digest for origin in data.train.origins])
    quiet_libraries()
    store = join_store(timeout)
    board.watch(store)
    from pretrain.run import run

    status = run(config, start_process(store, timeout), data, stop)
    board.close()
    stop_process()
    return status


if __name__ == "__main__":
    sys.exit(main())

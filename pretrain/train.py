"""Pretrain a model.

    torchrun --nproc-per-node N -m pretrain.train configs/run/X.yaml section.key=value ...
    python -m pretrain.train configs/run/X.yaml --dry-run

Resumes by itself from the newest checkpoint of the run. A run stopped by SIGTERM, SIGUSR1 or Ctrl-C
saves after the current step and exits with status 85; the same command goes on.
"""

from __future__ import annotations

import argparse
import errno
import os
import sys
from typing import TYPE_CHECKING

from megatron_hyena.errors import UserError
from megatron_hyena.runtime.parent import end_with_parent
from pretrain.signals import StopRequest

if TYPE_CHECKING:
    from megatron_hyena.config import Config


def main(argv: list[str] | None = None) -> int:
    """Train (or describe) one run; 0 done, 85 stopped and saved, 2 after a user's mistake."""
    parser = argparse.ArgumentParser(prog="pretrain.train", description=__doc__.splitlines()[0])
    parser.add_argument("config", help="the run's YAML file")
    parser.add_argument("overrides", nargs="*", metavar="section.key=value")
    parser.add_argument("--dry-run", action="store_true", help="describe the run, train nothing")
    arguments = parser.parse_intermixed_args(argv)
    from megatron_hyena.config import load_config

    stop = StopRequest()
    try:
        config = load_config(arguments.config, arguments.overrides)
        if arguments.dry_run:
            from pretrain.dry_run import describe

            print(describe(config, int(os.environ.get("WORLD_SIZE", "1"))))
            return 0
        if "TORCHELASTIC_RUN_ID" in os.environ:
            end_with_parent()
        return train_run(config, stop.install())
    except UserError as error:
        return _report(str(error))
    except OSError as error:
        if error.errno != errno.ENOSPC:
            raise
        return _report(f"the disk is full ({error}); free some space and start the command again")


def _report(sentence: str) -> int:
    """Print it once on each machine; the exit status of a mistake."""
    if os.environ.get("LOCAL_RANK", "0") == "0":
        print(f"error: {sentence}", file=sys.stderr)
    return 2


def train_run(config: Config, stop: StopRequest) -> int:
    """Check what can be checked, join the ranks, train, leave."""
    from megatron_hyena.checkpoint.start import find_start
    from megatron_hyena.config import check_layout
    from megatron_hyena.runtime.console import quiet_libraries
    from megatron_hyena.runtime.process import (
        start_process,
        stop_process,
        world_size_from_environment,
    )
    from pretrain.data import open_data

    check_layout(config, world_size_from_environment())
    find_start(config)
    data = open_data(config)
    quiet_libraries()
    from pretrain.run import run

    process = start_process()
    try:
        return run(config, process, data, stop)
    finally:
        stop_process()


if __name__ == "__main__":
    sys.exit(main())

"""Fine-tune a trained model on labelled sequences.

    python -m pretrain.finetune configs/run/finetune_coding.yaml section.key=value ...
    torchrun --nproc-per-node N -m pretrain.finetune CONFIG parallel.tensor=2 ...

Resumes by itself from the newest checkpoint of the run; `--dry-run` reads and describes the data
and the run and trains nothing. What is written: docs/finetune.md.
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
    from megatron_hyena.config.finetune import FinetuneConfig
    from megatron_hyena.finetune.source import Source


def main(argv: list[str] | None = None) -> int:
    """Train (or describe) one run; 0 done, 85 stopped and saved, 2 a user's mistake, 1 failed."""
    parser = argparse.ArgumentParser(prog="pretrain.finetune", description=__doc__.splitlines()[0])
    parser.add_argument("config", help="the run's YAML file")
    parser.add_argument("overrides", nargs="*", metavar="section.key=value")
    parser.add_argument("--dry-run", action="store_true", help="describe the run, train nothing")
    arguments = parser.parse_intermixed_args(argv)
    stop, board = StopRequest(), FailureBoard()
    try:
        from megatron_hyena.config.finetune import load_finetune

        config = load_finetune(arguments.config, arguments.overrides)
        source = _checked(config)
        if arguments.dry_run:
            _describe(config, source)
            return 0
        if "TORCHELASTIC_RUN_ID" in os.environ:
            end_with_parent()
        return finetune_run(config, source, stop.install(), board)
    except Exception as error:
        return board.report(error)


def _checked(config: FinetuneConfig) -> Source:
    """What can be known before data are read; returns where the weights come from."""
    from megatron_hyena.config.finetune import check_finetune
    from megatron_hyena.finetune.lora import check_peft
    from megatron_hyena.finetune.metrics import check_library
    from megatron_hyena.finetune.source import find_source
    from megatron_hyena.runtime.process import world_size_from_environment

    check_library()
    if config.finetune.method == "lora":
        check_peft()
    source = find_source(config.finetune.from_)
    check_finetune(config, source.config, world_size_from_environment())
    return source


def _describe(config: FinetuneConfig, source: Source) -> None:
    import yaml

    from megatron_hyena.yaml_sections import plain_values
    from pretrain.finetune_build import read_tasks_of

    print(yaml.safe_dump(plain_values(config), sort_keys=False))
    print(f"weights          {source.folder}{' (random)' if config.finetune.random else ''}")
    for task in read_tasks_of(config, source).values():
        print(task.describe())


def finetune_run(
    config: FinetuneConfig, source: Source, stop: StopRequest, board: FailureBoard
) -> int:
    """Read the data, join the ranks, train, leave."""
    from megatron_hyena.runtime.console import quiet_libraries
    from megatron_hyena.runtime.process import (
        collective_timeout,
        join_store,
        start_process,
        stop_process,
    )
    from pretrain.finetune_build import check_same_run, read_tasks_of

    timeout = collective_timeout()
    check_same_run(config)
    tasks = read_tasks_of(config, source)
    quiet_libraries()
    store = join_store(timeout)
    board.watch(store)
    from pretrain.finetune_run import run

    status = run(config, source, tasks, start_process(store, timeout), stop)
    board.close()
    stop_process()
    return status


if __name__ == "__main__":
    sys.exit(main())

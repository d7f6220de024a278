"""Submit a run to Slurm: check the layout, render the sbatch script, hand it to sbatch.

    python -m launch.submit configs/run/X.yaml --nodes 4 --gpus-per-node 8 --time 24:00:00
    python -m launch.submit configs/run/X.yaml --nodes 2 --gpus-per-node 0 --dry-run
    python -m launch.submit configs/run/finetune_X.yaml --nodes 1 --gpus-per-node 8
    python -m launch.submit --prepare configs/corpus/X.yaml --output corpus/x --tasks 32

A file with a section `finetune` is run by pretrain.finetune, others by pretrain.train. The script
lands in the run's folder, `slurm/train.sbatch` or `finetune.sbatch`, beside one log per job.
docs/slurm.md tells what happens at the time limit. `--prepare` makes a corpus: launch/prepare.py.
"""

from __future__ import annotations

import argparse
import shlex
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import NamedTuple

from launch import prepare
from launch.queue import require_sbatch, submit_script
from launch.script import JobSpec, option_of, render
from megatron_hyena.errors import UserError


def main(argv: list[str] | None = None) -> int:
    """Render and submit one job; 0 when it is queued (or printed), 2 after a user's mistake."""
    given = sys.argv[1:] if argv is None else argv
    if any(word.partition("=")[0] == "--prepare" for word in given):
        return prepare.main(given)
    arguments = _parse(given)
    try:
        spec = _spec(arguments)
        script = render(spec)
        if arguments.dry_run:
            print(script, end="")
            return 0
        _submit(spec, script)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


def _parse(argv: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="launch.submit",
        description=__doc__.splitlines()[0],
        epilog="With --prepare CONFIG a corpus is made instead; see --prepare X --help.",
    )
    add = parser.add_argument
    add("config", help="the run's YAML file")
    add("overrides", nargs="*", metavar="section.key=value", help="overrides of the configuration")
    add("--nodes", type=int, required=True, help="number of nodes")
    add(
        "--gpus-per-node", type=int, required=True, help="GPUs, and so ranks, per node; 0: CPU only"
    )
    add("--tasks-per-node", type=int, help="ranks per node of a CPU-only job (default 1)")
    add("--cpus-per-task", type=int, help="CPUs per rank (default: the cluster's, often 1)")
    add("--time", help="time limit, such as 90 (minutes), 12:00:00 or 2-00:00:00")
    add(
        "--grace", type=int, default=300, metavar="SECONDS", help="time to save in before the limit"
    )
    add("--partition", help="partition to submit to")
    add("--account", help="account to charge")
    add("--job-name", help="default: the name of the run's folder")
    add(
        "--sbatch-option",
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="any other sbatch option, such as qos=long or exclusive; may be repeated",
    )
    add("--python", default=sys.executable, help="interpreter on the nodes (default: this one)")
    add("--dry-run", action="store_true", help="print the script, submit nothing")
    return parser.parse_intermixed_args(argv)


class _Run(NamedTuple):
    """Which program runs a configuration, where it writes, and what refuses so many ranks."""

    module: str
    output_dir: str
    check: Callable[[int], None]


def _run_of(path: str, overrides: list[str]) -> _Run:
    """Raises UserError for a configuration that does not load."""
    from megatron_hyena.yaml_sections import sections_in

    given = [*sections_in(path, "configs/run"), *(word.partition(".")[0] for word in overrides)]
    if "finetune" not in given:
        from megatron_hyena.config import check_layout, load_config

        pretraining = load_config(path, overrides)
        check = partial(check_layout, pretraining)
        return _Run("pretrain.train", pretraining.run.output_dir, check)
    from megatron_hyena.config.finetune import check_finetune, load_finetune
    from megatron_hyena.finetune.source import find_source

    config = load_finetune(path, overrides)
    check = partial(check_finetune, config, find_source(config.finetune.from_).config)
    return _Run("pretrain.finetune", config.run.output_dir, check)


def _spec(arguments: argparse.Namespace) -> JobSpec:
    """The job, from a configuration that loads and fits on its ranks; raises UserError."""
    run = _run_of(arguments.config, arguments.overrides)
    run_dir = Path(run.output_dir).absolute()
    tasks_per_node = arguments.tasks_per_node
    spec = JobSpec(
        config=arguments.config,
        overrides=tuple(arguments.overrides),
        python=arguments.python,
        work_dir=Path.cwd(),
        log_dir=run_dir / "slurm",
        nodes=arguments.nodes,
        gpus_per_node=arguments.gpus_per_node,
        tasks_per_node=(arguments.gpus_per_node or 1) if tasks_per_node is None else tasks_per_node,
        job_name=arguments.job_name or run_dir.name,
        cpus_per_task=arguments.cpus_per_task,
        time=arguments.time,
        grace_seconds=arguments.grace,
        partition=arguments.partition,
        account=arguments.account,
        options=tuple(option_of(text) for text in arguments.sbatch_option),
        module=run.module,
    )
    run.check(spec.world_size)
    return spec


def _submit(spec: JobSpec, script: str) -> None:
    """Write the script into the run's folder, submit it, and say where to look."""
    require_sbatch()
    path = spec.log_dir / f"{spec.module.rpartition('.')[2]}.sbatch"
    job = submit_script(path, script)
    log = shlex.quote(str(spec.log_dir / f"{job}.log"))
    print(f"submitted job {job}: {spec.nodes} nodes x {spec.tasks_per_node} ranks")
    print(f"  script   {path}")
    print(f"  log      tail -F {log}")
    print(f"  state    squeue --job {job}")
    print(f"  requeue  scancel --signal=USR1 {job}     saves, then waits in the queue again")
    print(f"  stop     scancel {job}")


if __name__ == "__main__":
    sys.exit(main())

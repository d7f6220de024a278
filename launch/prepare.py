"""Submit the making of a corpus to Slurm: a chain of job arrays, one for each stage.

    python -m launch.submit --prepare configs/corpus/X.yaml --output corpus/x --tasks 32 \\
        --cpus-per-task 4 --time 4:00:00 section.key=value ...

Scripts and logs land in OUTPUT/.work/slurm. Submitted again, the chain goes on where it was.
"""

from __future__ import annotations

import argparse
import shlex
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from launch.queue import require_sbatch, submit_script
from launch.script import ShellTemplate, directive, option_of, time_limit_seconds
from megatron_hyena.errors import UserError

STAGES = {"store": True, "plan": False, "shards": True, "finish": False}
"""The stages of tools.prepare_corpus in order, and whether they are arrays of tasks."""
TEMPLATE = Path(__file__).with_name("prepare.sbatch")


@dataclass(frozen=True)
class ChainSpec:
    """The jobs of a corpus. Raises UserError for sizes or a time limit they cannot have."""

    arguments: tuple[str, ...]
    """Of tools.prepare_corpus: the configuration and its overrides."""
    python: str
    """The interpreter, at the same path on every node."""
    work_dir: Path
    """Where the program runs; relative paths of the inputs start here."""
    output: Path
    """Absolute; the corpus."""
    tasks: int
    """Jobs of an array."""
    job_name: str
    cpus_per_task: int = 1
    """Also the processes of each job."""
    time: str | None = None
    """Time limit of each job, as Slurm writes it."""
    partition: str | None = None
    account: str | None = None
    options: tuple[tuple[str, str], ...] = ()
    """Further sbatch options; they come last, so they win over the ones above."""

    def __post_init__(self) -> None:
        for flag, value in (("--tasks", self.tasks), ("--cpus-per-task", self.cpus_per_task)):
            if value < 1:
                raise UserError(f"{flag} {value} is too small: give 1 or more")
        if self.time is not None:
            time_limit_seconds(self.time)

    @property
    def log_dir(self) -> Path:
        """Of scripts and logs, which are no part of the corpus."""
        return self.output / ".work" / "slurm"


def main(argv: list[str]) -> int:
    """Render and submit the chain; 0 when it is queued (or printed), 2 after a user's mistake."""
    arguments = _parse(argv)
    try:
        spec = _spec(arguments)
        if arguments.dry_run:
            print("\n".join(_printed(spec)), end="")
        else:
            _submit(spec)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


def render(spec: ChainSpec, stage: str) -> str:
    """The sbatch script of a stage."""
    parts = spec.tasks if STAGES[stage] else 1
    command = [spec.python, "-m", "tools.prepare_corpus", *spec.arguments]
    return ShellTemplate(TEMPLATE.read_text()).substitute(
        directives="\n".join(f"#SBATCH {option}" for option in _directives(spec, stage)),
        stage=stage,
        parts=parts,
        command=shlex.join([*command, "--output", str(spec.output)]),
    )


def _directives(spec: ChainSpec, stage: str) -> list[str]:
    numbers = "%A_%a" if STAGES[stage] else "%j"
    options: list[tuple[str, str | int | None]] = [
        ("job-name", f"{spec.job_name}-{stage}"),
        ("nodes", 1),
        ("ntasks", 1),
        ("cpus-per-task", spec.cpus_per_task),
        ("array", f"0-{spec.tasks - 1}" if STAGES[stage] else None),
        ("time", spec.time),
        ("partition", spec.partition),
        ("account", spec.account),
        ("chdir", str(spec.work_dir)),
        ("output", f"{spec.log_dir}".replace("%", "%%") + f"/{stage}-{numbers}.log"),
        ("open-mode", "append"),
        ("requeue", ""),
        ("kill-on-invalid-dep", "yes"),
        *spec.options,
    ]
    return [directive(name, str(value)) for name, value in options if value is not None]


def _parse(argv: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="launch.submit --prepare", description=__doc__.splitlines()[0]
    )
    add = parser.add_argument
    add("--prepare", required=True, metavar="CONFIG", help="the corpus's YAML file")
    add("overrides", nargs="*", metavar="section.key=value", help="overrides of its options")
    add("--output", type=Path, required=True, help="folder of the corpus, seen by all nodes")
    add("--tasks", type=int, required=True, help="jobs that share the stores, and the shards")
    add("--cpus-per-task", type=int, default=1, help="CPUs and processes of each job (default 1)")
    add("--time", help="time limit of each job: minutes, 12:00:00 or 2-00:00:00")
    add("--partition", help="partition to submit to")
    add("--account", help="account to charge")
    add("--job-name", help="default: the name of the output folder")
    add(
        "--sbatch-option",
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="any other sbatch option, such as mem=16G; may be repeated",
    )
    add("--python", default=sys.executable, help="interpreter on the nodes (default: this one)")
    add("--overwrite", action="store_true", help="change a finished corpus of other options")
    add("--dry-run", action="store_true", help="print the scripts, submit nothing")
    return parser.parse_intermixed_args(argv)


def _spec(arguments: argparse.Namespace) -> ChainSpec:
    """The chain of a corpus whose options and inputs are right; raises UserError."""
    from megatron_hyena.corpus.build import Corpus
    from megatron_hyena.corpus.options import load_options

    options = load_options(arguments.prepare, arguments.overrides)
    output = arguments.output.absolute()
    Corpus.open(output, options, overwrite=arguments.overwrite)
    also = ["--overwrite"] if arguments.overwrite else []
    return ChainSpec(
        arguments=(arguments.prepare, *arguments.overrides, *also),
        python=arguments.python,
        work_dir=Path.cwd(),
        output=output,
        tasks=arguments.tasks,
        job_name=arguments.job_name or output.name,
        cpus_per_task=arguments.cpus_per_task,
        time=arguments.time,
        partition=arguments.partition,
        account=arguments.account,
        options=tuple(option_of(text) for text in arguments.sbatch_option),
    )


def _printed(spec: ChainSpec) -> list[str]:
    """Every script under the command that would submit it."""
    pages, before = [], ""
    for stage in STAGES:
        path = shlex.quote(str(spec.log_dir / f"{stage}.sbatch"))
        waits = f" --dependency=afterok:<{before}'s job>" if before else ""
        pages.append(f"# sbatch{waits} {path}\n{render(spec, stage)}")
        before = stage
    return pages


def _submit(spec: ChainSpec) -> None:
    """Submit all stages, or none of them, and say where to look."""
    require_sbatch()
    jobs: dict[str, str] = {}
    for stage in STAGES:
        waits = [f"--dependency=afterok:{list(jobs.values())[-1]}"] if jobs else []
        try:
            path = spec.log_dir / f"{stage}.sbatch"
            jobs[stage] = submit_script(path, render(spec, stage), waits)
        except UserError:
            subprocess.run(["scancel", *jobs.values()], check=False) if jobs else None
            raise
    told = ", ".join(f"{stage} {job}" for stage, job in jobs.items())
    print(f"submitted jobs {told}: {spec.tasks} tasks x {spec.cpus_per_task} processes")
    print(f"  scripts  {spec.log_dir}")
    print(f"  log      tail -F {shlex.quote(str(spec.log_dir))}/*.log")
    print(f"  state    squeue --job {','.join(jobs.values())}")
    print(f"  stop     scancel {' '.join(jobs.values())}    the same command goes on")

"""From a job's description to the text of its sbatch script, through the template train.sbatch.

The contract with the program that is run: it takes `CONFIG override ...` on its command line,
finds RANK, LOCAL_RANK, WORLD_SIZE, LOCAL_WORLD_SIZE, MASTER_ADDR and MASTER_PORT in its
environment, saves and exits with `UNFINISHED_STATUS` on every rank after SIGUSR1 or SIGTERM, and
resumes by itself when it is started again.
"""

from __future__ import annotations

import re
import shlex
import string
from dataclasses import dataclass
from pathlib import Path

from megatron_hyena.errors import UserError

UNFINISHED_STATUS = 85
"""Exit status of a program that was told to stop, saved its state, and is not finished."""

TEMPLATE = Path(__file__).with_name("train.sbatch")

_PLAIN = re.compile(r"[\w./%:@+=,-]*")
_TIME = re.compile(r"(?:(?P<days>\d+)-)?(?P<fields>\d+(?::\d+){0,2})")


class ShellTemplate(string.Template):
    """`@@{name}` is replaced; a `$` or a single `@` belongs to the shell."""

    delimiter = "@@"


@dataclass(frozen=True)
class JobSpec:
    """One training job. Raises UserError for sizes or a time limit with which it cannot run."""

    config: str
    """The run's configuration file, as the program is given it."""
    overrides: tuple[str, ...]
    """`section.key=value`, passed on unchanged."""
    python: str
    """The interpreter, at the same path on every node."""
    work_dir: Path
    """Where the program runs; relative paths in the configuration start here."""
    log_dir: Path
    """Absolute; holds the script, and one log per job to which every start appends."""
    nodes: int
    gpus_per_node: int
    """0 for a job without GPUs."""
    tasks_per_node: int
    """Ranks per node; equal to `gpus_per_node` unless that is 0."""
    job_name: str = "megatron-hyena"
    cpus_per_task: int | None = None
    time: str | None = None
    """Time limit as Slurm writes it, such as `90` (minutes), `1:30:00` or `2-12:00:00`."""
    grace_seconds: int = 300
    """How long before the time limit the program is told to save and stop (SIGUSR1)."""
    partition: str | None = None
    account: str | None = None
    options: tuple[tuple[str, str], ...] = ()
    """Further sbatch options; they come last, so they win over the ones above."""
    module: str = "pretrain.train"

    def __post_init__(self) -> None:
        for flag, value, least in (
            ("--nodes", self.nodes, 1),
            ("--gpus-per-node", self.gpus_per_node, 0),
            ("--tasks-per-node", self.tasks_per_node, 1),
            ("--cpus-per-task", 1 if self.cpus_per_task is None else self.cpus_per_task, 1),
            ("--grace", self.grace_seconds, 1),
        ):
            if value < least:
                raise UserError(f"{flag} {value} is too small: give {least} or more")
        if self.gpus_per_node not in (0, self.tasks_per_node):
            raise UserError(
                f"--tasks-per-node {self.tasks_per_node} differs from --gpus-per-node "
                f"{self.gpus_per_node}: a GPU job has one task per GPU, so leave it out"
            )
        if self.grace_seconds > 65535:
            raise UserError(
                f"--grace {self.grace_seconds} is more than Slurm's limit of 65535 seconds"
            )
        limit = time_limit_seconds(self.time) if self.time else 0
        if 0 < limit <= self.grace_seconds:
            raise UserError(
                f"--time {self.time} leaves no time to train before the {self.grace_seconds} "
                "seconds of --grace: raise --time or lower --grace"
            )

    @property
    def world_size(self) -> int:
        return self.nodes * self.tasks_per_node


def time_limit_seconds(text: str) -> int:
    """Seconds in a Slurm time limit: `M`, `M:S`, `H:M:S`, `D-H`, `D-H:M` or `D-H:M:S`; 0 for none.

    Raises UserError for anything else.
    """
    if text.upper() in ("UNLIMITED", "INFINITE"):
        return 0
    match = _TIME.fullmatch(text)
    if match is None:
        raise UserError(
            f"--time {text} is not a time limit: write minutes, hours:minutes:seconds or days-hours"
        )
    fields = [int(field) for field in match["fields"].split(":")]
    if match["days"] is not None:
        hours, minutes, seconds = (*fields, 0, 0)[:3]
        return ((int(match["days"]) * 24 + hours) * 60 + minutes) * 60 + seconds
    if len(fields) == 1:
        return fields[0] * 60
    hours, minutes, seconds = (0, *fields)[-3:]
    return (hours * 60 + minutes) * 60 + seconds


def render(spec: JobSpec) -> str:
    """The sbatch script of a job."""
    words = [spec.python, "-m", spec.module, spec.config, *spec.overrides]
    return ShellTemplate(TEMPLATE.read_text()).substitute(
        directives="\n".join(f"#SBATCH {option}" for option in _directives(spec)),
        log_dir=shlex.quote(str(spec.log_dir)),
        gpus_per_node=spec.gpus_per_node,
        tasks_per_node=spec.tasks_per_node,
        command=shlex.join(words),
        unfinished_status=UNFINISHED_STATUS,
    )


def _directives(spec: JobSpec) -> list[str]:
    """The `--name=value` options at the head of the script."""
    options: list[tuple[str, str | int | None]] = [
        ("job-name", spec.job_name),
        ("nodes", spec.nodes),
        ("ntasks", spec.world_size),
        ("ntasks-per-node", spec.tasks_per_node),
        ("cpus-per-task", spec.cpus_per_task),
        ("gres", f"gpu:{spec.gpus_per_node}" if spec.gpus_per_node else None),
        ("time", spec.time),
        ("partition", spec.partition),
        ("account", spec.account),
        ("chdir", str(spec.work_dir)),
        ("output", f"{spec.log_dir}".replace("%", "%%") + "/%j.log"),
        ("open-mode", "append"),
        ("requeue", ""),
        ("signal", f"USR1@{spec.grace_seconds}"),
        *spec.options,
    ]
    return [directive(name, str(value)) for name, value in options if value is not None]


def option_of(text: str) -> tuple[str, str]:
    """Name and value of `NAME=VALUE` or `NAME`, as `--sbatch-option` takes them."""
    name, _, value = text.removeprefix("--").partition("=")
    return name, value


def directive(name: str, value: str) -> str:
    """One option; a value that is not plain is quoted the way sbatch reads its own comments."""
    if not name or not re.fullmatch(r"[a-z][a-z0-9-]*", name):
        raise UserError(
            f"--sbatch-option {name!r} is not the name of an sbatch option, such as qos"
        )
    if not value.isprintable():
        raise UserError(
            f"the sbatch option {name} holds a line break or another unprintable character"
        )
    if not value:
        return f"--{name}"
    if _PLAIN.fullmatch(value):
        return f"--{name}={value}"
    escaped = value.replace("\\", "\\\\").replace('"', '\\"')
    return f'--{name}="{escaped}"'

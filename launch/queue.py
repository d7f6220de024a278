"""Handing scripts to Slurm: where they lie, and what sbatch answered."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

from megatron_hyena.errors import UserError


def require_sbatch() -> None:
    """Raise UserError on a machine from which nothing can be submitted."""
    if shutil.which("sbatch") is None:
        raise UserError(
            "sbatch was not found: run this on a login node of a Slurm cluster, or add --dry-run "
            "to see the script"
        )


def submit_script(path: Path, script: str, options: Sequence[str] = ()) -> str:
    """Write a script to `path`, submit it, and return the job's number.

    `options` are sbatch's own, before the script. Raises UserError with sbatch's reason.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(f".{os.getpid()}.tmp")
    temporary.write_text(script)
    os.replace(temporary, path)
    command = ["sbatch", "--parsable", *options, str(path)]
    reply = subprocess.run(command, capture_output=True, text=True)
    if reply.returncode != 0:
        reason = (reply.stderr.strip().splitlines() or [f"exit status {reply.returncode}"])[-1]
        raise UserError(f"Slurm did not take {path} ({reason}): mend that and submit again")
    return reply.stdout.strip().split(";")[0]

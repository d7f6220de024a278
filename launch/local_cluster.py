"""A real Slurm cluster of emulated nodes on one Debian machine, to try and to test jobs on.

    python -m launch.local_cluster up --nodes 2 --root ~/cluster      prints `export SLURM_CONF=...`
    python -m launch.local_cluster down --root ~/cluster

or, in a test, `with local_cluster(root, nodes=2) as environment:`. It needs root; `slurm-wlm` and
`munge` are installed with apt-get where they are missing. Everything lives under `root`: keys,
state, logs, its own munge daemon. Nodes are named by loopback addresses, from 127.0.1.1 on, which
resolve without an entry in /etc/hosts. What this is not: the nodes share one file system, one
hostname and the machine's CPUs; nothing limits the memory of a job.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import shutil
import signal
import socket
import string
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from megatron_hyena.errors import UserError

_SYSTEM_PATH = f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin"
_PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch")
_CONFIG_TEMPLATE = Path(__file__).with_name("local_slurm.conf")
_CGROUPS = Path("/sys/fs/cgroup")
_SOCKET_PATH_LIMIT = 107  # bytes; sun_path of unix(7)


@dataclass(frozen=True)
class Cluster:
    """Where a cluster of emulated nodes keeps its files, and what it is made of."""

    root: Path
    """Absolute folder of the cluster's own."""
    nodes: int = 2
    cpus_per_node: int = 2
    """Declared to Slurm; may be more than the machine has."""
    gpus_per_node: int = 0
    """Stand-ins: jobs get CUDA_VISIBLE_DEVICES, but no device."""

    @property
    def config_file(self) -> Path:
        return self.root / "slurm.conf"

    @property
    def munge_socket(self) -> Path:
        return self.root / "munge.socket"

    @property
    def node_names(self) -> list[str]:
        return [f"127.0.1.{1 + index}" for index in range(self.nodes)]

    @property
    def environment(self) -> dict[str, str]:
        """The process environment in which Slurm's commands talk to this cluster."""
        return {**os.environ, "PATH": _SYSTEM_PATH, "SLURM_CONF": str(self.config_file)}


def main(argv: list[str] | None = None) -> int:
    """Bring a cluster up, or take it down; 2 after a user's mistake."""
    parser = argparse.ArgumentParser(
        prog="launch.local_cluster", description=__doc__.splitlines()[0]
    )
    parser.add_argument("action", choices=("up", "down"))
    parser.add_argument("--root", type=Path, required=True, help="folder of the cluster's own")
    parser.add_argument("--nodes", type=int, default=2)
    parser.add_argument("--cpus-per-node", type=int, default=2)
    parser.add_argument("--gpus-per-node", type=int, default=0, help="stand-ins without a device")
    arguments = parser.parse_args(argv)
    cluster = Cluster(
        arguments.root.absolute(),
        arguments.nodes,
        arguments.cpus_per_node,
        arguments.gpus_per_node,
    )
    try:
        if arguments.action == "down":
            down(cluster)
        else:
            up(cluster)
            print(f"export SLURM_CONF={cluster.config_file}")
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


@contextlib.contextmanager
def local_cluster(
    root: Path, nodes: int = 2, cpus_per_node: int = 2, gpus_per_node: int = 0
) -> Iterator[dict[str, str]]:
    """A cluster for the length of a `with`; gives the environment to run Slurm's commands in."""
    cluster = Cluster(root.absolute(), nodes, cpus_per_node, gpus_per_node)
    try:
        up(cluster)
        yield cluster.environment
    finally:
        down(cluster)


def missing_requirement() -> str | None:
    """Why no cluster can run on this machine, or None if one can."""
    if os.geteuid() != 0:
        return "an emulated Slurm cluster needs root"
    if not (_CGROUPS.is_dir() and any(_CGROUPS.iterdir())):
        return f"slurmd needs control groups, and none are mounted at {_CGROUPS}"
    absent = [name for name in _PROGRAMS if shutil.which(name, path=_SYSTEM_PATH) is None]
    if absent and shutil.which("apt-get") is None:
        return f"{absent[0]} is not installed, and there is no apt-get to install it with"
    return None


def install() -> None:
    """Install Slurm and munge where they are missing, without starting their services.

    Raises UserError if that cannot be done here.
    """
    if reason := missing_requirement():
        raise UserError(f"{reason}: use a Debian machine as root, or a real cluster")
    if all(shutil.which(name, path=_SYSTEM_PATH) for name in _PROGRAMS):
        return
    # RUNLEVEL=1 keeps the packages' scripts from starting system services.
    environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive", "RUNLEVEL": "1"}
    apt_get = ["apt-get", "-qq", "-o", "DPkg::Lock::Timeout=300"]
    packages = ["install", "--yes", "--no-install-recommends", "slurm-wlm", "munge"]
    for arguments in (["update"], packages):
        reply = subprocess.run(
            [*apt_get, *arguments], env=environment, capture_output=True, text=True
        )
        if reply.returncode != 0:
            reason = (reply.stderr.strip().splitlines() or ["no reason given"])[-1]
            raise UserError(
                f"apt-get {arguments[0]} failed ({reason}): install slurm-wlm and munge by hand"
            )


def up(cluster: Cluster) -> None:
    """Start the cluster's daemons and wait until every node is idle.

    Raises UserError if Slurm cannot be installed here, and RuntimeError if a daemon does not start.
    """
    if not 1 <= cluster.nodes <= 250:
        raise UserError(f"--nodes {cluster.nodes} is out of range: give 1 to 250")
    if len(os.fsencode(cluster.munge_socket)) > _SOCKET_PATH_LIMIT:
        raise UserError(
            f"--root {cluster.root} is too long for a socket's path: choose a shorter one"
        )
    if cluster.config_file.exists():
        raise UserError(
            f"{cluster.root} already holds a cluster: take it down first, or use another"
        )
    install()
    cluster.root.mkdir(parents=True, exist_ok=True)
    for name in ("run", "log", "state"):
        (cluster.root / name).mkdir()
    key = cluster.root / "munge.key"
    key.touch(mode=0o600)
    key.write_bytes(os.urandom(1024))
    cluster.config_file.write_text(_slurm_conf(cluster))
    (cluster.root / "gres.conf").write_text(_gres_conf(cluster))

    _start_munged(cluster)
    _run(cluster, "slurmctld", "-f", str(cluster.config_file))
    _wait(cluster, "slurmctld", lambda: "is UP" in _query(cluster, "scontrol", "ping"))
    for name in cluster.node_names:
        (cluster.root / f"spool.{name}").mkdir()
        _run(cluster, "slurmd", "-f", str(cluster.config_file), "-N", name)
    idle = ["sinfo", "--noheader", "--Node", "--states=idle", "--format=%N"]
    _wait(cluster, "slurmd", lambda: len(_query(cluster, *idle).split()) == cluster.nodes)


def down(cluster: Cluster) -> None:
    """Cancel all jobs, stop the daemons that `up` started, and remove the cluster's folder."""
    if not cluster.config_file.exists():
        return
    if "is UP" in _query(cluster, "scontrol", "ping"):
        for job in set(_query(cluster, "squeue", "--noheader", "--format=%A").split()):
            _query(cluster, "scancel", job)
        deadline = time.monotonic() + 20
        while _query(cluster, "squeue", "--noheader") and time.monotonic() < deadline:
            time.sleep(0.1)
    _stop(_daemons(cluster))
    for name in ("run", "log", "state", *(path.name for path in cluster.root.glob("spool.*"))):
        shutil.rmtree(cluster.root / name, ignore_errors=True)
    for pattern in ("munge.*", "*.conf"):
        for path in cluster.root.glob(pattern):
            path.unlink()
    with contextlib.suppress(OSError):  # the folder was not empty before `up`
        cluster.root.rmdir()


def _slurm_conf(cluster: Cluster) -> str:
    port, *node_ports = _free_ports(1 + cluster.nodes)
    host = socket.gethostname().split(".")[0]
    gres = f" Gres=gpu:{cluster.gpus_per_node}" if cluster.gpus_per_node else ""
    nodes = "\n".join(
        f"NodeName={name} NodeHostname={host} NodeAddr={name} Port={node_port} "
        f"CPUs={cluster.cpus_per_node}{gres}"
        for name, node_port in zip(cluster.node_names, node_ports, strict=True)
    )
    return string.Template(_CONFIG_TEMPLATE.read_text()).substitute(
        host=host, port=port, root=cluster.root, munge_socket=cluster.munge_socket, nodes=nodes
    )


def _gres_conf(cluster: Cluster) -> str:
    """Any character device serves as a stand-in for a GPU."""
    count = cluster.gpus_per_node
    devices = "/dev/tty0" if count == 1 else f"/dev/tty[0-{count - 1}]"
    lines = [f"NodeName={name} Name=gpu File={devices}\n" for name in cluster.node_names]
    return "".join(lines) if count else ""


def _free_ports(count: int) -> list[int]:
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind(("", 0))
        return [each.getsockname()[1] for each in sockets]


def _start_munged(cluster: Cluster) -> None:
    root, address = cluster.root, str(cluster.munge_socket)
    _run(
        cluster,
        "munged",
        "--force",  # accept a folder that others may write to, such as one under /tmp
        f"--key-file={root}/munge.key",
        f"--socket={address}",
        f"--pid-file={root}/run/munged.pid",
        f"--log-file={root}/log/munged.log",
        f"--seed-file={root}/munge.seed",
    )
    munge = ["munge", "--no-input", "--socket", address]
    _wait(cluster, "munged", lambda: bool(_query(cluster, *munge)))


def _run(cluster: Cluster, *command: str) -> None:
    """Start a daemon, which puts itself into the background."""
    with (cluster.root / "log" / "start.log").open("a") as log:
        status = subprocess.run(
            command, env=cluster.environment, stdin=subprocess.DEVNULL, stdout=log, stderr=log
        ).returncode
    if status != 0:
        raise RuntimeError(f"{command[0]} ended with status {status}\n{_last_words(cluster)}")


def _query(cluster: Cluster, *command: str) -> str:
    """Standard output of one of Slurm's commands; empty while the daemons do not answer."""
    reply = subprocess.run(command, env=cluster.environment, capture_output=True, text=True)
    return reply.stdout


def _wait(cluster: Cluster, name: str, ready: Callable[[], bool], seconds: float = 30) -> None:
    deadline = time.monotonic() + seconds
    while not ready():
        if time.monotonic() > deadline:
            raise RuntimeError(f"{name} is not ready after {seconds} s\n{_last_words(cluster)}")
        time.sleep(0.1)


def _last_words(cluster: Cluster) -> str:
    logs = sorted((cluster.root / "log").glob("*.log"))
    return "\n".join(f"{path.name}: {path.read_text()[-1000:]}" for path in logs)


def _daemons(cluster: Cluster) -> list[int]:
    """Processes of the pid files whose command line shows that they belong to this cluster."""
    running = []
    for path in (cluster.root / "run").glob("*.pid"):
        text = path.read_text().strip()
        command = Path(f"/proc/{text}/cmdline")
        with contextlib.suppress(OSError):
            if text.isdigit() and os.fsencode(cluster.root) in command.read_bytes():
                running.append(int(text))
    return running


def _stop(processes: list[int]) -> None:
    """End processes: SIGTERM, and SIGKILL for those which are still there after 15 seconds."""
    for number, patience in ((signal.SIGTERM, 15), (signal.SIGKILL, 5)):
        for process in processes:
            with contextlib.suppress(ProcessLookupError):
                os.kill(process, number)
        deadline = time.monotonic() + patience
        while processes and time.monotonic() < deadline:
            processes = [each for each in processes if _alive(each)]
            time.sleep(0.05)


def _alive(process: int) -> bool:
    """Whether a process runs; one that ended but is not yet reaped does not."""
    try:
        state = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return False
    return state != "Z"


if __name__ == "__main__":
    sys.exit(main())

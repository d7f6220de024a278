"""Stands in for training in a Slurm job: `python -m tests.slurm.rank_probe FOLDER BEHAVIOUR`.

Every start meets its other ranks over gloo and leaves `start_N.json` in FOLDER. After that

    stop_once   the first start waits for SIGUSR1, then each rank "saves" and exits 85; rank 1 takes
                longer, which must not cost it its life. The second start finishes.
    stop        waits for SIGTERM and exits 85, in every start.
    fail        rank 1 exits 3; the other would wait for a minute.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
import time
from pathlib import Path

from launch.script import UNFINISHED_STATUS


def main() -> int:
    folder, behaviour = Path(sys.argv[1]), sys.argv[2]
    start = int(os.environ.get("SLURM_RESTART_COUNT", "0"))
    told_to_stop = threading.Event()
    awaited = signal.SIGTERM if behaviour == "stop" else signal.SIGUSR1
    if behaviour == "stop" or start == 0:
        signal.signal(awaited, lambda number, frame: told_to_stop.set())

    import torch.distributed  # slow: the signal may come before it is there

    torch.distributed.init_process_group("gloo")
    rank, world_size = torch.distributed.get_rank(), torch.distributed.get_world_size()
    total = torch.tensor([10.0**rank])
    torch.distributed.all_reduce(total)
    mine = {
        "rank": rank,
        "world_size": world_size,
        "local_rank": int(os.environ["LOCAL_RANK"]),
        "local_world_size": int(os.environ["LOCAL_WORLD_SIZE"]),
        "node": os.environ["SLURMD_NODENAME"],
        "master": os.environ["MASTER_ADDR"],
        "devices": os.environ.get("CUDA_VISIBLE_DEVICES"),
        "threads": os.environ["OMP_NUM_THREADS"],
        "total": total.item(),
        "arguments": sys.argv[2:],
    }
    everyone: list[dict[str, object]] = [{} for _ in range(world_size)]
    torch.distributed.all_gather_object(everyone, mine)
    torch.distributed.destroy_process_group()
    sys.stdout.write(f"rank {rank} met {total.item():.0f} in start {start}\n")
    if rank == 0:
        temporary = folder / "start.tmp"
        temporary.write_text(json.dumps(everyone))
        temporary.rename(folder / f"start_{start}.json")

    if behaviour == "fail":
        if rank == 1:
            return 3
        time.sleep(60)
    if behaviour == "stop" or start == 0:
        if not told_to_stop.wait(timeout=120):
            return 4
        time.sleep(1.0 * rank)
        (folder / f"saved_by_{rank}").touch()
        return UNFINISHED_STATUS
    return 0


if __name__ == "__main__":
    sys.exit(main())

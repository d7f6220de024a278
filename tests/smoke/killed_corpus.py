"""tools.prepare_corpus that kills itself at a rename: `python killed_corpus.py N ARGUMENTS`.

N counts renames from 1; a negative one dies behind the rename, another before it. 0 lives on and
prints how many there were.
"""

from __future__ import annotations

import os
import signal
import sys

from tools import prepare_corpus

count = 0
rename = os.replace


def replace(*places: object) -> None:
    """os.replace, counted."""
    global count
    count += 1
    if count == int(sys.argv[1]):
        os.kill(os.getpid(), signal.SIGKILL)
    rename(*places)  # type: ignore[arg-type]
    if count == -int(sys.argv[1]):
        os.kill(os.getpid(), signal.SIGKILL)


if __name__ == "__main__":
    os.replace = replace  # type: ignore[assignment]
    status = prepare_corpus.main(sys.argv[2:])
    sys.stdout.write(f"renames {count}\n")
    sys.exit(status)

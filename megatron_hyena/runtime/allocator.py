"""Keep freed tensors in the process instead of giving their pages back.

glibc maps every large tensor afresh and faults it in page by page; training long convolutions on
a CPU then spends most of its time in page faults. Raising two thresholds makes it keep the pages,
at the price of a higher resident size.
"""

from __future__ import annotations

import ctypes
import sys

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3


def keep_freed_memory() -> bool:
    """Raise glibc's mmap and trim thresholds; True if the C library took them.

    On other C libraries nothing is changed and False is returned: only speed depends on it.
    """
    if not sys.platform.startswith("linux"):
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        return False
    return bool(mallopt(_M_MMAP_THRESHOLD, 1 << 30)) and bool(
        mallopt(_M_TRIM_THRESHOLD, (1 << 31) - 1)
    )

"""Being told to stop: SIGTERM, SIGINT and SIGUSR1 ask for a save and an orderly end.

Installed before the heavy imports, so that a signal that comes early is remembered. Imports
nothing but the standard library.
"""

from __future__ import annotations

import signal
from types import FrameType

UNFINISHED_STATUS = 85
"""Exit status of a run that was stopped by a signal, saved, and can be resumed."""


class StopRequest:
    """Remembers whether a signal asked this process to stop.

    A second Ctrl-C ends the process at once, in the ordinary way.
    """

    def __init__(self) -> None:
        self.asked = False

    def install(self) -> StopRequest:
        """Handle SIGTERM, SIGINT and SIGUSR1 from now on."""
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1):
            signal.signal(number, self._handle)
        return self

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self.asked and number == signal.SIGINT:
            signal.default_int_handler(number, frame)
        self.asked = True

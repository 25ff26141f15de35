"""A Valkey for one test, which may stop, pause and start it again."""

import contextlib
import os
import signal
from pathlib import Path

from dev.embedded import home, valkey


class OwnValkey:
    """Runs from `start` until `stop`; loses its data when it stops."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._running = contextlib.ExitStack()
        self._pid = 0
        self.path = folder / "srv/valkey.sock"
        self.url = f"unix://{self.path}?db=0"

    def start(self) -> None:
        place = self._running.enter_context(home(self._folder))
        self.url, self._pid = self._running.enter_context(valkey(place, options=()))

    def stop(self) -> None:
        self._running.close()

    def pause(self) -> None:
        """Keep its connections open and accept new ones, but answer none."""
        os.kill(self._pid, signal.SIGSTOP)

    def resume(self) -> None:
        os.kill(self._pid, signal.SIGCONT)

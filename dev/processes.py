"""The processes of `make run`, which the page's engine room may end and start again."""

import contextlib
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO, Self

from dev.embedded import guarded, release

STOP_SECONDS = 15


class Processes:
    """Runs Python commands by name; as a context it ends all of them together."""

    def __init__(self, commands: Mapping[str, Sequence[str]], log: Path) -> None:
        self._commands, self._log_path = commands, log
        self._running: dict[str, subprocess.Popen[bytes]] = {}
        self._log: IO[bytes]

    def __enter__(self) -> Self:
        self._log = self._log_path.open("ab")
        try:
            for name in self._commands:
                self.start(name)
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, signal.SIG_IGN)
        with contextlib.suppress(OSError):  # the terminal may be gone
            print("\nStopping …", flush=True)
        for process in self._running.values():
            process.terminate()
        for process in self._running.values():
            _wait(process)
        self._log.close()

    def is_running(self, name: str) -> bool:
        """Return whether a process runs, as far as it was not ended on purpose."""
        return name in self._running

    def start(self, name: str) -> None:
        """Start a process, unless it runs."""
        if name not in self._running:
            command = [sys.executable, *self._commands[name]]
            self._running[name] = guarded(command, signal.SIGTERM, stdout=self._log, stderr=self._log)

    def end(self, name: str, number: signal.Signals) -> None:
        """End a process by a signal, on purpose, and wait for it; do nothing if it does not run."""
        if process := self._running.pop(name, None):
            process.send_signal(number)
            _wait(process)

    def check(self) -> None:
        """Raise SystemExit if a process has ended by itself."""
        for name, process in list(self._running.items()):
            if process.poll() is not None and self.is_running(name):
                raise SystemExit(f"The process {name} exited with {process.returncode}. See {self._log_path}")


def _wait(process: subprocess.Popen[bytes]) -> None:
    try:
        process.wait(STOP_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
    release(process)

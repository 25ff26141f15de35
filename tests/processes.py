"""The service's processes, as an operator starts them."""

import contextlib
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Self
from urllib.request import urlopen

from benchmarks.load.cpu import api_workers
from dev.embedded import free_port
from tests.conftest import ROOT
from tests.factories import SECRET
from tests.stopwatch import Stopwatch, eventually

STOP_SECONDS = 10
PROCFILE = dict(line.split(": ", 1) for line in (ROOT / "Procfile").read_text().splitlines())
# The commands of the tests' own environment, such as python and flask.
PATH = f"{Path(sys.executable).parent}{os.pathsep}{os.defpath}"
DOCKERFILE = ROOT / "deploy/Dockerfile"
NOWHERE = "postgresql://nobody@/none?host=/nonexistent"


def environ(database_url: str, redis_url: str = "redis://localhost", **more: str) -> dict[str, str]:
    """Return the environment of a process: what it needs, and nothing of the tests' own environment."""
    return {
        "PATH": PATH,
        "DATABASE_URL": database_url,
        "REDIS_URL": redis_url,
        "JWT_SECRET": SECRET,
        "LOCATION_SECRET": SECRET[::-1],
        **more,
    }


def image_files() -> list[str]:
    """Return what the image is built from, by the names that these files and folders have in the repository."""
    words = re.findall(r"^COPY (?!--)(.*) \S+$", DOCKERFILE.read_text(), re.MULTILINE)
    return " ".join(words).split()


class Process:
    """A process of the service, and its output."""

    def __init__(self, command: str, folder: Path, cwd: Path, **environ: str) -> None:
        self._log = folder / f"{time.monotonic_ns()}.log"
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(
                shlex.split(command),
                cwd=cwd,
                env=environ,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )

    def output(self) -> str:
        return self._log.read_text()

    def says(self, pattern: str, times: int = 1) -> re.Match[str]:
        """Wait until the process has written it that many times; return the last match."""

        def look() -> re.Match[str] | None:
            assert self._process.poll() is None, self.output()
            found = list(re.finditer(pattern, self.output()))
            return found[-1] if len(found) >= times else None

        match: re.Match[str] = eventually(look)
        return match

    @property
    def pid(self) -> int:
        return self._process.pid

    def workers(self) -> list[int]:
        """Return the process ids of the API's workers."""
        return api_workers(self.pid)

    def answers(self, url: str) -> bool:
        """Return whether the URL is served; fail if the process has ended."""
        assert self._process.poll() is None, self.output()
        with contextlib.suppress(OSError), urlopen(url, timeout=60):
            return True
        return False

    def terminate(self) -> None:
        self._process.send_signal(signal.SIGTERM)

    def exit_code(self, seconds: float = STOP_SECONDS) -> int:
        """Wait for the process to end, within `seconds` on the stopwatch, and return its exit code."""
        with Stopwatch() as took:
            code = self._process.wait(60 + seconds)
        assert took.seconds <= seconds
        return code

    def kill(self) -> None:
        self._process.kill()
        self._process.wait()


class Processes:
    """Starts processes in one environment, by their names in the Procfile or by a command; kills them at the end."""

    def __init__(self, folder: Path, environ: dict[str, str], cwd: Path = ROOT) -> None:
        self._folder, self._cwd = folder, cwd
        self.environ = environ
        self._started: list[Process] = []

    def __call__(self, command: str, **changes: str) -> Process:
        process = Process(PROCFILE.get(command, command), self._folder, self._cwd, **{**self.environ, **changes})
        self._started.append(process)
        return process

    def web(self, command: str = "web", **changes: str) -> tuple[Process, str]:
        """Start the API on a free port, and return it with its URL."""
        port = free_port()
        process = self(command, API_PORT=str(port), **changes)
        origin = f"http://127.0.0.1:{port}"
        eventually(lambda: process.answers(f"{origin}/healthz"))
        return process, f"{origin}/api/after-hours/session"

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        for process in self._started:
            process.kill()

"""An upgrade from the release before under load, and back: the schema first, then one process after another."""

import os
import subprocess
import time
import venv
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.chaos.faults import Fault, nothing
from benchmarks.chaos.stack import HERE, ROOT, START_SECONDS, Release, Stack, is_open, is_ready
from benchmarks.load.stack import procfile, wait_for

# The last one that gunicorn served, and whose schema has no memory of places: both changes in one step.
BEFORE = "8a5042a"
STATE = ROOT / ".state" / "rolling"
SETTLE_SECONDS = 2.0  # between two processes


class Rolling(Stack):
    """The service of the release before, with two of each process."""

    apis = ("api-1", "api-2")
    gateways = ("live-1", "live-2")

    def __init__(self, folder: Path, members: int, revision: str = BEFORE) -> None:
        self.before = self.release = check_out(revision)
        super().__init__(folder, members)

    def clock_settings(self) -> dict[str, str]:
        """Return nothing: no clock jumps, and a release's own environment has not what that takes."""
        return {}

    def replace(self, kind: str) -> None:
        """Replace the processes of a kind, one by one, by those of the present release."""
        for process in [each for each in self.processes.values() if each.kind == kind]:
            self.held.add(process.name)
            process.terminate()
            process.wait()
            process.start(self.release)
            if is_up := {"api": is_ready, "live": is_open}.get(kind):
                wait_for(partial(is_up, self.ports[process.name]), START_SECONDS)
            self.held.discard(process.name)
            time.sleep(SETTLE_SECONDS)


def check_out(revision: str) -> Release:
    """Return a release of the past, in a folder and an environment of its own, which are kept for the next time."""
    commit = subprocess.check_output(["git", "rev-parse", revision], cwd=ROOT, text=True).strip()
    root, environment = STATE / commit, STATE / f"{commit}-python"
    python = environment / "bin" / "python"
    if not root.exists():
        root.mkdir(parents=True)
        archive = subprocess.Popen(["git", "archive", commit], cwd=ROOT, stdout=subprocess.PIPE)
        subprocess.run(["tar", "-x", "-C", root], stdin=archive.stdout, check=True)
        if archive.wait():
            raise SystemExit(f"{revision} cannot be read")
    if not (environment / "complete").exists():
        venv.create(environment, with_pip=True, clear=True)
        install = [str(python), "-m", "pip", "install", "--quiet", "--require-hashes", "-r", f"{root}/requirements.txt"]
        subprocess.run(install, check=True, env={"PATH": os.environ["PATH"], "HOME": os.environ["HOME"]})
        (environment / "complete").touch()
    return Release(root, python, procfile(root))


def _turn(act: Callable[[Any], None]) -> Callable[[Any], AbstractContextManager[None]]:
    @contextmanager
    def inject(stack: Any) -> Iterator[None]:
        act(stack)
        yield

    return inject


def _migrate(stack: Any) -> None:
    stack.release = HERE
    stack.migrate()


def _replace(kind: str, *, back: bool = False) -> Callable[[Any], AbstractContextManager[None]]:
    def act(stack: Any) -> None:
        stack.release = stack.before if back else HERE
        stack.replace(kind)

    return _turn(act)


KINDS = {"workers": "worker", "schedulers": "scheduler", "gateways": "live", "APIs": "api"}
FAULTS: tuple[Fault, ...] = (
    Fault("the release before", nothing, lasts=False),
    Fault("schema migrated", _turn(_migrate), lasts=False),
    *(Fault(f"{name} upgraded", _replace(kind), lasts=False) for name, kind in KINDS.items()),
    *(Fault(f"{name} back", _replace(kind, back=True), lasts=False) for name, kind in reversed(KINDS.items())),
)

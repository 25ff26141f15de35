"""`make run`: servers, schema, demo members, API, worker, scheduler, live gateway and a page, until Ctrl-C."""

import argparse
import contextlib
import os
import secrets
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from urllib.error import URLError
from urllib.request import urlopen

from flask_migrate import upgrade

from afterhours_service import create_app
from afterhours_service.config import Settings, SettingsError
from dev import demo
from dev.embedded import services, stop_on_signals
from dev.page import page
from dev.processes import Processes

ROOT = Path(__file__).parent.parent
# The processes of the Procfile.
COMMANDS = {"web": ["api.py"], "worker": ["worker.py"], "scheduler": ["scheduler.py"], "live": ["live.py"]}


def main() -> None:
    """Run everything in the foreground."""
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--minute-seconds", default="60", help="how long a minute of a session lasts")
    arguments.add_argument("--port", type=int, default=int(os.environ.get("PORT", "8000")))
    arguments.add_argument(
        "--state", type=Path, default=ROOT / ".state", help="folder for the data, the log and the secrets"
    )
    options = arguments.parse_args()
    state: Path = options.state.resolve()
    os.chdir(ROOT)
    state.mkdir(exist_ok=True)
    stop_on_signals()
    for port in range(options.port, options.port + 3):
        if is_taken(port):
            raise SystemExit(f"Port {port} is in use. Choose three others: PORT={options.port + 10} make run")
    given = {name: os.environ[name] for name in ("DATABASE_URL", "REDIS_URL") if os.environ.get(name)}
    with contextlib.suppress(KeyboardInterrupt), _servers(state, given) as urls:
        os.environ |= urls | {"AFTER_HOURS_MINUTE_SECONDS": options.minute_seconds}
        for name in ("JWT_SECRET", "LOCATION_SECRET"):
            os.environ.setdefault(name, _secret(state / name.lower()))
        os.environ.setdefault("STORAGE_FOLDER", str(state / "photos"))
        os.environ.setdefault("PUBLIC_URL", f"http://127.0.0.1:{options.port}")
        os.environ["API_PORT"] = str(options.port)
        os.environ.setdefault("WEB_CONCURRENCY", "2")
        os.environ.setdefault("LIVE_PORT", str(options.port + 2))
        os.environ.setdefault(
            "CORS_ORIGINS", f"http://127.0.0.1:{options.port + 1},http://localhost:{options.port + 1}"
        )
        try:
            settings = Settings.from_environ()
        except SettingsError as error:
            raise SystemExit(str(error)) from error
        if settings.jwt_algorithm != "HS256":
            raise SystemExit("The demo members' tokens need JWT_SECRET. Unset JWT_PUBLIC_KEY.")
        log = state / "service.log"
        service = create_app(settings)
        with service.app_context():
            upgrade()
            demo.seed()
        with (
            Processes(COMMANDS, log) as processes,
            page(service, options.port + 1, processes, may_empty_redis="REDIS_URL" not in given) as address,
        ):
            for port in (options.port, settings.live_port):
                _wait_for(port, processes)
            _print_instructions(address, options.port, settings, log)
            while True:
                processes.check()
                time.sleep(0.5)


@contextlib.contextmanager
def _servers(state: Path, given: dict[str, str]) -> Iterator[dict[str, str]]:
    """Yield the URLs of the servers: those that are given; else the embedded ones."""
    if len(given) == 2:
        yield given
        return
    with services(state) as urls:
        yield urls | given


def _secret(path: Path) -> str:
    """Return the secret in a file, created at first use, so that tokens survive a restart."""
    if not path.exists():
        path.touch(mode=0o600)
        path.write_text(secrets.token_urlsafe(48))
    return path.read_text()


def _wait_for(port: int, processes: Processes) -> None:
    end = time.monotonic() + 30
    while time.monotonic() < end:
        processes.check()
        with contextlib.suppress(URLError, OSError), urlopen(f"http://127.0.0.1:{port}/readyz", timeout=2):
            return
        time.sleep(0.05)
    raise SystemExit("The service did not start within 30 s.")


def is_taken(port: int) -> bool:
    """Return whether a port of the loopback is in use."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return True
    return False


def _print_instructions(page_address: str, port: int, settings: Settings, log: Path) -> None:
    api = f"http://127.0.0.1:{port}/api/after-hours"
    seconds = 15 * settings.minute_seconds
    print(f"See it work: {page_address}, two phones and the engine room.\n")
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

Logs: {log}. Press Ctrl-C to stop.""",
        flush=True,
    )


if __name__ == "__main__":
    main()

"""What the live gateway takes and does: memory, rest, connects, and a second full of expiries.

    python -m benchmarks.live [--connections 10000] [--write]

One gateway process; the clients are processes of this program, on the same machine. Each connection checks that every
event that it hears is its member's own.
"""

import argparse
import asyncio
import contextlib
import json
import multiprocessing
import os
import resource
import secrets
import signal
import sys
import tempfile
import time
from collections.abc import Iterator
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any
from urllib.request import urlopen

import psycopg2
from flask_migrate import upgrade
from redis import Redis

from afterhours_service import create_app
from afterhours_service.config import Settings
from afterhours_service.jobs.events import CHANNEL
from afterhours_service.stores.database import db
from afterhours_service.web.gate import token_for
from benchmarks import phones
from dev.embedded import guarded, home, postgres, release, stop_on_signals, valkey

ROOT = Path(__file__).parent.parent
WRITTEN = ROOT / "docs/measurements/live.md"
PORT = 8019
CLIENTS = 2  # processes
AT_ONCE = 50  # handshakes of each of them
REST_SECONDS = 30  # longer than the interval of pings, which is 25 s
LISTEN_SECONDS = 15
GOALS = {"memory": 40, "p99": 0.7}  # KB a connection; seconds

_MEMBERS = """
    INSERT INTO users (id, provider, id_verified, after_hours_consent)
        SELECT 'm' || n, 'x', true, true FROM generate_series(0, %(number)s - 1) AS n;
    INSERT INTO user_subscriptions (user_id, is_active) SELECT id, true FROM users;
    ANALYZE users, user_subscriptions
"""


def main() -> None:
    """Measure, and print."""
    arguments = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    arguments.add_argument("--connections", type=int, default=10_000)
    arguments.add_argument("--write", action="store_true", help=f"write {WRITTEN.name}")
    options = arguments.parse_args()
    stop_on_signals()
    most = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    with (
        tempfile.TemporaryDirectory(prefix="after-hours-") as folder,
        home(Path(folder)) as place,
        postgres(place) as url,
        valkey(place) as (redis_url, _),
    ):
        os.environ |= {"DATABASE_URL": url, "REDIS_URL": redis_url, "LOG_LEVEL": "ERROR", "LIVE_PORT": str(PORT)}
        os.environ |= {"JWT_SECRET": secrets.token_hex(32), "LOCATION_SECRET": secrets.token_hex(32)}
        with create_app().app_context():
            upgrade()
            db.engine.dispose()
        with contextlib.closing(psycopg2.connect(url)) as connection, connection.cursor() as cursor:
            cursor.execute(_MEMBERS, {"number": options.connections})
            connection.commit()
        with _gateway() as pid, _clients(options.connections) as clients:
            text = _measure(pid, clients, options.connections, redis_url)
    print(text)
    if options.write:
        WRITTEN.write_text(text)


@contextlib.contextmanager
def _gateway() -> Iterator[int]:
    """Run a gateway, and yield its process id."""
    process = guarded([sys.executable, "live.py"], signal.SIGTERM, cwd=ROOT)
    try:
        while True:
            with contextlib.suppress(OSError), urlopen(f"http://127.0.0.1:{PORT}/readyz", timeout=2):
                break
            time.sleep(0.1)
        yield process.pid
    finally:
        process.terminate()
        process.wait(15)
        release(process)


@contextlib.contextmanager
def _clients(connections: int) -> Iterator[list[Connection]]:
    """Start the clients' processes, and yield the pipes to them."""
    context = multiprocessing.get_context("spawn")
    pipes, processes = [], []
    for number in range(CLIENTS):
        ours, theirs = context.Pipe()
        members = [f"m{each}" for each in range(number, connections, CLIENTS)]
        process = context.Process(target=_client, args=(theirs, members), daemon=True)
        process.start()
        pipes.append(ours)
        processes.append(process)
    try:
        yield pipes
    finally:
        for process in processes:
            process.terminate()
            process.join()


def _measure(pid: int, clients: list[Connection], connections: int, redis_url: str) -> str:
    before = _memory(pid)
    begin, cpu = time.perf_counter(), _cpu(pid)
    refused = sum(_all(clients, "connect"))
    took, busy = time.perf_counter() - begin, _cpu(pid) - cpu
    time.sleep(2)
    memory = (_memory(pid) - before) / connections
    cpu = _cpu(pid)
    time.sleep(REST_SECONDS)
    rest = (_cpu(pid) - cpu) / REST_SECONDS
    rounds = []
    for _ in range(3):
        for client in clients:
            client.send("listen")
        time.sleep(1)
        cpu = _cpu(pid)
        _publish(redis_url, connections)
        answers: list[Any] = [client.recv() for client in clients]
        late = sorted(latency for latencies, _ in answers for latency in latencies)
        rounds.append((late, _cpu(pid) - cpu, sum(strangers for _, strangers in answers)))
    late, spent, _ = sorted(rounds, key=lambda each: each[0][int(len(each[0]) * 0.99)])[1]
    strangers = sum(each[2] for each in rounds)
    heard = ", ".join(f"{len(each[0]):,}" for each in rounds)
    return f"""# The live gateway, measured

By `python -m benchmarks.live --write`: one gateway process, {connections:,} connections, two cores that also run the
clients, the database and Redis.

| | measured | goal |
| --- | ---: | ---: |
| memory of a connection, KB | {memory:.1f} | {GOALS["memory"]} |
| CPU at rest, of a core | {rest:.1%} | – |
| connects a second, each with the gate's check and the state | {connections / took:.0f} | – |
| CPU of a connect, ms | {busy / connections * 1000:.2f} | – |
| connects refused | {refused} | 0 |
| {connections:,} expiries published at once: heard, in three rounds | {heard} | all |
| from publication to the client, median of the rounds: p50, s | {late[len(late) // 2]:.2f} | – |
| p99, s | {late[int(len(late) * 0.99)]:.2f} | {GOALS["p99"]} |
| the gateway's CPU of a round, s | {spent:.2f} | – |
| events of another member | {strangers} | 0 |
"""


def _publish(redis_url: str, connections: int) -> None:
    """Publish an expiry for everybody, each with the moment of its publication."""
    with Redis.from_url(redis_url) as redis:
        for begin in range(0, connections, 1000):
            pipeline = redis.pipeline(transaction=False)
            for number in range(begin, min(begin + 1000, connections)):
                payload = {"sessionId": f"m{number}", "reason": "timeout", "at": time.time()}
                event = {"type": "after_hours:session_expired", "targetUserId": f"m{number}", "payload": payload}
                pipeline.publish(CHANNEL, json.dumps(event))
            pipeline.execute()


def _all(clients: list[Connection], command: str) -> list[Any]:
    for client in clients:
        client.send(command)
    return [client.recv() for client in clients]


def _client(pipe: Connection, members: list[str]) -> None:
    asyncio.run(_Clients(pipe, members).run())


class _Clients:
    """The phones of one process."""

    def __init__(self, pipe: Connection, members: list[str]) -> None:
        self._pipe, self._members = pipe, members
        self._settings = Settings.from_environ()
        self._late: list[float] = []
        self._connected = self._refused = self._strangers = 0

    async def run(self) -> None:
        """Do what the pipe says, until the process is ended."""
        while command := await asyncio.to_thread(self._pipe.recv):
            if command == "connect":
                await self._connect_all()
                self._pipe.send(self._refused)
            else:
                self._late, self._strangers = [], 0
                end = time.monotonic() + LISTEN_SECONDS
                while time.monotonic() < end and len(self._late) < len(self._members):
                    await asyncio.sleep(0.1)
                self._pipe.send((self._late, self._strangers))

    async def _connect_all(self) -> None:
        turn = asyncio.Semaphore(AT_ONCE)
        self._tasks = [asyncio.create_task(self._connect(member, turn)) for member in self._members]
        while self._connected + self._refused < len(self._members):
            await asyncio.sleep(0.05)

    async def _connect(self, member: str, turn: asyncio.Semaphore) -> None:
        heard = phones.events(PORT, token_for(member, self._settings, 3600))
        async with turn:
            try:
                await anext(heard)  # the state
            except OSError:
                self._refused += 1
                return
        self._connected += 1
        async for _, payload in heard:
            self._late.append(time.time() - payload["at"])
            self._strangers += payload["sessionId"] != member


def _memory(pid: int) -> float:
    """Return the memory that only this process has, in KB."""
    text = Path(f"/proc/{pid}/smaps_rollup").read_text()
    return sum(int(line.split()[1]) for line in text.splitlines() if line.startswith("Private"))


def _cpu(pid: int) -> float:
    """Return the CPU that a process has used, in seconds."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


if __name__ == "__main__":
    main()

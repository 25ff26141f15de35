"""How late is the end of a session? From its `expires_at` until its event has arrived at a subscriber."""

import contextlib
import json
import math
import signal
import socket
import subprocess
import sys
import threading
import time
from bisect import bisect_right
from collections.abc import Callable, Iterator
from itertools import accumulate, pairwise
from pathlib import Path
from typing import NamedTuple

from benchmarks.load.members import drop_sessions, seed_sessions
from benchmarks.load.stack import ROOT, Stack, stop, wait_for
from benchmarks.load.yardstick import node
from dev.embedded import guarded

CHANNEL = "after_hours:events"
EXPIRED = "after_hours:session_expired"
PATIENCE_SECONDS = 180  # after the last expiry


class NotArmed(RuntimeError):
    """The first session was over before the timers of all were armed."""


Arm = Callable[[int], None]  # takes the last second that sessions expire at; returns when their timers are armed


class Lag(NamedTuple):
    """Seconds from the expiry to its event, over all sessions of a run."""

    p50: float
    p99: float
    most: float


def measure(stack: Stack, arm: Arm, *, sessions: int, spread: int = 1, lead: int = 5) -> Lag:
    """Let `sessions` sessions expire within `spread` seconds, and see when their ends are published.

    lead: seconds until the first expires. Raises NotArmed when not all are armed by then, and RuntimeError when an
    event came early, twice or not at all.
    """
    drop_sessions(stack, 1, sessions)
    with _listen(stack.place.path / "valkey.sock") as chunks:
        at = math.ceil(time.time()) + lead
        seed_sessions(stack, 1, sessions, at=at, spread=spread)
        stack.settle()
        if time.time() < at:
            with contextlib.suppress(TimeoutError):  # what has expired meanwhile needs no timer
                arm(at + min(spread, sessions) - 1)
        if time.time() >= at:
            raise NotArmed(f"{sessions} sessions were not armed within {lead} s")
        time.sleep(max(0, at + spread - 1 - time.time()))
        with contextlib.suppress(TimeoutError):  # reported below
            wait_for(lambda: _count([data for _, data in chunks]) >= sessions, PATIENCE_SECONDS)
        time.sleep(0.2)
    expiries = dict(
        stack.execute(
            """SELECT id::text, extract(epoch FROM expires_at)::float FROM after_hours_sessions
               WHERE user_id IN (SELECT 'member-' || n FROM generate_series(1, %s) AS n)""",
            sessions,
        )
    )
    published = list(_expired(chunks))
    if len(published) != sessions or len({session for session, _ in published}) != sessions:
        raise RuntimeError(f"{sessions} sessions expired, {len(published)} ends were published")
    lags = sorted(moment - expiries[session] for session, moment in published)
    if lags[0] < 0:
        raise RuntimeError(f"a session ended {-lags[0]} s early")
    return Lag(lags[len(lags) // 2], lags[int(len(lags) * 0.99)], lags[-1])


@contextlib.contextmanager
def rq_per_session(stack: Stack) -> Iterator[Arm]:
    """Arm by one rq-scheduler job per session."""
    with _yardstick(stack, [sys.executable, "-m", "benchmarks.load.yardstick.rq_per_session"]) as arm:
        yield arm


@contextlib.contextmanager
def bullmq(stack: Stack) -> Iterator[Arm]:
    """Arm by one delayed job of BullMQ per session."""
    with _yardstick(stack, node("expire.js")) as arm:
        yield arm


@contextlib.contextmanager
def _yardstick(stack: Stack, command: list[str]) -> Iterator[Arm]:
    """Yield what starts the command, which says `armed` on a line when it is; end it at the end."""
    with contextlib.ExitStack() as running:

        def arm(_last: int) -> None:
            process = guarded(command, signal.SIGTERM, cwd=ROOT, env=stack.environment, stdout=subprocess.PIPE)
            running.callback(stop, process)
            if process.stdout is None or process.stdout.readline() != b"armed\n":
                raise RuntimeError(f"{command} failed")

        yield arm
    stack.redis.flushall()


@contextlib.contextmanager
def _listen(path: Path) -> Iterator[list[tuple[float, bytes]]]:
    """Yield what a subscriber of the events receives, piece by piece with its moment.

    Nothing is parsed meanwhile: a slow subscriber would measure itself.
    """
    chunks: list[tuple[float, bytes]] = []
    with socket.socket(socket.AF_UNIX) as connection:
        connection.connect(str(path))
        connection.sendall(f"SUBSCRIBE {CHANNEL}\r\n".encode())
        connection.recv(1 << 16)  # the confirmation

        def receive() -> None:
            while data := connection.recv(1 << 20):
                chunks.append((time.time(), data))

        thread = threading.Thread(target=receive)
        thread.start()
        try:
            yield chunks
        finally:
            connection.shutdown(socket.SHUT_RDWR)
            thread.join()


def _count(parts: list[bytes]) -> int:
    """Count the expiries in what has arrived, those that lie across two parts included; there are other events, too."""
    sought, seam = EXPIRED.encode(), len(EXPIRED) - 1
    across = (one[-seam:] + other[:seam] for one, other in pairwise(parts))
    return sum(part.count(sought) for part in parts) + sum(part.count(sought) for part in across)


def _expired(chunks: list[tuple[float, bytes]]) -> Iterator[tuple[str, float]]:
    """Yield the session of each expiry that was published, and the moment at which the last byte of it had arrived."""
    ends = list(accumulate(len(data) for _, data in chunks))
    offset = 0
    for line in b"".join(data for _, data in chunks).split(b"\r\n"):
        offset += len(line) + 2
        if line.startswith(b"{"):
            event = json.loads(line)
            if event["type"] == EXPIRED:
                chunk = min(bisect_right(ends, offset - 1), len(chunks) - 1)
                yield event["payload"]["sessionId"], chunks[chunk][0]

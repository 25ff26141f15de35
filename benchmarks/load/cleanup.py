"""The nightly cleanup on a large database, and what requests feel of it."""

import os
import signal
import time
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

from benchmarks.load.cpu import resident_bytes
from benchmarks.load.members import HOUR, drop_sessions, seed_sessions
from benchmarks.load.routes import ROUTES, Members, Route, run_wrk
from benchmarks.load.stack import SCHEDULED, Stack

JOB = "after-hours-cleanup"
CHUNK_SECONDS = 5  # a run of the generator; the slowest of them counts
PATIENCE_SECONDS = 600
WRITES = tuple(route for route in ROUTES if route.method == "POST")
MEBIBYTE = 1 << 20


class Felt(NamedTuple):
    """What requests felt, in milliseconds."""

    p99: float
    most: float


class Cleanup(NamedTuple):
    """What a night showed.

    seconds: how long it took. rows: how many were deleted or ended. before, most: MiB of the worker. transaction:
    seconds of the service's longest one, as sampled ten times a second. without, beside: request times, by route.
    """

    seconds: float
    rows: dict[str, int]
    before: float
    most: float
    transaction: float
    without: dict[str, Felt]
    beside: dict[str, Felt]


def seed(stack: Stack, first: int, *, sessions: int, overdue: int, declines: int, fingerprints: int) -> None:
    """Fill the tables with the members numbered from `first`, one for each overdue session.

    Pauses the worker. What has ended or was declined did so within the last eight days, so that an eighth of it is old
    enough to be deleted. Half of the fingerprints are orphans.
    """
    last = first + overdue - 1
    os.kill(stack.processes["worker"], signal.SIGSTOP)
    stack.execute(
        """
        INSERT INTO after_hours_sessions
            (user_id, started_at, expires_at, ended_at, latitude, longitude, fuzzed_latitude, fuzzed_longitude)
        SELECT 'member-' || %s + n %% %s, expiry - interval '1 hour', expiry, CASE WHEN n >= %s THEN expiry END,
            52.5, 13.4, 52.5, 13.4
        FROM generate_series(0, %s - 1) AS n
        CROSS JOIN LATERAL (SELECT date_trunc('second', now()) - CASE WHEN n < %s THEN interval '1 hour'
            ELSE n * (interval '8 days' / %s) END AS expiry) AS e""",
        first,
        overdue,
        overdue,
        sessions,
        overdue,
        sessions,
    )
    stack.execute(
        """
        INSERT INTO after_hours_declines (session_id, user_id, declined_user_id, created_at)
        SELECT id, user_id, 'member-' || %s + (substr(user_id, 8)::int + n) %% %s, ended_at FROM (
            SELECT id, user_id, ended_at, row_number() OVER (PARTITION BY user_id) AS n
            FROM after_hours_sessions WHERE ended_at IS NOT NULL
        ) AS ended WHERE n > 1 ORDER BY n LIMIT %s""",
        first,
        overdue,
        declines,
    )
    stack.execute(
        """
        INSERT INTO device_fingerprints (user_id, session_id, device_id, device_model, platform, created_at)
        SELECT user_id, CASE WHEN n %% 2 = 0 THEN id END, 'device-' || n, 'Phone 12', 'ios', started_at
        FROM (SELECT *, row_number() OVER () AS n FROM after_hours_sessions LIMIT %s) AS s
        WHERE user_id <> 'member-%s'""",
        fingerprints,
        last + 1,
    )
    stack.execute("VACUUM (ANALYZE)")
    stack.execute("CHECKPOINT")


def measure(stack: Stack, members: Members, *, quiet_chunks: int = 2, interrupt: bool = True) -> Cleanup:
    """Run the cleanup as the night does, by its job, beside a start, an extension and an end at a time.

    The worker is paused since before the tables were filled, or it would have ended what is overdue.
    interrupt: kill the worker (-9) when half is done; another one takes the night up, within a minute.
    """
    load = _Load(stack, members)
    with ThreadPoolExecutor(1) as pool:
        without = [load.chunk() for _ in range(quiet_chunks)]
        counts = _counts(stack)
        before = most = resident_bytes(stack.processes["worker"])
        longest = 0.0
        begin = time.monotonic()
        stack.redis.zadd(SCHEDULED, {JOB: time.time()})
        os.kill(stack.processes["worker"], signal.SIGCONT)
        beside = []
        ended: float | None = None
        while ended is None:
            running = pool.submit(load.chunk)
            while not running.done():
                time.sleep(0.1)
                most = max(most, resident_bytes(stack.processes["worker"]))
                longest = max(longest, stack.execute(_LONGEST)[0][0])
                if interrupt and not _is_left(stack, *FIRST_HALF):
                    interrupt = False
                    os.kill(stack.processes["worker"], signal.SIGKILL)
                    stack.start("worker")
                if ended is None and not _is_left(stack):
                    ended = time.monotonic() - begin
            beside.append(running.result())
            if time.monotonic() - begin > PATIENCE_SECONDS:
                raise RuntimeError(f"the cleanup left {_counts(stack)}")
    return Cleanup(
        ended,
        {name: rows for name, rows in counts.items() if rows},
        before / MEBIBYTE,
        most / MEBIBYTE,
        longest,
        _worst(without),
        _worst(beside),
    )


def _worst(chunks: list[dict[str, Felt]]) -> dict[str, Felt]:
    """Return, of all chunks, the highest p99 and the slowest request of each route."""
    return {
        route.name: Felt(max(c[route.name].p99 for c in chunks), max(c[route.name].most for c in chunks))
        for route in WRITES
    }


class _Load:
    """One connection each that starts, extends and ends, each member once."""

    def __init__(self, stack: Stack, members: Members) -> None:
        self._stack, self._members = stack, members
        third = members.pool // len(WRITES)
        self._next = {route: number * third for number, route in enumerate(WRITES)}
        drop_sessions(stack, 1, members.pool)
        for route, begin in self._next.items():
            if route.has_session:
                seed_sessions(stack, begin + 1, begin + third, at=int(time.time()) + HOUR, spread=HOUR)

    def chunk(self) -> dict[str, Felt]:
        """Return what each route's requests felt over CHUNK_SECONDS."""
        with ThreadPoolExecutor(len(WRITES)) as pool:
            return dict(pool.map(self._one, WRITES))

    def _one(self, route: Route) -> tuple[str, Felt]:
        skip = self._next[route]
        # An answer that takes seconds is what is looked for.
        found = run_wrk(
            self._stack.url, self._members.tokens, route, CHUNK_SECONDS, connections=1, skip=skip, give_up=60
        )
        if found["refused"] or found["broken"]:
            raise RuntimeError(f"{route.name}: {found}")
        self._next[route] += found["requests"] + 1
        return route.name, Felt(found["p99"] / 1000, found["most"] / 1000)


# But for what has become due since the run began.
_LEFT = {
    "overdue sessions": "after_hours_sessions WHERE ended_at IS NULL AND expires_at <= now() - interval '30 seconds'",
    "old declines": "after_hours_declines WHERE created_at < now() - interval '7 days 10 minutes'",
    "old sessions": "after_hours_sessions WHERE ended_at < now() - interval '7 days 10 minutes'",
    "orphaned fingerprints": "device_fingerprints WHERE session_id IS NULL",
}
FIRST_HALF = ("overdue sessions", "old declines")  # the first things that a cleanup does
_LONGEST = """
    SELECT coalesce(max(extract(epoch FROM clock_timestamp() - xact_start)), 0)::float FROM pg_stat_activity
    WHERE application_name = 'after-hours' AND state <> 'idle'
"""


def _counts(stack: Stack) -> dict[str, int]:
    return {name: stack.execute(f"SELECT count(*) FROM {rows}")[0][0] for name, rows in _LEFT.items()}  # noqa: S608


def _is_left(stack: Stack, *names: str) -> bool:
    tables = [_LEFT[name] for name in names or _LEFT]
    return any(stack.execute(f"SELECT EXISTS (SELECT FROM {rows})")[0][0] for rows in tables)  # noqa: S608

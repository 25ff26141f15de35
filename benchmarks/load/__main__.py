"""`make bench`: measure everything, and write it into docs/measurements/performance.md."""

import argparse
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import NamedTuple

from benchmarks.load import cleanup, lag, limit
from benchmarks.load import memory as redis_memory
from benchmarks.load.members import DAY, HOUR, seed_members, seed_searches, seed_sessions
from benchmarks.load.neighbours import Neighbours, wait_for_quiet
from benchmarks.load.routes import POOL, ROUTES, Load, Members, Route, measure, median
from benchmarks.load.stack import ROOT, Stack, stack
from benchmarks.load.table import table, write_between
from benchmarks.load.yardstick import express
from dev.embedded import stop_on_signals

PAGE = ROOT / "docs/measurements/performance.md"
BEGIN, END = "<!-- measured by make bench -->", "<!-- end of what was measured -->"


class Node(NamedTuple):
    """What was measured of the Node service, on this kind of machine: CPU of all parts in seconds per 1,000."""

    per_second: int
    p50: int
    p99: int
    parts: str
    cpu: float


NODE = {
    "status": Node(926, 17, 27, "1.08 + 0.49 + 0.005", 1.575),
    "start": Node(467, 33, 72, "2.04 + 1.09 + 0.20", 3.33),
    "extend": Node(604, 26, 44, "1.53 + 0.77 + 0.17", 2.47),
    "end": Node(682, 23, 44, "1.40 + 0.67 + 0.15", 2.22),
}


class Case(NamedTuple):
    """A number of sessions, the seconds within which they expire, and how often that is measured."""

    sessions: int
    spread: int
    runs: int = 3


@dataclass
class Plan:
    """How much is measured."""

    runs: int
    run_seconds: int
    pool: int
    sizes: tuple[int, ...]  # active sessions, beside which requests are measured; the second is the table's
    lags: dict[str, tuple[Case, ...]]
    cleanup: dict[str, int]


OURS, BULLMQ, RQ = "this service", "BullMQ, a job per session", "rq-scheduler, a job per session"
WORKERS = os.cpu_count() or 1  # processes of the API, as it is deployed
EXPRESS, NODE_SERVICE = "Express, one process", "the Node service, as told"
FULL = Plan(
    runs=3,
    run_seconds=4,
    pool=POOL,
    sizes=(1_000, 10_000, 100_000, 1_000_000),
    lags={
        OURS: (
            *(Case(sessions, 1) for sessions in (1_000, 10_000, 100_000)),
            *(Case(100, 10), Case(1_000, 10), Case(10_000, 60)),
        ),
        # Once where a run takes minutes.
        BULLMQ: (Case(1_000, 1), Case(10_000, 1), Case(10_000, 60, 1)),
        RQ: (Case(1_000, 1), Case(10_000, 1, 1)),
    },
    cleanup={"sessions": 2_000_000, "overdue": 200_000, "declines": 1_000_000, "fingerprints": 500_000},
)
SMALL = Plan(
    runs=1,
    run_seconds=2,
    pool=10_000,
    sizes=(100, 1_000),
    lags={OURS: (Case(1_000, 1, 1), Case(100, 5, 1)), BULLMQ: (Case(100, 1, 1),), RQ: (Case(100, 1, 1),)},
    cleanup={"sessions": 20_000, "overdue": 2_000, "declines": 10_000, "fingerprints": 5_000},
)


def main() -> None:
    """Measure, part by part; progress goes to standard error."""
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--small", action="store_true", help="a trial: small sizes, one run each, printed only")
    arguments.add_argument("--only", choices=PARTS, action="append", help="only this part, printed only")
    options = arguments.parse_args()
    stop_on_signals()
    plan = SMALL if options.small else FULL
    begin = time.monotonic()
    parts = []
    for name in options.only or PARTS:
        parts.append(PARTS[name](plan))
        print(parts[-1], end="\n\n", flush=True)  # the next one may break off
    parts.append(f"All of it took {(time.monotonic() - begin) / 60:.0f} minutes.")
    print(parts[-1])
    if not (options.small or options.only):
        write_between(PAGE, BEGIN, END, "\n\n".join(parts))


def requests(plan: Plan) -> str:
    """Measure the hot routes beside Express, and the limit that PostgreSQL sets.

    Matching is off: Express matches nobody, and the worker's CPU counts.
    """
    size = plan.sizes[1]
    rows: list[list[str]] = []
    limits: list[list[str]] = []
    neighbours = Neighbours()
    with stack(matching=False) as running, stack(parts=()) as idle, express(idle) as usual:
        heading = f"Measured on {_machine(running)}."
        members, their_members = Members(running, plan.pool), Members(usual, plan.pool)
        for one in (running, usual):
            seed_members(one, plan.pool + 1, plan.pool + size)
            seed_sessions(one, plan.pool + 1, plan.pool + size, at=int(time.time()) + DAY, spread=HOUR)
        for route in ROUTES:
            ours, deployed, theirs = [], [], []
            for _ in range(plan.runs):
                running.scale(1)
                ours.append(_load(running, members, route, plan))
                theirs.append(_load(usual, their_members, route, plan))
                running.scale(WORKERS)
                deployed.append(_load(running, members, route, plan))
            served = median(deployed)
            rows += _request_rows(route.name, median(ours), served, median(theirs))
            allowed = [limit.measure(running, members, route) for _ in range(plan.runs)]
            limits.append(_limit_row(route.name, served, statistics.median(allowed)))
            _say(f"{route.name}: ours {median(ours)}, Express {median(theirs)}")
    return "\n\n".join(
        [
            heading,
            f"### Requests, with {size:,} sessions active, matching off",
            _taken(neighbours),
            table(
                ["request", "", "per second", "p50 / p99 ms", "CPU: service + PostgreSQL + Redis", "sum", "to Express"],
                rows,
            ),
            "### What PostgreSQL allows",
            table(["request", "pgbench", "this service", "of that", "the generator's CPU"], limits),
        ]
    )


def growth(plan: Plan) -> str:
    """Measure how requests, ends and Redis grow with the active sessions, matching and the memory of places included.

    The sessions expire within an hour. Their members wait to be found by those who take turns, and match them.
    """
    rows = []
    neighbours = Neighbours()
    with stack() as running:
        running.scale(1)
        members = Members(running, plan.pool)
        seeded = plan.pool
        for size in plan.sizes:
            last = plan.pool + size
            seed_members(running, seeded + 1, last, gender="Male", seeks="Straight")
            seeded = last
            held = redis_memory.measure(running, first=plan.pool + 1, last=last)
            seed_searches(running, plan.pool + 1, last)
            _say(f"{size} sessions: {held}")
            found = {}
            for route in ROUTES:
                found[route.name] = median(_load(running, members, route, plan) for _ in range(plan.runs))
                _say(f"{size} sessions: {route.name} {found[route.name]}")
            late = _lag(running, _ours, Case(1_000, 1, plan.runs), lead=8)
            rows.append(
                [
                    f"{size:,}",
                    *(f"{load.cpu:.2f}, {load.per_second:.0f}/s, {load.p99:.0f} ms" for load in found.values()),
                    f"{late.most:.2f} s",
                    f"{held.bytes / size:.0f} B",
                    f"{held.timers:,}",
                ]
            )
            _say(" | ".join(rows[-1]))
    return "\n\n".join(
        [
            "### Growth by active sessions",
            _taken(neighbours),
            "CPU, throughput and p99 of a request; lag of the last of 1,000 ends in the same second; Redis and timers.",
            table(["sessions", *(route.name for route in ROUTES), "lag", "Redis", "timers"], rows),
        ]
    )


def lags(plan: Plan) -> str:
    """Measure how late ends are, ours and the yardsticks'."""
    rows = []
    for name, cases in plan.lags.items():
        with stack(parts=("worker", "scheduler") if name == OURS else ()) as running:
            seed_members(running, 1, max(case.sessions for case in cases))
            for case in cases:
                lead = 6 + case.sessions // ARMED_PER_SECOND[name]
                neighbours = Neighbours()
                late = _lag(running, ARMS[name], case, lead)
                when = "in the same second" if case.spread == 1 else f"over {case.spread} s"
                figures = (f"{figure:.3f}" for figure in late)
                rows.append([name, f"{case.sessions:,} {when}", str(case.runs), *figures, f"{neighbours.share():.0%}"])
                _say(" ".join(rows[-1]))
    return "### Lag of an end: seconds from `expires_at` until its event has arrived\n\n" + table(
        ["", "sessions that expire", "runs", "p50", "p99", "max", "cores taken by others"], rows
    )


def nightly(plan: Plan) -> str:
    """Measure the nightly cleanup."""
    with stack() as running:
        running.scale(WORKERS)
        members = Members(running, plan.pool)
        overdue = plan.cleanup["overdue"]
        seed_members(running, plan.pool + 1, plan.pool + overdue)
        cleanup.seed(running, plan.pool + 1, **plan.cleanup)
        _say("seeded")
        neighbours = Neighbours()
        found = cleanup.measure(running, members)
    rows = [[name, f"{count:,}"] for name, count in found.rows.items()]
    slower = [
        [name, *(f"{ms:.0f} ms" for ms in (felt.p99, found.beside[name].p99, felt.most, found.beside[name].most))]
        for name, felt in found.without.items()
    ]
    return "\n\n".join(
        [
            f"### Nightly cleanup: {found.seconds:.1f} s",
            _taken(neighbours),
            ", ".join(f"{count:,} {name}" for name, count in plan.cleanup.items())
            + f". The worker was killed (-9) halfway, and another went on; it held {found.before:.0f} MiB before, "
            f"{found.most:.0f} at most. The longest transaction took {found.transaction:.2f} s. One run.",
            table(["deleted or ended", "rows"], rows),
            table(["a request", "p99 without", "p99 beside the cleanup", "slowest without", "beside"], slower),
        ]
    )


PARTS: dict[str, Callable[[Plan], str]] = {
    "requests": requests,
    "growth": growth,
    "lags": lags,
    "nightly": nightly,
}


def _ours(running: Stack) -> AbstractContextManager[lag.Arm]:
    return nullcontext(running.reconcile)


ARMS: dict[str, Callable[[Stack], AbstractContextManager[lag.Arm]]] = {
    OURS: _ours,
    BULLMQ: lag.bullmq,
    RQ: lag.rq_per_session,
}
LEAD_SECONDS = 120  # a run with more of it is not tried again
# At least, and seeded before; rq-scheduler takes one job at a time.
ARMED_PER_SECOND = {OURS: 4_000, BULLMQ: 1_000, RQ: 300}


def _lag(running: Stack, arms: Callable[[Stack], AbstractContextManager[lag.Arm]], case: Case, lead: int) -> lag.Lag:
    measured: list[lag.Lag] = []
    while len(measured) < case.runs:
        try:
            wait_for_quiet()
            with arms(running) as arm:
                measured.append(lag.measure(running, arm, sessions=case.sessions, spread=case.spread, lead=lead))
        except lag.NotArmed:
            if lead > LEAD_SECONDS:
                raise
            lead *= 2  # a machine that stood still; how soon they are armed is not what is measured
    return lag.Lag(*(statistics.median(figures) for figures in zip(*measured, strict=True)))


def _load(running: Stack, members: Members, route: Route, plan: Plan) -> Load:
    wait_for_quiet()
    return measure(running, members, route, plan.run_seconds)


def _taken(neighbours: Neighbours) -> str:
    return f"Others took {neighbours.share():.0%} of the cores meanwhile."


def _request_rows(name: str, ours: Load, deployed: Load, theirs: Load) -> list[list[str]]:
    node = NODE[name]
    faster, cheaper = deployed.per_second / theirs.per_second, ours.cpu / theirs.cpu
    return [
        [name, *_load_row(f"{OURS}, one process", ours), f"CPU × {cheaper:.2f}"],
        ["", *_load_row(f"{OURS}, {WORKERS} processes", deployed), f"throughput × {faster:.1f}"],
        ["", *_load_row(EXPRESS, theirs), "1"],
        ["", NODE_SERVICE, str(node.per_second), f"{node.p50} / {node.p99}", node.parts, f"{node.cpu:.2f}", ""],
    ]


def _load_row(label: str, load: Load) -> list[str]:
    return [
        label,
        f"{load.per_second:.0f}",
        f"{load.p50:.0f} / {load.p99:.0f}",
        f"{load.service:.2f} + {load.postgresql:.2f} + {load.redis:.3f}",
        f"{load.cpu:.2f}",
    ]


def _limit_row(name: str, ours: Load, allowed: float) -> list[str]:
    share = f"{ours.per_second / allowed:.0%}"
    return [name, f"{allowed:.0f}/s", f"{ours.per_second:.0f}/s", share, f"{ours.generator:.2f}"]


def _machine(running: Stack) -> str:
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    [(version,)] = running.execute("SHOW server_version")
    [(fsync,)] = running.execute("SHOW fsync")
    server = running.redis.info("server")
    return (
        f"{os.cpu_count()} cores, {memory / (1 << 30):.0f} GiB, {platform.system()} {platform.machine()}, "
        f"Python {platform.python_version()}, PostgreSQL {version} (fsync {fsync}), "
        f"Valkey {server.get('valkey_version', '?')}"  # type: ignore[union-attr]
    )


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()

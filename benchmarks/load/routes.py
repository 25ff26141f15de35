"""The four hot routes under load: throughput, latency, and the CPU that a request costs."""

import json
import resource
import statistics
import subprocess
import time
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass, fields
from pathlib import Path
from typing import NamedTuple

from benchmarks.load.members import HOUR, drop_sessions, seed_members, seed_sessions, write_tokens
from benchmarks.load.stack import Stack

CONNECTIONS = 16
TRIES = 3  # of a run that a stall of the machine may break
POOL = 40_000  # members who take turns; more than the requests of a run, so that each asks once
PREFIX = "/api/after-hours/session"
LATITUDE, LONGITUDE = 52.520008, 13.404954
START = {"duration": 30, "latitude": LATITUDE, "longitude": LONGITUDE}


class Route(NamedTuple):
    """A request that a member makes, and whether they have a session when they do."""

    name: str
    method: str
    path: str
    body: str
    has_session: bool


ROUTES = (
    Route("status", "GET", PREFIX, "", has_session=True),
    Route("start", "POST", f"{PREFIX}/start", json.dumps(START), has_session=False),
    Route("extend", "POST", f"{PREFIX}/extend", json.dumps({"additionalMinutes": 15}), has_session=True),
    Route("end", "POST", f"{PREFIX}/end", "", has_session=True),
)


@dataclass
class Load:
    """What a run showed. CPU in seconds per 1,000 requests; latencies in milliseconds."""

    per_second: float
    p50: float
    p99: float
    service: float
    postgresql: float
    redis: float
    generator: float

    @property
    def cpu(self) -> float:
        """The CPU of all parts of the service together."""
        return self.service + self.postgresql + self.redis


class Stalled(RuntimeError):
    """Answers were given up."""


class Members:
    """The members who take turns in a stack, and the file of their tokens."""

    def __init__(self, stack: Stack, pool: int = POOL) -> None:
        self.pool = pool
        self.tokens = stack.place.state / "tokens.lua"
        seed_members(stack, 1, pool)
        write_tokens(self.tokens, 1, pool)

    def prepare(self, stack: Stack, route: Route) -> None:
        """Let them have sessions, spread over an hour, or none, as the route wants it."""
        drop_sessions(stack, 1, self.pool)
        if route.has_session:
            at = int(time.time()) + HOUR
            seed_sessions(stack, 1, self.pool, at=at, spread=HOUR)
            if "scheduler" in stack.processes:
                stack.reconcile(at + HOUR - 1)
        stack.settle()


def measure(stack: Stack, members: Members, route: Route, seconds: int) -> Load:
    """Put the load of CONNECTIONS on a route for some seconds.

    A run is made again when the machine stood still for the two seconds after which wrk gives an answer up. Raises
    RuntimeError when an answer was anything but a success, or the members did not suffice.
    """
    for _ in range(TRIES - 1):
        with suppress(Stalled):
            return _measure(stack, members, route, seconds)
    return _measure(stack, members, route, seconds)


def _measure(stack: Stack, members: Members, route: Route, seconds: int) -> Load:
    members.prepare(stack, route)
    meter, own = stack.meter(), _generator_seconds()
    found = run_wrk(stack.url, members.tokens, route, seconds)
    used, generator = meter.used(), _generator_seconds() - own
    stack.rest()
    requests = found["requests"]
    once = route.method == "GET" or requests <= members.pool
    if not found["refused"] and (found["broken"] or not requests):
        raise Stalled(f"{route.name}: {found}")
    if found["refused"] or not once:
        raise RuntimeError(f"{route.name}: {found}")
    return Load(
        per_second=requests / found["microseconds"] * 1e6,
        p50=found["p50"] / 1000,
        p99=found["p99"] / 1000,
        service=used["service"] / requests * 1000,
        postgresql=used["PostgreSQL"] / requests * 1000,
        redis=used["Redis"] / requests * 1000,
        generator=generator / requests * 1000,
    )


def median(loads: Iterable[Load]) -> Load:
    """Return the medians of some runs, figure by figure."""
    loads = list(loads)
    return Load(**{f.name: statistics.median(getattr(load, f.name) for load in loads) for f in fields(Load)})


def run_wrk(
    url: str,
    tokens: Path,
    route: Route,
    seconds: int,
    *,
    connections: int = CONNECTIONS,
    skip: int = 0,
    give_up: int = 2,
) -> dict[str, int]:
    """Run the generator, and return what it counted; latencies in microseconds.

    skip: how many members to leave out. give_up: the seconds after which an answer counts as failed.
    """
    script = Path(__file__).with_name("request.lua")
    command = ["wrk", "-t1", f"-c{connections}", f"-d{seconds}s", f"--timeout={give_up}s", "-s", str(script), url]
    arguments = ["--", str(tokens), route.method, route.path, route.body, str(skip)]
    output = subprocess.run([*command, *arguments], check=True, capture_output=True, text=True).stdout
    found: dict[str, int] = json.loads(output.splitlines()[-1])
    return found


def _generator_seconds() -> float:
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime

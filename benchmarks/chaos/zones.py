"""Two zones, and what is lost of them: a machine of the database, of Redis, of both; and processes with it.

There are two of everything, and three sentinels. The databases' operator is played here: the standby is promoted
NOTICED_SECONDS after the loss of the primary, as a tool such as Patroni would. The sentinels act by themselves.
"""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import psycopg2
from redis import Redis

from benchmarks.chaos.faults import Fault, nothing
from benchmarks.chaos.stack import Stack
from benchmarks.load.stack import wait_for
from dev.embedded import Home
from dev.pairs import PostgresPair, ValkeyPair

NOTICED_SECONDS = 2.0
FROZEN_SECONDS = 8.0  # after which what stood still goes on; another is primary by then
PATIENCE_SECONDS = 30.0  # until the sentinels have promoted

_SESSIONS = "SELECT id::text FROM after_hours_sessions"
_CONNECTIONS = """
    SELECT state || ' since ' || state_change || ': ' || left(query, 60) FROM pg_stat_activity
    WHERE application_name = 'after-hours' AND wait_event IS DISTINCT FROM 'SyncRep'
"""  # a commit that waits for the standby for ever: its client has been told 503


class Zones(Stack):
    """The service in two zones: every process, and every server, is there twice."""

    apis = ("api-1", "api-2")
    gateways = ("live-1", "live-2")

    def __init__(self, folder: Path, members: int) -> None:
        self._thaws: list[threading.Timer] = []
        super().__init__(folder, members)

    def serve(self, place: Home) -> tuple[str, str]:
        """Start the two pairs until the end; return the service's two URLs."""
        self.database = PostgresPair(place)
        self._everything.callback(self.database.stop)
        self.cache = ValkeyPair(place)
        self._everything.callback(self.cache.stop)
        return self.database.url, self.cache.url

    def connect(self) -> Any:
        """Return a new connection to the primary; it commits by itself."""
        connection = psycopg2.connect(self.database.url_of(self.database.primary))
        connection.autocommit = True
        return connection

    def redis(self) -> Redis:
        """Return a client of the Redis that the sentinels call primary, which does not retry."""
        return self.cache.client()

    def freeze(self, server: Any) -> None:
        """Let a server stand still, and go on after FROZEN_SECONDS."""
        server.pause()
        self._thaws.append(threading.Timer(FROZEN_SECONDS, server.resume))
        self._thaws[-1].start()

    def kill_one_of_each(self) -> None:
        """Kill one API, one worker, one scheduler and one gateway; they are started again after a second."""
        for process in self.processes.values():
            if process.name.endswith("-1"):
                process.kill()

    def hold(self, zone: int) -> None:
        """Kill a zone's processes, and do not start them again."""
        names = {name for name in self.processes if name.endswith(f"-{zone}")}
        self.held |= names
        for name in names:
            self.processes[name].kill()

    def make_whole(self) -> None:
        """Give the primaries their standby, replica and sentinels again, and start all processes."""
        for thaw in self._thaws:
            thaw.join()
        self._thaws.clear()
        old = 1 - self.database.primary
        if self.database.servers[old].is_running and not self.database.follows(old):
            self._look_for_strays(old)
        if not self.database.follows(old):
            self.database.servers[old].stop()
            self.database.follow(old)
        self.cache.make_whole()
        self.held.clear()

    def _look_for_strays(self, old: int) -> None:
        with closing(psycopg2.connect(self.database.url_of(old))) as connection, connection.cursor() as cursor:
            cursor.execute(_CONNECTIONS)
            self.strays += [connection for (connection,) in cursor]
            cursor.execute(_SESSIONS)
            there = {session for (session,) in cursor}
        self.strays += there - {session for (session,) in self.query(_SESSIONS)}


def _lose(stack: Any, *, database: str = "", cache: str = "", processes: str = "") -> None:
    """Lose the primaries at once (`kill` or `freeze`), and processes (`one` of each, or the first `zone`)."""
    stack.make_whole()
    primary, first = stack.database.primary, stack.cache.primary
    if processes == "zone":
        stack.hold(1)
        stack.cache.sentinels[0].kill()
    for how, server in ((database, stack.database.servers[primary]), (cache, stack.cache.servers[first])):
        if how == "kill":
            server.kill()
        elif how == "freeze":
            stack.freeze(server)
    if processes == "one":
        stack.kill_one_of_each()
    if database:
        time.sleep(NOTICED_SECONDS)
        stack.database.promote()
    if cache:
        wait_for(lambda: stack.cache.failed_over_from(first), PATIENCE_SECONDS)


def _lost(**what: str) -> Callable[[Any], Any]:
    """Return a fault: what is lost stays so until the next one. It is over once others have taken the place."""

    @contextmanager
    def inject(stack: Any) -> Iterator[None]:
        _lose(stack, **what)
        yield

    return inject


@contextmanager
def standby_lost(stack: Any) -> Iterator[None]:
    """Kill the standby: commits wait, until the operator no longer wants them to."""
    stack.make_whole()
    stack.database.servers[1 - stack.database.primary].kill()
    time.sleep(NOTICED_SECONDS)
    stack.database.wait_for_no_standby()
    yield


@contextmanager
def replica_lost(stack: Any) -> Iterator[None]:
    """Kill the replica of Redis."""
    stack.make_whole()
    stack.cache.servers[1 - stack.cache.primary].kill()
    yield


@contextmanager
def whole_again(stack: Any) -> Iterator[None]:
    """Start all that is lost again."""
    stack.make_whole()
    yield


_once = partial(Fault, lasts=False, may_double=True)

FAULTS: tuple[Fault, ...] = (
    Fault("none", nothing, lasts=False),
    _once("PostgreSQL primary killed", _lost(database="kill")),
    _once("PostgreSQL primary killed, and one process of each kind", _lost(database="kill", processes="one")),
    _once("PostgreSQL primary frozen, then thawed", _lost(database="freeze")),
    _once("PostgreSQL primary frozen, and one process of each kind", _lost(database="freeze", processes="one")),
    _once("Redis primary killed", _lost(cache="kill")),
    _once("Redis primary killed, and one process of each kind", _lost(cache="kill", processes="one")),
    _once("Redis primary frozen, then thawed", _lost(cache="freeze")),
    _once("Redis primary frozen, and one process of each kind", _lost(cache="freeze", processes="one")),
    _once("both primaries killed", _lost(database="kill", cache="kill")),
    _once(
        "both primaries frozen, and one process of each kind", _lost(database="freeze", cache="freeze", processes="one")
    ),
    _once("standby killed", standby_lost),
    _once("replica killed", replica_lost),
    _once("a zone lost, with both primaries", _lost(database="kill", cache="kill", processes="zone")),
    _once("all back", whole_again),
)

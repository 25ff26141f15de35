"""Which of several hosts is the primary: connections go to that one (docs/decisions/0019)."""

import os
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any, NamedTuple

import psycopg2
from psycopg2.errors import ObjectNotInPrerequisiteState
from sqlalchemy import Engine, event

# How long a connection may take to be made until other threads no longer try the same, in seconds.
PATIENCE_SECONDS = 2.0

ANSWER_SECONDS = 3.0  # that a server has to answer `ask`


class Server(NamedTuple):
    """A server's host, or the folder of its socket, and its port."""

    host: str
    port: str


class Servers:
    """The hosts of an engine's URL, and which of them is the primary.

    It is one that accepts writes, as a standby would return stale data; of two that do, it is the one with the later
    timeline: a primary that stood still while its standby was promoted would accept writes as well.

    The hosts are tried one by one, the current primary first, as a connection to one that does not answer takes
    seconds. While a thread waits so, and for a moment after it waited in vain, other threads are refused at once: they
    would only wait as well.
    """

    def __init__(self) -> None:
        self._current: Server | None = None
        self._timeline = 0  # the latest that was seen
        self._is_sure = False
        self._doubts = 0  # so far
        self._lock = threading.Lock()
        self.on_answer: Callable[[], None] = lambda: None  # called when one that accepts writes has answered
        self._trying: dict[int, float] = {}  # since when each thread is, by time.monotonic()
        self._silent_until = 0.0  # time.monotonic()

    def connect(self, dialect: Any, _record: Any, arguments: Any, parameters: dict[str, Any]) -> Any:
        """Connect, as a listener of `do_connect`. Raises psycopg2.Error."""
        now, thread = time.monotonic(), threading.get_ident()
        if now < self._silent_until or any(now - since > PATIENCE_SECONDS for since in [*self._trying.values()]):
            raise psycopg2.OperationalError("no server answers")
        servers = _servers(parameters)
        try:
            self._trying[thread] = now
            if len(servers) == 1:
                return _connect(dialect, arguments, parameters)
            return self._primary(lambda it: _connect(dialect, arguments, parameters | it._asdict()), servers)
        except psycopg2.Error:
            if time.monotonic() - now > PATIENCE_SECONDS:
                self._silent_until = time.monotonic() + 1
            raise
        finally:
            self._trying.pop(thread, None)

    def begin_anew(self) -> None:
        """Forget the threads that are connecting: those of a parent process are not in its child."""
        self._trying.clear()
        self._silent_until = 0.0
        self._lock = threading.Lock()

    def doubt(self) -> None:
        """Note that the primary may have been replaced: the next connection is made after a look at all servers."""
        self._doubts += 1
        self._is_sure = False

    def is_current(self, connection: Any) -> bool:
        """Return whether the connection is to the primary, as far as is known."""
        return self._current in {None, Server(connection.info.host, str(connection.info.port))}

    def _primary(self, connect: Callable[[Server], Any], servers: list[Server]) -> Any:
        """Return a connection to the primary. Raises psycopg2.Error."""
        best: tuple[int, Server, Any] | None = None
        doubts = self._doubts
        failure: psycopg2.Error = psycopg2.OperationalError("only a former primary accepts writes")
        for server in sorted(servers, key=lambda server: server != self._current):
            try:
                connection = connect(server)
                timeline = _timeline(connection)
            except psycopg2.Error as error:
                failure = error
                if server == self._current:
                    self.doubt()
                    doubts = self._doubts
                continue
            self.on_answer()
            if best and timeline <= best[0]:
                connection.close()
                continue
            if best:
                best[2].close()
            best = timeline, server, connection
            if self._is_sure and timeline >= self._timeline:
                break
        with self._lock:
            if best and best[0] >= self._timeline:
                self._timeline, self._current, connection = best
                self._is_sure = doubts == self._doubts
                return connection
        if best:
            best[2].close()
        raise failure


def find_primary(engine: Engine) -> Servers:
    """Let an engine's connections go to the primary, of several hosts."""
    servers = Servers()
    event.listen(engine, "do_connect", servers.connect)
    return servers


def _servers(parameters: dict[str, Any]) -> list[Server]:
    hosts, ports = (str(parameters.get(name, "")).split(",") for name in ("host", "port"))
    if "hostaddr" in parameters:  # then libpq goes through them, which knows nothing of timelines
        return [Server(hosts[0], ports[0])]
    ports = ports * len(hosts) if len(ports) == 1 else ports
    return [Server(host, port or "5432") for host, port in zip(hosts, ports, strict=True)]


def _connect(dialect: Any, arguments: Any, parameters: dict[str, Any]) -> Any:
    """Connect to a server that accepts writes, unless the URL wants another. Raises psycopg2.Error."""
    if "target_session_attrs" in parameters:
        return dialect.connect(*arguments, **parameters)
    try:
        return dialect.connect(*arguments, **parameters, target_session_attrs="read-write")
    except psycopg2.OperationalError as error:
        if "read-only" not in str(error):
            raise
        # PgBouncer repeats what it heard of its server before that was promoted. So ask the server.
        connection = dialect.connect(*arguments, **parameters)
        try:
            is_read_only = ask(
                connection, "SELECT pg_is_in_recovery() OR current_setting('transaction_read_only')::boolean"
            )
        except psycopg2.Error:
            connection.close()
            raise
        if is_read_only:
            connection.close()
            raise
        return connection


def _timeline(connection: Any) -> int:
    """Return the number of the promotion that made the server a primary; 1 where it may not tell.

    Raises psycopg2.Error for a server that does not answer, and closes the connection.
    """
    try:
        return int(ask(connection, "SELECT left(pg_walfile_name(pg_current_wal_lsn()), 8)"), 16)
    except (psycopg2.ProgrammingError, psycopg2.NotSupportedError, ObjectNotInPrerequisiteState):
        return 1  # a managed service refuses it; or the URL allows a standby
    except psycopg2.Error:
        connection.close()
        raise


def ask(connection: Any, question: str) -> Any:
    """Return the only value that a query on a new connection returns, and leave no transaction.

    Raises psycopg2.Error, also for a server that is silent for ANSWER_SECONDS: it accepted the connection, so no
    timeout of libpq's would end the wait.
    """
    with _given_up_after(ANSWER_SECONDS, connection):
        try:
            with connection.cursor() as cursor:
                cursor.execute(question)
                [(value,)] = cursor.fetchall()
            return value
        finally:
            if not connection.closed:
                connection.rollback()


@contextmanager
def _given_up_after(seconds: float, connection: Any) -> Iterator[None]:
    """Shut the connection's socket down if the block lasts longer."""

    def shut_down() -> None:
        with suppress(OSError):
            end.shutdown(socket.SHUT_RDWR)

    with socket.socket(fileno=os.dup(connection.fileno())) as end:
        timer = threading.Timer(seconds, shut_down)
        timer.start()
        try:
            yield
        finally:
            timer.cancel()
            timer.join()

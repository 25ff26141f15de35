"""The database: the models' base, Flask-SQLAlchemy and Flask-Migrate."""

import os
import select
import threading
import time
from collections.abc import Callable
from importlib.resources import files
from pathlib import Path
from typing import Any, NamedTuple

import psycopg2
from flask_migrate import Migrate
from flask_sqlalchemy import SQLAlchemy
from sqlalchemy import Engine, MetaData, event, make_url
from sqlalchemy.engine import ExceptionContext
from sqlalchemy.exc import DisconnectionError
from sqlalchemy.orm import DeclarativeBase


class Base(DeclarativeBase):
    """The models' base class. Constraints have PostgreSQL's default names, so that the host's tables and ours match."""

    metadata = MetaData(
        naming_convention={
            "ix": "ix_%(table_name)s_%(column_0_name)s",
            "pk": "%(table_name)s_pkey",
            "fk": "%(table_name)s_%(column_0_name)s_fkey",
            "uq": "%(table_name)s_%(column_0_N_name)s_key",
            "ck": "%(table_name)s_%(constraint_name)s_check",
        }
    )


_ISOLATION = r"default_transaction_isolation=read\ committed"

READ_ONLY = "25006"  # SQLSTATE of a write to a server that takes none

# After these a connection is unusable: connection exceptions, a server that shuts down or starts, a session that it
# ended for idling in a transaction. (57014 is not among them: it means a statement timeout.)
_LOST = ("08", "57P", "25P03", "25P04", READ_ONLY)


# How long a connection may take to be made until other threads no longer try the same, in seconds.
PATIENCE_SECONDS = 2.0


def _find_migrations() -> Path:
    """Return the folder of the migrations: inside an installed package, `alembic/` beside it in a checkout."""
    package = Path(str(files("afterhours_service")))
    installed = package / "migrations"
    return installed if installed.is_dir() else package.parent / "alembic"


MIGRATIONS = _find_migrations()

db = SQLAlchemy(model_class=Base)

migrate = Migrate(directory=str(MIGRATIONS))


def connect_args(url: str, *options: str, **defaults: str | int) -> dict[str, str | int]:
    """Return connection arguments: `defaults` for libpq and `options` for the server. What the URL sets prevails.

    Every connection has the isolation level that the statements rely on, whatever the database's default.
    """
    given = make_url(url).query
    theirs = given.get("options") or os.environ.get("PGOPTIONS", "")
    settings = [f"-c {option}" for option in options]
    joined = [*settings, *([theirs] if isinstance(theirs, str) else theirs), f"-c {_ISOLATION}"]
    return {name: value for name, value in defaults.items() if name not in given} | {"options": " ".join(joined)}


def is_lost(error: BaseException | None) -> bool:
    """Return, by the error's SQLSTATE, whether its connection has become unusable."""
    return (getattr(error, "pgcode", None) or "").startswith(_LOST)


def drop_lost_connections(engine: Engine) -> None:
    """Let the pool drop a connection whose error means that it is unusable, and all older ones with it."""

    @event.listens_for(engine, "handle_error")
    def look(context: ExceptionContext) -> None:
        context.is_disconnect = context.is_disconnect or is_lost(context.original_exception)


def replace_closed_connections(engine: Engine, servers: "Servers") -> None:
    """Let the pool replace a connection that the server has closed, as pool_pre_ping does, without its round trip.

    The server sends nothing on an idle connection, so one that is readable has been closed. Also replace those to a
    server that is no longer the primary.
    """

    @event.listens_for(engine, "checkout")
    def check(connection: Any, *_: Any) -> None:
        idle = select.poll()
        idle.register(connection, select.POLLIN)
        if connection.closed or idle.poll(0) or not servers.is_current(connection):
            raise DisconnectionError


def find_primary(engine: Engine) -> "Servers":
    """Let an engine's connections go to the primary, of several hosts."""
    servers = Servers()
    event.listen(engine, "do_connect", servers.connect)
    return servers


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
        self._trying: dict[int, float] = {}  # since when each thread is, by time.monotonic()
        self._silent_until = 0.0  # time.monotonic()

    def connect(self, dialect: Any, _record: Any, arguments: Any, parameters: dict[str, Any]) -> Any:
        """Connect, as a listener of `do_connect`. Raises psycopg2.Error."""
        now, thread = time.monotonic(), threading.get_ident()
        if now < self._silent_until or any(now - since > PATIENCE_SECONDS for since in [*self._trying.values()]):
            raise psycopg2.OperationalError("no server answers")
        self._trying[thread] = now
        servers = _servers(parameters)
        try:
            if len(servers) == 1:
                return _connect(dialect, arguments, parameters)
            return self._primary(lambda it: _connect(dialect, arguments, parameters | it._asdict()), servers)
        except psycopg2.Error:
            if time.monotonic() - now > PATIENCE_SECONDS:
                self._silent_until = time.monotonic() + 1
            raise
        finally:
            del self._trying[thread]

    def doubt(self) -> None:
        """Note that the primary may have been replaced: the next connection is made after a look at all servers."""
        self._is_sure = False

    def is_current(self, connection: Any) -> bool:
        """Return whether the connection is to the primary, as far as is known."""
        return self._current in {None, Server(connection.info.host, str(connection.info.port))}

    def _primary(self, connect: Callable[["Server"], Any], servers: "list[Server]") -> Any:
        """Return a connection to the primary. Raises psycopg2.Error."""
        best: tuple[int, Server, Any] | None = None
        failure: psycopg2.Error = psycopg2.OperationalError("only a former primary accepts writes")
        for server in sorted(servers, key=lambda server: server != self._current):
            try:
                connection = connect(server)
                timeline = _timeline(connection)
            except psycopg2.Error as error:
                failure = error
                continue
            if best and timeline <= best[0]:
                connection.close()
                continue
            if best:
                best[2].close()
            best = timeline, server, connection
            if self._is_sure and timeline >= self._timeline:
                break
        if best and best[0] >= self._timeline:
            self._timeline, self._current, connection = best
            self._is_sure = True
            return connection
        if best:
            best[2].close()
        raise failure


class Server(NamedTuple):
    """A server's host, or the folder of its socket, and its port."""

    host: str
    port: str


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
        if _ask(connection, "SELECT pg_is_in_recovery() OR current_setting('transaction_read_only')::boolean"):
            connection.close()
            raise
        return connection


def _timeline(connection: Any) -> int:
    """Return the number of the promotion that made the server a primary; 1 where it does not tell."""
    try:
        return int(_ask(connection, "SELECT left(pg_walfile_name(pg_current_wal_lsn()), 8)"), 16)
    except psycopg2.Error:  # a managed service may refuse it
        return 1


def _ask(connection: Any, question: str) -> Any:
    """Return the only value that a query returns, and leave no transaction."""
    try:
        with connection.cursor() as cursor:
            cursor.execute(question)
            [(value,)] = cursor.fetchall()
        return value
    finally:
        if not connection.closed:
            connection.rollback()

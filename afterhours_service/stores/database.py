"""The database: the models' base, Flask-SQLAlchemy and Flask-Migrate."""

import os
import select
import threading
import time
from importlib.resources import files
from pathlib import Path
from typing import Any

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

    Every connection has the isolation level that the statements rely on, whatever the database's default. Only a server
    that accepts writes is connected to: a standby would return stale data.
    """
    given = make_url(url).query
    theirs = given.get("options") or os.environ.get("PGOPTIONS", "")
    settings = [f"-c {option}" for option in options]
    joined = [*settings, *([theirs] if isinstance(theirs, str) else theirs), f"-c {_ISOLATION}"]
    known = {"target_session_attrs": "read-write", **defaults}
    return {name: value for name, value in known.items() if name not in given} | {"options": " ".join(joined)}


def is_lost(error: BaseException | None) -> bool:
    """Return, by the error's SQLSTATE, whether its connection has become unusable."""
    return (getattr(error, "pgcode", None) or "").startswith(_LOST)


def drop_lost_connections(engine: Engine) -> None:
    """Let the pool drop a connection whose error means that it is unusable, and all older ones with it."""

    @event.listens_for(engine, "handle_error")
    def look(context: ExceptionContext) -> None:
        context.is_disconnect = context.is_disconnect or is_lost(context.original_exception)


def replace_closed_connections(engine: Engine) -> None:
    """Let the pool replace a connection that the server has closed, as pool_pre_ping does, without its round trip.

    The server sends nothing on an idle connection, so one that is readable has been closed. Also replace those to
    another server than the last connection went to: that was the primary once.
    """
    servers = Servers()
    event.listen(engine, "do_connect", servers.connect)

    @event.listens_for(engine, "checkout")
    def check(connection: Any, *_: Any) -> None:
        idle = select.poll()
        idle.register(connection, select.POLLIN)
        if connection.closed or idle.poll(0) or not servers.is_current(connection):
            raise DisconnectionError


class Servers:
    """How an engine connects, if several hosts are given: to the first that accepts writes, the last one used first.

    libpq begins with the host that is named first, and waits for one that does not answer. While a thread waits so, and
    for a moment after it waited in vain, other threads are refused at once: they would only wait as well.
    """

    def __init__(self) -> None:
        self._current: tuple[str, str] | None = None
        self._trying: dict[int, float] = {}  # since when each thread is, by time.monotonic()
        self._silent_until = 0.0  # time.monotonic()

    def connect(self, dialect: Any, _record: Any, arguments: Any, parameters: dict[str, Any]) -> Any:
        """Connect, as a listener of `do_connect`. Raises psycopg2.Error."""
        now, thread = time.monotonic(), threading.get_ident()
        if now < self._silent_until or any(now - since > PATIENCE_SECONDS for since in [*self._trying.values()]):
            raise psycopg2.OperationalError("no server answers")
        self._trying[thread] = now
        try:
            connection = dialect.connect(*arguments, **self._in_order(parameters))
        except psycopg2.Error:
            if time.monotonic() - now > PATIENCE_SECONDS:
                self._silent_until = time.monotonic() + 1
            raise
        finally:
            del self._trying[thread]
        self._current = _server(connection)
        return connection

    def is_current(self, connection: Any) -> bool:
        """Return whether the connection is to the server that was connected to last."""
        return _server(connection) == self._current

    def _in_order(self, parameters: dict[str, Any]) -> dict[str, Any]:
        """Return the arguments for psycopg2, with the current server first."""
        hosts, ports = (str(parameters.get(name, "")).split(",") for name in ("host", "port"))
        if len(hosts) == 1 or "hostaddr" in parameters:
            return parameters
        ports = [port or "5432" for port in ports] * (len(hosts) if len(ports) == 1 else 1)
        servers = sorted(zip(hosts, ports, strict=True), key=lambda server: server != self._current)
        return parameters | {"host": ",".join(h for h, _ in servers), "port": ",".join(p for _, p in servers)}


def _server(connection: Any) -> tuple[str, str]:
    return connection.info.host, str(connection.info.port)

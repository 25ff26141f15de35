"""The database: the models' base, Flask-SQLAlchemy and Flask-Migrate."""

import os
import select
from importlib.resources import files
from pathlib import Path
from typing import Any

from flask_migrate import Migrate
from flask_sqlalchemy import SQLAlchemy
from sqlalchemy import Engine, MetaData, event, make_url
from sqlalchemy.engine import ExceptionContext
from sqlalchemy.exc import DisconnectionError
from sqlalchemy.orm import DeclarativeBase

from afterhours_service.stores.servers import Servers


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


def replace_closed_connections(engine: Engine, servers: Servers) -> None:
    """Let the pool replace a connection that the server has closed, as pool_pre_ping does, without its round trip.

    The server sends nothing on an idle connection, so one that is readable has been closed. Also replace those to a
    server that is no longer the primary.
    """

    @event.listens_for(engine, "checkout")
    def check(connection: Any, *_: Any) -> None:
        idle = select.poll()
        idle.register(connection, select.POLLIN)
        if connection.closed or idle.poll(0):
            servers.doubt()
            raise DisconnectionError
        if not servers.is_current(connection):
            raise DisconnectionError

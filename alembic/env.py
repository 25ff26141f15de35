"""Runs the migrations on the database of DATABASE_URL, under `flask db …` and plain `alembic …` alike."""

import logging
import pkgutil
import time
from importlib import import_module

from alembic.util import CommandError
from flask import current_app, has_app_context
from sqlalchemy import Connection, text
from sqlalchemy.exc import OperationalError

import afterhours_service
from afterhours_service import create_app
from afterhours_service.config import SettingsError, current_settings
from afterhours_service.monitoring.health import VERSION_TABLE
from afterhours_service.stores.database import db
from alembic import context

# A migration that cannot have its lock gives up before the queue behind it grows. For another: -x lock_timeout=30s
LOCK_TIMEOUT = "5s"
LOCK_KEY = 0x0AF7E13  # any number that nobody else takes; 0x0AF7E12 is the cleanup's
POLL_SECONDS = 0.2
HOST_TABLES = {"users", "profiles", "user_subscriptions", "blocks"}

logger = logging.getLogger("alembic.after_hours")


def is_ours(_object: object, name: str | None, kind: str, _reflected: bool, compared_with: object) -> bool:
    """Leave to the host what is the host's: its tables, and what only the database has."""
    if kind == "table":
        return name not in HOST_TABLES and name in db.metadata.tables
    return not (_reflected and compared_with is None)


def take_turns(connection: Connection) -> None:
    """Wait until nobody else migrates this database, and hold up others until the connection is closed.

    Asks again and again instead of waiting in the database: CREATE INDEX CONCURRENTLY waits for every open transaction,
    and so would wait for the one that waits for it.
    """
    told = False
    while not connection.execute(text("SELECT pg_try_advisory_lock(:key)"), {"key": LOCK_KEY}).scalar():
        connection.commit()
        if not told:
            logger.warning("waiting for another migration of this database to end")
            told = True
        time.sleep(POLL_SECONDS)
    connection.commit()


def find_cube(connection: Connection) -> None:
    """Let migrations find the extension's names where it is in a schema of its own; it comes last."""
    connection.execute(
        text("""
            SELECT set_config('search_path', concat_ws(', ', nullif(current_setting('search_path'), ''),
                quote_ident(nspname)), false)
            FROM pg_extension JOIN pg_namespace AS n ON n.oid = extnamespace
            WHERE extname = 'cube' AND nspname <> ALL (current_schemas(true))
        """)
    )
    connection.commit()


def connect() -> Connection:
    """Connect to the database. Raises CommandError, which both commands show as a sentence."""
    try:
        return db.engine.connect()
    except OperationalError as error:
        raise CommandError(str(error.orig).splitlines()[0]) from error


def run() -> None:
    """Migrate, each migration in its own transaction; one process at a time.

    Raises CommandError where PgBouncer shares connections: the lock and the settings would stay on one that others get.
    """
    if not current_settings().database_prepare:
        raise CommandError(
            "DATABASE_PREPARE=false says that connections are shared, and a migration needs one of its own: "
            "let DATABASE_URL lead to PostgreSQL itself, and set DATABASE_PREPARE=true"
        )
    lock_timeout = context.get_x_argument(as_dictionary=True).get("lock_timeout", LOCK_TIMEOUT)
    with connect() as connection:
        try:
            migrate(connection, lock_timeout)
        finally:
            connection.invalidate()  # its settings, and after a failure its lock, must not go back to the pool


def migrate(connection: Connection, lock_timeout: str) -> None:
    """Migrate over this connection, which keeps a lock and settings."""
    take_turns(connection)
    find_cube(connection)
    connection.execute(text("SELECT set_config('lock_timeout', :timeout, false)"), {"timeout": lock_timeout})
    connection.execute(text("SET statement_timeout = 0"))
    connection.execute(text("SET idle_in_transaction_session_timeout = 0"))
    connection.commit()
    context.configure(
        connection=connection,
        target_metadata=db.metadata,
        version_table=VERSION_TABLE,  # the host may have an alembic of its own
        transaction_per_migration=True,
        include_object=is_ours,
        # A comment marks the tables that the migrations made; it is not part of the models.
        autogenerate_plugins=["alembic.autogenerate.*", "~alembic.autogenerate.comments"],
    )
    with context.begin_transaction():
        context.run_migrations()
    if not context.get_context().get_current_heads():  # on the way back to `base` it was emptied
        connection.execute(text(f"DROP TABLE IF EXISTS {VERSION_TABLE}"))
    connection.execute(text("SELECT pg_advisory_unlock(:key)"), {"key": LOCK_KEY})
    connection.commit()


for module in pkgutil.walk_packages(afterhours_service.__path__, "afterhours_service."):
    if module.name.endswith(".models"):  # so that `flask db check` and `flask db migrate` compare with all of them
        import_module(module.name)

if has_app_context() and "sqlalchemy" in current_app.extensions:
    run()
else:
    try:
        app = create_app()
    except SettingsError as error:
        raise CommandError(error.message) from error
    with app.app_context():
        run()

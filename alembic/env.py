"""Runs the migrations on the database of DATABASE_URL, under `flask db …` and plain `alembic …` alike."""

import pkgutil
from importlib import import_module

from alembic.util import CommandError
from flask import current_app, has_app_context
from sqlalchemy import Connection, text
from sqlalchemy.exc import OperationalError

import afterhours_service
from afterhours_service import create_app
from afterhours_service.extensions import db
from afterhours_service.health import VERSION_TABLE
from alembic import context

# A migration that cannot have its lock gives up before the queue behind it grows. For another: -x lock_timeout=30s
LOCK_TIMEOUT = "5s"
HOST_TABLES = {"users", "profiles", "user_subscriptions", "blocks"}


def is_ours(_object: object, name: str | None, kind: str, _reflected: bool, compared_with: object) -> bool:
    """Leave to the host what is the host's: its tables, and what only the database has."""
    if kind == "table":
        return name not in HOST_TABLES and name in db.metadata.tables
    return not (_reflected and compared_with is None)


def connect() -> Connection:
    """Connect to the database. Raises CommandError, which both commands show as a sentence."""
    try:
        return db.engine.connect()
    except OperationalError as error:
        raise CommandError(str(error.orig).splitlines()[0]) from error


def run() -> None:
    """Migrate, each migration in its own transaction."""
    lock_timeout = context.get_x_argument(as_dictionary=True).get("lock_timeout", LOCK_TIMEOUT)
    with connect() as connection:
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
            # A comment tells which tables were made here, and is no part of the models.
            autogenerate_plugins=["alembic.autogenerate.*", "~alembic.autogenerate.comments"],
        )
        with context.begin_transaction():
            context.run_migrations()


for module in pkgutil.walk_packages(afterhours_service.__path__, "afterhours_service."):
    if module.name.endswith(".models"):  # so that `flask db check` and `flask db migrate` compare with all of them
        import_module(module.name)

if has_app_context() and "sqlalchemy" in current_app.extensions:
    run()
else:
    with create_app().app_context():
        run()

"""Statements on the connection of the request or job."""

import functools
import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple, cast

import psycopg2
from flask import g
from psycopg2.errors import DuplicatePreparedStatement, FeatureNotSupported, InvalidSqlStatementName
from psycopg2.extensions import TRANSACTION_STATUS_IDLE
from sqlalchemy import PoolProxiedConnection
from sqlalchemy.exc import DBAPIError

from afterhours_service.config import current_settings
from afterhours_service.stores.database import READ_ONLY, db, is_lost

# What the server says when it and a connection disagree about a plan that is kept: another knows the name, nobody does,
# or a column that the statement returns has another type by now. A new connection begins anew.
_STALE = (DuplicatePreparedStatement, InvalidSqlStatementName, FeatureNotSupported)


@contextmanager
def cursor() -> Iterator[psycopg2.extensions.cursor]:
    """Yield a cursor of the driver's, on which each statement is a transaction of its own, unless one says BEGIN.

    For what each request does: one round trip where a session makes three (BEGIN and COMMIT are trips of their own), at
    a tenth of the CPU. Its connection stays with the request or job until `give_back`. Raises DBAPIError and
    TimeoutError, as a session does; a transaction left open is rolled back.
    """
    driver: psycopg2.extensions.connection | None = None
    try:
        driver = _driver()
        try:
            with driver.cursor() as opened:
                yield opened
        except psycopg2.Error as error:
            dialect: Any = db.engine.dialect
            # psycopg2 does not always notice that a connection is lost.
            if isinstance(error, _STALE) or is_lost(error) or dialect.is_disconnect(error, driver, None):
                driver.close()
            if error.pgcode == READ_ONLY:
                db.engine.dispose()  # what is in the pool was connected before the server changed, too
            raise
        finally:
            _close_transaction(driver)
    except psycopg2.Error as error:
        lost = driver is not None and driver.closed != 0
        raise DBAPIError.instance(
            None, None, error, psycopg2.Error, hide_parameters=True, connection_invalidated=lost
        ) from error


def give_back(_error: BaseException | None = None) -> None:
    """Return the connection that `cursor` took for the request or job, if it took one."""
    connection: PoolProxiedConnection | None = g.get("connection")
    if connection is None:
        return
    driver = cast("psycopg2.extensions.connection", connection.dbapi_connection)
    del g.connection
    try:
        if not driver.closed:
            driver.autocommit = False
    except psycopg2.Error:  # it is in the middle of something
        driver.close()
    if driver.closed:
        connection.invalidate()
    else:
        connection.close()


def _driver() -> psycopg2.extensions.connection:
    if "connection" not in g:
        g.connection = db.engine.raw_connection()
        g.connection.dbapi_connection.autocommit = True
    return cast("psycopg2.extensions.connection", g.connection.dbapi_connection)


def _close_transaction(driver: psycopg2.extensions.connection) -> None:
    try:
        if driver.get_transaction_status() != TRANSACTION_STATUS_IDLE:
            with driver.cursor() as opened:
                opened.execute("ROLLBACK")
    except psycopg2.Error:
        driver.close()
    if driver.closed:
        give_back()  # the next statement gets another


class Prepared(NamedTuple):
    """A statement that the server keeps, with its plan: how it is made known, and how it is called."""

    name: str
    prepare: str
    call: str


class _Numbers(dict[str, str]):
    """Numbers a statement's parameters, in the order in which they are first asked for."""

    def __missing__(self, name: str) -> str:
        return self.setdefault(name, f"${len(self) + 1}")


@functools.cache  # the statements are constants
def _prepared(statement: str) -> Prepared:
    numbers = _Numbers()
    text = statement % numbers
    name = f"after_hours_{hashlib.sha256(text.encode()).hexdigest()[:16]}"
    values = ", ".join(f"%({parameter})s" for parameter in numbers)
    return Prepared(name, f"PREPARE {name} AS {text}", f"EXECUTE {name} ({values})")


def execute(opened: psycopg2.extensions.cursor, statement: str, before: str = "", **parameters: Any) -> None:
    """Execute a constant statement, which its connection plans once and keeps: to plan it costs more than to run it.

    One without parameters is planned each time; such ones look at a whole table, which may have grown since.
    before: commands without parameters that go in the same round trip, such as BEGIN.
    """
    if not parameters or not current_settings().database_prepare:
        opened.execute(f"{before} {statement}", parameters)
        return
    prepared = _prepared(statement)
    known: set[str] = g.connection.info.setdefault("after_hours_prepared", set())
    if prepared.name not in known:
        opened.execute(prepared.prepare)
        known.add(prepared.name)
    opened.execute(f"{before} {prepared.call}", parameters)


def run(statement: str, before: str = "", **parameters: Any) -> list[tuple[Any, ...]]:
    """Run one statement, as `execute` does, in a transaction of its own; return its rows. Raises as `cursor` does."""
    with cursor() as opened:
        execute(opened, statement, before, **parameters)
        return opened.fetchall() if opened.description else []


def read(statement: str, before: str = "", **parameters: Any) -> list[tuple[Any, ...]]:
    """Run a statement that changes nothing; again, if its connection had just been closed. Raises as `cursor` does."""
    try:
        return run(statement, before, **parameters)
    except DBAPIError as error:
        if not error.connection_invalidated:
            raise
        return run(statement, before, **parameters)

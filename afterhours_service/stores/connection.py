"""The connection of the request or job. Outside `transaction`, each statement is a transaction of its own."""

import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, ParamSpec, TypeVar, cast

import psycopg2
from flask.globals import app_ctx, current_app
from psycopg2.errors import (
    DuplicatePreparedStatement,
    FeatureNotSupported,
    InFailedSqlTransaction,
    InvalidSqlStatementName,
)
from psycopg2.extensions import TRANSACTION_STATUS_IDLE, TransactionRollbackError
from sqlalchemy import PoolProxiedConnection
from sqlalchemy.exc import DBAPIError

from afterhours_service.stores.database import READ_ONLY, db, is_lost
from afterhours_service.stores.watch import Awaiting

P = ParamSpec("P")
R = TypeVar("R")

TRIES = 3

# The server and this process disagree about a prepared statement: its name is taken, or unknown, or a column that it
# returns has changed its type. A new connection has none.
_STALE = (DuplicatePreparedStatement, InvalidSqlStatementName, FeatureNotSupported)


@contextmanager
def transaction() -> Iterator[None]:
    """Run the statements inside in one transaction: committed at the end, rolled back by an exception.

    Inside another transaction it joins that one, so that use cases compose; a start commits by itself, and does not.
    Raises as `cursor` does, also if an error inside was caught: nothing is stored then.
    """
    here = app_ctx.g
    if "begin" in here:
        yield
        return
    here.begin = "BEGIN;"
    try:
        yield
        if "connection" in here and _is_open(_driver()):  # a statement may have included the COMMIT
            with cursor() as opened:
                opened.execute("COMMIT")
                if opened.statusmessage != "COMMIT":  # the server rolls back after an error that somebody caught
                    raise InFailedSqlTransaction("rolled back: a statement of the transaction had failed")
    finally:
        del here.begin
        if "connection" in here:
            _close_transaction(_driver())


def retried(use_case: Callable[P, R]) -> Callable[P, R]:
    """Repeat a use case whose transaction was rolled back for a deadlock: the host locks in an order of its own.

    Inside another transaction, that one is to be repeated. Raises what the last of TRIES raises.
    """

    @functools.wraps(use_case)
    def attempt(*args: P.args, **kwargs: P.kwargs) -> R:
        for _ in range(TRIES - 1):
            try:
                return use_case(*args, **kwargs)
            except DBAPIError as error:
                if in_transaction() or not isinstance(error.orig, TransactionRollbackError):
                    raise
        return use_case(*args, **kwargs)

    return attempt


def connection_info() -> dict[str, Any]:
    """Return what this process keeps beside the connection for as long as that lives. Raises as `cursor` does."""
    with cursor():
        return cast("dict[str, Any]", app_ctx.g.connection.info)


def in_transaction() -> bool:
    """Return whether a transaction is open."""
    return "begin" in app_ctx.g


def take_begin() -> str:
    """Return BEGIN for the first statement of a transaction; otherwise, and outside one, an empty string."""
    here = app_ctx.g
    begin: str = here.get("begin", "")
    if begin:
        here.begin = ""
    return begin


@contextmanager
def cursor() -> Iterator[psycopg2.extensions.cursor]:
    """Yield a psycopg2 cursor on the connection, which the request or job keeps until `release_connection`.

    A transaction that a statement leaves open outside `transaction` is rolled back. Raises DBAPIError, and TimeoutError
    when the pool has no connection left.
    """
    driver: psycopg2.extensions.connection | None = None
    try:
        driver = _driver()
        try:
            with driver.cursor() as opened, Awaiting(driver):
                yield opened
        except psycopg2.Error as error:
            dialect: Any = db.engine.dialect
            # psycopg2 does not always notice that a connection is lost.
            if isinstance(error, _STALE):
                driver.close()
            elif is_lost(error) or dialect.is_disconnect(error, driver, None):
                driver.close()
                current_app.extensions["after_hours_servers"].doubt()
            if error.pgcode == READ_ONLY:
                db.engine.dispose()  # the pool's other connections are to the same server
            raise
        finally:
            if not in_transaction():
                _close_transaction(driver)
    except psycopg2.Error as error:
        lost = driver is not None and driver.closed != 0
        raise DBAPIError.instance(
            None, None, error, psycopg2.Error, hide_parameters=True, connection_invalidated=lost
        ) from error


def release_connection(_error: BaseException | None = None) -> None:
    """Return the connection to the pool, if the request or job took one."""
    here = app_ctx.g
    connection: PoolProxiedConnection | None = here.get("connection")
    if connection is None:
        return
    driver = cast("psycopg2.extensions.connection", connection.dbapi_connection)
    del here.connection
    try:
        if not driver.closed:
            driver.autocommit = False
    except psycopg2.Error:  # a statement or transaction is still in progress
        driver.close()
    if driver.closed:
        connection.invalidate()
    else:
        connection.close()


def _driver() -> psycopg2.extensions.connection:
    here = app_ctx.g
    if "connection" not in here:
        here.connection = db.engine.raw_connection()
        here.connection.dbapi_connection.autocommit = True
    return cast("psycopg2.extensions.connection", here.connection.dbapi_connection)


def _is_open(driver: psycopg2.extensions.connection) -> bool:
    return driver.get_transaction_status() != TRANSACTION_STATUS_IDLE


def _close_transaction(driver: psycopg2.extensions.connection) -> None:
    try:
        if _is_open(driver):
            with driver.cursor() as opened, Awaiting(driver):
                opened.execute("ROLLBACK")
    except psycopg2.Error:
        driver.close()
    if driver.closed:
        release_connection()  # the next statement gets another

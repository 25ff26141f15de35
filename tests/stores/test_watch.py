"""A PostgreSQL that is connected and silent; one that others wait for."""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any

import psycopg2
import pytest
from flask import Flask
from sqlalchemy import literal_column, select
from sqlalchemy.exc import DBAPIError

from afterhours_service.stores import watch
from afterhours_service.stores.database import db
from afterhours_service.stores.servers import Servers
from afterhours_service.stores.statements import Statement
from afterhours_service.stores.watch import Watch
from tests.stopwatch import eventually

SLEEP: Statement[Any] = Statement(select(literal_column("pg_sleep(60)")), before="SET LOCAL statement_timeout = 0;")
ONE: Statement[Any] = Statement(select(literal_column("1")))


@pytest.fixture
def sleeper(app: Flask) -> Iterator[list[BaseException]]:
    """Return what was raised, in the end, to a thread that waits for PostgreSQL."""
    raised: list[BaseException] = []

    def sleep() -> None:
        with app.app_context():
            try:
                SLEEP.run()
            except DBAPIError as error:
                raised.append(error)

    thread = threading.Thread(target=sleep)
    thread.start()
    eventually(lambda: thread.ident in watch._waiting)
    yield raised
    thread.join()


def test_a_silent_server_is_given_up(app: Flask, sleeper: list[Any], monkeypatch: pytest.MonkeyPatch) -> None:
    with app.app_context():
        guard, pool = Watch(db.engine, app.extensions["after_hours_servers"]), db.engine.pool
        guard.ask()
        for _ in range(int(watch.SILENCE_SECONDS / watch.LOOK_SECONDS) - 1):  # it has not answered yet
            guard.look()
        assert not sleeper
        assert db.engine.pool is pool
        guard.look()
        [error] = eventually(lambda: sleeper)
        assert error.connection_invalidated
        assert db.engine.pool is not pool  # so that no connection of before is used again
        assert ONE.all() == [(1,)]


def test_a_statement_that_takes_too_long_is_given_up_alone(
    app: Flask, sleeper: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    with app.app_context():
        guard, pool = Watch(db.engine, app.extensions["after_hours_servers"]), db.engine.pool
        guard.look()
        assert not sleeper
        monkeypatch.setattr(watch, "ANSWER_SECONDS", 0)
        guard.look()
        assert eventually(lambda: sleeper)
        assert db.engine.pool is pool


def test_a_statement_that_waits_for_a_former_primary_is_given_up(app: Flask, sleeper: list[Any]) -> None:
    with app.app_context():
        servers = app.extensions["after_hours_servers"]
        servers._current = "another"
        Watch(db.engine, servers).look()
        assert eventually(lambda: sleeper)
        servers._current = None


def test_a_server_that_answers_is_not_given_up(app: Flask, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watch, "SILENCE_SECONDS", 0)
    with app.app_context():
        guard = Watch(db.engine, app.extensions["after_hours_servers"])
        guard.ask()
        guard._looks = None  # as its loop does
        guard.look()
        assert ONE.all() == [(1,)]
    assert not watch._waiting


class Dialect:
    """Connects as it is told to."""

    def __init__(self, connect: Callable[[], Any]) -> None:
        self._connect = connect

    def connect(self, **parameters: Any) -> Any:
        self.parameters = parameters
        return self._connect()


def test_while_one_thread_waits_for_a_connection_others_are_refused_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("afterhours_service.stores.servers.PATIENCE_SECONDS", 0.0)
    servers, waiting, end = Servers(), threading.Event(), threading.Event()
    given = {"target_session_attrs": "any"}  # so that the server is not asked

    def never() -> None:
        waiting.set()
        end.wait()
        raise psycopg2.OperationalError("timeout expired")

    def connect() -> None:
        with suppress(psycopg2.Error):
            servers.connect(Dialect(never), None, (), given)

    first = threading.Thread(target=connect)
    first.start()
    waiting.wait()
    second = Dialect(lambda: pytest.fail("tried as well"))
    with pytest.raises(psycopg2.OperationalError, match="no server answers"):
        servers.connect(second, None, (), given)
    end.set()
    first.join()
    with pytest.raises(psycopg2.OperationalError, match="no server answers"):  # nor a moment later
        servers.connect(second, None, (), given)
    servers._silent_until = time.monotonic()
    found = type("Connection", (), {"info": type("Info", (), {"host": "b", "port": 5432})})
    assert servers.connect(Dialect(lambda: found), None, (), given) is found

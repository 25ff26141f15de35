"""Which of two hosts is taken for the primary. The hosts are stand-ins; tests/stores/test_pairs.py has real ones."""

import socket
import threading
from collections.abc import Iterator
from typing import Any, Self

import psycopg2
import pytest
from flask import Flask
from psycopg2.errors import InsufficientPrivilege, ProtocolViolation

from afterhours_service.stores import servers as module
from afterhours_service.stores import watch
from afterhours_service.stores.database import db
from afterhours_service.stores.servers import Server, Servers, ask
from afterhours_service.stores.watch import Watch

A, B = Server("a", "5432"), Server("b", "5432")
BOTH = {"host": "a,b", "target_session_attrs": "any"}


class Connection:
    """To a host of a timeline, or one that fails when it is asked."""

    def __init__(self, server: Server, answer: int | Exception) -> None:
        self.server, self.answer, self.closed = server, answer, 0
        self._socket = socket.socket()

    def fileno(self) -> int:
        return self._socket.fileno()

    def cursor(self) -> "Connection":
        return self

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def execute(self, _statement: str) -> None:
        if isinstance(self.answer, Exception):
            raise self.answer

    def fetchall(self) -> list[tuple[str]]:
        return [(f"{self.answer:08X}",)]

    def rollback(self) -> None:
        pass

    def close(self) -> None:
        self.closed = 1
        self._socket.close()


class Dialect:
    """Connects to the hosts; `answers` says what each does."""

    def __init__(self, **answers: int | Exception) -> None:
        self.answers = answers
        self.asked: list[str] = []
        self.made: list[Connection] = []

    def connect(self, host: str, port: str, **_: Any) -> Connection:
        self.asked.append(host)
        answer = self.answers[host]
        if isinstance(answer, ConnectionRefusedError):
            raise psycopg2.OperationalError("refused")
        self.made.append(Connection(Server(host, port), answer))
        return self.made[-1]


@pytest.fixture
def dialect() -> Iterator[Dialect]:
    dialect = Dialect(a=1, b=ConnectionRefusedError())
    yield dialect
    for connection in dialect.made:
        connection.close()


def primary(servers: Servers, dialect: Dialect) -> Server:
    connection = servers.connect(dialect, None, (), BOTH)
    assert isinstance(connection, Connection)
    assert [each for each in dialect.made if not each.closed] == [connection], "the others are closed"
    connection.close()
    return connection.server


def test_who_is_sure_asks_the_primary_only(dialect: Dialect) -> None:
    servers = Servers()
    assert primary(servers, dialect) == A
    dialect.asked.clear()
    assert primary(servers, dialect) == A
    assert dialect.asked == ["a"]
    servers.doubt()
    dialect.answers["b"] = 2
    assert primary(servers, dialect) == B


def test_a_primary_that_was_away_is_not_taken_back_without_a_look_at_the_others(dialect: Dialect) -> None:
    servers = Servers()
    assert primary(servers, dialect) == A
    dialect.answers["a"] = ConnectionRefusedError()  # and nobody was promoted yet
    with pytest.raises(psycopg2.OperationalError):
        primary(servers, dialect)
    dialect.answers |= {"a": 1, "b": 2}
    assert primary(servers, dialect) == B


def test_who_waits_for_a_lost_standby_does_not_take_the_primary_for_silent(
    app: Flask, dialect: Dialect, monkeypatch: pytest.MonkeyPatch
) -> None:
    with app.app_context():
        servers, pool = Servers(), db.engine.pool
        guard, connect = Watch(db.engine, servers), dialect.connect
        guard._looks = 0  # it connects in order to ask

        def slow(host: str, port: str, **given: Any) -> Connection:
            for _ in range(int(2 * watch.SILENCE_SECONDS / watch.LOOK_SECONDS) * (host == "b")):
                guard.look()
            return connect(host, port, **given)

        monkeypatch.setattr(dialect, "connect", slow)
        assert primary(servers, dialect) == A
        assert db.engine.pool is pool
        dialect.asked.clear()
        assert primary(servers, dialect) == A
        assert dialect.asked == ["a"]


def test_a_doubt_during_a_look_counts(dialect: Dialect, monkeypatch: pytest.MonkeyPatch) -> None:
    servers = Servers()
    monkeypatch.setattr(dialect, "answers", {"a": 1, "b": 1})
    connect, once = dialect.connect, iter([True])

    def doubted(**given: Any) -> Connection:
        if next(once, False):
            servers.doubt()
        return connect(**given)

    monkeypatch.setattr(dialect, "connect", doubted)
    assert primary(servers, dialect) == A
    dialect.asked.clear()
    primary(servers, dialect)
    assert dialect.asked == ["a", "b"]


def test_a_server_that_fails_when_it_is_asked_is_no_primary(dialect: Dialect) -> None:
    """PgBouncer accepts the connection, and says then that its server is away."""
    dialect.answers = {"a": ProtocolViolation("query_wait_timeout"), "b": 1}
    assert primary(Servers(), dialect) == B


def test_a_server_that_may_not_tell_is_one(dialect: Dialect) -> None:
    dialect.answers = {"a": InsufficientPrivilege(), "b": ConnectionRefusedError()}
    assert primary(Servers(), dialect) == A


def test_a_child_process_waits_for_no_thread_of_its_parent(dialect: Dialect) -> None:
    servers = Servers()
    servers._trying[threading.get_ident() + 1] = float("-inf")
    with pytest.raises(psycopg2.OperationalError, match="no server answers"):
        primary(servers, dialect)
    servers.begin_anew()
    assert primary(servers, dialect) == A


def test_hosts_and_ports_that_do_not_fit_are_no_silence(dialect: Dialect) -> None:
    servers = Servers()
    with pytest.raises(ValueError, match="shorter"):
        servers.connect(dialect, None, (), {"host": "a,b,c", "port": "1,2"})
    assert servers._trying == {}


def test_a_server_that_is_silent_to_a_new_connection_is_given_up(app: Flask, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "ANSWER_SECONDS", 0.1)
    with app.app_context():
        connection: Any = db.engine.raw_connection()
        with pytest.raises(psycopg2.OperationalError):
            ask(connection.dbapi_connection, "SELECT pg_sleep(60)")
        assert connection.dbapi_connection.closed
        connection.close()
        connection = db.engine.raw_connection()
        monkeypatch.undo()
        assert ask(connection.dbapi_connection, "SELECT 1") == 1
        connection.close()

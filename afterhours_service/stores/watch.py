"""Notices a database server that is connected and silent, which no timeout of its own would end.

TCP keeps a connection to a process that stands still, and the server that would cancel a statement is the one that is
silent. So processes that serve members or run jobs ask it something every half second. Nor does a server cancel
a commit that waits for a standby.
"""

import os
import socket
import threading
import time
from contextlib import closing, suppress
from typing import cast

import psycopg2
from flask import Flask
from sqlalchemy import Engine

from afterhours_service.stores.database import db
from afterhours_service.stores.servers import Servers
from afterhours_service.telemetry.log import get_logger

logger = get_logger(__name__)

ASK_SECONDS = 0.5
SILENCE_SECONDS = 4.0  # after which a server is given up
ANSWER_SECONDS = 8.0  # after which a statement is given up; the server cancels it before, if it can
LOOK_SECONDS = 0.25

_lock = threading.Lock()
_waiting: dict[int, tuple[float, psycopg2.extensions.connection]] = {}  # by thread; since: by time.monotonic()


def _begin_anew() -> None:
    """Forget, in a child process, what threads of its parent wait for; let go of the lock that was taken to fork."""
    _waiting.clear()
    _lock.release()


os.register_at_fork(before=_lock.acquire, after_in_parent=_lock.release, after_in_child=_begin_anew)


class Awaiting:
    """Notes, for as long as the block lasts, that this thread waits for a server's answer."""

    __slots__ = ("_driver",)

    def __init__(self, driver: psycopg2.extensions.connection) -> None:
        self._driver = driver

    def __enter__(self) -> None:
        """Begin to wait."""
        _waiting[threading.get_ident()] = time.monotonic(), self._driver

    def __exit__(self, *_: object) -> None:
        """End. The lock: while a socket is shut down it must not be closed, and its number used again."""
        with _lock:
            _waiting.pop(threading.get_ident(), None)


class Watch:
    """Asks the server something, again and again. If there is no answer, closes all connections to it."""

    def __init__(self, engine: Engine, servers: Servers) -> None:
        self._engine, self._servers = engine, servers
        self._looks: int | None = None  # since the server was asked; None: it has answered
        servers.on_answer = self._note_answer

    def start(self) -> None:
        """Begin, in threads that end with the process."""
        for run in (self._ask_on, self._look_on):
            threading.Thread(target=run, name="database-watch", daemon=True).start()

    def ask(self) -> None:
        """Ask. Raises psycopg2.Error, also when the server was given up meanwhile."""
        self._looks = 0  # before connecting: a server that is silent to who connects is as silent
        with closing(self._engine.raw_connection()) as connection:
            self._looks = 0  # again: connecting may have taken long for another host, which is lost
            driver = cast("psycopg2.extensions.connection", connection.dbapi_connection)
            try:
                driver.autocommit = True
                with driver.cursor() as cursor, Awaiting(driver):
                    cursor.execute("SELECT 1")
                driver.autocommit = False
            except psycopg2.Error as error:
                connection.invalidate(error)
                self._servers.doubt()
                raise

    def look(self) -> None:
        """Give up a server that is silent or was replaced, and statements that take too long.

        Who waits for an answer gets the error of a lost connection. Looks are counted, so that a machine that stands
        still with this process is not taken for a server that does.
        """
        now, is_silent = time.monotonic(), False
        if self._looks is not None:
            self._looks += 1
            is_silent = self._looks * LOOK_SECONDS >= SILENCE_SECONDS
        with _lock:
            for thread, (since, driver) in [*_waiting.items()]:
                if is_silent or now - since >= ANSWER_SECONDS or not self._servers.is_current(driver):
                    logger.warning("database silent", seconds=round(now - since, 1))
                    del _waiting[thread]
                    with suppress(OSError, psycopg2.Error), socket.socket(fileno=os.dup(driver.fileno())) as end:
                        end.shutdown(socket.SHUT_RDWR)
        if is_silent:
            self._looks = None
            self._servers.doubt()
            self._engine.dispose()

    def _note_answer(self) -> None:
        self._looks = None

    def _ask_on(self) -> None:
        while True:
            time.sleep(ASK_SECONDS)
            with suppress(Exception):  # who needs the database says what is wrong with it
                self.ask()
            self._note_answer()

    def _look_on(self) -> None:
        while True:
            time.sleep(LOOK_SECONDS)
            with suppress(Exception):
                self.look()


def start(app: Flask) -> None:
    """Watch the app's database server until the process ends."""
    with app.app_context():
        Watch(db.engine, app.extensions["after_hours_servers"]).start()

"""To be replaced by `statements`: statements as text."""

import functools
import hashlib
from typing import Any, NamedTuple

import psycopg2
from flask import g
from sqlalchemy.exc import DBAPIError

from afterhours_service.config import current_settings
from afterhours_service.stores.connection import cursor


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

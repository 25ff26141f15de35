"""Statements from the models, compiled once, and planned once by each connection.

The reason is CPU: the two reads of a status take 160 µs, by Core on autocommit 344, by the ORM 456 (decision 0012).
"""

import hashlib
import time
from typing import Any, Generic, TypeVar

import sqlalchemy as sa
from flask.globals import app_ctx
from sqlalchemy.dialects.postgresql.psycopg2 import PGDialect_psycopg2

from afterhours_service.config import current_settings
from afterhours_service.stores.connection import cursor, in_transaction, retried, take_begin

Row = TypeVar("Row", bound=tuple[Any, ...])

# How long a connection keeps its plans, in seconds: one made while a table was empty may scan all of it later. The
# server would notice at its next ANALYZE, which may take a minute.
PLANS_LAST = 5


class Statement(Generic[Row]):
    """A constant statement; its rows become `row`s, by name. before, after: such as `SET LOCAL …;` and `; COMMIT`."""

    def __init__(self, statement: Any, row: type[Row] | None = None, before: str = "", after: str = "") -> None:
        if row and (names := tuple(statement.exported_columns.keys())) != getattr(row, "_fields", ()):
            raise TypeError(f"{row.__name__} has other fields than {names}")
        compiled = statement.compile(dialect=PGDialect_psycopg2())  # type: ignore[no-untyped-call]
        self._text, self._before, self._after = str(compiled), before, after
        self._make: Any = getattr(row, "_make", tuple)
        self._is_read = isinstance(statement, sa.Select) and not any(cte.element.is_dml for cte in compiled.ctes or ())
        self._constants = {name: value for name, value in compiled.params.items() if value is not None}
        name = f"after_hours_{hashlib.sha256(self._text.encode()).hexdigest()[:16]}"
        numbers = {each: f"${number}" for number, each in enumerate(compiled.params, 1)}
        self._prepare = f"PREPARE {name} AS {self._text % numbers}"
        # One without parameters reads a whole table, which may have grown: plan it each time.
        self._call = f"EXECUTE {name} ({', '.join(f'%({each})s' for each in numbers)})" if numbers else ""

    def all(self, **parameters: Any) -> list[Row]:
        """Run it, and return its rows. Raises as `cursor` does."""
        try:
            return self.run(**parameters)[0]
        except sa.exc.DBAPIError as error:  # the server may have closed the connection since its last use
            if not error.connection_invalidated or not self._is_read or in_transaction():
                raise
            return self.run(**parameters)[0]

    def first(self, **parameters: Any) -> Row | None:
        """Run it, and return its first row, or None. Raises as `cursor` does."""
        return next(iter(self.all(**parameters)), None)

    @retried
    def run(self, **parameters: Any) -> tuple[list[Row], int]:
        """Run it, and return its rows, and how many rows it returned or changed. Raises as `cursor` does."""
        with cursor() as opened:
            text = self._text
            if self._call and current_settings().database_prepare:
                info, text, now = app_ctx.g.connection.info, self._call, time.monotonic()
                if text not in (prepared := info.setdefault("after_hours_prepared", set())):
                    opened.execute(f"{take_begin()} {self._before} {self._prepare}")
                    prepared.add(text)
                if now > info.setdefault("after_hours_planned", now) + PLANS_LAST:
                    info["after_hours_planned"] = now
                    text = f"DISCARD PLANS; {text}"
            opened.execute(f"{take_begin()} {self._before} {text}{self._after}", self._constants | parameters or None)
            return [self._make(row) for row in opened] if opened.description else [], opened.rowcount

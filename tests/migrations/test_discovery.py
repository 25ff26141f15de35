"""The migration of discovery: live sessions get a key, and a role that may not make the extension is told so."""

import contextlib
import os
from collections.abc import Callable

import psycopg2
import pytest
from flask_migrate import upgrade

from afterhours_service import create_app
from afterhours_service.stores.database import db
from tests.conftest import make_settings
from tests.factories import Factory
from tests.host import NODE, NODE_DATA


def migrate(url: str) -> None:
    app = create_app(make_settings(url, os.environ["TEST_REDIS_URL"]))
    with app.app_context():
        try:
            upgrade()
        finally:
            db.engine.dispose()


def test_sessions_that_are_live_when_it_comes_get_their_key(make_database: Callable[..., str]) -> None:
    url = make_database(None)
    with contextlib.closing(psycopg2.connect(url)) as connection:
        connection.autocommit = True
        sql = Factory(connection)
        sql.execute(NODE + NODE_DATA)
        migrate(url)
        keyed = (
            "SELECT user_id FROM after_hours_sessions WHERE discovery_key IS NOT NULL AND discovery_wish IS NOT NULL"
        )
        live = "SELECT user_id FROM after_hours_sessions WHERE ended_at IS NULL"
        assert sql.execute(f"{keyed} ORDER BY 1") == sql.execute(f"{live} ORDER BY 1") != []


def test_a_role_that_may_not_make_the_extension_is_told_what_to_do(
    make_database: Callable[..., str], caplog: pytest.LogCaptureFixture
) -> None:
    url = make_database(None)
    role = f"plain_{os.getpid()}"
    with contextlib.closing(psycopg2.connect(url)) as connection:
        connection.autocommit = True
        sql = Factory(connection)
        sql.execute(f"CREATE ROLE {role} LOGIN; GRANT ALL ON SCHEMA public TO {role}")
        try:
            as_plain = url.replace("//postgres@", f"//{role}@")
            with pytest.raises(SystemExit):
                migrate(as_plain)
            assert "CREATE EXTENSION cube" in caplog.text
            sql.execute("CREATE EXTENSION cube")
            migrate(as_plain)
        finally:
            sql.execute(f"DROP OWNED BY {role}; DROP ROLE {role}")

"""What discovery finds a session by is gone with its end, whoever ends it, and whatever keeps the row."""

import contextlib
import os
from collections.abc import Callable

import psycopg2
import pytest
from flask import Flask
from flask.testing import FlaskClient
from flask_migrate import downgrade, upgrade

from afterhours_service import create_app
from afterhours_service.sessions import service
from afterhours_service.stores.database import db
from tests.client import end, erase
from tests.conftest import make_settings
from tests.factories import Factory, Live, prefer
from tests.host import NODE, NODE_DATA

STATES = """
    SELECT DISTINCT ended_at IS NULL AS live, discovery_key IS NOT NULL AS key, discovery_wish IS NOT NULL AS wish
    FROM after_hours_sessions ORDER BY live
"""


def end_by_member(app: Flask, factory: Factory, member: str) -> None:
    assert end(app.test_client(), member).status_code == 200


def end_by_node_service(app: Flask, factory: Factory, member: str) -> None:
    factory.execute("UPDATE after_hours_sessions SET ended_at = now() WHERE user_id = %s", member)


def end_by_expiry(app: Flask, factory: Factory, member: str) -> None:
    factory.travel(3600)
    with app.app_context():
        service.reconcile()


@pytest.mark.parametrize("end_it", [end_by_member, end_by_node_service, end_by_expiry])
def test_key_and_wish_go_with_the_end_and_do_not_come_back(
    app: Flask, factory: Factory, live: Live, end_it: Callable[[Flask, Factory, str], None]
) -> None:
    member = live()
    assert factory.execute(STATES) == [(True, True, True)]
    end_it(app, factory, member)
    assert factory.execute(STATES) == [(False, False, False)]
    prefer(factory, member, min_age=40)
    factory.execute("UPDATE after_hours_sessions SET discovery_key = '(1,2,3)', fuzzed_latitude = 1")
    assert factory.execute(STATES) == [(False, False, False)]


def test_an_erasure_leaves_no_place_in_a_session_that_a_match_keeps(
    client: FlaskClient, factory: Factory, live: Live
) -> None:
    member, other = live(), factory.member()
    match = factory.match(str(factory.sessions(member)[0].id), member, other, over=True)
    factory.execute("UPDATE after_hours_matches SET converted_to_match_id = 'saved' WHERE id = %s", match)
    assert erase(client, member).status_code == 200
    assert factory.execute(STATES) == [(False, False, False)]


def test_the_migration_erases_those_of_the_past_and_no_others(make_database: Callable[..., str]) -> None:
    url = make_database(None)
    app = create_app(make_settings(url, os.environ["TEST_REDIS_URL"]))
    with contextlib.closing(psycopg2.connect(url)) as connection, app.app_context():
        connection.autocommit = True
        sql = Factory(connection)
        sql.execute(NODE + NODE_DATA)
        upgrade(revision="0010")
        sql.execute("UPDATE after_hours_sessions SET ended_at = expires_at WHERE user_id = 'u2'")
        assert (False, True, True) in sql.execute(STATES)
        upgrade()
        assert sql.execute(STATES) == [(False, False, False), (True, True, True)]
        downgrade(revision="0010")
        sql.execute("UPDATE after_hours_sessions SET ended_at = expires_at WHERE user_id = 'u1'")
        assert (False, True, True) in sql.execute(STATES)
        assert sql.execute("SELECT latitude FROM after_hours_sessions WHERE user_id = 'u1'") == [(None,)]
        db.engine.dispose()

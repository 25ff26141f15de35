"""Taking over from the Node service while members are live, and the way back: the steps of docs/operations.md.

Each side has the role that the page gives it: the Node service owns the database and migrates it, ours has
deploy/grants.sql and nothing else.
"""

import contextlib
import os
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import psycopg2
import pytest
from flask import Flask
from flask.testing import FlaskClient
from flask_migrate import upgrade
from psycopg2.errors import InsufficientPrivilege, UniqueViolation
from redis import Redis
from sqlalchemy import make_url

from afterhours_service import create_app
from afterhours_service.cleanup import service as cleanup
from afterhours_service.extensions import db
from afterhours_service.sessions import service
from afterhours_service.sessions.jobs import session_timer
from tests.conftest import ROOT, make_settings
from tests.factories import PLACE, Factory, bearer, scheduled

NODE_SCHEMA = (ROOT / "tests/host_schema.sql").read_text()
HOST_SCHEMA = NODE_SCHEMA.partition("\n\n")[0]
GRANTS = (ROOT / "deploy/grants.sql").read_text()
PASSWORD = "only-for-this-server"


class Node:
    """The Node service, after its SQL: expiries have fractions, and what its timers end is ended when they come."""

    def __init__(self, sql: Factory) -> None:
        self._sql = sql

    def start(self, member: str) -> str:
        [row] = self._sql.execute(
            """
            INSERT INTO after_hours_sessions
                (user_id, expires_at, latitude, longitude, fuzzed_latitude, fuzzed_longitude)
            VALUES (%s, date_trunc('second', now()) + interval '30 minutes 123456 microseconds',
                52.5, 13.4, 52.501, 13.401) RETURNING id
            """,
            member,
        )
        return str(row.id)

    def active(self, member: str) -> Any:
        rows = self._sql.execute(
            "SELECT * FROM after_hours_sessions WHERE user_id = %s AND ended_at IS NULL AND expires_at > now()", member
        )
        return rows[0] if rows else None

    def extend(self, session: str, minutes: int) -> None:
        self._sql.execute(
            "UPDATE after_hours_sessions SET expires_at = expires_at + %s * interval '1 minute' WHERE id = %s",
            minutes,
            session,
        )

    def end(self, session: str) -> None:
        """As its member asks, and as its timer does."""
        self._sql.execute(
            "UPDATE after_hours_sessions SET ended_at = now() WHERE id = %s AND ended_at IS NULL", session
        )


class Evening(NamedTuple):
    """Members who are live on the Node service, when ours is started beside it."""

    members: Factory  # an auditor, who may do anything
    node: Node
    sql: Factory  # the host's role
    ours: Factory  # our role
    app: Flask
    client: FlaskClient

    def minute(self) -> None:
        """Let our worker and scheduler do what they do every minute."""
        with self.app.app_context():
            service.reconcile()

    def session(self, member: str) -> Any:
        answer = self.client.get("/api/after-hours/session", headers=bearer(member))
        assert answer.status_code == 200, answer.text
        return answer.json["session"]

    def post(self, path: str, member: str, **body: Any) -> Any:
        return self.client.post(f"/api/after-hours/session/{path}", json=body, headers=bearer(member))


def as_role(url: str, role: str) -> str:
    return make_url(url).set(username=role, password=PASSWORD).render_as_string(hide_password=False)


@pytest.fixture
def roles() -> Iterator[None]:
    """Make the two roles; whatever they own or may do goes with the test's database."""
    with contextlib.closing(psycopg2.connect(os.environ["TEST_SERVER_URL"])) as connection:
        connection.autocommit = True
        with connection.cursor() as cursor:
            cursor.execute("SELECT pg_advisory_lock(1)")  # roles belong to the server, not to a test's database
            for role in ("after_hours", "node"):
                cursor.execute(f"DROP ROLE IF EXISTS {role}")
                cursor.execute(f"CREATE ROLE {role} LOGIN PASSWORD '{PASSWORD}'")
            yield
            for role in ("after_hours", "node"):
                cursor.execute(f"DROP ROLE {role}")


@pytest.fixture
def evening(roles: None, make_database: Callable[..., str], redis: Redis, redis_url: str) -> Iterator[Evening]:
    url = make_database(None)
    with contextlib.ExitStack() as stack:

        def connect(url: str) -> Factory:
            connection = stack.enter_context(contextlib.closing(psycopg2.connect(url)))
            connection.autocommit = True
            return Factory(connection)

        auditor = connect(url)
        auditor.execute(f'ALTER DATABASE "{make_url(url).database}" OWNER TO node')
        host = connect(as_role(url, "node"))
        host.execute(NODE_SCHEMA)
        migration = create_app(make_settings(as_role(url, "node"), redis_url))
        with migration.app_context():
            upgrade()
            db.engine.dispose()
        host.execute(GRANTS)
        app = create_app(make_settings(as_role(url, "after_hours"), redis_url))
        app.testing = True
        yield Evening(auditor, Node(host), host, connect(as_role(url, "after_hours")), app, app.test_client())
        with app.app_context():
            db.engine.dispose()


def test_with_worker_and_scheduler_first_every_session_ends_on_time(evening: Evening, redis: Redis) -> None:
    """Step 3 of the table: the Node service answers the members, and both end sessions with their timers."""
    node = evening.node
    live, overdue, extended, ended = (evening.members.member() for _ in range(4))
    node.start(overdue)
    evening.members.travel(31 * 60)
    node.start(live)
    evening.minute()
    [row] = evening.members.sessions(overdue)
    assert row.ended_at == row.expires_at
    expiry = evening.members.sessions(live)[0].expires_at
    second = int(expiry.timestamp()) + 1
    assert {f"session-timer-{second}", f"session-timer-{second - 120}"} <= set(scheduled(redis))

    # The Node service goes on writing.
    extended_session, ended_session = node.start(extended), node.start(ended)
    node.extend(extended_session, 30)
    node.end(ended_session)
    node.start(overdue)  # ours ended the old one; it blocks nobody
    evening.minute()
    assert node.active(extended)
    second = int(node.active(extended).expires_at.timestamp()) + 1
    assert f"session-timer-{second}" in scheduled(redis)

    evening.members.travel(31 * 60)
    with evening.app.app_context():
        session_timer(second - 1800)  # the timer of the old expiry
    assert node.active(extended)
    evening.members.travel(30 * 60)
    with evening.app.app_context():
        session_timer(second)
    [row] = evening.members.sessions(extended)
    assert row.ended_at == row.expires_at
    assert row.latitude is None
    assert row.longitude is None


@pytest.mark.parametrize("first", ["ours", "the Node service's"])
def test_whichever_timer_comes_first_a_session_is_ended_once(
    evening: Evening, events: Callable[[], list[dict[str, Any]]], first: str
) -> None:
    member = evening.members.member()
    session = evening.node.start(member)
    evening.members.travel(31 * 60)
    if first != "ours":
        evening.node.end(session)
    ended = [row.ended_at for row in evening.members.sessions(member)]
    evening.minute()
    evening.minute()
    evening.node.end(session)
    [row] = evening.members.sessions(member)
    assert row.ended_at == (row.expires_at if first == "ours" else ended[0])
    assert [event["type"] for event in events()] == ["after_hours:session_expired"] * (first == "ours")


def test_our_api_carries_on_the_sessions_of_the_node_service(evening: Evening) -> None:
    """Step 5 of the table: the members' requests come to us."""
    member = evening.members.member()
    session = evening.node.start(member)
    shown = evening.session(member)
    assert shown["id"] == session
    assert 1795 <= shown["remainingSeconds"] <= 1800
    assert evening.post("start", member, duration=15, **PLACE).json["code"] == "SESSION_ALREADY_ACTIVE"
    before = evening.members.sessions(member)[0].expires_at
    assert evening.post("extend", member, additionalMinutes=15).status_code == 200
    after = evening.members.sessions(member)[0].expires_at
    assert 900 <= (after - before).total_seconds() < 901
    assert after.microsecond == 0
    assert evening.post("end", member).status_code == 200
    assert evening.node.active(member) is None
    evening.node.start(member)


def test_on_the_way_back_the_node_service_carries_on_ours(evening: Evening, redis: Redis) -> None:
    """The members' requests go to the Node service again; our worker and scheduler stay."""
    left, ended, extended = (evening.members.member() for _ in range(3))
    for member in (left, ended, extended):
        assert evening.post("start", member, duration=15, **PLACE).status_code == 201
        with pytest.raises(UniqueViolation):
            evening.node.start(member)
        assert evening.node.active(member).latitude is not None
    evening.node.end(str(evening.node.active(ended).id))
    evening.node.extend(str(evening.node.active(extended).id), 15)
    assert evening.session(ended) is None
    evening.minute()
    evening.members.travel(16 * 60)
    evening.minute()
    [row] = evening.members.sessions(left)
    assert row.ended_at == row.expires_at
    assert evening.node.active(extended)
    assert evening.session(extended)["remainingSeconds"] > 800
    evening.node.start(left)


def test_beside_the_host_another_role_may_migrate(
    roles: None, make_database: Callable[..., str], redis_url: str
) -> None:
    """First installation: the owner of our tables may do nothing but make them, and refer to the host's members."""
    url = make_database(None)
    with contextlib.closing(psycopg2.connect(url)) as connection:
        connection.autocommit = True
        host = Factory(connection)
        host.execute(HOST_SCHEMA)
        host.execute("GRANT CREATE ON SCHEMA public TO node; GRANT REFERENCES ON users TO node")
        host.execute(f'GRANT CREATE ON DATABASE "{make_url(url).database}" TO node')  # for the extension `cube`
        app = create_app(make_settings(as_role(url, "node"), redis_url))
        with app.app_context():
            upgrade()
            db.engine.dispose()
        host.execute(GRANTS)


def test_the_grants_are_all_that_the_service_needs(evening: Evening) -> None:
    member = evening.members.member(profile=False)
    evening.sql.execute("UPDATE profiles SET gender = 'Male', sexual_preference = 'Straight'")
    requests: list[tuple[str, str, dict[str, Any] | None]] = [
        ("POST", "profile", {"description": "hello"}),
        ("PATCH", "profile", {"description": "hello again"}),
        ("GET", "profile", None),
        ("DELETE", "profile/photo", None),
        ("POST", "preferences", {}),
        ("PATCH", "preferences", {"maxDistanceKm": 20}),
        ("GET", "preferences", None),
        ("POST", "session/start", {"duration": 15, "deviceFingerprint": {"deviceId": "d"}, **PLACE}),
        ("POST", "session/extend", {"additionalMinutes": 15}),
        ("GET", "session", None),
        ("GET", "nearby", None),
        ("GET", "nearby/count", None),
        ("DELETE", "declines/nobody", None),
        ("POST", "session/end", {}),
        ("GET", "consent", None),
        ("PUT", "consent", {"granted": True}),
        ("GET", "me/export", None),
    ]
    for method, path, body in requests:
        answer = evening.client.open(f"/api/after-hours/{path}", method=method, json=body, headers=bearer(member))
        assert answer.status_code < 300, (path, answer.text)
    assert evening.client.get("/readyz").status_code == 200
    evening.minute()
    evening.members.travel(30 * 86400)
    with evening.app.app_context():
        assert cleanup.pending()["sessions"] == 1
        assert cleanup.run().counts["sessions"] == 1
    answer = evening.client.delete("/api/after-hours/me", headers=bearer(member))
    assert answer.status_code == 200, answer.text
    evening.ours.execute(
        "UPDATE users SET after_hours_consent = false, after_hours_consent_at = now() WHERE id = %s", member
    )


FORBIDDEN = [
    "SELECT email FROM users",
    "SELECT bio FROM profiles",
    "UPDATE users SET id_verified = true",
    "DELETE FROM users",
    "UPDATE profiles SET age = 99",
    "UPDATE user_subscriptions SET is_active = true",
    "SELECT text FROM after_hours_messages",
    "DELETE FROM blocks",
    "UPDATE after_hours_alembic_version SET version_num = ''",
    "ALTER TABLE after_hours_sessions DISABLE TRIGGER ALL",
    "TRUNCATE after_hours_sessions",
    "CREATE TABLE ours (id integer)",
]


def test_the_role_of_the_service_may_do_nothing_else(evening: Evening) -> None:
    for statement in FORBIDDEN:
        with pytest.raises(InsufficientPrivilege):
            evening.ours.execute(statement)

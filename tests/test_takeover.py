"""Taking over from the Node service while members are live, and the way back: the steps of docs/taking-over.md.

Each side has the role that the page gives it: the Node service owns the database and migrates it, ours has
deploy/grants.sql and nothing else.
"""

import contextlib
import json
import re
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple, cast

import psycopg2
import pytest
from flask import Flask
from flask.testing import FlaskClient
from flask_migrate import upgrade
from psycopg2.errors import InsufficientPrivilege, RaiseException, UniqueViolation
from redis import Redis
from sqlalchemy import make_url

from afterhours_service import create_app
from afterhours_service.cleanup import service as cleanup
from afterhours_service.profiles import queries as photos
from afterhours_service.sessions import service
from afterhours_service.sessions.jobs import session_timer
from afterhours_service.stores.database import db
from tests.client import API, end, erase, extend, start, status
from tests.conftest import ROOT, make_settings
from tests.factories import PLACE, Factory, bearer, scheduled
from tests.host import GRANTS, HOST, NODE, PASSWORD
from tests.stopwatch import eventually

BRIDGE = (ROOT / "deploy/consent_bridge.sql").read_text()
PAGE = (ROOT / "docs/taking-over.md").read_text()


class BullQueue:
    """A queue of delayed jobs as BullMQ keeps it in Redis: it outlives its service, and loses nothing by itself."""

    def __init__(self, redis: Redis, name: str) -> None:
        self._redis = redis
        self.prefix = f"bull:{name}"
        redis.hset(f"{self.prefix}:meta", "opts.maxLenEvents", "10000")

    def add(self, job: str, due: float) -> None:
        self._redis.incr(f"{self.prefix}:id")
        self._redis.hset(f"{self.prefix}:{job}", mapping={"name": "job", "data": json.dumps({"sessionId": job})})
        self._redis.zadd(f"{self.prefix}:delayed", {job: due * 1000 * 4096})
        self._redis.xadd(f"{self.prefix}:events", {"event": "delayed", "jobId": job})

    def remove(self, job: str) -> None:
        self._redis.zrem(f"{self.prefix}:delayed", job)
        self._redis.delete(f"{self.prefix}:{job}")

    def take_overdue(self) -> list[str]:
        now = time.time() * 1000 * 4096
        jobs = [
            raw.decode() for raw in cast("list[bytes]", self._redis.zrangebyscore(f"{self.prefix}:delayed", 0, now))
        ]
        for job in jobs:
            self.remove(job)
        return jobs

    def travel(self, seconds: float) -> None:
        for job in cast("list[bytes]", self._redis.zrange(f"{self.prefix}:delayed", 0, -1)):
            self._redis.zincrby(f"{self.prefix}:delayed", -seconds * 1000 * 4096, job)


class Node:
    """The Node service, after its SQL: expiries have fractions, and what its timers end is ended when they come.

    A timer knows the expiry it was made for, and looks at no other. It fires whenever the service runs: at once for
    what was overdue when it was started.
    """

    def __init__(self, sql: Factory, redis: Redis) -> None:
        self._sql = sql
        self._redis = redis
        self._up = False
        self.start_up()

    def use(self, sql: Factory) -> None:
        self._sql = sql

    def start_up(self) -> None:
        self._up = True
        self._expiries = BullQueue(self._redis, "after-hours-session-expiry")
        BullQueue(self._redis, "after-hours-session-cleanup").add("nightly", time.time() + 86400)
        BullQueue(self._redis, "after-hours-matching").add("periodic", time.time() + 86400)
        self.fire()

    def stop(self) -> None:
        self._up = False

    def fire(self) -> None:
        for session in self._expiries.take_overdue() if self._up else ():
            self.end(session)

    def travel(self, seconds: float) -> None:
        self._expiries.travel(seconds)
        self.fire()

    def start(self, member: str) -> str:
        [row] = self._sql.execute(
            """
            INSERT INTO after_hours_sessions
                (user_id, expires_at, latitude, longitude, fuzzed_latitude, fuzzed_longitude)
            VALUES (%s, date_trunc('second', now()) + interval '30 minutes 123456 microseconds',
                52.5, 13.4, 52.501, 13.401) RETURNING id, expires_at
            """,
            member,
        )
        self._expiries.add(str(row.id), row.expires_at.timestamp())
        return str(row.id)

    def active(self, member: str) -> Any:
        rows = self._sql.execute(
            "SELECT * FROM after_hours_sessions WHERE user_id = %s AND ended_at IS NULL AND expires_at > now()", member
        )
        return rows[0] if rows else None

    def extend(self, session: str, minutes: int) -> None:
        [row] = self._sql.execute(
            """UPDATE after_hours_sessions SET expires_at = expires_at + %s * interval '1 minute' WHERE id = %s
               RETURNING expires_at""",
            minutes,
            session,
        )
        self._expiries.add(session, row.expires_at.timestamp())

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

    def travel(self, seconds: float) -> None:
        """Let `seconds` pass, for the sessions and for the Node service's timers."""
        self.members.travel(seconds)
        self.node.travel(seconds)

    def minute(self) -> None:
        """Let our worker and scheduler do what they do every minute."""
        with self.app.app_context():
            service.reconcile()

    def session(self, member: str) -> Any:
        answer = self.client.get("/api/after-hours/session", headers=bearer(member))
        assert answer.status_code == 200, answer.text
        return answer.json["session"]


def as_role(url: str, role: str) -> str:
    return make_url(url).set(username=role, password=PASSWORD).render_as_string(hide_password=False)


@pytest.fixture
def database(roles: None, make_database: Callable[..., str]) -> str:
    """Return the URL of the host's database, still empty."""
    return make_database(None)


@pytest.fixture
def evening(database: str, redis: Redis, redis_url: str) -> Iterator[Evening]:
    url = database
    with contextlib.ExitStack() as stack:

        def connect(url: str) -> Factory:
            connection = stack.enter_context(contextlib.closing(psycopg2.connect(url)))
            connection.autocommit = True
            return Factory(connection)

        auditor = connect(url)
        auditor.execute(f'ALTER DATABASE "{make_url(url).database}" OWNER TO node')
        host = connect(as_role(url, "node"))
        host.execute(NODE)
        migration = create_app(make_settings(as_role(url, "node"), redis_url))
        with migration.app_context():
            upgrade()
            db.engine.dispose()
        host.execute(GRANTS)
        app = create_app(make_settings(as_role(url, "after_hours"), redis_url))
        app.testing = True
        yield Evening(auditor, Node(host, redis), host, connect(as_role(url, "after_hours")), app, app.test_client())
        with app.app_context():
            db.engine.dispose()


def test_with_worker_and_scheduler_first_every_session_ends_on_time(evening: Evening, redis: Redis) -> None:
    """Step 4 of the table: the Node service answers the members, and both end sessions with their timers."""
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


def delete_the_keys_of_the_node_service(redis: Redis) -> None:
    """Step 6 of the table: what the page says, with its patterns."""
    [patterns] = re.findall(r"^for pattern in (.*); do$", PAGE, re.MULTILINE)
    for pattern in patterns.replace("'", "").split():
        assert pattern.startswith("bull:after-hours-")
        for key in redis.scan_iter(pattern):
            redis.delete(key)


def test_beside_a_running_node_service_an_extension_through_ours_is_lost(evening: Evening) -> None:
    """Why the page keeps `extend` at the Node service for as long as that runs."""
    member, there = evening.members.member(), evening.members.member()
    evening.node.start(member)
    session = evening.node.start(there)
    assert extend(evening.client, member, 30).status_code == 200
    evening.node.extend(session, 30)
    evening.travel(31 * 60)
    assert evening.session(member) is None
    assert evening.session(there)


def test_a_node_service_that_is_started_again_ends_extended_sessions_early(evening: Evening) -> None:
    """Why the page has its keys deleted."""
    member = evening.members.member()
    evening.node.start(member)
    evening.node.stop()
    assert extend(evening.client, member, 30).status_code == 200
    evening.travel(31 * 60)
    assert evening.session(member)
    evening.node.start_up()
    assert evening.session(member) is None


def test_with_its_keys_deleted_the_node_service_ends_no_extended_session_early(evening: Evening, redis: Redis) -> None:
    """Step 6 of the table, and its way back."""
    chat = BullQueue(redis, "after-hours-message-cleanup")  # the chat service's, in the same Redis
    chat.add("nightly", time.time() + 3600)
    kept = {key: redis.dump(key) for key in redis.scan_iter(f"{chat.prefix}:*")}
    extended, left = evening.members.member(), evening.members.member()
    evening.node.start(extended)
    evening.node.start(left)
    evening.node.stop()
    evening.minute()
    delete_the_keys_of_the_node_service(redis)
    assert sorted(redis.scan_iter("bull:*")) == sorted(kept)
    assert {key: redis.dump(key) for key in kept} == kept
    assert scheduled(redis)  # ours are kept
    assert extend(evening.client, extended, 30).status_code == 200

    evening.travel(31 * 60)
    evening.node.start_up()  # the way back: nothing fires
    assert evening.session(extended)["remainingSeconds"] > 1700
    evening.minute()  # ours end what runs out, and go on
    [row] = evening.members.sessions(left)
    assert row.ended_at == row.expires_at
    evening.node.start(left)
    evening.travel(31 * 60)
    evening.minute()
    [row] = evening.members.sessions(extended)
    assert row.ended_at == row.expires_at
    assert evening.node.active(left) is None


def test_the_page_names_each_event_for_the_chat_service(
    evening: Evening, events: Callable[[], list[dict[str, Any]]]
) -> None:
    member = evening.members.member()
    for request in (start, extend, end):
        assert request(evening.client, member).status_code < 300
    start(evening.client, member)
    for seconds in (14 * 60, 61):
        evening.travel(seconds)
        evening.minute()
    found = {event["type"] for event in events()}
    assert len(found) == 5
    assert {kind for kind in found if f"`{kind}`" not in PAGE} == set()


CONSENTS = """
    CREATE TYPE consent_purpose AS ENUM ('marketing', 'after_hours');
    CREATE TABLE user_consents (
        id uuid PRIMARY KEY DEFAULT gen_random_uuid(), user_id text NOT NULL REFERENCES users(id) ON DELETE CASCADE,
        purpose consent_purpose NOT NULL, granted boolean NOT NULL DEFAULT false, granted_at timestamptz,
        withdrawn_at timestamptz, consent_version text, UNIQUE (user_id, purpose))
"""


def grant_on_the_screen(sql: Factory, member: str, purpose: str = "after_hours", table: str = "user_consents") -> None:
    sql.execute(
        f"""INSERT INTO {table} (user_id, purpose, granted, granted_at) VALUES (%s, %s, true, now())
            ON CONFLICT (user_id, purpose) DO UPDATE SET granted = true, granted_at = now(), withdrawn_at = NULL""",
        member,
        purpose,
    )


def withdraw_on_the_screen(sql: Factory, member: str, purpose: str = "after_hours") -> None:
    sql.execute(
        "UPDATE user_consents SET granted = false, withdrawn_at = now() WHERE user_id = %s AND purpose = %s",
        member,
        purpose,
    )


def code(evening: Evening, member: str) -> str | None:
    answer = status(evening.client, member)
    return None if answer.status_code == 200 else str(answer.json["code"])


def test_without_the_bridge_the_hosts_consent_screen_lets_nobody_in(evening: Evening) -> None:
    evening.sql.execute(CONSENTS)
    member = evening.members.member(consent=False)
    grant_on_the_screen(evening.sql, member)
    assert code(evening, member) == "CONSENT_REQUIRED"


def test_the_bridge_carries_over_what_members_say_on_the_hosts_screen(evening: Evening) -> None:
    """Step 2 of the table."""
    evening.sql.execute(CONSENTS)
    before, between, never, other = (evening.members.member(consent=False) for _ in range(4))
    grant_on_the_screen(evening.sql, before)
    evening.sql.execute(BRIDGE)
    assert code(evening, before) is None  # what was said before counts
    grant_on_the_screen(evening.sql, other, "marketing")
    for member in (never, other):
        assert code(evening, member) == "CONSENT_REQUIRED"
    grant_on_the_screen(evening.sql, between)
    assert code(evening, between) is None
    assert start(evening.client, between).status_code == 201

    grant_on_the_screen(evening.sql, between, "marketing")
    withdraw_on_the_screen(evening.sql, between, "marketing")
    assert code(evening, between) is None
    assert evening.node.active(between)
    withdraw_on_the_screen(evening.sql, between)
    assert code(evening, between) == "CONSENT_REQUIRED"
    assert evening.node.active(between) is None  # and nobody is shown any more
    [row] = evening.members.sessions(between)
    assert row.ended_at < row.expires_at
    assert row.latitude is None

    grant_on_the_screen(evening.sql, between)
    assert code(evening, between) is None
    evening.sql.execute("DELETE FROM user_consents WHERE user_id = %s", between)
    assert code(evening, between) == "CONSENT_REQUIRED"
    evening.sql.execute("DELETE FROM users WHERE id = %s", before)  # and the row of their consent with them


def test_a_withdrawal_on_the_hosts_screen_waits_for_a_start_in_flight(evening: Evening, database: str) -> None:
    evening.sql.execute(CONSENTS)
    evening.sql.execute(BRIDGE)
    member = evening.members.member(consent=False)
    grant_on_the_screen(evening.sql, member)
    with contextlib.closing(psycopg2.connect(as_role(database, "node"))) as starting, ThreadPoolExecutor(1) as thread:
        evening.node.use(Factory(starting))
        evening.node.start(member)  # and does not commit yet
        withdrawal = thread.submit(withdraw_on_the_screen, evening.sql, member)
        eventually(lambda: withdrawal.done() or evening.members.waiting())
        starting.commit()
        withdrawal.result(30)
    [row] = evening.members.sessions(member)
    assert row.ended_at


def test_a_bridge_that_is_built_again_undoes_no_later_word(evening: Evening) -> None:
    evening.sql.execute(CONSENTS)
    withdrew, granted = (evening.members.member(consent=False) for _ in range(2))
    grant_on_the_screen(evening.sql, withdrew)
    grant_on_the_screen(evening.sql, granted)
    withdraw_on_the_screen(evening.sql, granted)
    evening.sql.execute(BRIDGE)
    for member, word in ((withdrew, False), (granted, True)):
        answer = evening.client.put("/api/after-hours/consent", json={"granted": word}, headers=bearer(member))
        assert answer.status_code == 200
    assert start(evening.client, granted).status_code == 201
    for _ in range(2):
        evening.sql.execute(BRIDGE)
        evening.sql.execute("UPDATE user_consents SET consent_version = 'another'")  # no word on consent
        assert code(evening, withdrew) == "CONSENT_REQUIRED"
        assert code(evening, granted) is None
    assert evening.node.active(granted)


def test_the_bridge_stands_in_any_schema_and_for_any_writer(roles: None, make_database: Callable[..., str]) -> None:
    with contextlib.closing(psycopg2.connect(make_database(None))) as connection:
        connection.autocommit = True
        host = Factory(connection)
        host.execute(f"CREATE SCHEMA host; SET search_path = host; {NODE}; {CONSENTS}")
        host.execute("SET search_path = host, public")
        host.execute(BRIDGE)
        host.execute("INSERT INTO users (id, provider) VALUES ('m', 'test')")
        host.execute("GRANT USAGE ON SCHEMA host TO node; GRANT SELECT, INSERT, UPDATE ON user_consents TO node")
        # A decoy that the writer could make must not be taken for the host's table.
        host.execute(
            "SET ROLE node; SET search_path = pg_temp; CREATE TEMP TABLE users (id text, after_hours_consent boolean)"
        )
        grant_on_the_screen(host, "m", table="host.user_consents")
        host.execute("RESET ROLE")
        assert host.execute("SELECT after_hours_consent FROM host.users")[0].after_hours_consent is True
        assert (
            host.execute(
                "SELECT nspname FROM pg_proc JOIN pg_namespace AS n ON n.oid = pronamespace "
                "WHERE proname = 'after_hours_bridge_consent'"
            )[0].nspname
            == "host"
        )


def test_a_bridge_to_another_table_than_it_knows_is_not_built(evening: Evening) -> None:
    evening.sql.execute("CREATE TABLE user_consents (user_id text, consent_type text, granted boolean)")
    with pytest.raises(
        RaiseException, match="no column granted_at, purpose, withdrawn_at: adjust deploy/consent_bridge"
    ):
        evening.sql.execute(BRIDGE)


def test_our_api_carries_on_the_sessions_of_the_node_service(evening: Evening) -> None:
    """Step 5 of the table: the members' requests come to us."""
    member = evening.members.member()
    session = evening.node.start(member)
    shown = evening.session(member)
    assert shown["id"] == session
    assert 1795 <= shown["remainingSeconds"] <= 1800
    assert start(evening.client, member).json["code"] == "SESSION_ALREADY_ACTIVE"
    before = evening.members.sessions(member)[0].expires_at
    assert extend(evening.client, member, 15).status_code == 200
    after = evening.members.sessions(member)[0].expires_at
    assert 900 <= (after - before).total_seconds() < 901
    assert after.microsecond == 0
    assert end(evening.client, member).status_code == 200
    assert evening.node.active(member) is None
    evening.node.start(member)


def test_on_the_way_back_the_node_service_carries_on_ours(evening: Evening, redis: Redis) -> None:
    """The members' requests go to the Node service again; our worker and scheduler stay."""
    left, ended, extended = (evening.members.member() for _ in range(3))
    for member in (left, ended, extended):
        assert start(evening.client, member).status_code == 201
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
        host.execute(HOST)
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
        answer = evening.client.open(f"{API}/{path}", method=method, json=body, headers=bearer(member))
        assert answer.status_code < 300, (path, answer.text)
    assert evening.client.get("/readyz").status_code == 200
    evening.minute()
    evening.members.travel(30 * 86400)
    with evening.app.app_context():
        assert not photos.is_banned("0" * 16)
        assert cleanup.pending()["sessions"] == 1
        assert cleanup.run().counts["sessions"] == 1
    answer = erase(evening.client, member)
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
    "SELECT reason FROM banned_photo_hashes",
    "DELETE FROM banned_photo_hashes",
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

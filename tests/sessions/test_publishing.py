"""Every expiry is told at least once, and without a crash just once."""

import contextlib
import math
import re
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import psycopg2
import pytest
from flask import Flask
from flask.testing import FlaskClient
from redis import Redis
from sqlalchemy.exc import OperationalError

from afterhours_service import create_app
from afterhours_service.config import Settings
from afterhours_service.sessions import queries, service
from afterhours_service.stores.database import db
from afterhours_service.stores.redis import is_redis_away
from tests.client import end, extend, start
from tests.conftest import make_settings
from tests.factories import Factory, scheduled
from tests.outages import OwnValkey
from tests.stopwatch import eventually

Events = Callable[[], list[dict[str, Any]]]


def expired(events: Events) -> list[str]:
    """Return the sessions whose expiry was told since the last look."""
    return [event["payload"]["sessionId"] for event in events() if event["type"] == "after_hours:session_expired"]


def test_an_expiry_is_published_once(app: Flask, factory: Factory, events: Events) -> None:
    session = factory.session(factory.member(), left=-1)
    with app.app_context():
        service.do_what_is_due()
        factory.let_leases_expire()
        service.do_what_is_due()
    assert expired(events) == [session]


def test_another_publishes_an_expiry_when_the_worker_died_after_its_commit(
    app: Flask, factory: Factory, events: Events
) -> None:
    session = factory.session(factory.member(), left=-1)
    with app.app_context():
        queries.end_due(10, service.LEASE)
        service.do_what_is_due()
        assert expired(events) == []  # it may still be at it
        factory.let_leases_expire()
        service.do_what_is_due()
        assert expired(events) == [session]


def test_the_reconciliation_arms_a_retry_for_when_the_lease_expires(app: Flask, factory: Factory, redis: Redis) -> None:
    factory.session(factory.member(), left=-1)
    with app.app_context():
        queries.end_due(10, service.LEASE)
        [(tell_at,)] = factory.execute("SELECT tell_at FROM after_hours_untold")
        assert service.reconcile()["armed"] == 0
    assert list(scheduled(redis).values()) == [math.ceil(tell_at.timestamp())]


def test_an_expiry_while_redis_was_away_is_published_when_it_is_back(
    app: Flask, settings: Settings, factory: Factory, events: Events
) -> None:
    session = factory.session(factory.member(), left=-1)
    away = create_app(make_settings(settings.database_url, "unix:///nowhere"))
    with away.app_context():
        assert service.do_what_is_due().ended == 1
        db.engine.dispose()
    with app.app_context():
        service.do_what_is_due()
    assert expired(events) == [session]


def kinds(events: Events) -> list[tuple[str, str]]:
    """Return the kind and the session of each event since the last look."""
    return [(event["type"].removeprefix("after_hours:session_"), event["payload"]["sessionId"]) for event in events()]


def _nobody(app: Flask) -> None:
    """The start itself ends the session that ran out."""


def _a_worker_that_is_late(app: Flask) -> None:
    """It has ended the session, and is yet to publish that."""
    with app.app_context():
        queries.end_due(10, service.LEASE)


def _a_worker_that_cannot_note_it(app: Flask) -> None:
    """It has published the expiry, and died before it could note that."""
    with app.app_context(), pytest.MonkeyPatch.context() as broken:
        broken.setattr(queries, "mark_published", lambda _: None)
        service.do_what_is_due()


@pytest.mark.parametrize("who", [_nobody, _a_worker_that_is_late, _a_worker_that_cannot_note_it])
def test_the_expiry_of_the_old_session_is_published_before_the_start_of_the_new_and_once(
    app: Flask, client: FlaskClient, factory: Factory, events: Events, who: Callable[[Flask], None]
) -> None:
    member = factory.member()
    old = factory.session(member, left=-1)
    who(app)
    assert start(client, member).status_code == 201
    new = str(factory.sessions(member)[-1].id)
    with app.app_context():
        factory.let_leases_expire()
        service.do_what_is_due()
    assert kinds(events) == [("expired", old), ("started", new)]
    assert not factory.execute("SELECT FROM after_hours_untold")


def test_a_start_that_waits_for_the_worker_that_ends_the_old_session_publishes_its_expiry(
    app: Flask, factory: Factory, events: Events, database_url: str
) -> None:
    member = factory.member()
    old = factory.session(member, left=-1)
    with contextlib.closing(psycopg2.connect(database_url)) as worker, worker.cursor() as cursor:
        cursor.execute("UPDATE after_hours_sessions SET ended_at = expires_at")
        with ThreadPoolExecutor(1) as requests:
            answer = requests.submit(start, app.test_client(), member)
            eventually(factory.waiting)
            worker.commit()
        assert answer.result().status_code == 201
    assert kinds(events) == [("expired", old), ("started", str(factory.sessions(member)[-1].id))]


@pytest.mark.parametrize("ago", [-60, -3600], ids=["just now", "long ago"])
@pytest.mark.parametrize("early", [False, True], ids=["expired", "ended early"])
def test_a_start_publishes_no_end_that_was_published_even_if_redis_was_emptied_since(
    client: FlaskClient, factory: Factory, events: Events, early: bool, ago: float
) -> None:
    member = factory.member()
    factory.session(member, left=ago, ended=True)
    if early:
        factory.execute("UPDATE after_hours_sessions SET ended_at = expires_at - interval '1 minute'")
    assert start(client, member).status_code == 201
    assert [kind for kind, _ in kinds(events)] == ["started"]


@pytest.mark.parametrize(("change", "told"), [(extend, "extended"), (end, "ended")], ids=["extension", "end"])
def test_a_warning_is_not_published_after_a_change_that_made_it_untrue(
    app: Flask,
    client: FlaskClient,
    factory: Factory,
    events: Events,
    monkeypatch: pytest.MonkeyPatch,
    *,
    change: Callable[..., Any],
    told: str,
) -> None:
    """Between the worker's commit and its publication."""
    changed, kept = factory.member(), factory.member()
    sessions = {member: factory.session(member, left=100) for member in (changed, kept)}
    warn = queries.warn_due

    def warn_due(*arguments: Any) -> list[queries.Session]:
        warned = warn(*arguments)
        if warned:
            assert change(client, changed).status_code == 200
        return warned

    monkeypatch.setattr(queries, "warn_due", warn_due)
    with app.app_context():
        service.do_what_is_due()
    assert kinds(events) == [(told, sessions[changed]), ("expiring", sessions[kept])]


def _published_when_overtaken(
    monkeypatch: pytest.MonkeyPatch, statement: str, late: Callable[[], Any], by: Callable[[], Any]
) -> None:
    """Do something, and something else between its commit and its publication."""
    do = getattr(queries, statement)

    def overtaken(*arguments: Any) -> Any:
        monkeypatch.setattr(queries, statement, do)
        done = do(*arguments)
        by()
        return done

    monkeypatch.setattr(queries, statement, overtaken)
    late()


def test_a_start_that_overtakes_an_end_publishes_it_before_its_own_event_and_once(
    app: Flask, client: FlaskClient, factory: Factory, events: Events, monkeypatch: pytest.MonkeyPatch
) -> None:
    member = factory.member()
    old = factory.session(member)
    _published_when_overtaken(monkeypatch, "end", lambda: end(client, member), lambda: start(app.test_client(), member))
    assert kinds(events) == [("ended", old), ("started", str(factory.sessions(member)[-1].id))]


def test_a_start_that_waits_for_an_end_publishes_it(
    app: Flask, factory: Factory, events: Events, database_url: str
) -> None:
    member = factory.member()
    old = factory.session(member)
    waiting = "pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'"
    with contextlib.closing(psycopg2.connect(database_url)) as other, other.cursor() as cursor:
        cursor.execute("UPDATE after_hours_sessions SET ended_at = clock_timestamp()")
        with ThreadPoolExecutor(1) as requests:
            answer = requests.submit(start, app.test_client(), member)
            eventually(lambda: factory.count(waiting))
            other.commit()
        assert answer.result().status_code == 201
    assert kinds(events) == [("ended", old), ("started", str(factory.sessions(member)[-1].id))]


@pytest.mark.parametrize(("statement", "change"), [("start", start), ("extend", extend)])
def test_nothing_of_a_session_is_published_after_its_end(
    app: Flask,
    client: FlaskClient,
    factory: Factory,
    events: Events,
    monkeypatch: pytest.MonkeyPatch,
    statement: str,
    change: Callable[..., Any],
) -> None:
    member = factory.member()
    if statement == "extend":
        factory.session(member)
    _published_when_overtaken(
        monkeypatch, statement, lambda: change(client, member), lambda: end(app.test_client(), member)
    )
    assert kinds(events) == [("ended", str(factory.sessions(member)[-1].id))]


def test_no_warning_comes_after_the_expiry(
    app: Flask, factory: Factory, events: Events, monkeypatch: pytest.MonkeyPatch
) -> None:
    session = factory.session(factory.member(), left=100)
    warn = queries.warn_due

    def warn_due(*arguments: Any) -> list[queries.Session]:
        monkeypatch.setattr(queries, "warn_due", warn)
        warned = warn(*arguments)
        factory.travel(101)
        service.do_what_is_due()  # another worker
        return warned

    monkeypatch.setattr(queries, "warn_due", warn_due)
    with app.app_context():
        service.do_what_is_due()
    assert kinds(events) == [("expired", session)]


def test_no_event_overtakes_another_in_a_storm(app: Flask, factory: Factory, events: Events) -> None:
    """Workers warn and end while members extend, end and start: each member's events are in order."""
    members = [factory.member() for _ in range(12)]
    for number, member in enumerate(members):
        factory.session(member, left=(-1, 90)[number % 2])
    calm = threading.Event()

    def work() -> None:
        while not calm.is_set():
            with app.app_context():
                service.do_what_is_due()

    def hurry(member: str) -> None:
        client = app.test_client()
        for step in (start, extend, end, start, end):
            step(client, member)

    with ThreadPoolExecutor(2) as workers:
        for _ in range(2):
            workers.submit(work)
        with ThreadPoolExecutor(4) as requests:
            list(requests.map(hurry, members))
        calm.set()
    told = dict.fromkeys(members, "")
    for event in events():
        told[event["targetUserId"]] += event["type"].removeprefix("after_hours:session_") + " "
    for story in told.values():
        assert re.fullmatch(
            "expired started extended ended started ended |(expiring )?extended ended started ended ", story
        )


def test_a_backlog_of_expiries_delays_no_end(
    app: Flask, factory: Factory, events: Events, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is due, or falls due meanwhile, is ended and published before the next batch of what was left."""
    monkeypatch.setattr(service, "BATCH", 3)
    backlog = [factory.session(factory.member(), left=-60) for _ in range(9)]
    with app.app_context():
        for _ in backlog:  # a row of the outbox each
            queries.end_due(1, -service.LEASE)
    due, soon = factory.session(factory.member(), left=-1), factory.session(factory.member(), left=60, length=900)
    claim, claims = queries.claim_pending, []

    def claim_pending(*arguments: Any) -> queries.PendingExpiries:
        claimed = claim(*arguments)
        claims.append(len(claimed.sessions))
        if len(claims) == 1:
            factory.execute("UPDATE after_hours_sessions SET expires_at = now(), warned_at = now() WHERE id = %s", soon)
        return claimed

    monkeypatch.setattr(queries, "claim_pending", claim_pending)
    with app.app_context():
        assert service.do_what_is_due()[::2] == (2, True)
    told = expired(events)
    assert claims == [3, 3, 3, 0]
    assert told[0] == due
    assert told[4] == soon
    assert sorted(told[1:4] + told[5:]) == sorted(backlog)


@pytest.mark.parametrize("batch", [2, 1000])
def test_many_pending_expiries_are_published_batch_by_batch(
    app: Flask, factory: Factory, events: Events, monkeypatch: pytest.MonkeyPatch, batch: int
) -> None:
    monkeypatch.setattr(service, "BATCH", batch)
    sessions = {factory.session(factory.member(), left=-1) for _ in range(5)}
    with app.app_context():
        while queries.end_due(2, -service.LEASE).sessions:
            pass
        service.do_what_is_due()
    told = expired(events)
    assert (len(told), set(told)) == (5, sessions)


def test_a_session_that_was_erased_before_its_expiry_was_published_is_forgotten(
    app: Flask, factory: Factory, events: Events
) -> None:
    kept, erased = (factory.session(factory.member(), left=-1) for _ in range(2))
    with app.app_context():
        queries.end_due(1, -service.LEASE)
        queries.end_due(1, -service.LEASE)
        factory.execute("DELETE FROM after_hours_sessions WHERE id = %s", erased)
        service.do_what_is_due()
    assert expired(events) == [kept]
    assert not factory.execute("SELECT FROM after_hours_untold")


def test_two_workers_on_the_same_second_do_each_session_once(
    app: Flask, factory: Factory, events: Events, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(service, "BATCH", 3)
    sessions = {factory.session(factory.member(), left=-1) for _ in range(30)}

    def work() -> int:
        with app.app_context():
            return service.do_what_is_due().ended

    with ThreadPoolExecutor(4) as workers:
        counts = [future.result() for future in [workers.submit(work) for _ in range(4)]]
    told = expired(events)
    assert sum(counts) == len(told) == 30
    assert set(told) == sessions


def test_a_batch_published_by_a_thread_returns_its_connection_and_is_published_once(
    app: Flask, factory: Factory, events: Events, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(service, "BATCH", 2)
    sessions = {factory.session(factory.member(), left=-1) for _ in range(5)}

    def fail(_: int) -> None:
        raise OperationalError(None, None, Exception())

    with app.app_context():
        with monkeypatch.context() as broken:
            broken.setattr(queries, "mark_published", fail)
            assert service.do_what_is_due().ended == 5
        assert db.engine.pool.checkedout() == 1  # type: ignore[attr-defined]
        assert set(expired(events)) == sessions
        factory.let_leases_expire()
        service.do_what_is_due()
        assert expired(events) == []
        assert not factory.execute("SELECT FROM after_hours_untold")


class TestRedisThatIsFull:
    """It takes no writes, and publishes."""

    @pytest.fixture
    def redis_url(self, own_valkey: OwnValkey) -> str:
        return own_valkey.url

    def test_expiries_are_published_all_the_same(
        self, app: Flask, factory: Factory, redis: Redis, events: Events
    ) -> None:
        session = factory.session(factory.member(), left=-1)
        redis.config_set("maxmemory", 1)
        with app.app_context():
            assert service.do_what_is_due() == (1, 0, True)
        assert expired(events) == [session]

    def test_a_replica_publishes_nothing_to_nobody(
        self, app: Flask, factory: Factory, redis: Redis, events: Events
    ) -> None:
        session = factory.session(factory.member(), left=-1)
        redis.replicaof("127.0.0.1", 1)
        with app.app_context():
            assert service.do_what_is_due() == (1, 0, False)
            assert expired(events) == []
            redis.replicaof("NO", "ONE")
            eventually(lambda: not is_redis_away())
            factory.let_leases_expire()
            assert service.do_what_is_due() == (0, 0, True)
        assert expired(events) == [session]

"""What timers and the reconciliation do: each session ends once, at its expiry, and is announced once."""

import contextlib
import math
import re
import threading
from collections.abc import Callable
from datetime import datetime
from typing import Any

import psycopg2
import pytest
from flask import Flask
from flask.testing import FlaskClient
from redis import Redis
from rq import Queue
from rq.job import Job
from sqlalchemy import text

from afterhours_service.cleanup import service as service_of_cleanup
from afterhours_service.jobs.jobs import QUEUES, TIMERS_QUEUE, job
from afterhours_service.jobs.worker import Worker
from afterhours_service.sessions import service
from afterhours_service.sessions.jobs import reconcile, session_timer
from afterhours_service.stores.statements import Statement
from tests.client import extend, start
from tests.factories import Factory

Events = Callable[[], list[dict[str, Any]]]


def do_what_is_due(app: Flask) -> None:
    with app.app_context():
        session_timer(0)


def moment(row: datetime) -> str:
    return row.strftime("%Y-%m-%dT%H:%M:%S.000Z")


@pytest.fixture(autouse=True)
def _utc(factory: Factory) -> None:
    factory.execute("SET timezone = 'UTC'")


def _timer(app: Flask, member: str) -> None:
    do_what_is_due(app)


def _reconciliation(app: Flask, member: str) -> None:
    with app.app_context():
        reconcile()


def _cleanup(app: Flask, member: str) -> None:
    with app.app_context():
        service_of_cleanup.run()


def _start(app: Flask, member: str) -> None:
    response = start(app.test_client(), member)
    assert response.status_code == 201


@pytest.mark.parametrize("late_seconds", [0, 90, 3 * 86400])
@pytest.mark.parametrize("who", [_timer, _reconciliation, _cleanup, _start])
def test_a_session_ends_at_its_expiry_whoever_notices_and_whenever(
    app: Flask, factory: Factory, events: Events, who: Callable[[Flask, str], None], late_seconds: int
) -> None:
    member = factory.member()
    session_id = factory.session(member, left=-late_seconds)
    who(app, member)
    ended = factory.sessions(member)[0]
    assert ended.ended_at == ended.expires_at
    expired = [event for event in events() if event["type"] == "after_hours:session_expired"]
    timestamp = expired[0].pop("timestamp")
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", timestamp)
    assert expired == [
        {
            "type": "after_hours:session_expired",
            "targetUserId": member,
            "payload": {"sessionId": session_id, "reason": "timeout"},
        }
    ]
    who_else = [_timer, _reconciliation, _cleanup]
    for again in who_else:
        again(app, member)
    assert factory.sessions(member)[0] == ended
    assert events() == []


@pytest.mark.parametrize("who", [_timer, _reconciliation, _cleanup])
@pytest.mark.parametrize("left", [2, 60, 900])
def test_nothing_ends_before_its_expiry(
    app: Flask, factory: Factory, left: float, who: Callable[[Flask, str], None]
) -> None:
    member = factory.member()
    factory.session(member, left=left)
    who(app, member)
    assert factory.sessions(member)[0].ended_at is None


def test_a_session_that_its_member_ended_stays_as_it_is(app: Flask, factory: Factory, events: Events) -> None:
    member = factory.member()
    factory.session(member, left=-60)
    factory.execute("UPDATE after_hours_sessions SET ended_at = expires_at - interval '5 minutes'")
    before = factory.sessions(member)
    _reconciliation(app, member)
    assert factory.sessions(member) == before
    assert events() == []


@pytest.mark.parametrize(("left", "minutes"), [(120, 2), (100, 2), (50, 1)])
def test_a_member_is_warned_once(app: Flask, factory: Factory, events: Events, left: float, minutes: int) -> None:
    member = factory.member()
    session_id = factory.session(member, left=left)
    for _ in range(3):
        do_what_is_due(app)
    [event] = events()
    assert event.pop("timestamp") < moment(factory.sessions(member)[0].expires_at)
    assert event == {
        "type": "after_hours:session_expiring",
        "targetUserId": member,
        "payload": {
            "sessionId": session_id,
            "expiresAt": moment(factory.sessions(member)[0].expires_at),
            "minutesRemaining": minutes,
        },
    }


def test_nobody_is_warned_early(app: Flask, factory: Factory, events: Events) -> None:
    factory.session(factory.member(), left=125)
    do_what_is_due(app)
    assert events() == []


def test_a_member_who_extends_is_warned_again(
    app: Flask, client: FlaskClient, factory: Factory, events: Events
) -> None:
    member = factory.member()
    factory.session(member, left=100)
    do_what_is_due(app)
    extend(client, member)
    do_what_is_due(app)
    factory.travel(900)
    do_what_is_due(app)
    kinds = [event["type"].removeprefix("after_hours:session_") for event in events()]
    assert kinds == ["expiring", "extended", "expiring"]


def test_an_adopted_session_with_a_fraction_ends_at_its_fraction(app: Flask, factory: Factory) -> None:
    member = factory.member()
    factory.session(member, left=-2)
    factory.execute("UPDATE after_hours_sessions SET expires_at = expires_at + interval '0.4 seconds'")
    do_what_is_due(app)
    [row] = factory.sessions(member)
    assert row.ended_at == row.expires_at
    assert row.ended_at.microsecond == 400_000


def test_more_than_a_batch_is_done_in_one_go(
    app: Flask, factory: Factory, events: Events, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(service, "BATCH", 3)
    over = [factory.session(factory.member(), left=-60 - n) for n in range(7)]
    soon = [factory.session(factory.member(), left=60 + n) for n in range(6)]
    with app.app_context():
        assert service.do_what_is_due() == (7, 6, True)
    told = [(event["type"], event["payload"]["sessionId"]) for event in events()]
    assert sorted(told) == sorted(
        [("after_hours:session_expired", session) for session in over]
        + [("after_hours:session_expiring", session) for session in soon]
    )


def test_workers_at_once_do_each_session_once(
    app: Flask, factory: Factory, events: Events, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(service, "BATCH", 10)
    over = {factory.session(factory.member(), left=-60) for _ in range(60)}
    soon = {factory.session(factory.member(), left=60) for _ in range(60)}
    counts: list[service.Overdue] = []
    barrier = threading.Barrier(3)

    def work() -> None:
        with app.app_context():
            barrier.wait()
            counts.append(service.do_what_is_due())

    threads = [threading.Thread(target=work) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    do_what_is_due(app)  # what was locked when all three looked
    told = [event["payload"]["sessionId"] for event in events()]
    assert len(told) == 120
    assert set(told) == over | soon
    assert factory.count("after_hours_sessions WHERE ended_at = expires_at") == 60


def test_a_session_that_others_refer_to_at_this_moment_ends_all_the_same(
    app: Flask, factory: Factory, database_url: str
) -> None:
    member, other = factory.member(), factory.member()
    session_id = factory.session(member, left=-1)
    with contextlib.closing(psycopg2.connect(database_url)) as connection, connection.cursor() as cursor:
        cursor.execute(
            "INSERT INTO after_hours_declines (session_id, user_id, declined_user_id) VALUES (%s, %s, %s)",
            (session_id, other, member),
        )
        do_what_is_due(app)
        assert factory.sessions(member)[0].ended_at is not None


def test_a_session_being_extended_is_left_alone(app: Flask, factory: Factory, database_url: str) -> None:
    """The worker waits for nobody: what it skips is not due any more, or has a timer, or the reconciliation."""
    member = factory.member()
    factory.session(member, left=-1)
    with contextlib.closing(psycopg2.connect(database_url)) as connection, connection.cursor() as cursor:
        cursor.execute("UPDATE after_hours_sessions SET expires_at = expires_at + interval '1 hour'")
        do_what_is_due(app)
        connection.commit()
    do_what_is_due(app)
    assert factory.sessions(member)[0].ended_at is None


@job
def tell_time() -> str:
    [(now,)] = Statement[Any](text("SELECT now()")).all()
    return str(now)


@pytest.fixture
def work_off(app: Flask, redis: Redis) -> Callable[[], None]:
    """Return what works off the queues as the worker process does: in one process, in an application context."""

    def work() -> None:
        with app.app_context():
            Worker(QUEUES, connection=redis).work(burst=True)

    return work


def test_each_job_has_a_transaction_of_its_own(redis: Redis, factory: Factory, work_off: Callable[[], None]) -> None:
    queue = Queue(TIMERS_QUEUE, connection=redis)
    jobs = [queue.enqueue(tell_time) for _ in range(2)]
    work_off()
    first, second = (str(job.return_value(refresh=True)) for job in jobs)
    assert "None" not in {first, second}
    assert first != second
    assert factory.count("pg_stat_activity WHERE datname = current_database() AND state LIKE 'idle in %'") == 0


def test_a_timer_leaves_nothing_behind_in_redis(
    client: FlaskClient, redis: Redis, factory: Factory, work_off: Callable[[], None]
) -> None:
    member = factory.member()
    start(client, member)
    expiry = math.ceil(factory.sessions(member)[0].expires_at.timestamp())
    factory.travel(901)
    timer = Job.fetch(f"session-timer-{expiry}", connection=redis)
    Queue(TIMERS_QUEUE, connection=redis).enqueue_job(timer)
    work_off()
    [row] = factory.sessions(member)
    assert row.ended_at == row.expires_at
    assert not redis.exists(timer.key)
    assert Queue(TIMERS_QUEUE, connection=redis).failed_job_registry.count == 0

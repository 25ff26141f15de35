"""The timers follow the sessions: which seconds are armed, and that none is lost."""

import math
from collections.abc import Callable
from datetime import datetime, timedelta
from typing import Any

import pytest
from flask import Flask
from flask.testing import FlaskClient
from redis import Redis
from redis.exceptions import RedisError
from rq.job import Job

from afterhours_service.jobs.events import PUBLISHED
from afterhours_service.jobs.runs import recorded_runs
from afterhours_service.jobs.timers import SCHEDULED
from afterhours_service.sessions import deadlines, queries, service
from afterhours_service.sessions.jobs import reconcile, session_timer
from afterhours_service.stores.redis import is_redis_away
from tests.client import end, extend, start
from tests.factories import Factory, scheduled
from tests.outages import OwnValkey

LEAD = 120


def armed(redis: Redis) -> list[int]:
    """Return the seconds that a session's timer is armed for, with its job there to be run."""
    timers = {name: second for name, second in scheduled(redis).items() if name.startswith(deadlines.TIMERS.prefix)}
    for timer_id, second in timers.items():
        job = Job.fetch(timer_id, connection=redis)
        assert (job.func_name, job.args) == ("afterhours_service.sessions.jobs.session_timer", (int(second),))
    return [int(second) for second in timers.values()]


def started(client: FlaskClient, factory: Factory) -> str:
    """Return a member who has started a session."""
    member = factory.member()
    assert start(client, member).status_code == 201
    return member


def expiry(factory: Factory, member: str) -> int:
    expires_at: datetime = factory.sessions(member)[-1].expires_at
    return math.ceil(expires_at.timestamp())


def pair(app: Flask, factory: Factory, apart: int = 0) -> tuple[str, str, int]:
    """Return two members whose sessions expire `apart` seconds from each other, with timers, and the first expiry."""
    first, second = factory.member(), factory.member()
    factory.session(first, left=900)
    factory.session(second, left=900)
    moment = factory.sessions(first)[0].expires_at
    factory.execute(
        "UPDATE after_hours_sessions SET expires_at = %s WHERE user_id = %s", moment + timedelta(seconds=apart), second
    )
    with app.app_context():
        reconcile()
    return first, second, int(moment.timestamp())


@pytest.mark.parametrize("minute_seconds", [60, 1])
def test_a_start_arms_the_warning_and_the_expiry(
    make_app: Callable[..., Flask], factory: Factory, redis: Redis, minute_seconds: int
) -> None:
    member = started(make_app(minute_seconds=minute_seconds).test_client(), factory)
    second = expiry(factory, member)
    assert armed(redis) == [second - 2 * minute_seconds, second]


def test_an_extension_moves_both_timers(client: FlaskClient, factory: Factory, redis: Redis) -> None:
    member = started(client, factory)
    before = expiry(factory, member)
    assert extend(client, member, 30).status_code == 200
    assert expiry(factory, member) == before + 1800
    assert armed(redis) == [before + 1800 - LEAD, before + 1800]


def test_an_early_end_leaves_no_timer(client: FlaskClient, factory: Factory, redis: Redis) -> None:
    assert end(client, started(client, factory)).status_code == 200
    assert redis.keys() == [PUBLISHED.encode()]


def test_neither_do_many_extensions_and_an_end(client: FlaskClient, factory: Factory, redis: Redis) -> None:
    member = started(client, factory)
    for _ in range(3):
        assert extend(client, member).status_code == 200
    assert end(client, member).status_code == 200
    assert redis.keys() == [PUBLISHED.encode()]


@pytest.mark.parametrize("leave", [end, extend], ids=["end", "extension"])
@pytest.mark.parametrize(
    ("apart", "kept"),
    [
        pytest.param(0, [-LEAD, 0], id="same second"),
        pytest.param(LEAD, [0, LEAD], id="its expiry is the other's warning"),
        pytest.param(-LEAD, [-2 * LEAD, -LEAD], id="its warning is the other's expiry"),
        pytest.param(1, [1 - LEAD, 1], id="next second"),
    ],
)
def test_what_another_session_needs_survives(
    app: Flask,
    client: FlaskClient,
    factory: Factory,
    redis: Redis,
    *,
    apart: int,
    kept: list[int],
    leave: Callable[[FlaskClient, str], Any],
) -> None:
    first, _, moment = pair(app, factory, apart)
    assert leave(client, first).status_code == 200
    moved = [900 - LEAD, 900] if leave is extend else []
    assert [second - moment for second in armed(redis)] == kept + moved


def test_the_last_of_two_takes_the_timers_with_it(
    app: Flask, client: FlaskClient, factory: Factory, redis: Redis
) -> None:
    first, second, _ = pair(app, factory)
    assert end(client, first).status_code == 200
    assert end(client, second).status_code == 200
    assert armed(redis) == []


def test_the_database_is_asked_again_after_the_timer_is_gone(
    client: FlaskClient, factory: Factory, redis: Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A start between the two would otherwise arm a timer that is then cancelled."""
    member = started(client, factory)
    ask, seen = queries.needed_seconds, []

    def needed_seconds(*arguments: Any) -> set[int]:
        seen.append(armed(redis))
        other = factory.member()
        factory.session(other)
        factory.execute(
            "UPDATE after_hours_sessions SET expires_at = s.expires_at FROM after_hours_sessions AS s"
            " WHERE after_hours_sessions.user_id = %s AND s.user_id = %s",
            other,
            member,
        )
        return ask(*arguments)

    monkeypatch.setattr(queries, "needed_seconds", needed_seconds)
    assert end(client, member).status_code == 200
    second = expiry(factory, member)
    assert seen == [[]]
    assert armed(redis) == [second - LEAD, second]


def test_reconciliation_arms_what_is_missing_and_nothing_else(app: Flask, factory: Factory, redis: Redis) -> None:
    for left, ended in ((900, False), (3000.4, False), (60, False), (0, False), (-60, False), (900, True)):
        factory.session(factory.member(), left=left, ended=ended)
    seconds = [
        r.s for r in factory.execute("SELECT extract(epoch FROM expires_at)::int AS s FROM after_hours_sessions")
    ]
    long, longer, short = seconds[0], seconds[1], seconds[2]
    expected = sorted([long - LEAD, long, longer - LEAD, longer, short])
    with app.app_context():
        reconcile()
        assert armed(redis) == expected
        assert deadlines.reconcile() == 0
        redis.flushall()
        assert deadlines.reconcile() == 5
        assert armed(redis) == expected
        lost = list(scheduled(redis))[1]
        redis.zrem(SCHEDULED, lost)
        assert deadlines.reconcile() == 1
        redis.delete(Job.key_for(lost))  # the entry is there, and would come to nothing
        assert deadlines.reconcile() == 1
        assert armed(redis) == expected


def test_reconciliation_arms_more_seconds_than_a_trip_holds(app: Flask, factory: Factory, redis: Redis) -> None:
    """As after a flush on a busy evening."""
    factory.execute("INSERT INTO users (id, provider) SELECT 'm' || n, 'test' FROM generate_series(1, 1200) AS n")
    factory.execute(
        """
        INSERT INTO after_hours_sessions (user_id, expires_at, latitude, longitude, fuzzed_latitude, fuzzed_longitude)
        SELECT 'm' || n, date_trunc('second', now()) + (600 + n) * interval '1 second', 0, 0, 0, 0
        FROM generate_series(1, 1200) AS n"""
    )
    with app.app_context():
        assert deadlines.reconcile() == 1320
        assert not is_redis_away()
        assert deadlines.reconcile() == 0
    assert redis.zcard(SCHEDULED) == 1320


def test_a_timer_that_is_early_by_the_clock_of_the_database_gets_a_second_try(
    app: Flask, factory: Factory, redis: Redis
) -> None:
    member = factory.member()
    session_id = factory.session(member, left=30)
    second = expiry(factory, member)
    with app.app_context():
        session_timer(second)
    [(timer_id, at)] = scheduled(redis).items()
    assert timer_id == f"session-timer-{second}-at-{int(at)}"
    assert Job.fetch(timer_id, connection=redis).args == (second,)
    assert 28 <= at - second <= 32  # as much later, by the scheduler's clock, as that was early
    assert [(str(row.id), row.ended_at) for row in factory.sessions(member)] == [(session_id, None)]
    factory.travel(31)
    with app.app_context():
        session_timer(second - 31)
    assert redis.zcard(SCHEDULED) == 1
    assert factory.sessions(member)[0].ended_at is not None


@pytest.mark.parametrize(("leave", "moved"), [(end, []), (extend, [900 - LEAD, 900])])
def test_an_adopted_session_with_a_fraction_is_rounded_up(
    app: Flask,
    client: FlaskClient,
    factory: Factory,
    redis: Redis,
    *,
    leave: Callable[[FlaskClient, str], Any],
    moved: list[int],
) -> None:
    member = factory.member()
    factory.session(member, left=900)
    factory.execute("UPDATE after_hours_sessions SET expires_at = expires_at + interval '0.4 seconds'")
    second = expiry(factory, member)
    with app.app_context():
        reconcile()
    assert armed(redis) == [second - LEAD, second]
    assert leave(client, member).status_code == 200
    assert [timer - second for timer in armed(redis)] == moved
    assert expiry(factory, member) == second + (moved[-1] if moved else 0)


def test_sessions_that_differ_by_a_fraction_share_a_timer(
    app: Flask, client: FlaskClient, factory: Factory, redis: Redis
) -> None:
    member, other = factory.member(), factory.member()
    for who in (member, other):
        factory.session(who, left=900)
    factory.execute(
        "UPDATE after_hours_sessions SET expires_at = date_trunc('second', now()) + interval '900 seconds'"
        " + CASE user_id WHEN %s THEN interval '0.4 seconds' ELSE interval '0.9 seconds' END",
        member,
    )
    with app.app_context():
        reconcile()
    assert end(client, member).status_code == 200
    second = expiry(factory, other)
    assert armed(redis) == [second - LEAD, second]


def test_what_redis_has_lost_is_done_by_the_reconciliation(
    app: Flask, client: FlaskClient, factory: Factory, redis: Redis
) -> None:
    member = started(client, factory)
    redis.flushall()
    factory.travel(1000)
    with app.app_context():
        service.reconcile()
    [row] = factory.sessions(member)
    assert row.ended_at == row.expires_at


class TestRedisThatRefuses:
    """What an access list, a full memory or a replica may do; each test has a Valkey of its own."""

    @pytest.fixture
    def redis_url(self, own_valkey: OwnValkey) -> str:
        return own_valkey.url

    @pytest.mark.parametrize("command", ["zadd", "publish"])
    def test_a_reconciliation_fails_is_not_recorded_and_does_all_when_it_comes_again(
        self, app: Flask, factory: Factory, redis: Redis, events: Callable[[], list[dict[str, Any]]], command: str
    ) -> None:
        factory.session(factory.member(), left=900)
        factory.session(factory.member(), left=-1)
        redis.execute_command("ACL", "SETUSER", "default", f"-{command}")  # type: ignore[no-untyped-call]
        with app.app_context():
            with pytest.raises(RedisError):
                reconcile()
            assert "reconcile" not in recorded_runs(redis)
            redis.execute_command("ACL", "SETUSER", "default", f"+{command}")  # type: ignore[no-untyped-call]
            factory.let_leases_expire()
            reconcile()
            assert deadlines.compare().missing == []
        assert recorded_runs(redis)["reconcile"].finished == 1
        assert [event["type"] for event in events()] == ["after_hours:session_expired"]
        assert not factory.execute("SELECT FROM after_hours_untold")

"""What a worker leaves when it dies in the middle of a round is caught up, and nobody is told too little."""

import threading
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
from flask import Flask
from flask.testing import FlaskClient
from redis import Redis

from afterhours_service.matching import queries, rounds
from afterhours_service.matching.jobs import look, match_timer
from afterhours_service.sessions import search
from tests.client import end, start
from tests.factories import Factory, scheduled
from tests.matching.conftest import Work
from tests.outages import OwnValkey

Events = Callable[[], list[dict[str, Any]]]
STEPS = {
    "claimed": (queries, "enter_pool"),
    "waiting": (queries, "edges"),
    "proposed": (queries, "judge"),
    "matched": (rounds, "_announcements"),
    "announced": (queries, "mark_published"),
}


class Killed(BaseException):
    """No handler of exceptions sees a worker die."""


def live(client: FlaskClient, factory: Factory) -> str:
    member = factory.member()
    assert start(client, member).status_code == 201
    return member


def let_leases_expire(factory: Factory) -> None:
    factory.execute("UPDATE after_hours_search SET look_at = look_at - interval '31 seconds'")
    factory.execute("UPDATE after_hours_matches SET due_at = due_at - interval '11 seconds' WHERE announced_at IS NULL")


def told(events: Events, kind: str) -> Counter[str]:
    return Counter(event["targetUserId"] for event in events() if event["type"] == f"after_hours:{kind}")


@pytest.mark.parametrize("step", STEPS)
def test_what_a_dead_worker_leaves_is_done_by_another(
    app: Flask,
    client: FlaskClient,
    factory: Factory,
    events: Events,
    monkeypatch: pytest.MonkeyPatch,
    work: Work,
    step: str,
) -> None:
    pair = {live(client, factory), live(client, factory)}

    def die(*_: Any) -> None:
        raise Killed

    with monkeypatch.context() as patched:
        patched.setattr(*STEPS[step], die)
        with pytest.raises(Killed):
            work()
    with app.app_context():
        assert not rounds.do_what_is_due()
        let_leases_expire(factory)
        rounds.look()
        assert not rounds.do_what_is_due()
    [match] = factory.execute("SELECT * FROM after_hours_matches")
    assert {match.user_id_1, match.user_id_2} == pair
    assert match.announced_at
    counts = told(events, "match")
    assert counts.keys() == pair
    assert set(counts.values()) <= ({1, 2} if step == "announced" else {1})


def test_two_workers_share_who_is_due(app: Flask, client: FlaskClient, factory: Factory) -> None:
    members = [live(client, factory) for _ in range(20)]
    factory.execute("UPDATE after_hours_search SET look_at = now()")
    claimed: list[str] = []

    def claim() -> None:
        with app.app_context():
            claimed.extend(searcher.user_id for searcher in queries.claim(7, rounds.CLAIM_LEASE))

    threads = [threading.Thread(target=claim) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(claimed) == len(set(claimed))
    with app.app_context():
        claimed.extend(searcher.user_id for searcher in queries.claim(20, rounds.CLAIM_LEASE))
    assert sorted(claimed) == sorted(members)


def test_an_emptied_redis_is_armed_again(app: Flask, client: FlaskClient, factory: Factory, redis: Redis) -> None:
    live(client, factory)
    before = {name for name in scheduled(redis) if name.startswith(search.TIMERS.prefix)}
    assert len(before) == 1
    redis.flushdb()
    with app.app_context():
        assert rounds.look()["armed"] == 1
    assert set(scheduled(redis)) == before


def test_with_redis_away_matches_are_made_and_told_later(
    make_app: Callable[..., Flask], factory: Factory, own_valkey: OwnValkey
) -> None:
    app = make_app(redis_url=own_valkey.url)
    pair = {live(app.test_client(), factory) for _ in range(2)}
    own_valkey.stop()
    factory.execute("UPDATE after_hours_search SET look_at = now()")
    with app.app_context():
        rounds.match_due()
    [match] = factory.execute("SELECT * FROM after_hours_matches")
    assert {match.user_id_1, match.user_id_2} == pair
    assert match.announced_at is None


def test_the_end_of_a_match_is_told_to_the_other_even_if_the_worker_died(
    app: Flask, client: FlaskClient, factory: Factory, events: Events, monkeypatch: pytest.MonkeyPatch, work: Work
) -> None:
    one, other = live(client, factory), live(client, factory)
    work()
    assert end(client, one).status_code == 200

    def die(*_: Any) -> None:
        raise Killed

    with app.app_context():
        with monkeypatch.context() as patched:
            patched.setattr(rounds, "send", die)
            with pytest.raises(Killed):
                rounds.finish_due()
        events()
        factory.execute("UPDATE after_hours_matches SET due_at = now()")
        rounds.finish_due()
    assert told(events, "match_expired") == {other: 1}
    [match] = factory.execute("SELECT * FROM after_hours_matches")
    assert (match.due_at, match.ended_by, match.end_reason) == (None, one, "left")


def test_the_jobs_do_what_is_due(app: Flask, client: FlaskClient, factory: Factory, redis: Redis) -> None:
    pair = {live(client, factory), live(client, factory)}
    factory.execute("UPDATE after_hours_search SET look_at = now()")
    with app.app_context():
        match_timer(0)
        look()
    [match] = factory.execute("SELECT * FROM after_hours_matches")
    assert {match.user_id_1, match.user_id_2} == pair
    assert f"{search.TIMERS.prefix}{int(match.respond_by.timestamp())}" in scheduled(redis)

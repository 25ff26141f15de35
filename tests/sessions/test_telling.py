"""Every expiry is told at least once, and without a crash just once."""

import math
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from flask import Flask
from flask.testing import FlaskClient
from redis import Redis
from sqlalchemy.exc import OperationalError

from afterhours_service import create_app
from afterhours_service.config import Settings
from afterhours_service.extensions import db
from afterhours_service.sessions import queries, service
from tests.conftest import make_settings
from tests.factories import Factory, scheduled
from tests.sessions.test_life import start

Events = Callable[[], list[dict[str, Any]]]


def expired(events: Events) -> list[str]:
    """Return the sessions whose expiry was told since the last look."""
    return [event["payload"]["sessionId"] for event in events() if event["type"] == "after_hours:session_expired"]


def lease_is_over(factory: Factory) -> None:
    """Let the time pass that a worker has to tell of what it ended."""
    factory.execute("UPDATE after_hours_untold SET tell_at = tell_at - interval '11 seconds'")


def test_an_expiry_is_told_once(app: Flask, factory: Factory, events: Events) -> None:
    session = factory.session(factory.member(), left=-1)
    with app.app_context():
        service.do_what_is_due()
        lease_is_over(factory)
        service.do_what_is_due()
    assert expired(events) == [session]


def test_an_expiry_is_told_by_another_when_the_worker_died_after_its_commit(
    app: Flask, factory: Factory, events: Events
) -> None:
    session = factory.session(factory.member(), left=-1)
    with app.app_context():
        queries.end_due(10, service.LEASE)
        service.do_what_is_due()
        assert expired(events) == []  # it may still be at it
        lease_is_over(factory)
        service.do_what_is_due()
        assert expired(events) == [session]


def test_the_reconciliation_has_someone_look_when_the_worker_is_taken_for_dead(
    app: Flask, factory: Factory, redis: Redis
) -> None:
    factory.session(factory.member(), left=-1)
    with app.app_context():
        queries.end_due(10, service.LEASE)
        [(tell_at,)] = factory.execute("SELECT tell_at FROM after_hours_untold")
        assert service.reconcile()["armed"] == 0
    assert list(scheduled(redis).values()) == [math.ceil(tell_at.timestamp())]


def test_an_expiry_of_a_time_with_redis_away_is_told_when_it_is_back(
    app: Flask, settings: Settings, factory: Factory, events: Events
) -> None:
    session = factory.session(factory.member(), left=-1)
    away = create_app(make_settings(settings.database_url, "unix:///nowhere"))
    with away.app_context():
        assert service.do_what_is_due().ended == 1
        db.engine.dispose()
    lease_is_over(factory)
    with app.app_context():
        service.do_what_is_due()
    assert expired(events) == [session]


def test_a_start_leaves_the_session_that_it_found_overdue_to_a_worker_to_tell_of_at_once(
    app: Flask, client: FlaskClient, factory: Factory, events: Events, redis: Redis
) -> None:
    member = factory.member()
    session = factory.session(member, left=-1)
    assert start(client, member).status_code == 201
    assert min(scheduled(redis).values()) <= time.time() + 1
    with app.app_context():
        service.do_what_is_due()
    assert expired(events) == [session]
    assert not factory.execute("SELECT FROM after_hours_untold")


def test_many_untold_expiries_are_told_batch_by_batch(app: Flask, factory: Factory, events: Events) -> None:
    sessions = {factory.session(factory.member(), left=-1) for _ in range(5)}
    with app.app_context():
        while queries.end_due(2, -service.LEASE).sessions:
            pass
        service.do_what_is_due()
    told = expired(events)
    assert (len(told), set(told)) == (5, sessions)


def test_a_session_that_was_erased_before_its_expiry_was_told_is_forgotten(
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


def test_a_batch_that_is_told_aside_gives_its_connection_back_and_is_told_again_when_it_could_not_be_noted(
    app: Flask, factory: Factory, events: Events, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(service, "BATCH", 2)
    sessions = {factory.session(factory.member(), left=-1) for _ in range(5)}

    def fail(_: int) -> None:
        raise OperationalError(None, None, Exception())

    with app.app_context():
        with monkeypatch.context() as broken:
            broken.setattr(queries, "mark_told", fail)
            assert service.do_what_is_due().ended == 5
        assert db.engine.pool.checkedout() == 1  # type: ignore[attr-defined]
        assert set(expired(events)) == sessions
        lease_is_over(factory)
        service.do_what_is_due()
    assert set(expired(events)) == sessions
    assert not factory.execute("SELECT FROM after_hours_untold")

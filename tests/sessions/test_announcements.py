"""The expiry of a session is told at least once, whatever crashes between the commit and the publication."""

from collections.abc import Callable
from typing import Any

import pytest
from flask import Flask

from afterhours_service.sessions import service
from tests.factories import Factory

Events = Callable[[], list[dict[str, Any]]]


def told(events: Events) -> list[str]:
    return [event["payload"]["sessionId"] for event in events() if event["type"] == "after_hours:session_expired"]


def test_what_was_told_is_not_told_again(app: Flask, factory: Factory, events: Events) -> None:
    session = factory.session(factory.member(), left=-1)
    with app.app_context():
        service.do_what_is_due()
        factory.execute("UPDATE after_hours_sessions SET announce_at = announce_at - interval '1 hour'")
        service.do_what_is_due()
    assert told(events) == [session]


def test_a_worker_that_dies_after_the_commit_loses_no_event(
    app: Flask, factory: Factory, events: Events, monkeypatch: pytest.MonkeyPatch
) -> None:
    session = factory.session(factory.member(), left=-1)

    def die(ended: list[object]) -> bool:
        if ended:
            raise KeyboardInterrupt
        return True

    with monkeypatch.context() as dying, app.app_context():
        dying.setattr(service, "_tell", die)
        with pytest.raises(KeyboardInterrupt):
            service.do_what_is_due()
    [row] = factory.execute("SELECT ended_at FROM after_hours_sessions")
    assert row.ended_at is not None
    with app.app_context():
        service.do_what_is_due()
        assert told(events) == []  # the lease isn't over: it might still be telling
        factory.execute("UPDATE after_hours_sessions SET announce_at = now()")
        service.do_what_is_due()
    assert told(events) == [session]


def test_a_redis_that_is_away_loses_no_event(
    make_app: Callable[..., Flask], app: Flask, factory: Factory, events: Events
) -> None:
    session = factory.session(factory.member(), left=-1)
    with make_app(redis_url="unix:///nowhere").app_context():
        service.do_what_is_due()
    factory.execute("UPDATE after_hours_sessions SET announce_at = now()")
    with app.app_context():
        service.do_what_is_due()
    assert told(events) == [session]

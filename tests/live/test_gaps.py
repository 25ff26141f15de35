"""Whoever may have missed an event is told the state."""

import contextlib
import os
import queue
import time
from collections.abc import Callable, Iterator
from typing import Any
from urllib.parse import urlsplit

import psycopg2
import pytest
from flask import Flask
from socketio.exceptions import ConnectionError as RefusedError

from afterhours_service.live import connections
from afterhours_service.live import gateway as module
from afterhours_service.telemetry import metrics
from tests.factories import Factory, token
from tests.live.phone import STATE
from tests.matching.pairs import matched
from tests.outages import OwnValkey
from tests.stopwatch import eventually


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Retry soon."""
    for name in ("TICK_SECONDS", "RETRY_SECONDS", "SILENCE_SECONDS"):
        monkeypatch.setattr(module, name, 0.1)


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize("outage", ["stopped", "paused"])
def test_after_redis_was_away_everybody_is_told(
    own_valkey: OwnValkey, make_app: Callable[..., Flask], factory: Factory, serve: Any, phone: Any, outage: str
) -> None:
    member = factory.member()
    url = serve(make_app(redis_url=own_valkey.url))
    connected = phone(url)(token(member))
    assert connected.next() == (STATE, {"session": None, "match": None})
    (own_valkey.stop if outage == "stopped" else own_valkey.pause)()
    eventually(lambda: not metrics.LIVE_SUBSCRIBED._value.get())
    factory.session(member)
    (own_valkey.start if outage == "stopped" else own_valkey.resume)()
    while (state := connected.next())[1]["session"] is None:
        assert state[0] == STATE
    assert state[0] == STATE


@contextlib.contextmanager
def outage(database_url: str) -> Iterator[None]:
    """Close the service's connections to the test's database, and let it open none."""
    name = urlsplit(database_url).path.removeprefix("/")
    with contextlib.closing(psycopg2.connect(os.environ["TEST_SERVER_URL"])) as admin, admin.cursor() as cursor:
        admin.autocommit = True
        cursor.execute(f"ALTER DATABASE {name} ALLOW_CONNECTIONS false")
        cursor.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'after-hours'"
            " AND datname = %s",
            (name,),
        )
        yield
        cursor.execute(f"ALTER DATABASE {name} ALLOW_CONNECTIONS true")


@pytest.mark.usefixtures("quick")
def test_an_end_that_no_event_tells_of_is_told_all_the_same_and_after_an_outage_of_postgresql(
    factory: Factory, phone: Any, database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connections, "GRACE_SECONDS", 0.1)
    monkeypatch.setattr(connections, "PAUSE_SECONDS", 0.1)
    member = factory.member()
    factory.session(member, left=2)
    connected = phone()(token(member))
    assert connected.next()[1]["session"]
    with outage(database_url):
        refused = phone()
        with pytest.raises(RefusedError):
            refused(token(member))
        assert refused.refusal["data"]["code"] == "AUTH_UNAVAILABLE"
        time.sleep(2.5)  # the gateway's clock is the machine's
    while (event := connected.next())[1]["session"]:
        assert event[0] == STATE
    assert event == (STATE, {"session": None, "match": None})


@pytest.mark.usefixtures("quick")
def test_what_a_lost_event_would_have_told_is_noticed(
    app: Flask, factory: Factory, phone: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "CHECK_SECONDS", 0.1)
    pair = matched(app, factory)
    connected = phone()(token(pair.one))
    assert connected.next()[1]["match"]["id"] == pair.match
    factory.execute("UPDATE after_hours_matches SET declined_by = user_id_1")
    assert connected.next()[1]["match"] is None
    factory.execute("UPDATE after_hours_sessions SET expires_at = expires_at + interval '5 minutes'")
    assert connected.next()[1]["session"]["remainingSeconds"] > 15 * 60
    factory.execute("UPDATE after_hours_sessions SET ended_at = now()")
    assert connected.next() == (STATE, {"session": None, "match": None})
    session = factory.session(pair.one)
    assert connected.next()[1]["session"]["id"] == session
    with pytest.raises(queue.Empty):
        connected.next(seconds=0.5)  # nothing differs any more

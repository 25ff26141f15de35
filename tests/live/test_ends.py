"""How connections end, and what a client may not do."""

import json
import queue
import time
from typing import Any

import pytest
from flask.testing import FlaskClient

from afterhours_service.jobs.events import CHANNEL
from afterhours_service.live import gateway as module
from afterhours_service.live import wire
from afterhours_service.telemetry import metrics
from tests.client import start, withdraw
from tests.factories import Factory, token
from tests.live.phone import STATE, RawPhone, hello
from tests.stopwatch import eventually


@pytest.fixture
def often(monkeypatch: pytest.MonkeyPatch) -> None:
    """Look often."""
    monkeypatch.setattr(module, "TICK_SECONDS", 0.05)
    monkeypatch.setattr(module, "CHECK_SECONDS", 0.05)


@pytest.mark.usefixtures("often")
def test_it_ends_when_the_token_expires(factory: Factory, phone: Any) -> None:
    connected = phone()(token(factory.member(), seconds=3))
    assert connected.hears("disconnect") == "server disconnect"


@pytest.mark.usefixtures("often")
@pytest.mark.parametrize(
    "change",
    [
        "UPDATE users SET after_hours_consent = false WHERE id = %s",
        "UPDATE users SET id_verified = false WHERE id = %s",
        "UPDATE user_subscriptions SET expires_at = now() WHERE user_id = %s",
        "DELETE FROM users WHERE id = %s",
    ],
)
def test_it_ends_when_the_gate_would_not_let_the_member_pass_any_more(
    client: FlaskClient, factory: Factory, phone: Any, change: str
) -> None:
    barred, other = factory.member(), factory.member()
    phones = {member: phone()(token(member)) for member in (barred, other)}
    for each in phones.values():
        assert each.next()[0] == STATE
    factory.execute(change, barred)
    assert phones[barred].hears("disconnect") == "server disconnect"
    start(client, other)
    assert phones[other].hears("after_hours:session_started")  # the state may come once more before it


def test_a_withdrawal_ends_it_at_once(client: FlaskClient, factory: Factory, phone: Any) -> None:
    member = factory.member()
    factory.session(member)
    connected = phone()(token(member))
    withdraw(client, member)
    assert connected.hears("after_hours:session_ended")
    assert connected.hears("disconnect") == "server disconnect"


@pytest.mark.parametrize(
    "said",
    [
        '42["hello",{}]',
        '42["after_hours:state",{}]',
        "40",
        '40/other,{"token":"x"}',
        '431["ack"]',
        "2",
        "5",
        "6",
        "",
        "nonsense",
        '451-["binary",{"_placeholder":true,"num":0}]',
    ],
)
def test_a_client_that_says_more_than_hello_is_sent_away(gateway: str, factory: Factory, said: str) -> None:
    raw = RawPhone(gateway).says(hello(factory.member()))
    assert raw.hears().startswith("40{")
    assert raw.hears().startswith(f'42["{STATE}"')
    assert raw.says(said).close_code() == wire.POLICY_VIOLATION


@pytest.mark.parametrize(
    "said",
    ["40[1]", "40{", pytest.param("40" + "[" * 4000, id="nested"), '42["x"]', "40/admin,", '400[{"token":1}]'],
)
def test_nor_is_another_hello_understood(gateway: str, said: str) -> None:
    assert RawPhone(gateway).says(said).close_code() == wire.POLICY_VIOLATION


def test_a_frame_of_more_than_4_kb_is_refused(gateway: str) -> None:
    assert RawPhone(gateway).says("40" + json.dumps({"token": "x" * 5000})).close_code() == 1009


def test_who_says_nothing_is_sent_away(gateway: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wire, "HELLO_SECONDS", 0.1)
    assert RawPhone(gateway).close_code() == wire.POLICY_VIOLATION


def test_who_was_refused_is_sent_away(gateway: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "GOODBYE_SECONDS", 0.1)
    raw = RawPhone(gateway).says('40{"token":"x"}')
    assert raw.hears().startswith('44{"message":')
    assert raw.close_code() is None


def test_who_does_not_read_is_cut_off_and_nobody_else(
    gateway: str, factory: Factory, redis: Any, phone: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(wire, "SLOW_SECONDS", 0.2)
    slow, other = factory.member(), factory.member()
    raw = RawPhone(gateway).says(hello(slow))
    assert raw.hears().startswith("40{")
    reader = phone()(token(other))
    reader.next()
    before = cut_off()
    event = {"type": "after_hours:no_matches", "targetUserId": slow, "payload": {"filler": "x" * 100_000}}
    end = time.monotonic() + 60
    while cut_off() == before:
        redis.publish(CHANNEL, json.dumps(event))
        assert time.monotonic() < end
        time.sleep(0.001)
    redis.publish(CHANNEL, json.dumps({**event, "targetUserId": other}))
    assert reader.next()[0] == "after_hours:no_matches"


def cut_off() -> float:
    return float(metrics.LIVE_CUT_OFF._value.get())


@pytest.mark.parametrize(
    "data", ["", "{}", "[]", "null", '{"type": 1}', b"\xff", '{"targetUserId": {}, "type": "x", "payload": 1}']
)
def test_what_is_not_an_event_harms_nobody(factory: Factory, redis: Any, phone: Any, data: Any) -> None:
    member = factory.member()
    connected = phone()(token(member))
    connected.next()
    redis.publish(CHANNEL, data)
    redis.publish(CHANNEL, json.dumps({"type": "after_hours:no_matches", "targetUserId": member, "payload": {}}))
    assert connected.next() == ("after_hours:no_matches", {})


@pytest.mark.usefixtures("often")
def test_who_hangs_up_while_being_let_in_is_forgotten(gateway: str, factory: Factory, phone: Any) -> None:
    member = factory.member()
    for _ in range(20):
        RawPhone(gateway).says(hello(member)).socket.close()
    connected = phone()(token(member))
    assert connected.hears(STATE)
    eventually(lambda: metrics.LIVE_CONNECTIONS._value.get() == 1)
    with pytest.raises(queue.Empty):
        connected.next(seconds=0.3)


def test_an_event_that_does_not_say_until_when_is_delivered_as_it_is(factory: Factory, redis: Any, phone: Any) -> None:
    member = factory.member()
    connected = phone()(token(member))
    connected.next()
    for payload in ({}, {"sessionId": "x", "expiresAt": "later"}, {"sessionId": "x", "expiresAt": 7}):
        event = {"type": "after_hours:session_started", "targetUserId": member, "payload": payload}
        redis.publish(CHANNEL, json.dumps(event))
        assert connected.next() == ("after_hours:session_started", payload)

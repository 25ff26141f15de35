"""Who may connect, what they are told first, and what they hear."""

from contextlib import nullcontext
from typing import Any

import pytest
from flask import Flask
from flask.testing import FlaskClient
from socketio.exceptions import ConnectionError as RefusedError
from websockets.exceptions import InvalidStatus

from tests.client import API, current, start, status
from tests.factories import Factory, token
from tests.live.phone import STATE, RawPhone
from tests.matching.pairs import matched


def test_a_member_without_a_session_is_told_so(factory: Factory, phone: Any) -> None:
    assert phone()(token(factory.member())).next() == (STATE, {"session": None, "match": None})


def test_the_state_is_what_the_api_answers(app: Flask, client: FlaskClient, factory: Factory, phone: Any) -> None:
    pair = matched(app, factory)
    _, state = phone()(token(pair.one)).next()
    session = status(client, pair.one).json["session"]
    assert 0 <= state["session"].pop("remainingSeconds") - session.pop("remainingSeconds") <= 5
    assert state["session"] == session
    match = current(client, pair.one)["match"]
    for each in (state["match"], match):  # signed a moment apart
        each["profile"] = {key: value for key, value in each["profile"].items() if "Url" not in key}
    assert state["match"] == match


def test_a_live_match_is_told_while_matching_is_switched_off(
    app: Flask, make_app: Any, factory: Factory, serve: Any, phone: Any
) -> None:
    pair = matched(app, factory)
    _, state = phone(serve(make_app(matching_enabled=False)))(token(pair.one)).next()
    assert state["match"]["id"] == pair.match


@pytest.mark.parametrize(
    ("trait", "code"),
    [
        ({"premium": False}, "PREMIUM_REQUIRED"),
        ({"verified": False}, "VERIFICATION_REQUIRED"),
        ({"consent": False}, "CONSENT_REQUIRED"),
    ],
)
def test_whom_the_gate_refuses_gets_its_answer(
    client: FlaskClient, factory: Factory, phone: Any, trait: dict[str, bool], code: str
) -> None:
    member = factory.member(**trait)
    refused = phone()
    with pytest.raises(RefusedError):
        refused(token(member))
    assert refused.refusal["data"] == status(client, member).json
    assert refused.refusal["data"]["code"] == code


@pytest.mark.parametrize(
    ("given", "code"),
    [
        (None, "AUTH_REQUIRED"),
        ("", "AUTH_REQUIRED"),
        (7, "AUTH_REQUIRED"),
        ({"userId": "ada"}, "AUTH_REQUIRED"),
        ("nonsense", "TOKEN_INVALID"),
        pytest.param(token("ada", key="k" * 32), "TOKEN_INVALID", id="another key"),
        pytest.param(token("ada", seconds=-10), "TOKEN_EXPIRED", id="expired"),
    ],
)
def test_a_token_that_is_no_good_is_refused(phone: Any, given: Any, code: str) -> None:
    refused = phone()
    with pytest.raises(RefusedError):
        refused(given)
    assert refused.refusal["data"]["code"] == code
    assert refused.refusal["data"]["success"] is False
    assert refused.refusal["message"] == refused.refusal["data"]["error"]


def test_events_reach_each_phone_of_the_member_and_nobody_else(
    client: FlaskClient, factory: Factory, phone: Any, events: Any
) -> None:
    member, other = factory.member(), factory.member()
    phones = [phone()(token(member)), phone()(token(member))]
    others = phone()(token(other))
    for each in (*phones, others):
        each.next()
    start(client, member)
    client.post(f"{API}/session/end", headers={"Authorization": f"Bearer {token(member)}"})
    start(client, other)
    published = [(event["type"], event["payload"]) for event in events()]
    for each in phones:
        assert [each.next(), each.next()] == published[:2]
    assert others.next() == published[2]


def test_of_six_connections_the_oldest_goes(factory: Factory, phone: Any) -> None:
    member = factory.member()
    phones = [phone()(token(member)) for _ in range(6)]
    assert phones[0].hears("disconnect") == "server disconnect"
    for each in phones[1:]:
        assert each.next()[0] == STATE


def test_two_gateways_deliver_the_same(
    app: Flask, client: FlaskClient, factory: Factory, phone: Any, serve: Any
) -> None:
    member = factory.member()
    phones = [phone()(token(member)), phone(serve(app))(token(member))]
    for each in phones:
        each.next()
    start(client, member)
    assert phones[0].next() == phones[1].next()


@pytest.mark.parametrize(
    ("origin", "may"),
    [
        (None, True),
        ("{url}", True),
        ("https://app.example.com", True),
        ("https://evil.example", False),
        ("null", False),
    ],
)
def test_pages_of_other_origins_connect_if_they_are_named(
    make_app: Any, serve: Any, origin: str | None, may: bool
) -> None:
    url = serve(make_app(cors_origins=("https://app.example.com",)))
    with nullcontext() if may else pytest.raises(InvalidStatus):
        RawPhone(url, origin and origin.format(url=url)).socket.close()

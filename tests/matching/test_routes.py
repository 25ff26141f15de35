"""Matching over HTTP: what is answered, and what is refused."""

from collections.abc import Callable
from typing import Any
from uuid import uuid4

import pytest
from flask import Flask
from flask.testing import FlaskClient
from redis import Redis

from tests.client import API, answer_match, current, end, failure, look, moment, start
from tests.factories import Factory, bearer, scheduled
from tests.matching.pairs import live, matched, row, told, work

Events = Callable[[], list[dict[str, Any]]]
VERBS = pytest.mark.parametrize("verb", ["accept", "decline"])


def test_a_member_is_told_how_their_search_goes(app: Flask, client: FlaskClient, factory: Factory) -> None:
    waiting = factory.member()
    assert current(client, waiting) == {"success": True, "active": False, "status": "no_session", "match": None}
    start(client, waiting)
    assert current(client, waiting) == {"success": True, "active": True, "status": "searching", "match": None}
    factory.execute("UPDATE profiles SET age = 20 WHERE user_id = %s", waiting)
    factory.execute("INSERT INTO after_hours_preferences (user_id, min_age) VALUES (%s, 99)", waiting)
    pair = matched(app, factory)
    assert current(client, waiting)["status"] == "searching"
    assert {current(client, member)["status"] for member in (pair.one, pair.other)} == {"matched"}
    assert end(client, pair.one).status_code == 200
    assert current(client, pair.one)["status"] == "no_session"


def test_a_match_is_shown_as_the_contract_says(
    app: Flask, client: FlaskClient, factory: Factory, events: Events
) -> None:
    pair = matched(app, factory)
    factory.execute("UPDATE after_hours_profiles SET description = 'Out' WHERE user_id = %s", pair.other)
    found = row(factory, pair.match)
    answer = current(client, pair.one)
    match = answer.pop("match")
    assert answer == {"success": True, "active": True, "status": "matched"}
    assert moment(match.pop("createdAt")).timestamp() == pytest.approx(found.created_at.timestamp(), abs=0.001)
    assert moment(match.pop("expiresAt")) == found.expires_at
    assert moment(match.pop("autoDeclineAt")) == found.respond_by
    assert match == {
        "id": pair.match,
        "accepted": False,
        "profile": {
            "userId": pair.other,
            "name": "Robin",
            "age": 30,
            "photoUrl": None,
            "thumbnailUrl": None,
            "description": "Out",
            "distanceKm": 1,
        },
    }
    nearby = look(client, pair.one)["members"][0]
    assert match["profile"].items() <= nearby.items(), "it shows nothing that /nearby does not"


def test_the_event_carries_what_the_route_shows(
    app: Flask, client: FlaskClient, factory: Factory, events: Events
) -> None:
    pair = matched(app, factory)
    published = {event["targetUserId"]: event["payload"] for event in events() if event["type"] == "after_hours:match"}
    assert published.keys() == {pair.one, pair.other}
    for member, payload in published.items():
        shown = current(client, member)["match"]
        assert payload == {
            "matchId": shown["id"],
            "expiresAt": shown["expiresAt"],
            "autoDeclineAt": shown["autoDeclineAt"],
            "profile": shown["profile"],
        }


def test_who_accepts_is_shown_the_match_and_the_other_is_told(
    app: Flask, client: FlaskClient, factory: Factory, events: Events
) -> None:
    pair = matched(app, factory)
    events()
    first = answer_match(client, pair.one, "accept", pair.match)
    assert first.status_code == 200
    assert first.json == {"success": True, "match": current(client, pair.one)["match"]}
    assert (first.json["match"]["accepted"], first.json["match"]["autoDeclineAt"]) == (True, None)
    [event] = events()
    del event["timestamp"]
    assert event == {
        "type": "after_hours:match_accepted",
        "targetUserId": pair.other,
        "payload": {"matchId": pair.match},
    }
    theirs = current(client, pair.other)["match"]
    assert (theirs["accepted"], theirs["autoDeclineAt"]) == (False, None)

    assert answer_match(client, pair.one, "accept", pair.match).json == first.json
    assert events() == [], "repeated, it tells nobody"
    assert answer_match(client, pair.other, "accept", pair.match).json["match"]["accepted"] is True
    assert told(events()) == [(pair.one, "match_accepted")]
    assert row(factory, pair.match).lives


def test_who_declines_is_answered_the_same_when_they_repeat_it(
    app: Flask, client: FlaskClient, factory: Factory, events: Events
) -> None:
    pair = matched(app, factory)
    events()
    answers = [answer_match(client, pair.one, "decline", pair.match) for _ in "123"]
    assert [answer.status_code for answer in answers] == [200] * 3
    assert {answer.data for answer in answers} == {b'{"message":"The match is declined.","success":true}\n'}
    [event] = events()
    del event["timestamp"]
    assert event == {
        "type": "after_hours:match_expired",
        "targetUserId": pair.other,
        "payload": {"matchId": pair.match, "reason": "ended"},
    }
    assert factory.execute("SELECT decline_count AS n FROM after_hours_declines") == [(1,)]


@VERBS
def test_an_answer_needs_a_session(app: Flask, client: FlaskClient, factory: Factory, verb: str) -> None:
    pair = matched(app, factory)
    assert failure(answer_match(client, factory.member(), verb, pair.match)) == (400, "NO_ACTIVE_SESSION")
    end(client, pair.one)
    assert failure(answer_match(client, pair.one, verb, pair.match)) == (400, "NO_ACTIVE_SESSION")


@VERBS
def test_a_match_that_is_unknown_anothers_or_over_is_not_found(
    app: Flask, client: FlaskClient, factory: Factory, verb: str
) -> None:
    pair = matched(app, factory)
    stranger = live(client, factory)
    assert failure(answer_match(client, pair.one, verb, str(uuid4()))) == (404, "MATCH_NOT_FOUND")
    assert failure(answer_match(client, stranger, verb, pair.match)) == (404, "MATCH_NOT_FOUND")
    assert answer_match(client, pair.other, "decline", pair.match).status_code == 200
    assert failure(answer_match(client, pair.one, verb, pair.match)) == (404, "MATCH_NOT_FOUND")
    assert row(factory, pair.match).declined_by == pair.other


@VERBS
@pytest.mark.parametrize(
    "body",
    [{}, {"matchId": None}, {"matchId": ""}, {"matchId": 5}, {"matchId": "x"}, {"matchId": "\0"}, {"matchId": ["a"]}],
    ids=str,
)
def test_a_malformed_answer_is_refused(client: FlaskClient, factory: Factory, verb: str, body: dict[str, Any]) -> None:
    response = client.post(f"{API}/match/{verb}", json=body, headers=bearer(live(client, factory)))
    assert failure(response) == (400, "VALIDATION_ERROR")
    assert [line["field"] for line in response.json["errors"]] == ["matchId"]


@VERBS
def test_an_unknown_field_is_refused(client: FlaskClient, factory: Factory, verb: str) -> None:
    body = {"matchId": str(uuid4()), "reason": "rude"}
    response = client.post(f"{API}/match/{verb}", json=body, headers=bearer(live(client, factory)))
    assert failure(response) == (400, "VALIDATION_ERROR")


@pytest.mark.parametrize(("method", "path"), [("GET", "current"), ("POST", "accept"), ("POST", "decline")])
def test_every_route_is_behind_the_gate(client: FlaskClient, factory: Factory, method: str, path: str) -> None:
    for member, code in (
        (factory.member(premium=False), "PREMIUM_REQUIRED"),
        (factory.member(verified=False), "VERIFICATION_REQUIRED"),
        (factory.member(consent=False), "CONSENT_REQUIRED"),
    ):
        answer = client.open(f"{API}/match/{path}", method=method, headers=bearer(member))
        assert failure(answer) == (403, code)
    assert failure(client.open(f"{API}/match/{path}", method=method)) == (401, "AUTH_REQUIRED")


def test_all_routes_share_the_members_limit(make_app: Callable[..., Flask], factory: Factory) -> None:
    client = make_app(ratelimit_enabled=True, ratelimit_default="2 per hour").test_client()
    member = factory.member()
    current(client, member)
    assert answer_match(client, member, "accept", str(uuid4())).status_code == 400
    assert failure(answer_match(client, member, "decline", str(uuid4()))) == (429, "RATE_LIMITED")


def test_switched_off_it_still_answers(make_app: Callable[..., Flask], factory: Factory) -> None:
    client = make_app(matching_enabled=False).test_client()
    assert current(client, live(client, factory))["status"] == "searching"


def test_answers_do_not_need_redis_and_the_other_is_told_later(
    app: Flask, make_app: Callable[..., Flask], factory: Factory, events: Events
) -> None:
    pair, declined = matched(app, factory), matched(app, factory)
    events()
    client = make_app(redis_url="unix:///nowhere").test_client()
    assert answer_match(client, pair.one, "accept", pair.match).status_code == 200
    assert answer_match(client, declined.one, "decline", declined.match).status_code == 200
    assert current(client, declined.other)["status"] == "searching"
    factory.travel(11)  # the lease of who could not publish it
    work(app)
    assert told(events(), "match_expired") == [(declined.other, "match_expired")]


def test_its_minutes_are_those_of_the_settings(
    make_app: Callable[..., Flask], factory: Factory, redis: Redis, events: Events
) -> None:
    """Time is kept far from every deadline: with such minutes a slow machine would miss them."""
    app = make_app(minute_seconds=1)
    client = app.test_client()
    one, other = live(client, factory, 60), live(client, factory, 60)
    for search in factory.execute("SELECT since, look_at FROM after_hours_search"):
        assert search.look_at.microsecond == 0
        assert 0.25 <= (search.look_at - search.since).total_seconds() < 1.25
        assert f"match-timer-{search.look_at.timestamp():.0f}" in scheduled(redis)
    factory.travel(-3600)
    factory.execute("UPDATE after_hours_search SET look_at = now(), since = now()")
    factory.execute("UPDATE after_hours_sessions SET started_at = now()")
    work(app)
    [found] = factory.execute("SELECT * FROM after_hours_matches")
    assert 10 <= (found.expires_at - found.created_at).total_seconds() < 11
    assert 5 <= (found.respond_by - found.created_at).total_seconds() < 6

    factory.travel(-3600)
    redis.flushall()
    assert answer_match(client, one, "decline", str(found.id)).status_code == 200
    looks = dict(factory.execute("SELECT user_id, look_at FROM after_hours_search"))
    ended_at = row(factory, found.id).ended_at
    assert looks[other] == ended_at
    assert looks[one].microsecond == 0
    assert 0.5 <= (looks[one] - ended_at).total_seconds() < 1.5
    assert f"match-timer-{looks[one].timestamp():.0f}" in scheduled(redis)

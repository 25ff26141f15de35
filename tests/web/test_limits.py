"""How often a member may ask."""

from typing import Any, cast

import pytest
from flask import Flask
from redis import Redis

from afterhours_service import create_app
from afterhours_service.config import Settings
from tests.client import API, PHOTO, SESSION, end, failure, start, status
from tests.conftest import make_settings
from tests.factories import Factory, bearer
from tests.stopwatch import Stopwatch


@pytest.fixture
def settings(database_url: str, redis_url: str) -> Settings:
    return make_settings(
        database_url,
        redis_url,
        ratelimit_enabled=True,
        ratelimit_default="3 per hour",
        ratelimit_photo="2 per hour",
        ratelimit_start="2 per hour",
    )


def test_a_member_who_asks_too_often_is_told_when_to_come_back(app: Flask, factory: Factory) -> None:
    client, member, other = app.test_client(), factory.member(), factory.member()
    answers = [
        client.get(f"{API}/{path}", headers=bearer(member)) for path in ("session", "profile", "session", "session")
    ]
    assert [answer.status_code for answer in answers] == [200, 200, 200, 429]
    assert answers[3].json["code"] == "RATE_LIMITED"
    assert 1 <= int(answers[3].headers["Retry-After"]) <= 3600
    assert status(client, other).status_code == 200
    assert client.get("/healthz").status_code == 200


LEAVING = [
    ("POST", "session/end", None),
    ("DELETE", "profile/photo", None),
    ("GET", "consent", None),
    ("PUT", "consent", {"granted": False}),
    ("GET", "me/export", None),
    ("DELETE", "me", None),
]


def test_leaving_is_not_limited_by_what_was_asked_before(app: Flask, factory: Factory) -> None:
    client, member = app.test_client(), factory.member()
    factory.session(member)
    headers = bearer(member)
    for _ in range(4):
        asked = status(client, member)
        client.post(PHOTO, headers=headers)
    assert asked.status_code == 429
    for method, path, body in LEAVING:
        for _ in range(2):  # nor by one another: there are more of them than the member's limit
            answer = client.open(f"{API}/{path}", method=method, json=body, headers=headers)
            assert answer.status_code in {200, 404}, (path, answer.json)
    assert not factory.sessions(member)
    assert status(client, member).status_code == 429


@pytest.mark.parametrize(("method", "path", "body"), LEAVING)
def test_each_way_of_leaving_has_a_limit_of_its_own(
    app: Flask, factory: Factory, redis: Redis, method: str, path: str, body: Any
) -> None:
    """A flood is still bounded, and takes nothing from the other routes."""
    client, member, other = app.test_client(), factory.member(), factory.member()

    def ask(member: str) -> Any:
        return client.open(f"{API}/{path}", method=method, json=body, headers=bearer(member))

    assert ask(member).status_code in {200, 404}
    [key] = cast("list[bytes]", redis.keys("LIMIT*"))
    redis.incrby(key, 500)  # as if asked so often
    refused = ask(member)
    assert (refused.status_code, refused.json["code"]) == (429, "RATE_LIMITED")
    assert 1 <= int(refused.headers["Retry-After"]) <= 60
    assert ask(other).status_code in {200, 404}
    for method_2, path_2, body_2 in LEAVING:
        answer = client.open(f"{API}/{path_2}", method=method_2, json=body_2, headers=bearer(member))
        assert (answer.status_code == 429) is ((method_2, path_2) == (method, path))


def test_starts_have_a_limit_of_their_own(app: Flask, factory: Factory) -> None:
    """Whatever they come to: who could start anywhere, again and again, could map the others."""
    client, member = app.test_client(), factory.member()
    answers = [start(client, member, **place) for place in ({}, {"latitude": 10}, {"latitude": 20})]
    assert [answer.status_code for answer in answers] == [201, 409, 429]
    assert answers[2].json["code"] == "RATE_LIMITED"
    assert int(answers[2].headers["Retry-After"]) > 60
    assert end(client, member).status_code == 200


def test_who_is_not_admitted_is_told_that_however_often_they_start(app: Flask, factory: Factory) -> None:
    app.testing = False
    client, member = app.test_client(), factory.member(premium=False)
    assert [failure(start(client, member)) for _ in range(3)] == [(403, "PREMIUM_REQUIRED")] * 3


def test_photos_have_a_limit_of_their_own(app: Flask, factory: Factory) -> None:
    client, member = app.test_client(), factory.member()
    answers = [client.post(PHOTO, headers=bearer(member)) for _ in range(3)]
    assert [answer.status_code for answer in answers] == [400, 400, 429]
    assert int(answers[2].headers["Retry-After"]) > 60


def test_a_bad_token_is_refused_as_ever(app: Flask) -> None:
    for _ in range(5):
        assert app.test_client().get(SESSION).json["code"] == "AUTH_REQUIRED"


def test_a_member_leaves_while_redis_is_away(app_without_redis: Flask, factory: Factory) -> None:
    client, member = app_without_redis.test_client(), factory.member()
    factory.session(member)
    answers = [
        client.open(f"{API}/{path}", method=method, json=body, headers=bearer(member)) for method, path, body in LEAVING
    ]
    assert [answer.status_code for answer in answers] == [200] * 6
    assert answers[4].json["data"]["sessions"][0]["endedAt"]
    assert not factory.sessions(member)


@pytest.fixture
def app_without_redis(database_url: str) -> Flask:
    return create_app(
        make_settings(database_url, "unix:///nowhere", ratelimit_enabled=True, ratelimit_default="1 per hour")
    )


def test_requests_pass_while_redis_away(
    app_without_redis: Flask, factory: Factory, redis: Redis, caplog: pytest.LogCaptureFixture
) -> None:
    client, member = app_without_redis.test_client(), factory.member()
    with Stopwatch() as took:
        assert {status(client, member).status_code for _ in range(20)} == {200}
    assert took.seconds < 2
    assert caplog.text.count("redis away") == 1

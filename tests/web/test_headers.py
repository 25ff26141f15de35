"""What no other test has yet of docs/security.md: headers, origins, sizes, what is compared and what is logged."""

import dataclasses
import io
import logging
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import structlog
from flask import Flask
from flask.testing import FlaskClient
from werkzeug.datastructures import Headers

from afterhours_service.config import S3Settings, Settings
from afterhours_service.web.headers import HEADERS
from tests.client import SESSION, end, extend, failure, start, status
from tests.factories import PLACE, Factory, bearer, token

ROOT = Path(__file__).parent.parent.parent
PAGE = "https://app.example.com"
PREFLIGHT = {"Origin": PAGE, "Access-Control-Request-Method": "POST"}


def cors(headers: Headers) -> list[str]:
    """Return the names of the headers that let web pages in."""
    return [name for name, _ in headers if name.startswith("Access-Control")]


@pytest.mark.parametrize("path", ["/healthz", "/readyz", "/nowhere", SESSION, f"{SESSION}/start", "/photos/none.jpg"])
def test_every_answer_has_its_headers(client: FlaskClient, path: str) -> None:
    headers = client.get(path).headers
    assert HEADERS.items() <= dict(headers).items()
    assert "Strict-Transport-Security" not in headers
    assert not cors(headers)


def test_personal_data_is_not_stored_on_the_way(client: FlaskClient, factory: Factory) -> None:
    for path in (SESSION, "/api/after-hours/profile", "/api/after-hours/preferences"):
        response = client.get(path, headers=bearer(factory.member()))
        assert (response.headers["Cache-Control"], response.mimetype) == ("no-store", "application/json")


def test_in_production_browsers_are_told_to_insist_on_tls(make_app: Callable[..., Flask]) -> None:
    client = make_app(production=True).test_client()
    assert client.get("/healthz").headers["Strict-Transport-Security"].startswith("max-age=")


def test_the_description_and_its_page_are_there_when_asked_for(
    client: FlaskClient, make_app: Callable[..., Flask]
) -> None:
    for path in ("/openapi.json", "/docs", "/docs/swagger-ui.css"):
        assert failure(client.get(path)) == (404, "NOT_FOUND")
    client = make_app(api_docs=True).test_client()
    assert client.get("/openapi.json").json["openapi"].startswith("3.1")
    page = client.get("/docs")
    assets = re.findall(r'(?:src|href)="([^"]+)"', page.text)
    assert len(assets) == 4
    for path in assets:  # none of them from elsewhere, none of them in the page itself
        with client.get(path) as asset:
            assert asset.status_code == 200
    policy = page.headers["Content-Security-Policy"]
    assert "script-src 'self';" in policy
    assert re.search(r"<script>|\son\w+=", page.text) is None
    for path in ("/docs/..%2f__init__.py", "/docs/nothing.js", "/docs/%00"):
        assert client.get(path).status_code == 404


def test_no_page_of_another_origin_may_ask_by_default(client: FlaskClient, factory: Factory) -> None:
    response = client.options(f"{SESSION}/start", headers=PREFLIGHT)
    assert failure(response) == (401, "AUTH_REQUIRED")
    answered = client.get(SESSION, headers={**bearer(factory.member()), "Origin": PAGE})
    for headers in (response.headers, answered.headers):
        assert not cors(headers)


def test_a_page_of_an_allowed_origin_may_ask(make_app: Callable[..., Flask], factory: Factory) -> None:
    client = make_app(cors_origins=(PAGE,)).test_client()
    preflight = client.options(f"{SESSION}/start", headers=PREFLIGHT)
    assert (preflight.status_code, preflight.data) == (204, b"")
    assert preflight.headers["Access-Control-Allow-Origin"] == PAGE
    assert "Authorization" in preflight.headers["Access-Control-Allow-Headers"]
    assert "PATCH" in preflight.headers["Access-Control-Allow-Methods"]
    for headers in (bearer(factory.member()), {}):  # a refusal must be readable, too
        answer = client.get(SESSION, headers={**headers, "Origin": PAGE})
        assert answer.headers["Access-Control-Allow-Origin"] == PAGE
        assert "Origin" in answer.vary
        assert "Access-Control-Allow-Credentials" not in answer.headers


@pytest.mark.parametrize(
    "origin",
    [
        "https://evil.example",
        f"{PAGE}.evil.example",
        f"{PAGE}:8443",
        "http://app.example.com",
        "null",
        "*",
        PAGE.upper(),
    ],
)
def test_no_other_origin_may_ask(make_app: Callable[..., Flask], factory: Factory, origin: str) -> None:
    client = make_app(cors_origins=(PAGE,)).test_client()
    assert client.options(f"{SESSION}/start", headers=PREFLIGHT | {"Origin": origin}).status_code == 401
    answer = client.get(SESSION, headers={**bearer(factory.member()), "Origin": origin})
    assert not cors(answer.headers)
    assert "Origin" in answer.vary  # what a cache holds for one is not for another


def test_an_allowed_preflight_is_no_way_around_the_gate(make_app: Callable[..., Flask]) -> None:
    client = make_app(cors_origins=(PAGE,)).test_client()
    for method in ("GET", "POST", "PUT", "PATCH", "DELETE", "HEAD"):
        response = client.open("/api/after-hours/preferences", method=method, headers=PREFLIGHT)
        assert response.status_code in {401, 405}
    assert client.options(SESSION, headers={"Origin": PAGE}).status_code == 401  # no preflight


@pytest.mark.parametrize("path", ["/session/start", "/session/extend", "/profile", "/preferences"])
def test_a_large_body_is_refused_before_it_is_read_whole(client: FlaskClient, factory: Factory, path: str) -> None:
    headers = {**bearer(factory.member()), "Content-Type": "application/json"}
    big = b'{"description": "' + b"x" * 70_000 + b'"}'
    for stream in (
        {"data": big},
        {"input_stream": io.BytesIO(big), "environ_overrides": {"wsgi.input_terminated": True}},
    ):
        assert failure(client.post(f"/api/after-hours{path}", headers=headers, **stream)) == (413, "PAYLOAD_TOO_LARGE")


def test_a_member_reaches_only_what_is_theirs(client: FlaskClient, factory: Factory) -> None:
    """There is no id to guess: whose objects are meant is said by the token alone, whatever else is sent."""
    victim, other = factory.member(), factory.member()
    start(client, victim)
    before = factory.sessions(victim)
    ids = {
        "userId": victim,
        "user_id": victim,
        "memberId": victim,
        "sessionId": str(before[0].id),
        "id": str(before[0].id),
    }
    for method, path, body in (
        ("POST", "/session/end", {}),
        ("POST", "/session/extend", {"additionalMinutes": 15}),
        ("GET", "/session", None),
        ("POST", "/session/start", {"duration": 15, **PLACE}),
        ("PATCH", "/profile", {"description": "mine now"}),
        ("PATCH", "/preferences", {"maxAge": 30}),
        ("DELETE", "/profile/photo", None),
    ):
        for sent in (body, None if body is None else body | ids):
            headers = {**bearer(other), "X-User-Id": victim, "X-Member-Id": victim}
            client.open(f"/api/after-hours{path}", method=method, headers=headers, query_string=ids, json=sent)
    assert factory.sessions(victim) == before
    assert factory.execute("SELECT description FROM after_hours_profiles WHERE user_id = %s", victim)[0][0] is None
    assert status(client, victim).json["session"]["id"] == str(before[0].id)


def test_no_server_property_is_set_by_a_client(client: FlaskClient, factory: Factory) -> None:
    member = factory.member()
    properties: dict[str, Any] = {"id": "x", "endedAt": None, "expiresAt": "2099-01-01T00:00:00Z", "userId": "x"}
    for name, value in properties.items():
        assert failure(start(client, member, **{name: value})) == (400, "VALIDATION_ERROR")
    for name in ("userId", "name", "age", "photoUrl", "photoKey", "createdAt"):
        response = client.patch("/api/after-hours/profile", headers=bearer(member), json={name: "x"})
        assert failure(response) == (400, "VALIDATION_ERROR")
    assert factory.sessions(member) == []


def test_no_secret_is_in_the_text_of_the_settings(settings: Settings) -> None:
    secret = "a-secret-never-shown"
    bucket = S3Settings(
        bucket="b", endpoint_url="https://s3", region="auto", access_key_id=secret, secret_access_key=secret
    )
    kept = dataclasses.replace(
        settings, s3=bucket, jwt_key=secret, location_secret=secret, redis_url=secret, database_url=secret
    )
    assert secret not in f"{kept} {kept!r}"


def test_no_token_is_logged_whatever_becomes_of_it(app: Flask, factory: Factory) -> None:
    root, written = logging.getLogger(), io.StringIO()
    [handler] = [h for h in root.handlers if isinstance(h.formatter, structlog.stdlib.ProcessorFormatter)]
    assert isinstance(handler, logging.StreamHandler)
    level, stream = root.level, handler.setStream(written)
    root.setLevel(logging.DEBUG)
    app.testing = False
    client = app.test_client()
    member = factory.member()
    tokens = [
        token(member),
        token(member, -1),
        token(member, key="another secret, also of 32 bytes or more"),
        "garbage-token",
    ]
    try:
        for bad in tokens:
            client.get(SESSION, headers={"Authorization": f"Bearer {bad}"})
        factory.execute("DROP TABLE after_hours_sessions CASCADE")
        assert [
            start(client, member).status_code,
            extend(client, member).status_code,
            end(client, member).status_code,
        ] == [500] * 3
        factory.execute("DROP TABLE user_subscriptions")
        assert status(client, member).status_code == 503
    finally:
        root.setLevel(level)
        if stream:
            handler.setStream(stream)
    log = written.getvalue()
    assert "unexpected failure" in log
    assert not [part for bad in tokens for part in bad.split(".") if len(part) > 8 and part in log]
    assert app.extensions["after_hours_settings"].jwt_key not in log


def test_every_test_that_the_security_page_names_exists() -> None:
    page = (ROOT / "docs" / "security.md").read_text()
    named = re.findall(r"`(tests/[\w/]+\.py)::(test_\w+)`", page)
    assert len(named) >= 15
    missing = [(path, name) for path, name in named if f"def {name}(" not in (ROOT / path).read_text()]
    assert missing == []
    assert {f"API{number}" for number in range(1, 11)} <= set(re.findall(r"API\d+", page))

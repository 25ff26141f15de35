"""The catalogue of failures, the envelope they come in, and the log line that tells of them."""

import io
import json
import logging
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import Mock
from uuid import uuid4

import pytest
import structlog
from flask import Flask
from flask.testing import FlaskClient
from PIL import Image

from afterhours_service.monitoring.health import VERSION_TABLE
from afterhours_service.profiles.imaging import process
from afterhours_service.stores.host import LOCK_SEED
from afterhours_service.stores.objects import FolderStorage
from afterhours_service.web import limits
from afterhours_service.web.errors import CATALOGUE, AppError
from tests.client import FINGERPRINT, PHOTO, SESSION, answer_match, decline, end, extend, failure, start, status, upload
from tests.factories import Factory, bearer, token
from tests.pictures import encode, plain

HERE: dict[str, Any] = {"latitude": 48.87654321, "longitude": -2.34567891}
LOSE_THE_CONNECTION = """
    CREATE FUNCTION lose() RETURNS trigger LANGUAGE plpgsql AS
    $$ BEGIN PERFORM pg_terminate_backend(pg_backend_pid()); RETURN NEW; END $$;
    CREATE TRIGGER lose BEFORE INSERT ON after_hours_sessions FOR EACH ROW EXECUTE FUNCTION lose()"""


def after(statement: str, answer: Callable[[FlaskClient, str], Any]) -> Callable[[FlaskClient, Factory], Any]:
    """Return how a failure is provoked: do something to the database, then ask as a member."""

    def provoke(client: FlaskClient, factory: Factory) -> Any:
        member = factory.member()
        factory.execute(statement)
        return answer(client, member)

    return provoke


def feature(method: Callable[..., Any], path: str, member: str) -> Any:
    """Send an empty object to a feature's address."""
    return method(f"/api/after-hours/{path}", json={}, headers=bearer(member))


def upload_to_nowhere(client: FlaskClient, member: str) -> Any:
    """Send a photo while the storage is a folder that cannot be."""
    nowhere = FolderStorage(Path("/dev/null/photos"), b"secret", "http://localhost/photos")
    client.application.extensions["after_hours_storage"] = nowhere
    return upload(client, member, plain())


def upload_what_is_banned(client: FlaskClient, factory: Factory) -> Any:
    """Send a photo that the host has banned."""
    factory.execute("CREATE TABLE banned_photo_hashes (photo_hash varchar(16))")
    png = encode(Image.radial_gradient("L"), "PNG")
    factory.execute("INSERT INTO banned_photo_hashes VALUES (%s)", process(png).phash)
    return upload(client, factory.member(), png)


def create_during_an_erasure(client: FlaskClient, factory: Factory) -> Any:
    """Ask for preferences while the lock of an erasure is held."""
    member = factory.member()
    factory.execute("BEGIN")
    factory.execute("SELECT pg_advisory_xact_lock(hashtextextended(%s, %s))", member, LOCK_SEED)
    try:
        return feature(client.post, "preferences", member)
    finally:
        factory.execute("ROLLBACK")


def ask_again_and_again(client: FlaskClient, member: str) -> Any:
    """Ask more often than is allowed, of an app that is given limits before it is asked for the first time."""
    app = client.application
    limited = replace(app.extensions["after_hours_settings"], ratelimit_enabled=True, ratelimit_default="1 per hour")
    app.extensions["after_hours_settings"] = limited
    limits.init_app(app, limited)
    return [client.get(SESSION, headers=bearer(member)) for _ in "12"][1]


REACHED_BY: dict[str, Callable[[FlaskClient, Factory], Any]] = {
    "AUTH_REQUIRED": lambda client, _: client.get(SESSION),
    "TOKEN_EXPIRED": lambda client, _: client.get(SESSION, headers={"Authorization": f"Bearer {token('m', -1)}"}),
    "TOKEN_INVALID": lambda client, _: client.get(SESSION, headers={"Authorization": "Bearer garbage"}),
    "PREMIUM_REQUIRED": lambda client, factory: status(client, factory.member(premium=False)),
    "VERIFICATION_REQUIRED": lambda client, factory: status(client, factory.member(verified=False)),
    "CONSENT_REQUIRED": lambda client, factory: status(client, factory.member(consent=False)),
    "AUTH_UNAVAILABLE": after("DROP TABLE user_subscriptions", status),
    "SERVICE_UNAVAILABLE": after(LOSE_THE_CONNECTION, start),
    "NOT_READY": after(f"DELETE FROM {VERSION_TABLE}", lambda client, _: client.get("/readyz")),
    "VALIDATION_ERROR": lambda client, factory: extend(client, factory.member(), 7),
    "PROFILE_REQUIRED": lambda client, factory: start(client, factory.member(profile=False)),
    "SESSION_ALREADY_ACTIVE": after("SELECT 1", lambda client, member: [start(client, member) for _ in "12"][1]),
    "NO_ACTIVE_SESSION": lambda client, factory: end(client, factory.member()),
    "MEMBER_NOT_FOUND": after(
        "SELECT 1", lambda client, member: [start(client, member), decline(client, member, "nobody")][1]
    ),
    "MATCH_NOT_FOUND": after(
        "SELECT 1",
        lambda client, member: [start(client, member), answer_match(client, member, "decline", str(uuid4()))][1],
    ),
    "PROFILE_EXISTS": lambda client, factory: feature(client.post, "profile", factory.member()),
    "PROFILE_NOT_FOUND": lambda client, factory: feature(client.patch, "profile", factory.member(profile=False)),
    "PREFERENCES_EXIST": after(
        "SELECT 1", lambda client, member: [feature(client.post, "preferences", member) for _ in "12"][1]
    ),
    "PREFERENCES_NOT_FOUND": lambda client, factory: feature(client.patch, "preferences", factory.member()),
    "ERASURE_IN_PROGRESS": create_during_an_erasure,
    "NO_FILE": lambda client, factory: client.post(PHOTO, headers=bearer(factory.member())),
    "INVALID_IMAGE": lambda client, factory: upload(client, factory.member(), b"GIF89a"),
    "PHOTO_NOT_ALLOWED": upload_what_is_banned,
    "FILE_TOO_LARGE": lambda client, factory: upload(client, factory.member(), b"x" * (10 * 2**20 + 1)),
    "STORAGE_UNAVAILABLE": lambda client, factory: upload_to_nowhere(client, factory.member()),
    "RATE_LIMITED": lambda client, factory: ask_again_and_again(client, factory.member()),
    "NOT_FOUND": lambda client, _: client.get("/nowhere"),
    "METHOD_NOT_ALLOWED": lambda client, _: client.get(f"{SESSION}/start"),
    "PAYLOAD_TOO_LARGE": lambda client, factory: start(client, factory.member(), more="x" * 70_000),
    "BAD_REQUEST": lambda client, _: client.get("/healthz", headers={"Host": "x" * 64}),
    "INTERNAL_ERROR": after("DROP TABLE after_hours_sessions CASCADE", start),
}


@pytest.fixture
def log_lines(app: Flask) -> Iterator[Callable[[], list[dict[str, Any]]]]:
    """Return a function that returns the log so far, from INFO on, each line of which must be a JSON object."""
    root, written = logging.getLogger(), io.StringIO()
    [handler] = [h for h in root.handlers if isinstance(h.formatter, structlog.stdlib.ProcessorFormatter)]
    assert isinstance(handler, logging.StreamHandler)
    level, stream = root.level, handler.setStream(written)
    root.setLevel(logging.INFO)
    yield lambda: [json.loads(line) for line in written.getvalue().splitlines()]
    root.setLevel(level)
    if stream:
        handler.setStream(stream)


@pytest.fixture
def told(
    log_lines: Callable[[], list[dict[str, Any]]], events: Callable[[], list[dict[str, Any]]]
) -> Callable[[], list[str]]:
    """Return a function that returns what the service has told others than its client, as text."""
    return lambda: [*map(json.dumps, [*log_lines(), *events()])]


@pytest.fixture
def in_earnest(app: Flask) -> FlaskClient:
    """Return a client of an app that renders what it did not expect, as in production, instead of raising it."""
    app.testing = False
    return app.test_client()


def test_the_catalogue_has_a_sentence_and_a_code_of_its_own_for_each_failure() -> None:
    failures = AppError.__subclasses__()
    assert sorted(CATALOGUE) == sorted(failure.code for failure in failures)
    for error in failures:
        assert error.__doc__
        assert error.__doc__.endswith(".")
        assert "\n" not in error.__doc__
        assert 400 <= error.status < 600
        assert error.code.isupper()


def test_every_failure_of_the_catalogue_is_known_here() -> None:
    assert REACHED_BY.keys() == CATALOGUE.keys()


@pytest.mark.parametrize("code", sorted(REACHED_BY))
def test_each_failure_can_be_met_and_comes_in_the_envelope(
    in_earnest: FlaskClient, factory: Factory, log_lines: Callable[[], list[dict[str, Any]]], code: str
) -> None:
    response = REACHED_BY[code](in_earnest, factory)
    error = CATALOGUE[code]
    assert failure(response) == (error.status, code)
    assert response.json["error"] == error.__doc__
    assert response.mimetype == "application/json"
    assert error.headers.items() <= dict(response.headers).items()
    if error.status == 503:
        assert int(response.headers["Retry-After"]) > 0
    [line] = [line for line in log_lines()[-1:] if line["event"] == "request"]
    assert (line["status"], line["code"], line["request_id"]) == (error.status, code, response.headers["X-Request-ID"])


@pytest.mark.parametrize(
    ("method", "path", "allowed"),
    [
        ("GET", f"{SESSION}/start", {"POST", "OPTIONS"}),
        ("PUT", f"{SESSION}/end", {"POST", "OPTIONS"}),
        ("DELETE", SESSION, {"GET", "HEAD", "OPTIONS"}),
        ("POST", "/healthz", {"GET", "HEAD", "OPTIONS"}),
        ("TRACE", "/readyz", {"GET", "HEAD", "OPTIONS"}),
    ],
)
def test_a_refused_method_names_those_that_are_allowed(
    client: FlaskClient, method: str, path: str, allowed: set[str]
) -> None:
    response = client.open(path, method=method)
    assert failure(response) == (405, "METHOD_NOT_ALLOWED")
    assert set(response.headers["Allow"].split(", ")) == allowed


@pytest.mark.parametrize(
    "path", ["/", f"{SESSION}/", f"{SESSION}/nothing", "/api/after-hours", "/api/after-hours/%00", "/static/x", "/%ff"]
)
def test_nothing_is_found_nowhere(client: FlaskClient, path: str) -> None:
    assert failure(client.get(path)) == (404, "NOT_FOUND")


def test_head_and_options_are_gated_too_and_answer_without_a_body(client: FlaskClient, factory: Factory) -> None:
    headers = bearer(factory.member())
    assert (client.head(SESSION).status_code, client.options(SESSION).status_code) == (401, 401)
    head, options = client.head(SESSION, headers=headers), client.options(SESSION, headers=headers)
    assert (head.status_code, head.data, head.is_json) == (200, b"", True)
    assert (options.status_code, options.data) == (200, b"")
    assert set(options.headers["Allow"].split(", ")) == {"GET", "HEAD", "OPTIONS"}


@pytest.mark.parametrize("request_id", ["a", "7f3c-9A_b.1", "x" * 64])
def test_a_request_id_is_echoed(client: FlaskClient, request_id: str) -> None:
    assert client.get("/healthz", headers={"X-Request-ID": request_id}).headers["X-Request-ID"] == request_id


@pytest.mark.parametrize("request_id", [None, "", " ", "a b", "x" * 65, "é", '"', "a;b", "<script>", "{}"])
def test_a_bad_request_id_is_replaced(client: FlaskClient, request_id: str | None) -> None:
    headers = {} if request_id is None else {"X-Request-ID": request_id}
    one, other = (client.get("/nowhere", headers=headers).headers["X-Request-ID"] for _ in "12")
    assert one != other
    assert one.isalnum()
    assert len(one) == 32


def test_each_request_is_one_line_of_json(client: FlaskClient, log_lines: Callable[[], list[dict[str, Any]]]) -> None:
    client.get("/healthz", headers={"X-Request-ID": "known"})
    client.get("/somewhere/52.5,13.4?latitude=52.5")
    known, unknown = log_lines()
    assert known.pop("ms") >= 0
    assert known.pop("timestamp").endswith("Z")
    assert known == {
        "event": "request",
        "level": "info",
        "logger": "afterhours_service",
        "request_id": "known",
        "method": "GET",
        "route": "/healthz",
        "status": 200,
        "code": None,
    }
    assert (unknown["route"], unknown["code"]) == (None, "NOT_FOUND")
    assert "52.5" not in json.dumps(unknown)


ODD_NAME = "line\nbreak"
TROUBLES = {
    "none": "SELECT 1",
    "a check": "ALTER TABLE after_hours_sessions ADD CHECK (user_id IS NULL) NOT VALID",
    "another type": """ALTER TABLE after_hours_sessions DROP COLUMN latitude CASCADE;
        ALTER TABLE after_hours_sessions ADD COLUMN latitude date""",
    "no column": "ALTER TABLE after_hours_sessions DROP COLUMN fuzzed_latitude CASCADE",
    "no precision": """DROP TRIGGER after_hours_erase_location ON after_hours_sessions;
        ALTER TABLE after_hours_sessions ALTER COLUMN longitude TYPE numeric(3, 3)""",
    "no connection": LOSE_THE_CONNECTION,
}


@pytest.mark.parametrize("member", ["plain", ODD_NAME], ids=["plain", "odd"])
@pytest.mark.parametrize("trouble", TROUBLES)
def test_no_coordinate_is_told_whatever_happens(
    in_earnest: FlaskClient, factory: Factory, told: Callable[[], list[str]], trouble: str, member: str
) -> None:
    factory.execute("INSERT INTO users VALUES (%s, 'test', NULL, true, true)", member)
    factory.execute("INSERT INTO user_subscriptions (user_id, is_active) VALUES (%s, true)", member)
    factory.execute("INSERT INTO after_hours_profiles (user_id) VALUES (%s)", member)
    factory.execute(TROUBLES[trouble])
    client = in_earnest
    responses = [
        start(client, member, **HERE),
        start(client, member, **HERE, deviceFingerprint=FINGERPRINT),
        start(client, member, **HERE, unknown=HERE),
        start(client, member, **HERE | {"latitude": "48.87654321"}),
        start(client, member, **HERE | {"latitude": 248.87654321, "longitude": 342.34567891}),
        status(client, member),
        extend(client, member),
        end(client, member),
    ]
    if trouble == "no connection":
        assert [response.status_code for response in responses[:2]] == [503, 503]
    elif trouble != "none":
        assert [response.status_code for response in responses[:2]] == [500, 500]
    bodies = [response.get_data(as_text=True) for response in responses]
    for secret in ("48.876", "2.3456"):
        assert not [text for text in [*bodies, *told()] if secret in text]
    if trouble != "none":
        assert not [text for text in bodies[:2] if "INSERT" in text or "psycopg" in text or "Traceback" in text]


@pytest.mark.parametrize(
    "path", ["session/start", "session/extend", "profile", "preferences", "consent", "match/accept", "match/decline"]
)
def test_a_body_that_cannot_be_read_is_the_clients_fault(app: Flask, factory: Factory, path: str) -> None:
    app.testing = False  # what nobody caught is a 500
    body = Mock(spec=["read"])
    body.read.side_effect = OSError("the body is broken")  # as our server does
    answer = app.test_client().open(
        f"/api/after-hours/{path}",
        method="PUT" if path == "consent" else "POST",
        headers={**bearer(factory.member()), "Content-Type": "application/json", "Transfer-Encoding": "chunked"},
        environ_overrides={"wsgi.input": body, "wsgi.input_terminated": True},
    )
    assert answer.status_code == 400
    assert body.read.called


def test_neither_is_a_photo_that_cannot_be_read_ours(app: Flask, factory: Factory) -> None:
    app.testing = False
    body = Mock(spec=["read"])
    body.read.side_effect = OSError("the body is broken")
    answer = app.test_client().post(
        "/api/after-hours/profile/photo",
        headers={
            **bearer(factory.member()),
            "Content-Type": "multipart/form-data; boundary=x",
            "Transfer-Encoding": "chunked",
        },
        environ_overrides={"wsgi.input": body, "wsgi.input_terminated": True},
    )
    assert answer.status_code == 400
    assert body.read.called

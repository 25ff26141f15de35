"""The API's description: complete, current, true (schemathesis), and enough to make a client from."""

import json
import re
import subprocess
import sys
import uuid
from pathlib import Path
from typing import Any

import httpx
import hypothesis
import pytest
import schemathesis
from flask import Flask
from flask.testing import FlaskClient
from hypothesis import HealthCheck, given
from hypothesis import strategies as st
from schemathesis.config import SchemathesisConfig

from afterhours_service.profiles import rules
from afterhours_service.web import gate
from afterhours_service.web.errors import CATALOGUE
from dev import openapi
from tests.factories import PLACE, Factory, bearer, token
from tests.pictures import encode, quarters

DESCRIPTION = json.loads(openapi.PATH.read_text())
OPERATIONS = {
    operation["operationId"]: (method.upper(), path, operation)
    for path, item in DESCRIPTION["paths"].items()
    for method, operation in item.items()
    if method != "parameters"
}


def codes(operation: dict[str, Any], status: int) -> set[str]:
    """Return the codes that an operation is said to answer with a status."""
    content = operation["responses"].get(str(status), {}).get("content", {})
    return set(content.get("application/json", {}).get("examples", {}))


def test_what_is_written_is_what_the_code_says() -> None:
    assert openapi.text() == openapi.PATH.read_text(), "run `make openapi`"


def test_every_route_is_described(app: Flask) -> None:
    described = {(method, path) for method, path, _ in OPERATIONS.values()}
    assert described == {
        (method, re.sub(r"<[^>]*?(\w+)>", r"{\1}", rule.rule))
        for rule in app.url_map.iter_rules()
        for method in (rule.methods or set()) - {"HEAD", "OPTIONS"}
        # Links to photos come signed, ready to use; metrics are the operator's.
        if rule.endpoint not in {"files.get_photo", "monitoring.get_metrics"}
    }


def test_every_code_is_an_answer_of_some_operation() -> None:
    answers = {
        code for _, _, operation in OPERATIONS.values() for s in operation["responses"] for code in codes(operation, s)
    }
    assert CATALOGUE.keys() - answers == {"METHOD_NOT_ALLOWED"}


@pytest.mark.parametrize("name", OPERATIONS)
def test_an_operation_names_its_refusals(name: str) -> None:
    _, path, operation = OPERATIONS[name]
    has_token_alone = name in {"endSession", "deletePhoto", "getConsent", "putConsent", "exportMe", "eraseMe"}
    checks = {error.code for error in (gate.TOKEN_FAILURES if has_token_alone else gate.FAILURES)}
    said = {code for status in operation["responses"] for code in codes(operation, status)}
    others = {error.code for error in gate.FAILURES} - checks
    if path.startswith("/api/"):
        assert checks <= said
        assert not others & said - {"VERIFICATION_REQUIRED"}  # which consent answers for a member who is gone
    else:
        assert not checks & said
    assert operation.get("security", DESCRIPTION["security"]) == ([{"bearer": []}] if path.startswith("/api/") else [])
    assert {"BAD_REQUEST", "INTERNAL_ERROR"} <= said
    assert operation["summary"].endswith(".")


@pytest.mark.parametrize("code", CATALOGUE)
def test_an_example_is_a_failure(code: str) -> None:
    value = DESCRIPTION["components"]["examples"][code]["value"]
    schema = DESCRIPTION["components"]["schemas"]["Failure"]
    assert (value["success"], value["code"]) == (False, code)
    assert value.keys() <= schema["properties"].keys()


@given(st.text() | st.text("\t\n\r \x85\u3000ab\u202e"))
def test_the_pattern_of_a_description_is_its_rule(text: str) -> None:
    tidy = rules.tidy(text)
    accepted = tidy is None or not rules.has_control_characters(tidy)
    assert bool(re.fullmatch(rules.DESCRIPTION_PATTERN.removesuffix("$"), text)) is accepted


# --- what it says is true ---

STATES = {
    ("POST", "/api/after-hours/profile"): "DELETE FROM after_hours_profiles",
    ("POST", "/api/after-hours/preferences"): "DELETE FROM after_hours_preferences",
    ("PATCH", "/api/after-hours/preferences"): "UPDATE after_hours_preferences SET min_age = 18, max_age = 99",
    ("POST", "/api/after-hours/session/start"): "DELETE FROM after_hours_sessions",
}
schemathesis.openapi.format("binary", st.just(encode(quarters(400, 300), "JPEG")))
EMPTY_RANGE = [{"field": "minAge", "message": "Must not be greater than maxAge."}]


@schemathesis.check
def the_code_is_a_described_one(_ctx: Any, response: Any, case: Any) -> None:
    if response.status_code >= 400 and response.status_code != 405:
        assert response.json()["code"] in codes(case.operation.definition.raw, response.status_code)


api = schemathesis.openapi.from_dict(
    DESCRIPTION,
    config=SchemathesisConfig.from_dict(
        {
            "generation": {"max-examples": 3, "deterministic": True},
            # That an age range has someone in it is more than a JSON Schema can say; any other 400 is caught below.
            "operations": [
                {
                    "include-name": f"{method} /api/after-hours/preferences",
                    "checks": {
                        "positive_data_acceptance": {"expected-statuses": ["2xx", "400", "401", "403", "404", "409"]}
                    },
                }
                for method in ("POST", "PATCH")
            ]
            # Nor that a cursor is one that was given.
            + [
                {
                    "include-name": "GET /api/after-hours/nearby",
                    "checks": {
                        "positive_data_acceptance": {"expected-statuses": ["2xx", "400", "401", "403", "404", "409"]}
                    },
                }
            ]
            # How a part of a multipart body is spoilt here may leave the picture whole, and by that alone it is judged.
            + [
                {
                    "include-name": "POST /api/after-hours/profile/photo",
                    "checks": {"negative_data_rejection": {"enabled": False}},
                }
            ],
        }
    ),
)


class Served:
    """The app of the running test; operations are bound to an app when tests are collected."""

    app: Flask

    def __call__(self, *args: Any) -> Any:
        return self.app(*args)


api.app = Served()


@pytest.fixture
def member(app: Flask, factory: Factory) -> str:
    """Return a member of the app that is asked."""
    api.app.app = app
    member = factory.member()
    factory.session(member)
    return member


@api.parametrize()
@hypothesis.settings(deadline=None, suppress_health_check=list(HealthCheck))
def test_nothing_contradicts_the_description(case: Any, member: str, factory: Factory) -> None:
    if statement := STATES.get((case.method, case.path)):
        factory.execute(statement)
    if isinstance(case.body, dict):  # to a JSON Schema 15.0 is an integer, to the service it is a slip of the client's
        case.body = {name: _as_integer(name, value) for name, value in case.body.items()}
    response = case.call_and_validate(headers=bearer(member))
    if case.path.endswith("/preferences") and response.status_code == 400 and case.meta.generation.mode.is_positive:
        assert response.json()["errors"] == EMPTY_RANGE
    if case.path.endswith("/nearby") and response.status_code == 400 and case.meta.generation.mode.is_positive:
        assert [error["field"] for error in response.json()["errors"]] == ["cursor"]


@pytest.mark.parametrize("name", ["getNearby", "getCount", "declineMember", "takeBackDecline"])
def test_discovery_without_a_session_answers_as_described(name: str, client: FlaskClient, factory: Factory) -> None:
    method, path, operation = OPERATIONS[name]
    body: dict[str, Any] = {"json": {"userId": "m"}} if "requestBody" in operation else {}
    answer = client.open(path.format(user_id="m"), method=method, headers=bearer(factory.member()), **body)
    assert answer.json["code"] == "NO_ACTIVE_SESSION"
    assert "NO_ACTIVE_SESSION" in codes(operation, answer.status_code)


def _as_integer(name: str, value: Any) -> Any:
    whole = isinstance(value, float) and value.is_integer() and name not in {"latitude", "longitude"}
    return int(value) if whole else value


# --- a client made from it ---


def test_a_generated_client_goes_through_a_session(
    app: Flask, factory: Factory, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = tmp_path / "config.yml"
    config.write_text("post_hooks: []\npackage_name_override: generated_client\n")
    command = [
        *(sys.executable, "-m", "openapi_python_client", "generate", "--path", str(openapi.PATH), "--fail-on-warning"),
        *("--meta", "none", "--config", str(config), "--output-path", str(tmp_path / "generated_client")),
    ]
    made = subprocess.run(command, capture_output=True, text=True, check=False)
    assert made.returncode == 0, made.stdout + made.stderr
    monkeypatch.syspath_prepend(tmp_path)

    from generated_client import AuthenticatedClient, models  # type: ignore[import-not-found]
    from generated_client.api.preferences import update_preferences  # type: ignore[import-not-found]
    from generated_client.api.profile import create_profile  # type: ignore[import-not-found]
    from generated_client.api.sessions import (  # type: ignore[import-not-found]
        end_session,
        extend_session,
        get_session,
        start_session,
    )

    member = factory.member(profile=False)
    client = AuthenticatedClient(
        base_url="http://service", token=token(member), httpx_args={"transport": httpx.WSGITransport(app=app)}
    )
    begin = models.Start(duration=models.StartDuration.VALUE_15, **PLACE)

    refused = start_session.sync(client=client, body=begin)
    assert (refused.success, refused.code) == (False, "PROFILE_REQUIRED")
    profile = create_profile.sync(client=client, body=models.Description(description="New here")).profile
    assert (profile.user_id, profile.name, profile.photo_url) == (member, "Robin", None)
    missing = update_preferences.sync(client=client, body=models.Changes(max_age=40))
    assert missing.code == "PREFERENCES_NOT_FOUND"

    session = start_session.sync(client=client, body=begin).session
    assert isinstance(session.id, uuid.UUID)
    assert session.expires_at > session.started_at
    again = start_session.sync(client=client, body=begin)
    assert (again.code, again.session.id) == ("SESSION_ALREADY_ACTIVE", session.id)
    more = models.Extend(additional_minutes=models.ExtendAdditionalMinutes.VALUE_30)
    extended = extend_session.sync(client=client, body=more).session
    assert (extended.expires_at - session.expires_at).total_seconds() == 30 * 60
    assert get_session.sync(client=client).session.remaining_seconds > 44 * 60
    assert end_session.sync(client=client).session.id == session.id
    now = get_session.sync(client=client)
    assert (now.active, now.session) == (False, None)
    assert end_session.sync(client=client).code == "NO_ACTIVE_SESSION"

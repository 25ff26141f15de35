"""What is not exactly right is refused: 400, the envelope, the field's name, and no row written."""

import json
from collections.abc import Iterable
from typing import Any

import marshmallow as ma
import pytest
from flask.testing import FlaskClient
from hypothesis import given
from hypothesis import strategies as st

from afterhours_service.sessions.schemas import ExtendSchema, StartSchema
from tests.client import FINGERPRINT, SESSION, extend
from tests.factories import PLACE, Factory, bearer

GOOD = {"duration": 15, **PLACE}
LEFT_OUT = object()
INFINITY, NAN = float("inf"), float("nan")

NOT_MINUTES: list[Any] = [
    LEFT_OUT, None, "15", "", True, False, 15.5, 14.999999999999998, 0,
    -15, 1, 14, 16, 45, 61, 90, 10**400, NAN, INFINITY, [15], {},
]  # fmt: skip
NOT_A_NUMBER: list[Any] = [
    LEFT_OUT, None, "52.52", "", "NaN", True, False, NAN, INFINITY, -INFINITY, 10**400, -(10**400), [52.52], {},
]  # fmt: skip
NOT_A_LATITUDE = [*NOT_A_NUMBER, 90.0000001, -90.0000001, 91, 1e308]
NOT_A_LONGITUDE = [*NOT_A_NUMBER, 180.0000001, -180.0000001, 181, -1e308]
NOT_TEXT: list[Any] = [7, True, [], {}, 1.5, "a\0b", "\0", "\ud800"]
NOT_A_DEVICE: list[tuple[str, Any]] = [
    *(("deviceFingerprint", value) for value in ("", "A-1", 7, True, [], [FINGERPRINT])),
    ("deviceFingerprint.unheardOf", {"unheardOf": 1}),
    ("deviceFingerprint.device_id", {"device_id": "A-1"}),
    *(("deviceFingerprint.deviceId", {"deviceId": value}) for value in [*NOT_TEXT, "x" * 256]),
    *(("deviceFingerprint.deviceModel", {"deviceModel": value}) for value in [*NOT_TEXT, "x" * 101]),
    *(("deviceFingerprint.platform", {"platform": value}) for value in [*NOT_TEXT, "", "iOS", "windows"]),
]


def bodies(good: dict[str, Any], field: str, values: Iterable[Any]) -> list[Any]:
    """Return cases of the good body, with each of the bad values in one field."""
    return [
        pytest.param(
            field,
            {name: part for name, part in {**good, field: value}.items() if part is not LEFT_OUT},
            id=f"{field!a}-{'left out' if value is LEFT_OUT else ascii(value)[:20]}",
        )
        for value in values
    ]


START = [
    *bodies(GOOD, "duration", NOT_MINUTES),
    *bodies(GOOD, "latitude", NOT_A_LATITUDE),
    *bodies(GOOD, "longitude", NOT_A_LONGITUDE),
    *(pytest.param(field, {**GOOD, "deviceFingerprint": value}, id=ascii(value)[:40]) for field, value in NOT_A_DEVICE),
    *(bodies(GOOD, field, [1])[0] for field in ("unheardOf", "device_fingerprint", "Duration", "\ud800", "userId")),
]
EXTEND = [
    *bodies({}, "additionalMinutes", NOT_MINUTES),
    *(bodies({"additionalMinutes": 15}, field, [15])[0] for field in ("duration", "additional_minutes")),
]
NOT_AN_OBJECT = [
    b"",
    b" ",
    b"null",
    b"true",
    b"7",
    b'"text"',
    b"[]",
    b"[{}]",
    b"{",
    b"{}}",
    b"{'duration': 15}",
    b'{"duration": 15,}',
    b"duration=15",
    b"\xff\xfe",
    b"\xef\xbb\xbf{}",
    json.dumps(GOOD).encode("utf-16"),
    b"[" * 50_000,
    b'{"a":' * 10_000,
    b'{"duration": ' + b"9" * 5000 + b"}",
    b"\0",
]


def refusal(response: Any) -> list[str]:
    """Return the names of the fields that a refusal names; it must be one, with the envelope."""
    assert response.status_code == 400, response.data
    assert response.json.keys() == {"success", "error", "code", "errors"}
    assert (response.json["success"], response.json["code"]) == (False, "VALIDATION_ERROR")
    for line in response.json["errors"]:
        assert line.keys() == {"field", "message"}
        assert isinstance(line["message"], str)
        assert line["message"]
    return [line["field"] for line in response.json["errors"]]


def test_no_malformed_start_gets_through(client: FlaskClient, factory: Factory, subtests: Any) -> None:
    headers = bearer(factory.member())
    for case in START:
        field, body = case.values
        with subtests.test(case.id):
            assert refusal(client.post(f"{SESSION}/start", json=body, headers=headers)) == [field]
    assert factory.count("after_hours_sessions") == 0
    assert client.post(f"{SESSION}/start", json=GOOD, headers=headers).status_code == 201


def test_no_malformed_extension_gets_through(client: FlaskClient, factory: Factory, subtests: Any) -> None:
    member = factory.member()
    factory.session(member)
    before = factory.sessions(member)
    for case in EXTEND:
        field, body = case.values
        with subtests.test(case.id):
            assert refusal(client.post(f"{SESSION}/extend", json=body, headers=bearer(member))) == [field]
    assert factory.sessions(member) == before


@pytest.mark.parametrize("numeral", ["15", "15.0", "1.5e1", "150e-1"])
def test_a_whole_number_may_be_written_with_a_point(client: FlaskClient, factory: Factory, numeral: str) -> None:
    headers = bearer(factory.member()) | {"Content-Type": "application/json"}
    body = json.dumps({**GOOD, "duration": 0}).replace('"duration": 0', f'"duration": {numeral}')
    started = client.post(f"{SESSION}/start", data=body, headers=headers)
    assert started.status_code == 201, started.text
    assert '"durationMinutes":15,' in started.text.replace(" ", "")
    extended = client.post(f"{SESSION}/extend", data=f'{{"additionalMinutes": {numeral}}}', headers=headers)
    assert extended.status_code == 200, extended.text
    assert extended.json["session"]["extendedByMinutes"] == 15
    refused = client.post(f"{SESSION}/extend", data='{"additionalMinutes": 1e400}', headers=headers)
    assert refusal(refused) == ["additionalMinutes"]


@pytest.mark.parametrize("key", ["", "k" * 65, "\x7f", "k\tk", "é", "\x01"], ids=ascii)
def test_a_malformed_key_is_named(client: FlaskClient, factory: Factory, key: str) -> None:
    member = factory.member()
    factory.session(member)
    before = factory.sessions(member)
    assert refusal(extend(client, member, key=key)) == ["Idempotency-Key"]
    assert factory.sessions(member) == before


@pytest.mark.parametrize("key", ["k", "k" * 64, "a b", "~!{}\\\"',;%"], ids=ascii)
def test_any_printable_ascii_is_a_key(client: FlaskClient, factory: Factory, key: str) -> None:
    member = factory.member()
    factory.session(member)
    answers = [extend(client, member, key=key) for _ in range(2)]
    assert [answer.status_code for answer in answers] == [200, 200]
    assert answers[0].json == answers[1].json


@pytest.mark.parametrize("route", ["start", "extend"])
def test_only_a_json_object_is_a_body(client: FlaskClient, factory: Factory, subtests: Any, route: str) -> None:
    headers = bearer(factory.member())
    for data in NOT_AN_OBJECT:
        with subtests.test(ascii(data[:20])):
            response = client.post(f"{SESSION}/{route}", data=data, content_type="application/json", headers=headers)
            assert refusal(response) == ["body"]


@pytest.mark.parametrize(
    "content_type", [None, "text/plain", "application/x-www-form-urlencoded", "multipart/form-data; boundary=x", "json"]
)
def test_a_body_must_be_declared_as_json(client: FlaskClient, factory: Factory, content_type: str | None) -> None:
    headers = bearer(factory.member())
    response = client.post(f"{SESSION}/start", data=json.dumps(GOOD), content_type=content_type, headers=headers)
    assert refusal(response) == ["body"]


@pytest.mark.parametrize("content_type", ["application/json; charset=utf-8", "APPLICATION/JSON"])
def test_json_may_be_declared_with_a_charset(client: FlaskClient, factory: Factory, content_type: str) -> None:
    headers = bearer(factory.member())
    response = client.post(f"{SESSION}/start", data=json.dumps(GOOD), content_type=content_type, headers=headers)
    assert response.status_code == 201


def test_every_problem_is_named_at_once(client: FlaskClient, factory: Factory) -> None:
    body = {"duration": "15", "latitude": 91, "deviceFingerprint": {"platform": "windows", "deviceId": 7}, "more": 1}
    response = client.post(f"{SESSION}/start", json=body, headers=bearer(factory.member()))
    assert sorted(refusal(response)) == [
        "deviceFingerprint.deviceId",
        "deviceFingerprint.platform",
        "duration",
        "latitude",
        "longitude",
        "more",
    ]


def test_the_query_string_is_no_body(client: FlaskClient, factory: Factory) -> None:
    response = client.post(f"{SESSION}/start", query_string=GOOD, json={}, headers=bearer(factory.member()))
    assert sorted(refusal(response)) == ["duration", "latitude", "longitude"]


@given(data=st.binary(max_size=200))
def test_noise_is_refused(client: FlaskClient, factory: Factory, data: bytes) -> None:
    response = client.post(
        f"{SESSION}/start", data=data, content_type="application/json", headers=bearer(factory.member())
    )
    assert refusal(response)


anything = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=5), inner, max_size=2),
)
minutes = st.sampled_from([15, 30, 60]) | anything
number = st.floats(-180, 180) | anything


@given(st.fixed_dictionaries({"duration": minutes, "latitude": number, "longitude": number}))
def test_what_passes_is_exactly_right(body: dict[str, Any]) -> None:
    try:
        loaded = StartSchema().load(body)
    except ma.ValidationError:
        return
    assert type(body["duration"]) is int
    assert loaded["duration"] in {15, 30, 60}
    for name, limit in (("latitude", 90), ("longitude", 180)):
        assert type(body[name]) in {int, float}
        assert loaded[name] == body[name]
        assert -limit <= loaded[name] <= limit


@given(anything)
def test_an_extension_is_a_number_of_minutes_or_refused(value: Any) -> None:
    try:
        assert ExtendSchema().load({"additionalMinutes": value})["additional_minutes"] in {15, 30, 60}
    except ma.ValidationError:
        return
    assert type(value) is int

"""A member's phone: the requests that a member makes, over Flask's test client."""

import re
from datetime import datetime
from typing import Any

from flask.testing import FlaskClient

from tests.factories import PLACE, bearer

API = "/api/after-hours"
SESSION = f"{API}/session"
PHOTO = f"{API}/profile/photo"
FINGERPRINT = {"deviceId": "A-1", "deviceModel": "Pixel 9", "platform": "android"}
TIME = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z")


def start(client: FlaskClient, member: str, minutes: int = 15, **others: Any) -> Any:
    """POST /session/start."""
    return client.post(f"{SESSION}/start", json={"duration": minutes, **PLACE, **others}, headers=bearer(member))


def extend(client: FlaskClient, member: str, minutes: int = 15, key: str | None = None) -> Any:
    """POST /session/extend, with an Idempotency-Key or without."""
    headers = bearer(member) | ({} if key is None else {"Idempotency-Key": key})
    return client.post(f"{SESSION}/extend", json={"additionalMinutes": minutes}, headers=headers)


def end(client: FlaskClient, member: str, **request: Any) -> Any:
    """POST /session/end."""
    return client.post(f"{SESSION}/end", headers=bearer(member), **request)


def status(client: FlaskClient, member: str) -> Any:
    """GET /session."""
    return client.get(SESSION, headers=bearer(member))


def decline(client: FlaskClient, member: str, other: str) -> Any:
    """POST /declines."""
    return client.post(f"{API}/declines", json={"userId": other}, headers=bearer(member))


def current(client: FlaskClient, member: str) -> Any:
    """GET /match/current, and return what it answers."""
    response = client.get(f"{API}/match/current", headers=bearer(member))
    assert response.status_code == 200, response.json
    return response.json


def answer_match(client: FlaskClient, member: str, verb: str, match: str) -> Any:
    """POST /match/accept or /match/decline."""
    return client.post(f"{API}/match/{verb}", json={"matchId": match}, headers=bearer(member))


def upload(client: FlaskClient, member: str, data: bytes, field: str = "photo", name: str = "x.jpg") -> Any:
    """POST /profile/photo. The form is put together here: werkzeug's client leaves a file open for a large body."""
    head = f'--x\r\nContent-Disposition: form-data; name="{field}"; filename="{name}"\r\n\r\n'
    body = head.encode() + data + b"\r\n--x--\r\n"
    return client.post(PHOTO, data=body, content_type="multipart/form-data; boundary=x", headers=bearer(member))


def withdraw(client: FlaskClient, member: str) -> Any:
    """PUT /consent, to withdraw it."""
    return client.put(f"{API}/consent", json={"granted": False}, headers=bearer(member))


def erase(client: FlaskClient, member: str) -> Any:
    """DELETE /me."""
    return client.delete(f"{API}/me", headers=bearer(member))


def look(client: FlaskClient, member: str, **query: Any) -> Any:
    """GET /nearby, and return what it answers."""
    response = client.get(f"{API}/nearby", query_string=query, headers=bearer(member))
    assert response.status_code == 200, response.json
    return response.json


def seen(client: FlaskClient, member: str) -> list[str]:
    """Return the ids of the first fifty members that a member sees."""
    return [other["userId"] for other in look(client, member, limit=50)["members"]]


def failure(response: Any) -> tuple[int, str]:
    """Return a failure's status and code; it must have the envelope."""
    assert response.json["success"] is False
    assert isinstance(response.json["error"], str)
    return response.status_code, response.json["code"]


def moment(text: str) -> datetime:
    """Read a time as the contract writes it."""
    assert TIME.fullmatch(text)
    return datetime.fromisoformat(text)

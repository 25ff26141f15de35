"""A member goes live, extends, ends, and is gone on time."""

from typing import Any

from flask.testing import FlaskClient

from tests.factories import PLACE, Factory, bearer

API = "/api/after-hours/session"


def start(client: FlaskClient, member: str, minutes: int = 15, **others: Any) -> Any:
    """Send a start."""
    return client.post(f"{API}/start", json={"duration": minutes, **PLACE, **others}, headers=bearer(member))


def test_start_answers_the_session(client: FlaskClient, factory: Factory) -> None:
    response = start(client, factory.member())
    assert response.status_code == 201
    session = response.json["session"]
    assert set(session) == {"id", "startedAt", "expiresAt", "durationMinutes"}
    assert session["durationMinutes"] == 15
    assert session["expiresAt"].endswith(".000Z")


def test_start_stores_whole_seconds_never_short(client: FlaskClient, factory: Factory) -> None:
    member = factory.member()
    start(client, member, 30)
    [row] = factory.sessions(member)
    assert row.expires_at.microsecond == 0
    assert 1800 <= (row.expires_at - row.started_at).total_seconds() < 1801

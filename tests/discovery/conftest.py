"""A world to look around in: members with all that discovery looks at, live at places of one's choice."""

from collections.abc import Callable
from typing import Any

import pytest
from flask.testing import FlaskClient

from tests.factories import Factory, bearer

API = "/api/after-hours"
Live = Callable[..., str]


@pytest.fixture
def live(factory: Factory) -> Live:
    """Return a function that makes a live member at a blurred point, and returns their id."""

    def make(
        latitude: float = 52.52,
        longitude: float = 13.4,
        *,
        gender: str | None = "Female",
        age: int | None = 30,
        left: float = 900,
        wish: dict[str, Any] | None = None,
    ) -> str:
        member = factory.member()
        factory.execute("UPDATE profiles SET gender = %s, age = %s WHERE user_id = %s", gender, age, member)
        if wish is not None:
            prefer(factory, member, **wish)
        go_live(factory, member, latitude, longitude, left)
        return member

    return make


def prefer(factory: Factory, member: str, **wish: Any) -> None:
    """Give a member preferences, by the names of their columns."""
    columns = ", ".join(wish)
    values = ", ".join(["%s"] * len(wish))
    factory.execute(
        f"INSERT INTO after_hours_preferences (user_id, {columns}) VALUES (%s, {values})", member, *wish.values()
    )


def go_live(factory: Factory, member: str, latitude: float = 52.52, longitude: float = 13.4, left: float = 900) -> str:
    """Start a session of a member, whose blurred point is the one given; return its id."""
    session = factory.session(member, left=left)
    factory.execute(
        """UPDATE after_hours_sessions SET fuzzed_latitude = %s, fuzzed_longitude = %s,
           started_at = least(clock_timestamp(), expires_at - interval '1 second') WHERE id = %s""",
        latitude,
        longitude,
        session,
    )
    return session


def look(client: FlaskClient, member: str, **query: Any) -> Any:
    """Return the answer to GET /nearby."""
    response = client.get(f"{API}/nearby", query_string=query, headers=bearer(member))
    assert response.status_code == 200, response.json
    return response.json


def seen(client: FlaskClient, member: str) -> list[str]:
    """Return the ids of the first fifty members that a member sees."""
    return [other["userId"] for other in look(client, member, limit=50)["members"]]


def decline(client: FlaskClient, member: str, other: str) -> Any:
    """Return the answer to POST /declines."""
    return client.post(f"{API}/declines", json={"userId": other}, headers=bearer(member))

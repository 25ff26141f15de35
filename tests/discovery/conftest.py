"""Members with all that discovery looks at, live at places of one's choice."""

from typing import Any

import pytest

from tests.factories import Factory, Live, go_live, prefer


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

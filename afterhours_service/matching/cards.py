"""The card of a match: what a member is shown of the other one, in an answer and in an event."""

import math
from datetime import datetime
from typing import NamedTuple

from afterhours_service.matching.queries import Side
from afterhours_service.places.blur import shown_distance_km
from afterhours_service.profiles import photo


class Profile(NamedTuple):
    """The other member, as `/nearby` shows them."""

    user_id: str
    name: str | None
    age: int | None
    photo_url: str | None
    thumbnail_url: str | None
    description: str | None
    distance_km: int


class Card(NamedTuple):
    """A live match as a member sees it. auto_decline_at: None once one of the two has accepted."""

    id: str
    created_at: datetime
    expires_at: datetime
    auto_decline_at: datetime | None
    accepted: bool
    profile: Profile


def card(side: Side) -> Card:
    """Return the card of a member's side of a match."""
    seconds = max(1, math.ceil((side.expires_at - side.now).total_seconds()))  # links live as long as the match
    return Card(
        id=str(side.id),
        created_at=side.created_at,
        expires_at=side.expires_at,
        auto_decline_at=side.respond_by,
        accepted=side.has_accepted,
        profile=Profile(
            user_id=side.other_id,
            name=side.name,
            age=side.age,
            photo_url=photo.url(side.photo_key, seconds),
            thumbnail_url=photo.thumbnail_url(side.photo_key, seconds),
            description=side.description,
            distance_km=shown_distance_km(side.me, side.other),
        ),
    )

"""The use cases of discovery."""

from datetime import datetime, timedelta
from typing import NamedTuple

from sqlalchemy.exc import IntegrityError

from afterhours_service.config import current_settings
from afterhours_service.discovery import cursor as cursors
from afterhours_service.discovery import queries, rules
from afterhours_service.discovery.queries import Asker, Candidate, Position
from afterhours_service.places.blur import shown_distance_km
from afterhours_service.profiles import photo
from afterhours_service.sessions import rules as session_rules
from afterhours_service.text import is_storable
from afterhours_service.web import errors


class Member(NamedTuple):
    """A member near me, as I am shown them."""

    user_id: str
    name: str | None
    age: int | None
    photo_url: str | None
    thumbnail_url: str | None
    description: str | None
    distance_km: int
    expires_at: datetime


class Nearby(NamedTuple):
    """A page of members, the nearest first."""

    members: list[Member]
    next_cursor: str | None


class Count(NamedTuple):
    """How many members are near me and fit, counted up to `rules.COUNT_TO`."""

    counted: int
    or_more: bool
    max_distance_km: int


def nearby(member_id: str, limit: int, cursor: str | None) -> Nearby:
    """Return a page of the members near me who fit. Raises SessionRequired, or ValidationFailed for the cursor."""
    me = _asker(member_id)
    after = cursors.decode(me, cursor) if cursor is not None else None
    found = queries.page(me, limit + 1, _lead(), after)
    shown = found[:limit]
    next_cursor = None
    if len(found) > limit:
        last = shown[-1]
        as_of = after.as_of if after else me.now
        next_cursor = cursors.encode(me, Position(as_of, last.metres, last.session_id))
    return Nearby([_member(me, candidate) for candidate in shown], next_cursor)


def count(member_id: str) -> Count:
    """Return how many members near me fit. Raises SessionRequired."""
    me = _asker(member_id)
    number = queries.count(me, rules.COUNT_TO, _lead())
    return Count(number, number >= rules.COUNT_TO, me.max_distance_km)


def decline(member_id: str, other_id: str) -> None:
    """Hide the two of us from each other for this session of mine and my next two; repeating it changes nothing.

    Raises SessionRequired, or MemberNotFound for a member I cannot see.
    """
    me = _asker(member_id)
    if queries.has_declined(me, other_id):
        return
    if not queries.is_visible(me, other_id, _lead()):
        raise errors.MemberNotFound
    try:
        mine = queries.decline(me.session_id, member_id, other_id)
    except IntegrityError as error:  # they were deleted meanwhile
        raise errors.MemberNotFound from error
    if not mine:  # my data was erased meanwhile
        raise errors.SessionRequired


def take_back(member_id: str, other_id: str) -> None:
    """Delete my decline of the other member, if there is one. Raises SessionRequired."""
    me = _asker(member_id)
    if is_storable(other_id):
        queries.take_back(me, other_id)


def _asker(member_id: str) -> Asker:
    """Return the member who looks around, whose key in the index now matches their profile. Raises SessionRequired."""
    me = queries.asker(member_id)
    if me is None:
        raise errors.SessionRequired
    if me.is_stale:
        queries.renew_key(member_id)
    return me


def _lead() -> timedelta:
    return session_rules.length(session_rules.WARNING_MINUTES, current_settings().minute_seconds)


def _member(me: Asker, candidate: Candidate) -> Member:
    key = candidate.photo_key
    return Member(
        user_id=candidate.user_id,
        name=candidate.name,
        age=candidate.age,
        photo_url=photo.url(key),
        thumbnail_url=photo.thumbnail_url(key),
        description=candidate.description,
        distance_km=shown_distance_km(me.blurred, candidate.blurred),
        expires_at=candidate.expires_at,
    )

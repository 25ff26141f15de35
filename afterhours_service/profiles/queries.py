"""Reads and writes of After Hours profiles."""

from collections.abc import Collection
from datetime import datetime
from typing import Any, NamedTuple

from sqlalchemy import (
    ARRAY,
    BindParameter,
    Boolean,
    FromClause,
    Select,
    any_,
    bindparam,
    column,
    func,
    literal_column,
    select,
    text,
    update,
)
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.orm import aliased

from afterhours_service.profiles.models import AfterHoursProfile
from afterhours_service.stores.host import MainProfile
from afterhours_service.stores.statements import Statement

BAN_DISTANCE = 10
"""A picture is banned when its hash differs in fewer bits than this from a banned one, as in the Node service."""


class Profile(NamedTuple):
    """A profile as a use case sees it; `photo_key` is the key of an object in the storage."""

    user_id: str
    name: str | None
    age: int | None
    photo_key: str | None
    description: str | None
    created_at: datetime
    updated_at: datetime


class Replaced(NamedTuple):
    """The photo that a profile had before a change; None for no photo."""

    photo_key: str | None


def _profiles(source: FromClause) -> Select[Any]:
    """Select profiles, with name and age from the main profile. source: has the columns of AfterHoursProfile."""
    return select(
        source.c.user_id,
        MainProfile.name,
        MainProfile.age,
        source.c.photo_url.label("photo_key"),
        source.c.description,
        source.c.created_at,
        source.c.updated_at,
    ).outerjoin_from(source, MainProfile, MainProfile.user_id == source.c.user_id)


_MEMBER = AfterHoursProfile.user_id == bindparam("member_id")
_DESCRIPTION: BindParameter[str | None] = bindparam("new_description")

_GET = Statement(_profiles(AfterHoursProfile.__table__).where(_MEMBER), Profile)
_CREATE = Statement(
    _profiles(
        insert(AfterHoursProfile)
        .values(user_id=bindparam("member_id"), description=_DESCRIPTION)
        .on_conflict_do_nothing(index_elements=[AfterHoursProfile.user_id])
        .returning(AfterHoursProfile)
        .cte("written")
    ),
    Profile,
)
_DESCRIBE = Statement(
    _profiles(
        update(AfterHoursProfile)
        .where(_MEMBER)
        .values(description=_DESCRIPTION, updated_at=func.now())
        .returning(AfterHoursProfile)
        .cte("written")
    ),
    Profile,
)


def _set_photo() -> Any:
    # The old key is read under the row's lock: of two uploads at once each removes the photo that it replaced.
    unlocked = aliased(AfterHoursProfile)
    old = (
        select(unlocked.user_id, unlocked.photo_url)
        .where(unlocked.user_id == bindparam("member_id"))
        .with_for_update()
        .subquery("old")
    )
    return (
        update(AfterHoursProfile)
        .where(AfterHoursProfile.user_id == old.c.user_id)
        .values(photo_url=bindparam("key"), photo_hash=bindparam("phash"), updated_at=func.now())
        .returning(old.c.photo_url.label("photo_key"))
    )


_SET_PHOTO = Statement(_set_photo(), Replaced)
_REFERENCED: Statement[Any] = Statement(
    select(AfterHoursProfile.photo_url).where(
        AfterHoursProfile.photo_url == any_(bindparam("keys", type_=ARRAY(AfterHoursProfile.photo_url.type)))
    )
)
_HAS_BANS: Statement[Any] = Statement(select(literal_column("to_regclass('banned_photo_hashes') IS NOT NULL")))
# SQL: the table is the host's, without a model here, and bit strings have no expressions.
# CASE: what is not a hash must not be cast, in whatever order the planner puts the conditions.
_IS_BANNED: Statement[Any] = Statement(
    text("""
    SELECT EXISTS (
        SELECT FROM banned_photo_hashes WHERE CASE
            WHEN photo_hash ~ '^[0-9A-Fa-f]{16}$'
            THEN bit_count(CAST('x' || photo_hash AS bit(64)) # CAST('x' || :phash AS bit(64))) < :distance
            ELSE false END
    ) AS banned
    """).columns(column("banned", Boolean))
)


def get(member_id: str) -> Profile | None:
    """Return the member's profile."""
    return _GET.first(member_id=member_id)


def create(member_id: str, description: str | None) -> Profile | None:
    """Insert a profile; None when there is one."""
    profiles, _ = _CREATE.run(member_id=member_id, new_description=description)
    return next(iter(profiles), None)


def describe(member_id: str, description: str | None) -> Profile | None:
    """Set the description; None when there is no profile."""
    profiles, _ = _DESCRIBE.run(member_id=member_id, new_description=description)
    return next(iter(profiles), None)


def is_banned(phash: str) -> bool:
    """Return whether the host has banned a picture that looks like this one; false where it has no table of bans."""
    [(has_bans,)] = _HAS_BANS.all()
    if not has_bans:
        return False
    [(banned,)] = _IS_BANNED.all(phash=phash, distance=BAN_DISTANCE)
    return bool(banned)


def set_photo(member_id: str, key: str | None, phash: str | None) -> Replaced | None:
    """Set the photo's key and its hash, and return what they replace; None when there is no profile."""
    replaced, _ = _SET_PHOTO.run(member_id=member_id, key=key, phash=phash)
    return next(iter(replaced), None)


def referenced_keys(keys: Collection[str]) -> set[str]:
    """Return those of `keys` that a profile refers to."""
    return {key for (key,) in _REFERENCED.all(keys=list(keys))}

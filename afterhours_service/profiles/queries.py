"""Every statement about After Hours profiles. None commits."""

from collections.abc import Collection
from datetime import datetime
from typing import Any, NamedTuple

from sqlalchemy import text

from afterhours_service.stores.database import db


class Profile(NamedTuple):
    """A profile as a use case sees it; `photo_key` names an object of the storage."""

    user_id: str
    name: str | None
    age: int | None
    photo_key: str | None
    description: str | None
    created_at: datetime
    updated_at: datetime


_READ = """
    SELECT p.user_id, m.name, m.age, p.photo_url, p.description, p.created_at, p.updated_at
    FROM {source} AS p LEFT JOIN profiles AS m ON m.user_id = p.user_id
"""
_GET = text(_READ.format(source="after_hours_profiles") + "WHERE p.user_id = :member_id")
_CREATE = text(
    """
    WITH written AS (
        INSERT INTO after_hours_profiles (user_id, description) VALUES (:member_id, :description)
        ON CONFLICT (user_id) DO NOTHING RETURNING *
    )"""
    + _READ.format(source="written")
)
_DESCRIBE = text(
    """
    WITH written AS (
        UPDATE after_hours_profiles SET description = :description, updated_at = now()
        WHERE user_id = :member_id RETURNING *
    )"""
    + _READ.format(source="written")
)
# The old key is read under the row's lock, so of two uploads at once each removes the other's photo or keeps its own.
_SET_PHOTO = text("""
    UPDATE after_hours_profiles AS p SET photo_url = :key, photo_hash = :phash, updated_at = now()
    FROM (SELECT user_id, photo_url FROM after_hours_profiles WHERE user_id = :member_id FOR UPDATE) AS old
    WHERE p.user_id = old.user_id RETURNING old.photo_url
""")


_NAMED = text("SELECT photo_url FROM after_hours_profiles WHERE photo_url = ANY (:keys)")

BAN_DISTANCE = 10
"""A picture is banned when its hash differs in fewer bits than this from a banned one, as in the Node service."""

_HAS_BANS = text("SELECT to_regclass('banned_photo_hashes') IS NOT NULL")
# CASE: what is not a hash must not be cast, in whatever order the planner puts the conditions.
_IS_BANNED = text("""
    SELECT EXISTS (
        SELECT FROM banned_photo_hashes WHERE CASE
            WHEN photo_hash ~ '^[0-9A-Fa-f]{16}$'
            THEN bit_count(('x' || photo_hash)::bit(64) # ('x' || :phash)::bit(64)) < :distance
            ELSE false END
    )
""")


def get(member_id: str) -> Profile | None:
    """Return the member's profile."""
    return _one(_GET, member_id=member_id)


def create(member_id: str, description: str | None) -> Profile | None:
    """Insert a profile; None when there is one."""
    return _one(_CREATE, member_id=member_id, description=description)


def describe(member_id: str, description: str | None) -> Profile | None:
    """Set the description; None when there is no profile."""
    return _one(_DESCRIBE, member_id=member_id, description=description)


def is_banned(phash: str) -> bool:
    """Tell whether the host has banned a picture that looks like this one; not where it keeps no bans."""
    if not db.session.execute(_HAS_BANS).scalar_one():
        return False
    banned: bool = db.session.execute(_IS_BANNED, {"phash": phash, "distance": BAN_DISTANCE}).scalar_one()
    return banned


def set_photo(member_id: str, key: str | None, phash: str | None) -> tuple[bool, str | None]:
    """Set the photo's key and its hash; return whether there is a profile, and the key it had."""
    row = db.session.execute(_SET_PHOTO, {"member_id": member_id, "key": key, "phash": phash}).one_or_none()
    return (row is not None, row[0] if row else None)


def named_keys(keys: Collection[str]) -> set[str]:
    """Return those of `keys` that some profile names."""
    return set(db.session.execute(_NAMED, {"keys": list(keys)}).scalars())


def _one(statement: Any, **parameters: Any) -> Profile | None:
    row = db.session.execute(statement, parameters).one_or_none()
    return Profile(*row) if row else None

"""Reads and writes of preferences."""

from collections.abc import Mapping
from datetime import datetime
from typing import Any, NamedTuple

from sqlalchemy import BindParameter, bindparam, func, select, update
from sqlalchemy.dialects.postgresql import insert

from afterhours_service.preferences.models import AfterHoursPreferences
from afterhours_service.stores.host import MainProfile
from afterhours_service.stores.statements import Statement


class Preferences(NamedTuple):
    """A member's preferences."""

    user_id: str
    seeking_gender: str
    max_distance_km: int | None
    min_age: int | None
    max_age: int | None
    sexual_orientation: str | None
    created_at: datetime | None
    updated_at: datetime | None


class Stated(NamedTuple):
    """What a main profile states about gender."""

    gender: str | None
    sexual_preference: str | None


SETTABLE = ("seeking_gender", "max_distance_km", "min_age", "max_age", "sexual_orientation")

_MEMBER = AfterHoursPreferences.user_id == bindparam("member_id")
_COLUMNS = [getattr(AfterHoursPreferences, name) for name in Preferences._fields]
_VALUES: dict[str, BindParameter[Any]] = {name: bindparam(name) for name in SETTABLE}

_GET = Statement(select(*_COLUMNS).where(_MEMBER), Preferences)
_GET_LOCKED = Statement(select(*_COLUMNS).where(_MEMBER).with_for_update(), Preferences)
_CREATE = Statement(
    insert(AfterHoursPreferences)
    .values(user_id=bindparam("member_id"), **_VALUES)
    .on_conflict_do_nothing(index_elements=[AfterHoursPreferences.user_id])
    .returning(*_COLUMNS),
    Preferences,
)
_SET = Statement(
    update(AfterHoursPreferences).where(_MEMBER).values(**_VALUES, updated_at=func.now()).returning(*_COLUMNS),
    Preferences,
)
_STATED = Statement(
    select(MainProfile.gender, MainProfile.sexual_preference).where(MainProfile.user_id == bindparam("member_id")),
    Stated,
)


def get(member_id: str) -> Preferences | None:
    """Return the member's preferences."""
    return _GET.first(member_id=member_id)


def get_locked(member_id: str) -> Preferences | None:
    """Return the member's preferences, locked until the transaction ends."""
    return _GET_LOCKED.first(member_id=member_id)


def create(member_id: str, values: Mapping[str, Any]) -> Preferences | None:
    """Insert preferences; None when there are some. values: all of SETTABLE."""
    return _CREATE.first(member_id=member_id, **values)


def change(stored: Preferences, changes: Mapping[str, Any]) -> Preferences:
    """Set some of the preferences. stored: the locked ones."""
    [changed] = _SET.all(
        member_id=stored.user_id, **{name: changes.get(name, getattr(stored, name)) for name in SETTABLE}
    )
    return changed


def stated(member_id: str) -> Stated:
    """Return what the main profile states about gender; nothing without a main profile."""
    return _STATED.first(member_id=member_id) or Stated(None, None)

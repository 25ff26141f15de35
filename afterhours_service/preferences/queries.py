"""Every statement about preferences. None commits."""

from collections.abc import Mapping
from typing import Any

from sqlalchemy import func, select, update
from sqlalchemy.dialects.postgresql import insert

from afterhours_service.preferences.models import AfterHoursPreferences as Preferences
from afterhours_service.stores.database import db
from afterhours_service.stores.host import MainProfile


def get(member_id: str) -> Preferences | None:
    """Return the member's preferences."""
    return db.session.scalar(select(Preferences).where(Preferences.user_id == member_id))


def get_locked(member_id: str) -> Preferences | None:
    """Return the member's preferences, locked until the transaction ends."""
    return db.session.scalar(select(Preferences).where(Preferences.user_id == member_id).with_for_update())


def create(member_id: str, values: Mapping[str, Any]) -> Preferences | None:
    """Insert preferences; None when there are some."""
    statement = insert(Preferences).values(user_id=member_id, **values).on_conflict_do_nothing().returning(Preferences)
    return db.session.scalar(statement)


def change(member_id: str, values: Mapping[str, Any]) -> Preferences | None:
    """Set some of the member's preferences."""
    statement = update(Preferences).where(Preferences.user_id == member_id).values(**values, updated_at=func.now())
    return db.session.scalar(statement.returning(Preferences).execution_options(populate_existing=True))


def main_profile_says(member_id: str) -> tuple[str | None, str | None]:
    """Return gender and sexual preference of the main profile."""
    columns = select(MainProfile.gender, MainProfile.sexual_preference).where(MainProfile.user_id == member_id)
    row = db.session.execute(columns).one_or_none()
    return (row[0], row[1]) if row else (None, None)

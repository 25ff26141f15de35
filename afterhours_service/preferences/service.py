"""The use cases of preferences, each one transaction."""

from collections.abc import Mapping
from typing import Any

from afterhours_service.preferences import queries, rules
from afterhours_service.preferences.queries import SETTABLE, Preferences
from afterhours_service.stores.connection import retried, transaction
from afterhours_service.web import errors, gate


@retried
def create(member_id: str, given: Mapping[str, Any]) -> Preferences:
    """Create the member's preferences, with defaults for what is not given.

    Raises PreferencesExist, ValidationFailed (an empty age range), or as `gate.hold_to_create`.
    """
    with transaction():
        gate.hold_to_create(member_id)
        stated = queries.stated(member_id)
        seeking = rules.likely_seeking(stated.gender, stated.sexual_preference)
        values = {**dict.fromkeys(SETTABLE), "seeking_gender": seeking, **rules.DEFAULTS, **given}
        _require_ages_fit(values["min_age"], values["max_age"])
        preferences = queries.create(member_id, values)
    if preferences is None:
        raise errors.PreferencesExist
    return preferences


def get(member_id: str) -> Preferences:
    """Return the member's preferences. Raises PreferencesNotFound."""
    preferences = queries.get(member_id)
    if preferences is None:
        raise errors.PreferencesNotFound
    return preferences


@retried
def update(member_id: str, changes: Mapping[str, Any]) -> Preferences:
    """Change what is given, and keep the rest.

    Raises PreferencesNotFound, ValidationFailed (the age range would be empty), or as `gate.hold`.
    """
    with transaction():
        gate.hold(member_id)  # before a trigger updates the session: the member is locked first, everywhere
        stored = queries.get_locked(member_id)
        if stored is None:
            raise errors.PreferencesNotFound
        _require_ages_fit(changes.get("min_age", stored.min_age), changes.get("max_age", stored.max_age))
        return queries.change(stored, changes) if changes else stored


def _require_ages_fit(min_age: int | None, max_age: int | None) -> None:
    if not rules.ages_fit(min_age, max_age):
        raise errors.ValidationFailed.from_messages({"minAge": "Must not be greater than maxAge."})

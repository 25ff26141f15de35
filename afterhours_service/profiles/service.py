"""The use cases of a profile, each one transaction."""

from typing import Any

from afterhours_service.profiles import queries
from afterhours_service.profiles.queries import Profile
from afterhours_service.stores.connection import retried, transaction
from afterhours_service.web import errors, gate


@retried
def create(member_id: str, description: str | None) -> Profile:
    """Make the member's profile.

    Raises ProfileExists, or as `gate.hold_to_create`.
    """
    with transaction():
        gate.hold_to_create(member_id)
        profile = queries.create(member_id, description)
    if profile is None:
        raise errors.ProfileExists
    return profile


def get(member_id: str) -> Profile:
    """Return the member's profile. Raises ProfileNotFound."""
    profile = queries.get(member_id)
    if profile is None:
        raise errors.ProfileNotFound
    return profile


def update(member_id: str, changes: dict[str, Any]) -> Profile:
    """Change what is in `changes`; a description of None clears it. Raises ProfileNotFound."""
    if "description" not in changes:
        return get(member_id)
    profile = queries.describe(member_id, changes["description"])
    if profile is None:
        raise errors.ProfileNotFound
    return profile

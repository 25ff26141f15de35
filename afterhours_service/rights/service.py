"""The use cases of a member's rights. Each is one transaction; timers, events and photos follow the commit.

Each may be repeated without harm, and logs who did what, and nothing of the content.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from afterhours_service.matching import rounds as matching
from afterhours_service.profiles import photo
from afterhours_service.rights import queries, schemas
from afterhours_service.rights.queries import Consent
from afterhours_service.sessions import service as sessions
from afterhours_service.stores.connection import retried, transaction
from afterhours_service.stores.host import lock_erasure
from afterhours_service.stores.redis import only_logged
from afterhours_service.telemetry.log import get_logger
from afterhours_service.web import errors

logger = get_logger(__name__)


def get_consent(member_id: str) -> Consent:
    """Return the member's consent. Raises VerificationRequired when the member is gone."""
    consent = queries.consent(member_id)
    if consent is None:
        raise errors.VerificationRequired
    return consent


@retried
def set_consent(member_id: str, granted: bool) -> Consent:
    """Grant or withdraw consent; a withdrawal ends the member's session in the same transaction.

    Raises VerificationRequired when the member is gone.
    """
    with transaction():
        consent = queries.lock(member_id)
        if consent is None:
            raise errors.VerificationRequired
        changed = consent.granted != granted
        if changed:
            consent = queries.set_consent(member_id, granted) or consent
        ended = None if granted else sessions.end_in_transaction(member_id, overdue=True)
    logger.info("consent", member=member_id, granted=granted, changed=changed, ended_session=ended is not None)
    if ended:
        sessions.publish_end(ended, "user")
    return consent


def export(member_id: str) -> Iterator[str]:
    """Yield everything that is held on the member as JSON, in pieces; all but empty for one who is gone.

    The exact place of an active session is left out: it never leaves the service. Each piece is short, however much
    there is. The first one needs the app's context, and comes once the database has answered; an export that breaks off
    after it is not valid JSON.
    """
    logger.info("export", member=member_id)
    parts = (
        (name, map(_with_links, pages) if name == "profile" else pages) for name, pages in queries.export(member_id)
    )
    return schemas.write_export(member_id, parts)


@retried
def erase(member_id: str, reason: str = "user") -> None:
    """Erase everything that is held on the member, photos too; their session ends. The host's rows stay.

    reason: that of the session's end, `user` or `operator`.
    """
    with transaction():
        lock_erasure(member_id)
        queries.lock(member_id)
        ended = sessions.end_in_transaction(member_id, overdue=True)
        erased = queries.erase(member_id)
    logger.info("erasure", member=member_id, ended_session=ended is not None)
    if ended:
        sessions.publish_end(ended, reason)
    if erased.has_matches:
        with only_logged("the end of a match is left to the workers"):
            matching.finish_due()  # also deletes it
    photo.erase(member_id, erased.photo_key)


def _with_links(profiles: Sequence[Mapping[Any, Any]]) -> Sequence[Mapping[Any, Any]]:
    return [
        {**row, "photo_url": photo.url(row["photo_url"]), "thumbnail_url": photo.thumbnail_url(row["photo_url"])}
        for row in profiles
    ]

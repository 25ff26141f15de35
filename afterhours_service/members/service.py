"""The use cases of a member's rights. Each commits once; timers, events and photos follow the commit.

Each may be repeated without harm, and leaves a line in the log: who and what, and nothing of the content.
"""

from typing import Any

from afterhours_service import errors
from afterhours_service.extensions import db
from afterhours_service.host import lock_erasure
from afterhours_service.log import get_logger
from afterhours_service.members import queries
from afterhours_service.members.queries import Consent
from afterhours_service.profiles import photo
from afterhours_service.sessions import service as sessions

logger = get_logger(__name__)


def get_consent(member_id: str) -> Consent:
    """Return the member's consent. Raises VerificationRequired when the member is gone."""
    consent = queries.consent(member_id)
    if consent is None:
        raise errors.VerificationRequired
    return consent


def set_consent(member_id: str, granted: bool) -> Consent:
    """Grant or withdraw consent; a withdrawal ends the member's session in the same transaction.

    Raises VerificationRequired when the member is gone.
    """
    consent = queries.lock(member_id)
    if consent is None:
        db.session.rollback()
        raise errors.VerificationRequired
    changed = consent.granted != granted
    if changed:
        consent = queries.set_consent(member_id, granted) or consent
    ended = None if granted else queries.end_session(member_id, sessions.LEASE)
    db.session.commit()
    logger.info("consent", member=member_id, granted=granted, changed=changed, ended_session=ended is not None)
    if ended:
        session, untold_id = ended
        sessions.announce_end(session, "user", untold_id=untold_id)
    return consent


def export(member_id: str) -> dict[str, Any]:
    """Return everything that is held on the member; all but empty for one who is gone.

    The exact place of an active session is left out: it leaves the service for nobody.
    """
    consent = queries.consent(member_id)
    rows = queries.export(member_id)
    db.session.rollback()
    logger.info("export", member=member_id)
    profile: dict[str, Any] | None = next((dict(row) for row in rows.pop("profile")), None)
    if profile:
        key = profile["photo_url"]
        profile |= {"photo_url": photo.url(key), "thumbnail_url": photo.thumbnail_url(key)}
    preferences = next(iter(rows.pop("preferences")), None)
    return {"user_id": member_id, "consent": consent, "profile": profile, "preferences": preferences, **rows}


def erase(member_id: str, reason: str = "user") -> None:
    """Erase everything that is held on the member, photos too; their session ends. The host's rows stay.

    reason: that of the session's end, `user` or `operator`.
    """
    lock_erasure(member_id)
    queries.lock(member_id)
    ended = queries.end_session(member_id, sessions.LEASE)
    key = queries.erase(member_id)
    db.session.commit()
    logger.info("erasure", member=member_id, ended_session=ended is not None)
    if ended:
        session, untold_id = ended
        sessions.announce_end(session, reason, untold_id=untold_id)
    photo.erase(member_id, key)

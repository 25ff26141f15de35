"""Every statement about a member's rights. None commits.

The two columns of consent are the only ones of the host's that are written.
"""

from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any, NamedTuple, cast

from sqlalchemy import CursorResult, RowMapping, text

from afterhours_service.sessions.queries import COLUMNS, Session
from afterhours_service.stores.database import db


class Consent(NamedTuple):
    """Whether a member consents to After Hours, and since when it is so; None when nobody noted it."""

    granted: bool
    changed_at: datetime | None


_CONSENT = """
    SELECT after_hours_consent IS TRUE AS granted, after_hours_consent_at AS changed_at FROM users WHERE id = :member_id
"""
_READ_CONSENT = text(_CONSENT)
# Every insert of a session locks its member's row by its foreign key: those in flight are waited for.
_LOCK = text(f"{_CONSENT} FOR UPDATE")
_SET_CONSENT = text("""
    UPDATE users SET after_hours_consent = :granted, after_hours_consent_at = now() WHERE id = :member_id
    RETURNING after_hours_consent, after_hours_consent_at
""")
# One that had run out, and that nobody has ended yet, ends at its expiry.
_END_SESSION = text(f"""
    WITH ended AS (
        UPDATE after_hours_sessions SET ended_at = least(expires_at, clock_timestamp())
        WHERE user_id = :member_id AND ended_at IS NULL
        RETURNING {COLUMNS}
    ), untold AS (
        INSERT INTO after_hours_untold (tell_at, session_ids)
        SELECT now + :lease, ARRAY[id] FROM ended WHERE ended_at = expires_at
        RETURNING id
    )
    SELECT ended.*, (SELECT id FROM untold) FROM ended
""")

# What is held on a member: table by table, without the exact place.
_EXPORT = {
    "consent": _CONSENT,
    "profile": "SELECT * FROM after_hours_profiles WHERE user_id = :member_id",
    "preferences": "SELECT * FROM after_hours_preferences WHERE user_id = :member_id",
    "sessions": """
        SELECT id, created_at, started_at, expires_at, ended_at, warned_at,
            fuzzed_latitude AS blurred_latitude, fuzzed_longitude AS blurred_longitude,
            extension_key, extension_minutes, extension_expires_at,
            CAST(discovery_key AS text), CAST(discovery_wish AS text)
        FROM after_hours_sessions WHERE user_id = :member_id ORDER BY started_at, id""",
    "declines": """
        SELECT id, declined_user_id, session_id, last_session_id, created_at, first_declined_at, decline_count
        FROM after_hours_declines WHERE user_id = :member_id ORDER BY created_at, id""",
    "devices": """
        SELECT id, session_id, device_id, device_model, platform, created_at
        FROM device_fingerprints WHERE user_id = :member_id ORDER BY created_at, id""",
    "unpublished_expiries": """
        SELECT s.id AS session_id, tell_at AS publish_at
        FROM after_hours_untold CROSS JOIN unnest(session_ids) AS session_id
        JOIN after_hours_sessions AS s ON s.id = session_id
        WHERE s.user_id = :member_id ORDER BY tell_at, s.id""",
}
_PAGE = 1000  # rows of an export that are in memory at once

# A member's rows may be many: a statement erases some, lest it take longer than a statement may.
_BATCH = 10_000


def _some(table: str, condition: str = "true") -> str:
    return f"""id = ANY (ARRAY(
        SELECT id FROM {table} AS mine WHERE user_id = :member_id AND {condition} LIMIT {_BATCH}))"""


_ERASE = tuple(
    text(f"DELETE FROM {table} WHERE {_some(table)}") for table in ("device_fingerprints", "after_hours_declines")
)
_ERASE_PREFERENCES = text("DELETE FROM after_hours_preferences WHERE user_id = :member_id")
_ERASE_PROFILE = text("DELETE FROM after_hours_profiles WHERE user_id = :member_id RETURNING photo_url")
_SESSIONS = "after_hours_sessions"
_ERASE_SESSIONS = text(f"DELETE FROM {_SESSIONS} WHERE {_some(_SESSIONS)}")
# A match of the Node service, with the other member's messages, would go with its session: only the place goes.
_WITHOUT_MATCH = "NOT EXISTS (SELECT FROM after_hours_matches WHERE session_id = mine.id)"
_ERASE_SESSIONS_WITHOUT_MATCH = text(f"DELETE FROM {_SESSIONS} WHERE {_some(_SESSIONS, _WITHOUT_MATCH)}")
_ERASE_PLACES = text(f"""
    UPDATE {_SESSIONS} SET fuzzed_latitude = 0, fuzzed_longitude = 0
    WHERE {_some(_SESSIONS, "(fuzzed_latitude <> 0 OR fuzzed_longitude <> 0)")}
""")


def consent(member_id: str) -> Consent | None:
    """Return the member's consent; None when there is no such member."""
    return _consent(_READ_CONSENT, member_id=member_id)


def lock(member_id: str) -> Consent | None:
    """Wait for the member's starts in flight, hold up others until the transaction ends, and return the consent."""
    return _consent(_LOCK, member_id=member_id)


def set_consent(member_id: str, granted: bool) -> Consent | None:
    """Write the host's two columns."""
    return _consent(_SET_CONSENT, member_id=member_id, granted=granted)


def end_session(member_id: str, lease: timedelta) -> tuple[Session, int | None] | None:
    """End the member's session, if one is not ended yet.

    With it comes, if it had run out, the id of its untold expiry, which is the caller's for the lease.
    """
    row = db.session.execute(_END_SESSION, {"member_id": member_id, "lease": lease}).one_or_none()
    return (Session(*row[:-1]), row[-1]) if row else None


def export(member_id: str) -> Iterator[tuple[str, Iterator[Sequence[RowMapping]]]]:
    """Yield each table's name and its rows, page by page: read one to its end before the next.

    All is as of one moment, whatever is written meanwhile. It has a connection of its own, and needs the app's context
    for the first table only. Raises DBAPIError and TimeoutError.
    """
    with db.engine.connect() as connection:
        connection.execution_options(isolation_level="REPEATABLE READ", stream_results=True)
        for name, statement in _EXPORT.items():
            yield name, connection.execute(text(statement), {"member_id": member_id}).mappings().partitions(_PAGE)


def erase(member_id: str) -> str | None:
    """Delete the member's rows, and return the key of their photo.

    Sessions before what hangs on them: the cleanup, whose deletions cascade, locks them in this order.
    """
    given = {"member_id": member_id}
    db.session.execute(_ERASE_PREFERENCES, given)
    key: str | None = db.session.execute(_ERASE_PROFILE, given).scalar_one_or_none()
    has_matches = db.session.execute(text("SELECT to_regclass('after_hours_matches') IS NOT NULL")).scalar_one()
    _repeat(_ERASE_SESSIONS_WITHOUT_MATCH if has_matches else _ERASE_SESSIONS, given)
    _repeat(_ERASE_PLACES, given)
    for statement in _ERASE:
        _repeat(statement, given)
    return key


def _repeat(statement: Any, given: Mapping[str, Any]) -> None:
    while cast("CursorResult[Any]", db.session.execute(statement, given)).rowcount == _BATCH:
        pass


def _consent(statement: Any, **parameters: Any) -> Consent | None:
    row = db.session.execute(statement, parameters).one_or_none()
    return Consent(*row) if row else None

"""The nightly deletions, a batch at a time. None commits.

SKIP LOCKED: a row that somebody is working on is left for the next run.
"""

from datetime import timedelta
from typing import Any

from sqlalchemy import text

from afterhours_service.extensions import db

_LOCK_KEY = 0x0AF7E12  # any number that nobody else takes

# The Node service, making a decline anew, lets only last_session_id follow: then that session's start counts, and the
# first session, with which the decline would go, stays as long.
_MADE_ANEW = (
    "SELECT FROM after_hours_sessions AS r"
    " WHERE r.id = d.last_session_id AND r.id <> d.session_id AND r.started_at >= now() - :retention"
)
_OLD_DECLINES = f"FROM after_hours_declines AS d WHERE created_at < now() - :retention AND NOT EXISTS ({_MADE_ANEW})"
_OLD_SESSIONS = "FROM after_hours_sessions AS s WHERE ended_at IS NOT NULL AND ended_at < now() - :retention"
_WITHOUT_DECLINES = (
    f" AND NOT EXISTS (SELECT FROM after_hours_declines AS d WHERE d.session_id = s.id AND EXISTS ({_MADE_ANEW}))"
)
# The matches of the Node service, and their messages, would go with the session; they are the host's.
_WITHOUT_MATCHES = " AND NOT EXISTS (SELECT FROM after_hours_matches AS m WHERE m.session_id = s.id)"
_ORPHANED_FINGERPRINTS = "FROM device_fingerprints WHERE session_id IS NULL"
_ORPHANED_PROFILES = "FROM after_hours_profiles AS p WHERE NOT EXISTS (SELECT FROM users AS u WHERE u.id = p.user_id)"
_ORPHANED_PREFERENCES = (
    "FROM after_hours_preferences AS p WHERE NOT EXISTS (SELECT FROM users AS u WHERE u.id = p.user_id)"
)
_OVERDUE = "FROM after_hours_sessions WHERE ended_at IS NULL AND expires_at <= now()"
# What a run deletes, seen before it: overdue sessions are ended first, and sessions leave their fingerprints behind.
_OLD_SESSIONS_BEFORE = (
    "FROM after_hours_sessions AS s"
    " WHERE (ended_at < now() - :retention OR ended_at IS NULL AND expires_at < now() - :retention)"
)


def try_lock() -> bool:
    """Take the cleanup's lock until the transaction ends; false when another cleanup is at work."""
    taken: bool = db.session.execute(text("SELECT pg_try_advisory_xact_lock(:key)"), {"key": _LOCK_KEY}).scalar_one()
    return taken


def delete_old_declines(batch: int, retention: timedelta) -> int:
    """Delete up to `batch` declines older than the retention, and return how many."""
    return _delete("after_hours_declines", _OLD_DECLINES, batch, retention=retention)


def delete_old_sessions(batch: int, retention: timedelta) -> int:
    """Delete up to `batch` sessions that ended longer ago than the retention, and return how many."""
    return _delete("after_hours_sessions", _OLD_SESSIONS + _but_for_what_needs_them(), batch, retention=retention)


def delete_orphaned_fingerprints(batch: int, retention: timedelta) -> int:  # noqa: ARG001 - one shape for all steps
    """Delete up to `batch` device fingerprints whose session is gone, and return how many."""
    return _delete("device_fingerprints", _ORPHANED_FINGERPRINTS, batch)


def delete_orphaned_profiles(batch: int, retention: timedelta) -> int:  # noqa: ARG001
    """Delete up to `batch` After Hours profiles whose user is gone, and return how many."""
    return _delete("after_hours_profiles", _ORPHANED_PROFILES, batch)


def delete_orphaned_preferences(batch: int, retention: timedelta) -> int:  # noqa: ARG001
    """Delete up to `batch` preferences whose user is gone, and return how many."""
    return _delete("after_hours_preferences", _ORPHANED_PREFERENCES, batch)


def count(retention: timedelta) -> dict[str, int]:
    """Return how many rows each step of a run would work off now."""
    old_sessions = _OLD_SESSIONS_BEFORE + _but_for_what_needs_them()
    orphaned_soon = f"FROM device_fingerprints WHERE session_id IN (SELECT s.id {old_sessions})"
    steps = {
        "overdue_sessions": _OVERDUE,
        "declines": _OLD_DECLINES,
        "sessions": old_sessions,
        "fingerprints": f"FROM (SELECT {_ORPHANED_FINGERPRINTS} UNION ALL SELECT {orphaned_soon}) AS f",
        "profiles": _ORPHANED_PROFILES,
        "preferences": _ORPHANED_PREFERENCES,
    }
    return {
        name: db.session.execute(text(f"SELECT count(*) {rows}"), {"retention": retention}).scalar_one()
        for name, rows in steps.items()
    }


def _but_for_what_needs_them() -> str:
    has_matches = db.session.execute(text("SELECT to_regclass('after_hours_matches') IS NOT NULL")).scalar_one()
    return _WITHOUT_DECLINES + (_WITHOUT_MATCHES if has_matches else "")


def _delete(table: str, rows: str, batch: int, **parameters: Any) -> int:
    statement = text(f"""
        DELETE FROM {table} WHERE ctid = ANY (ARRAY(SELECT ctid {rows} LIMIT :batch FOR UPDATE SKIP LOCKED))
    """)
    result: Any = db.session.execute(statement, {"batch": batch, **parameters})
    deleted: int = result.rowcount
    return deleted

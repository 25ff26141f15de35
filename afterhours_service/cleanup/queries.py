"""The nightly deletions, a batch at a time. None commits.

SKIP LOCKED: a row that somebody is working on is left for the next round.
"""

from collections.abc import Sequence
from datetime import timedelta
from typing import Any, NamedTuple

from sqlalchemy import text

from afterhours_service.stores.database import db

_LOCK_KEY = 0x0AF7E12  # any number that nobody else takes
_LOCK_TIMEOUT = "200ms"  # a row that a deletion cascades to may be locked

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


class Step(NamedTuple):
    """Rows of a table that have served their time.

    rows: a FROM and a WHERE. order: the columns, with their types, in whose order the rows are gone through; an index
    has them, and the last is the primary key.
    """

    table: str
    rows: str
    order: tuple[tuple[str, str], ...]


# Sessions last of what refers to them: their deletion orphans fingerprints, so those come after.
STEPS = {
    "declines": Step("after_hours_declines", _OLD_DECLINES, (("created_at", "timestamptz"), ("id", "uuid"))),
    "sessions": Step("after_hours_sessions", _OLD_SESSIONS, (("ended_at", "timestamptz"), ("id", "uuid"))),
    "fingerprints": Step("device_fingerprints", _ORPHANED_FINGERPRINTS, (("id", "uuid"),)),
    "profiles": Step("after_hours_profiles", _ORPHANED_PROFILES, (("user_id", "text"),)),
    "preferences": Step("after_hours_preferences", _ORPHANED_PREFERENCES, (("user_id", "text"),)),
}
Place = Sequence[str]  # of a row in the order of its step: the values of its columns, as text


def try_lock() -> bool:
    """Take the cleanup's lock until the transaction ends; false when another cleanup is at work.

    Statements of the transaction that meet another's lock soon give up.
    """
    statement = text("SELECT pg_try_advisory_xact_lock(:key), set_config('lock_timeout', :timeout, true)")
    taken: bool = db.session.execute(statement, {"key": _LOCK_KEY, "timeout": _LOCK_TIMEOUT}).one()[0]
    return taken


def find(step: str, batch: int, retention: timedelta, after: Place | None) -> list[Place]:
    """Return the places of up to `batch` rows that are to be deleted, from the place `after` on."""
    _, rows, order = _step(step)
    columns = ", ".join(column for column, _ in order)
    beyond = ""
    if after is not None:
        beyond = f" AND ({columns}) > ({', '.join(f'CAST(:after{n} AS {kind})' for n, (_, kind) in enumerate(order))})"
    statement = text(f"""
        SELECT {", ".join(f"CAST({column} AS text)" for column, _ in order)} {rows}{beyond}
        ORDER BY {columns} LIMIT :batch
    """)
    given = {f"after{n}": value for n, value in enumerate(after or ())}
    found = db.session.execute(statement, {"batch": batch, "retention": retention, **given})
    return [list(row) for row in found]


def delete(step: str, places: Sequence[Place], retention: timedelta) -> int:
    """Delete the rows at these places, but for those that somebody works on, or needs again; return how many."""
    table, rows, order = _step(step)
    key, kind = order[-1]
    statement = text(f"""
        DELETE FROM {table} WHERE ctid = ANY (ARRAY(
            SELECT ctid {rows} AND {key} = ANY (CAST(:keys AS {kind}[])) FOR UPDATE SKIP LOCKED
        ))
    """)
    result: Any = db.session.execute(statement, {"keys": [place[-1] for place in places], "retention": retention})
    deleted: int = result.rowcount
    return deleted


def _step(step: str) -> Step:
    found = STEPS[step]
    return found._replace(rows=found.rows + _but_for_what_needs_them()) if step == "sessions" else found


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

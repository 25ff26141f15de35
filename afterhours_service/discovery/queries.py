"""Every statement about who is near, and about declines, each a transaction of its own.

A member's session carries two cubes, which triggers keep: `discovery_key` says where, who and how old, and stands in
the index; `discovery_wish` says whom they would like, and how far away. docs/discovery.md tells the whole.

The schema of the extension `cube` need not be on the search_path: statements name functions of ours instead of its
functions and operators, and the planner puts those in their place.
"""

import uuid
from datetime import datetime, timedelta
from typing import Any, NamedTuple

from afterhours_service.discovery import rules
from afterhours_service.places.blur import Point
from afterhours_service.stores.sql import read, run


class Asker(NamedTuple):
    """The member who looks around: their session, and what fits them, as cubes in PostgreSQL's notation."""

    session_id: uuid.UUID
    user_id: str
    blurred: Point
    max_distance_km: int
    now: datetime  # the database's
    me: str  # (gender, age)
    wish: str  # (gender, age, metres): whom I would like
    near: str  # the keys at distance 0 from me
    within: str  # the keys of those who may fit
    stale: bool  # the key of my session is behind my profile


class Candidate(NamedTuple):
    """A member who is near and fits, as they show themselves."""

    session_id: uuid.UUID
    user_id: str
    name: str | None
    age: int | None
    description: str | None
    photo_key: str | None
    expires_at: datetime
    blurred: Point
    metres: float  # the chord; it orders, and is never shown


class Position(NamedTuple):
    """A place in the order of candidates: whoever comes after it, and was live at `as_of`."""

    as_of: datetime
    metres: float
    session_id: uuid.UUID


_ASKER = """
    WITH mine AS MATERIALIZED (
        SELECT s.*, statement_timestamp() AS now, coalesce(w.max_distance_km, 10) AS max_distance_km,
            after_hours_self(p.gender, p.age) AS me,
            after_hours_wish(w.seeking_gender, w.min_age, w.max_age, w.max_distance_km) AS wish,
            after_hours_key(s.id, s.fuzzed_latitude, s.fuzzed_longitude, p.gender, p.age, w.seeking_gender) AS key
        FROM after_hours_sessions AS s
        LEFT JOIN profiles AS p ON p.user_id = s.user_id
        LEFT JOIN after_hours_preferences AS w ON w.user_id = s.user_id
        WHERE s.user_id = %(member_id)s AND s.ended_at IS NULL AND s.expires_at > statement_timestamp()
    )
    SELECT id, user_id, fuzzed_latitude, fuzzed_longitude, max_distance_km, now, CAST(me AS text), CAST(wish AS text),
        CAST(after_hours_box(key, me, wish, 0) AS text),
        CAST(after_hours_box(key, me, wish, after_hours_reach(wish)) AS text),
        (CAST(discovery_key AS text), CAST(discovery_wish AS text))
            IS DISTINCT FROM (CAST(key AS text), CAST(wish AS text))
    FROM mine
"""

_RENEW_KEY = """
    UPDATE after_hours_sessions SET discovery_key = NULL WHERE user_id = %(member_id)s AND ended_at IS NULL
"""

# `d` hides while its decliner has started at most two sessions after the one it was (last) made in: while there is no
# third one. No more than three are read, however many a member has.
_IN_FORCE = """
    NOT EXISTS (
        SELECT FROM after_hours_sessions AS later
        WHERE later.user_id = d.user_id AND later.started_at > (
            SELECT started_at FROM after_hours_sessions WHERE id = coalesce(d.last_session_id, d.session_id))
        ORDER BY later.started_at  -- so that the index is used, whoever has how many
        OFFSET %(memory)s LIMIT 1)
"""


def _fitting(more: str = "") -> str:
    """Return what the statements below share: who fits. `more` goes on with the scan, by a condition or an order.

    The scan stands in a subquery of its own, whose order the joins around it keep: they are asked about those who fit,
    the nearest first, and only until the page is full.
    """
    return f"""
    FROM (
        SELECT id, user_id, expires_at, fuzzed_latitude, fuzzed_longitude,
            after_hours_metres(discovery_key, %(near)s) AS metres
        FROM after_hours_sessions
        WHERE ended_at IS NULL
            AND after_hours_holds(%(within)s, discovery_key)
            AND after_hours_holds(discovery_wish, %(me)s)
            AND after_hours_metres(discovery_key, %(near)s)
                <= least(after_hours_reach(%(wish)s), after_hours_reach(discovery_wish))
            AND after_hours_metres(discovery_key, %(near)s) >= %(metres)s
            AND expires_at >= statement_timestamp() + %(lead)s
            AND started_at <= %(as_of)s
            AND user_id <> %(member_id)s
            {more}
    ) AS s
    JOIN users AS u ON u.id = s.user_id AND u.id_verified AND u.after_hours_consent
    LEFT JOIN profiles AS p ON p.user_id = s.user_id
    LEFT JOIN after_hours_profiles AS a ON a.user_id = s.user_id
    WHERE (s.metres, s.id) > (%(metres)s, %(after_id)s)
        AND after_hours_holds(%(wish)s, after_hours_self(p.gender, p.age))
        AND EXISTS (
            SELECT FROM user_subscriptions AS b
            WHERE b.user_id = s.user_id AND b.is_active AND (b.expires_at IS NULL OR b.expires_at > now()))
        -- Asked as values, not joined: one look-up each, of the pair either way round, however many blocked me.
        AND (SELECT true FROM blocks
             WHERE user_id IN (%(member_id)s, s.user_id) AND blocked_user_id IN (s.user_id, %(member_id)s)
             LIMIT 1) IS NULL
        AND (SELECT true FROM after_hours_declines AS d
             WHERE user_id IN (%(member_id)s, s.user_id) AND declined_user_id IN (s.user_id, %(member_id)s)
                 AND {_IN_FORCE} LIMIT 1) IS NULL
"""


# The planner cannot tell how many keys a box holds: let it take them in the index's order, not collect and sort them;
# let it take the joins as they stand, which need no thought; and let it plan once, as no values make a better plan.
_AS_WRITTEN = """
    SET LOCAL enable_bitmapscan = off; SET LOCAL enable_seqscan = off; SET LOCAL enable_sort = off;
    SET LOCAL join_collapse_limit = 1; SET LOCAL plan_cache_mode = force_generic_plan;
"""

_PAGE = f"""
    SELECT s.id, s.user_id, p.name, p.age, a.description, a.photo_url, s.expires_at,
        s.fuzzed_latitude, s.fuzzed_longitude, s.metres
    {_fitting("ORDER BY after_hours_metres(discovery_key, %(near)s)")}
    ORDER BY s.metres, s.id
    LIMIT %(limit)s
"""

_COUNT = f"""
    SELECT count(*) FROM (SELECT {_fitting()} LIMIT %(limit)s) AS fitting
"""

_IS_SEEN = f"SELECT EXISTS (SELECT {_fitting('AND user_id = %(other_id)s')})"

_HAS_DECLINED = f"""
    SELECT EXISTS (
        SELECT FROM after_hours_declines AS d
        WHERE d.user_id = %(member_id)s AND d.declined_user_id = %(other_id)s AND {_IN_FORCE})
"""

# A decline that is made anew, its memory over, begins anew: also for the nightly cleanup, which looks at created_at and
# would delete it with the session it hangs on.
# The member's row is locked before the session's, which the foreign key would lock first; an erasure is waited for.
_DECLINE = """
    WITH member AS MATERIALIZED (
        SELECT FROM users WHERE id = %(member_id)s FOR KEY SHARE
    ), mine AS MATERIALIZED (
        SELECT s.id FROM after_hours_sessions AS s
        WHERE s.id = %(session_id)s AND (SELECT count(*) FROM member) = 1 FOR KEY SHARE
    ), declined AS (
        INSERT INTO after_hours_declines AS d (session_id, user_id, declined_user_id, last_session_id)
        SELECT id, %(member_id)s, %(other_id)s, id FROM mine
        ON CONFLICT (user_id, declined_user_id) DO UPDATE
        SET session_id = EXCLUDED.session_id, last_session_id = EXCLUDED.session_id, created_at = EXCLUDED.created_at,
            decline_count = coalesce(d.decline_count, 1) + 1
        WHERE coalesce(d.last_session_id, d.session_id) <> EXCLUDED.session_id
    )
    SELECT count(*) FROM mine
"""

_TAKE_BACK = "DELETE FROM after_hours_declines WHERE user_id = %(member_id)s AND declined_user_id = %(other_id)s"

_NOBODY = uuid.UUID(int=0)


def asker(member_id: str) -> Asker | None:
    """Return the member as they look around; None when no session of theirs is active."""
    rows = read(_ASKER, member_id=member_id)
    if not rows:
        return None
    [(session_id, user_id, latitude, longitude, *rest)] = rows
    return Asker(session_id, user_id, Point(float(latitude), float(longitude)), *rest)


def renew_key(member_id: str) -> None:
    """Let the key of the member's live session follow their profile."""
    run(_RENEW_KEY, member_id=member_id)


def page(me: Asker, limit: int, lead: timedelta, after: Position | None = None) -> list[Candidate]:
    """Return up to `limit` members who fit, the nearest first, and have at least `lead` left."""
    rows = read(_PAGE, _AS_WRITTEN, **_parameters(me, limit, lead, after))
    return [
        Candidate._make((*about, Point(float(latitude), float(longitude)), metres))
        for *about, latitude, longitude, metres in rows
    ]


def count(me: Asker, limit: int, lead: timedelta) -> int:
    """Return how many members fit and have at least `lead` left; counted up to `limit`."""
    counted: int
    [(counted,)] = read(_COUNT, _AS_WRITTEN, **_parameters(me, limit, lead, None))
    return counted


def is_seen(me: Asker, other_id: str, lead: timedelta) -> bool:
    """Tell whether a member is among those that `page` would return."""
    [(seen,)] = read(_IS_SEEN, **_parameters(me, 1, lead, None), other_id=other_id)
    return bool(seen)


def has_declined(me: Asker, other_id: str) -> bool:
    """Tell whether a decline of mine hides the other member now."""
    [(declined,)] = read(_HAS_DECLINED, **_pair(me, other_id))
    return bool(declined)


def decline(me: Asker, other_id: str) -> bool:
    """Hide the two from each other from now on; false when my session was deleted.

    Raises IntegrityError when the other member is gone.
    """
    [(sessions,)] = run(_DECLINE, **_pair(me, other_id))
    return bool(sessions)


def take_back(me: Asker, other_id: str) -> None:
    """Forget my decline of the other member, if there is one."""
    run(_TAKE_BACK, **_pair(me, other_id))


def _pair(me: Asker, other_id: str) -> dict[str, Any]:
    return {
        "member_id": me.user_id,
        "other_id": other_id,
        "session_id": me.session_id,
        "memory": rules.MEMORY_SESSIONS,
    }


def _parameters(me: Asker, limit: int, lead: timedelta, after: Position | None) -> dict[str, Any]:
    return {
        "member_id": me.user_id,
        "me": me.me,
        "wish": me.wish,
        "near": me.near,
        "within": me.within,
        "limit": limit,
        "lead": lead,
        "memory": rules.MEMORY_SESSIONS,
        "as_of": after.as_of if after else me.now,
        "metres": after.metres if after else 0.0,
        "after_id": after.session_id if after else _NOBODY,
    }

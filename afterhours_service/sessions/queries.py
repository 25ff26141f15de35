"""Every statement about sessions, each a transaction of its own, but for those of a start.

The time is the database's: `clock_timestamp()` where a row's lock may be waited for, `statement_timestamp()` where an
index is to be used; never `now()`, which is the moment the transaction began.
"""

import uuid
from collections.abc import Callable, Iterable, Mapping
from datetime import datetime, timedelta
from typing import Any, NamedTuple

import psycopg2

from afterhours_service.places.blur import Point
from afterhours_service.sessions import rules
from afterhours_service.stores.connection import cursor
from afterhours_service.stores.sql import execute, run
from afterhours_service.telemetry.log import get_logger

logger = get_logger(__name__)


class Session(NamedTuple):
    """A session as a use case sees it: when, and never where."""

    id: uuid.UUID
    user_id: str
    started_at: datetime
    expires_at: datetime
    ended_at: datetime | None
    now: datetime  # the database's, when it was read

    @property
    def remaining_seconds(self) -> int:
        """The whole seconds that were left when it was read."""
        return rules.remaining_seconds(self.expires_at, self.now)


class Extension(NamedTuple):
    """What an extension answers: until when the session lasts, and how many minutes were added.

    before: the expiry that the session has left; None when the request repeats one that was answered already.
    """

    session: Session
    minutes: int
    before: datetime | None
    needed: set[int]  # as in Left


class Left(NamedTuple):
    """A session that has left its expiry by an end, and who still needs that one's seconds.

    needed: those of the expiry's and its warning's seconds, since the epoch, at which another session needs a timer.
    """

    session: Session
    needed: set[int]


class Prerequisites(NamedTuple):
    """What else a start needs, apart from there being no active session."""

    exists: bool
    consents: bool
    has_profile: bool


class Untold(NamedTuple):
    """Sessions that ran out, their expiry yet to be published; and what to give `mark_told` when it was.

    ids: of rows of the outbox. A session that was deleted since is left out.
    """

    ids: list[int]
    sessions: list[Session]


class Started(NamedTuple):
    """What a start did.

    ran_out: the member's session that had run out, and was ended with the start. before: the latest one, if others
    ended it; its end may be yet to be published. session: None when the start was refused.
    """

    ran_out: Session | None
    before: Session | None
    session: Session | None


class Census(NamedTuple):
    """How many sessions are active, how many ran out and are not ended yet, and for how long the oldest of those."""

    active: int
    overdue: int
    overdue_seconds: float


_DEGREE = 10**8  # the columns' last decimal
_ABOVE_ZERO = 180 * _DEGREE  # a negative number would show its sign through the mask
_MASK_BITS = 48  # of a coordinate's 36
# SQLSTATE classes: bad data, a constraint, no such table or no right to it, an exception that a trigger raised. Trying
# again does not help; after a lock wait, a deadlock or a cancelled statement it does.
_FINGERPRINTS_OWN = {"22", "23", "42", "P0"}

# What reads many rows is planned for the table as it is: the plan that a connection made while it was empty won't do.
_PLAN_ANEW = "SET LOCAL plan_cache_mode = force_custom_plan;"

REMEMBERED = 1000  # of a member's sessions, the latest: as many as a start reads

# Those of a Session, in its order.
COLUMNS = "id, user_id, started_at, expires_at, ended_at, clock_timestamp() AS now"

_ACTIVE = f"""
    SELECT {COLUMNS} FROM after_hours_sessions
    WHERE user_id = %(member_id)s AND ended_at IS NULL AND expires_at > clock_timestamp()
"""

# The latest sessions are taken in the index's order, not collected and sorted.
_IN_ORDER = "SET LOCAL enable_sort = off;"

# First the member's row, as everything that locks more than a session does: a withdrawal or an erasure under way is
# waited for, and the next statement sees what it left. Then the points of the member's latest sessions, and noise to
# mask the next statement's place with, which the server makes so that no statement names it.
_PREPARE_START = f"""
    WITH member AS MATERIALIZED (
        SELECT FROM users WHERE id = %(member_id)s FOR KEY SHARE
    ), made AS MATERIALIZED (
        SELECT gen_random_uuid()::text AS noise
    )
    SELECT set_config('after_hours.noise', noise, true), (SELECT count(*) FROM member), (
        SELECT array_agg(DISTINCT ARRAY[fuzzed_latitude, fuzzed_longitude]::float8[])
        FROM (
            SELECT fuzzed_latitude, fuzzed_longitude FROM after_hours_sessions WHERE user_id = %(member_id)s
            ORDER BY started_at DESC LIMIT {REMEMBERED}
        ) AS latest
    ) FROM made
"""

# In one statement: a session that ran out is ended, lest it block the new one; the new one is inserted, its expiry
# rounded up to a whole second, so that it is never shorter than its member chose.
# The count lets the insert wait for the update. Of a session that another ends at this moment the statement still sees
# that it has no end; one that had run out ended at its expiry.
_START = f"""
    WITH ran_out AS (
        UPDATE after_hours_sessions SET ended_at = expires_at
        WHERE user_id = %(member_id)s AND ended_at IS NULL AND expires_at <= clock_timestamp()
        RETURNING {COLUMNS}
    ), untold AS (
        INSERT INTO after_hours_untold (tell_at, session_ids) SELECT now, ARRAY[id] FROM ran_out
    ), started AS (
        INSERT INTO after_hours_sessions
            (user_id, started_at, expires_at, latitude, longitude, fuzzed_latitude, fuzzed_longitude)
        SELECT %(member_id)s, now, date_trunc('second', now + %(length)s + interval '999999 microseconds'),
            ((%(masked_latitude)s # latitude_mask) - {_ABOVE_ZERO}) / 1e8,
            ((%(masked_longitude)s # longitude_mask) - {_ABOVE_ZERO}) / 1e8,
            %(blurred_latitude)s, %(blurred_longitude)s
        FROM (
            SELECT statement_timestamp() AS now,
                ('x' || left(noise, {_MASK_BITS // 4}))::bit({_MASK_BITS})::bigint AS latitude_mask,
                ('x' || right(noise, {_MASK_BITS // 4}))::bit({_MASK_BITS})::bigint AS longitude_mask
            FROM replace(current_setting('after_hours.noise'), '-', '') AS noise
        ) AS given
        WHERE EXISTS (SELECT FROM users WHERE id = %(member_id)s AND after_hours_consent)
            AND EXISTS (SELECT FROM after_hours_profiles WHERE user_id = %(member_id)s)
            AND (SELECT count(*) FROM ran_out) >= 0
        ON CONFLICT (user_id) WHERE ended_at IS NULL DO NOTHING
        RETURNING {COLUMNS}
    )
    SELECT 'ran_out', * FROM ran_out UNION ALL SELECT 'session', * FROM started UNION ALL
    SELECT 'before', id, user_id, started_at, expires_at,
        coalesce(ended_at, CASE WHEN expires_at <= clock_timestamp() THEN expires_at END), clock_timestamp()
    FROM (
        SELECT * FROM after_hours_sessions WHERE user_id = %(member_id)s ORDER BY started_at DESC LIMIT 1
    ) AS latest
    WHERE EXISTS (SELECT FROM started) AND NOT EXISTS (SELECT FROM ran_out)
"""

# With the commit in one round trip. The savepoint tells whether it was the fingerprint that failed.
_STORE_DEVICE_AND_COMMIT = """
    SAVEPOINT device;
    INSERT INTO device_fingerprints (user_id, session_id, device_id, device_model, platform)
    VALUES (%(user_id)s, CAST(%(session_id)s AS uuid), %(device_id)s, %(device_model)s, %(platform)s);
    COMMIT
"""

_PREREQUISITES = """
    SELECT users.id IS NOT NULL, after_hours_consent IS TRUE,
        EXISTS (SELECT FROM after_hours_profiles WHERE user_id = %(member_id)s)
    FROM (SELECT) AS nobody LEFT JOIN users ON id = %(member_id)s
"""


def _needed(seconds: str, others: str = "") -> str:
    """Return a query for those of `seconds`, an array of bigint, at which a session expires, or has `lead` left."""
    return f"""
    SELECT second FROM unnest({seconds}) AS second
    WHERE EXISTS (
        SELECT FROM after_hours_sessions AS other
        WHERE ended_at IS NULL AND expires_at > to_timestamp(second - 1) AND expires_at <= to_timestamp(second)
            {others}
    ) OR EXISTS (
        SELECT FROM after_hours_sessions AS other
        WHERE ended_at IS NULL AND expires_at > to_timestamp(second - 1) + CAST(%(lead)s AS interval)
            AND expires_at <= to_timestamp(second) + CAST(%(lead)s AS interval)
            {others}
    )"""


_NEEDED = _needed("CAST(%(seconds)s AS bigint[])")


def _needed_by_others(expiry: str) -> str:
    """Return an expression for the seconds of an expiry, and of its warning, that other sessions than `mine` need."""
    seconds = ", ".join(
        f"CAST(ceil(extract(epoch FROM {moment})) AS bigint)"
        for moment in (expiry, f"{expiry} - CAST(%(lead)s AS interval)")
    )
    return f"ARRAY({_needed(f'ARRAY[{seconds}]', 'AND other.id <> mine.id')})"


_END = f"""
    UPDATE after_hours_sessions AS mine SET ended_at = clock_timestamp()
    WHERE user_id = %(member_id)s AND ended_at IS NULL AND expires_at > clock_timestamp()
    RETURNING {COLUMNS}, {_needed_by_others("mine.expires_at")}
"""

# The last key, and what it was answered, is kept; an extension without one leaves both. Who comes with that key once
# more matches no row, also when they have waited for the first one's lock.
_EXTENDED = "date_trunc('second', expires_at + CAST(%(length)s AS interval) + interval '999999 microseconds')"
_KEYED = "CAST(%(key)s AS text) IS NOT NULL"
_EXTEND = f"""
    UPDATE after_hours_sessions AS mine
    SET expires_at = {_EXTENDED},
        warned_at = NULL,
        extension_key = coalesce(CAST(%(key)s AS text), extension_key),
        extension_minutes = CASE WHEN {_KEYED} THEN CAST(%(minutes)s AS integer) ELSE extension_minutes END,
        extension_expires_at = CASE WHEN {_KEYED} THEN {_EXTENDED} ELSE extension_expires_at END
    WHERE user_id = %(member_id)s AND ended_at IS NULL AND expires_at > clock_timestamp()
        AND NOT ({_KEYED} AND extension_key IS NOT DISTINCT FROM %(key)s)
    RETURNING {COLUMNS}, {_needed_by_others("mine.expires_at - CAST(%(length)s AS interval)")}
"""
_REPEATED = """
    SELECT id, user_id, started_at, extension_expires_at, ended_at, clock_timestamp(), extension_minutes
    FROM after_hours_sessions
    WHERE user_id = %(member_id)s AND ended_at IS NULL AND expires_at > clock_timestamp() AND extension_key = %(key)s
"""

# SKIP LOCKED: of two workers on the same second each session has one; who holds a row is ending or extending it.
# NO KEY: who only refers to it, by a decline, is in nobody's way.
_END_DUE = f"""
    WITH ended AS (
        UPDATE after_hours_sessions SET ended_at = expires_at
        WHERE id = ANY (ARRAY(
            SELECT id FROM after_hours_sessions WHERE ended_at IS NULL AND expires_at <= statement_timestamp()
            ORDER BY expires_at LIMIT %(batch)s FOR NO KEY UPDATE SKIP LOCKED
        ))
        RETURNING {COLUMNS}
    ), untold AS (
        INSERT INTO after_hours_untold (tell_at, session_ids)
        SELECT statement_timestamp() + %(lease)s, array_agg(id) FROM ended HAVING count(*) > 0
        RETURNING id
    )
    SELECT untold.id, ended.* FROM untold CROSS JOIN ended
"""

_WARN_DUE = f"""
    UPDATE after_hours_sessions SET warned_at = statement_timestamp()
    WHERE id = ANY (ARRAY(
        SELECT id FROM after_hours_sessions
        WHERE ended_at IS NULL AND warned_at IS NULL
            AND expires_at > statement_timestamp() AND expires_at <= statement_timestamp() + %(lead)s
        ORDER BY expires_at LIMIT %(batch)s FOR NO KEY UPDATE SKIP LOCKED
    ))
    RETURNING {COLUMNS}
"""

# So many rows that their sessions fill a batch. A session may be deleted meanwhile; then there is nothing to publish.
_CLAIM_UNTOLD = f"""
    WITH due AS (
        SELECT id, tell_at, session_ids FROM after_hours_untold WHERE tell_at <= statement_timestamp()
        ORDER BY tell_at LIMIT %(batch)s FOR UPDATE SKIP LOCKED
    ), counted AS (
        SELECT id, sum(cardinality(session_ids)) OVER (ORDER BY tell_at, id) - cardinality(session_ids) AS before
        FROM due
    ), untold AS (
        UPDATE after_hours_untold SET tell_at = statement_timestamp() + %(lease)s
        WHERE id = ANY (ARRAY(SELECT id FROM counted WHERE before < %(batch)s))
        RETURNING id AS untold_id, session_ids
    )
    SELECT untold_id, {COLUMNS}
    FROM untold CROSS JOIN unnest(session_ids) AS session_id LEFT JOIN after_hours_sessions ON id = session_id
"""

_MARK_TOLD = "DELETE FROM after_hours_untold WHERE id = ANY (CAST(%(untold_ids)s AS bigint[]))"

_UNTOLD_SECONDS = """
    SELECT DISTINCT ceil(extract(epoch FROM tell_at))::bigint FROM after_hours_untold
    WHERE tell_at > statement_timestamp()
"""

_EXPIRY_SECONDS = """
    SELECT DISTINCT ceil(extract(epoch FROM expires_at))::bigint FROM after_hours_sessions
    WHERE ended_at IS NULL AND expires_at > statement_timestamp()
"""

_LIST_ACTIVE = f"""
    SELECT {COLUMNS} FROM after_hours_sessions WHERE ended_at IS NULL AND expires_at > statement_timestamp()
    ORDER BY expires_at, id LIMIT %(limit)s
"""

_CENSUS = """
    SELECT count(*) FILTER (WHERE expires_at > statement_timestamp()),
        count(*) FILTER (WHERE expires_at <= statement_timestamp()),
        greatest(0, coalesce(extract(epoch FROM statement_timestamp() - min(expires_at)), 0))::float8
    FROM after_hours_sessions WHERE ended_at IS NULL
"""


def active(member_id: str) -> Session | None:
    """Return the member's active session."""
    return _one(_ACTIVE, member_id=member_id)


def start(
    member_id: str,
    length: timedelta,
    exact: Point,
    blur: Callable[[list[Point]], Point],
    device: Mapping[str, str | None] | None,
) -> Started:
    """Start a session and store its device; a refused start changes nothing.

    blur: returns the point to show, given the blurred points of the retained sessions. Why a start was refused is told
    by `prerequisites` or an active session. A fingerprint that cannot be stored is left out. When that was a matter of
    luck (a lock, a deadlock) the start fails with it, to be tried again.

    PostgreSQL logs a statement that fails, values included. So each coordinate crosses under a mask of its own, which
    the server has made and no statement names.
    """
    with cursor() as opened:
        execute(opened, _PREPARE_START, before=f"BEGIN; {_IN_ORDER}", member_id=member_id)
        [(random_uuid, _, points)] = opened.fetchall()
        noise = uuid.UUID(random_uuid).int
        blurred = blur([Point(*point) for point in points or []])
        execute(
            opened,
            _START,
            member_id=member_id,
            length=length,
            masked_latitude=_masked(exact.latitude, noise >> 128 - _MASK_BITS),
            masked_longitude=_masked(exact.longitude, noise & (1 << _MASK_BITS) - 1),
            blurred_latitude=blurred.latitude,
            blurred_longitude=blurred.longitude,
        )
        found = {what: Session(*row) for what, *row in opened.fetchall()}
        started = Started(found.get("ran_out"), found.get("before"), found.get("session"))
        if started.session and device and any(device.values()):
            _store_device_and_commit(opened, started.session, device)
        else:
            opened.execute("COMMIT" if started.session else "ROLLBACK")
    return started


def prerequisites(member_id: str) -> Prerequisites:
    """Return whether the member may start: they exist, consent, and have an After Hours profile."""
    [row] = run(_PREREQUISITES, member_id=member_id)
    return Prerequisites(*row)


def end(member_id: str, lead: timedelta) -> Left | None:
    """End the member's active session now. lead: how long before an expiry its warning comes."""
    return _left(_END, member_id=member_id, lead=lead)


def extend(
    member_id: str, minutes: int, length: timedelta, lead: timedelta, key: str | None = None
) -> Extension | None:
    """Move the expiry of the member's active session by `length`; extensions at the same time add up.

    minutes: `length` as the member put it. lead: how long before an expiry its warning comes. key: the one that came
    last with this session extends it no more, and gets the answer it got.
    """
    given = {"member_id": member_id, "minutes": minutes, "length": length, "lead": lead}
    if left := _left(_EXTEND, **given, key=key):
        return Extension(left.session, minutes, left.session.expires_at - length, left.needed)
    if key is None:
        return None
    rows = run(_REPEATED, member_id=member_id, key=key)
    return next((Extension(Session(*row), answered, None, set()) for *row, answered in rows), None)


def end_due(batch: int, lease: timedelta) -> Untold:
    """End up to `batch` sessions that have run out, at their expiry.

    lease: how long the caller has to tell of them.
    """
    return _untold(_END_DUE, batch=batch, lease=lease)


def claim_untold(batch: int, lease: timedelta) -> Untold:
    """Return about `batch` sessions whose expiry nobody published in time; they are the caller's for the lease."""
    return _untold(_CLAIM_UNTOLD, batch=batch, lease=lease)


def mark_told(untold_ids: list[int]) -> None:
    """Note that these expiries were published."""
    run(_MARK_TOLD, untold_ids=untold_ids)


def untold_seconds() -> set[int]:
    """Return the seconds since the epoch, rounded up, at which expiries are to be told that weren't by then."""
    return {second for (second,) in run(_UNTOLD_SECONDS)}


def warn_due(batch: int, lead: timedelta) -> list[Session]:
    """Mark up to `batch` active sessions that have `lead` left, or less, as warned."""
    return _all(_WARN_DUE, _PLAN_ANEW, batch=batch, lead=lead)


def expiry_seconds() -> set[int]:
    """Return the seconds since the epoch, rounded up, at which active sessions expire."""
    return {second for (second,) in run(_EXPIRY_SECONDS)}


def needed_seconds(seconds: Iterable[int], lead: timedelta) -> set[int]:
    """Return those of `seconds` at which an un-ended session expires, or has `lead` left."""
    return {second for (second,) in run(_NEEDED, seconds=list(seconds), lead=lead)}


def list_active(limit: int) -> list[Session]:
    """Return up to `limit` active sessions, the next to expire first."""
    return _all(_LIST_ACTIVE, limit=limit)


def census() -> Census:
    """Count the sessions that are not ended."""
    [row] = run(_CENSUS)
    return Census(*row)


def now() -> datetime:
    """Return the database's time."""
    moment: datetime
    [(moment,)] = run("SELECT clock_timestamp()")
    return moment


def _masked(degrees: float, mask: int) -> int:
    return (round(degrees * _DEGREE) + _ABOVE_ZERO) ^ mask


def _store_device_and_commit(
    opened: psycopg2.extensions.cursor, started: Session, device: Mapping[str, str | None]
) -> None:
    given = {name: device.get(name) for name in ("device_id", "device_model", "platform")}
    try:
        opened.execute(_STORE_DEVICE_AND_COMMIT, {"user_id": started.user_id, "session_id": str(started.id), **given})
    except psycopg2.Error as error:
        if (error.pgcode or "")[:2] not in _FINGERPRINTS_OWN:
            raise
        logger.warning("fingerprint not stored", error=type(error).__name__)
        opened.execute("ROLLBACK TO SAVEPOINT device; COMMIT")


def _one(statement: str, **parameters: Any) -> Session | None:
    rows = _all(statement, **parameters)
    return rows[0] if rows else None


def _all(statement: str, before: str = "", **parameters: Any) -> list[Session]:
    return [Session(*row) for row in run(statement, before, **parameters)]


def _left(statement: str, **parameters: Any) -> Left | None:
    return next((Left(Session(*row), set(needed)) for *row, needed in run(statement, **parameters)), None)


def _untold(statement: str, **parameters: Any) -> Untold:
    rows = run(statement, _PLAN_ANEW, **parameters)
    return Untold(list({row[0] for row in rows}), [Session(*row) for _, *row in rows if row[0]])

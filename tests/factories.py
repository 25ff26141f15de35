"""Members of the host, in every state the gate knows, and their sessions."""

import itertools
import os
import time
from collections.abc import Callable
from typing import Any, cast

import jwt
import psycopg2.extras
from redis import Redis

from afterhours_service.jobs.timers import SCHEDULED
from afterhours_service.sessions.models import AfterHoursSession, Search
from afterhours_service.stores.host import Match, Timestamp

SECRET = "a secret for tests, of 32 bytes or more"
PLACE = {"latitude": 52.52, "longitude": 13.405}
Live = Callable[..., str]
_numbers = itertools.count(1)


def token(member_id: str, seconds: float = 3600, key: Any = SECRET, algorithm: str = "HS256", **claims: Any) -> str:
    """Return a bearer token as the host issues it."""
    return jwt.encode({"userId": member_id, "exp": int(time.time() + seconds), **claims}, key, algorithm=algorithm)


def bearer(member_id: str) -> dict[str, str]:
    """Return the headers of a member's request."""
    return {"Authorization": f"Bearer {token(member_id)}"}


class Factory:
    """Writes rows as the host does, and reads any row."""

    def __init__(self, connection: Any) -> None:
        self._connection = connection

    def execute(self, statement: str, *parameters: Any) -> list[Any]:
        """Run one statement in its own transaction, and return its rows (by name or position)."""
        with self._connection.cursor(cursor_factory=psycopg2.extras.NamedTupleCursor) as cursor:
            cursor.execute(statement, parameters or None)
            return list(cursor.fetchall()) if cursor.description else []

    def member(
        self,
        *,
        premium: bool = True,
        verified: bool | None = True,
        consent: bool | None = True,
        profile: bool = True,
        main_profile: bool = True,
    ) -> str:
        """Make a member, by default one who may go live, and return their id."""
        member_id = f"member-{os.getpid()}-{next(_numbers)}"
        self.execute(
            "INSERT INTO users (id, provider, id_verified, after_hours_consent) VALUES (%s, 'test', %s, %s)",
            member_id,
            verified,
            consent,
        )
        if premium:
            self.execute("INSERT INTO user_subscriptions (user_id, is_active) VALUES (%s, true)", member_id)
        if main_profile:
            self.execute("INSERT INTO profiles (user_id, name, age) VALUES (%s, 'Robin', 30)", member_id)
        if profile:
            self.execute("INSERT INTO after_hours_profiles (user_id) VALUES (%s)", member_id)
        return member_id

    def session(self, member_id: str, *, left: float = 900, length: float = 900, ended: bool = False) -> str:
        """Insert a session with `left` seconds to go (negative: overdue), `length` seconds long; return its id.

        ended: it ended at its expiry.
        """
        rows = self.execute(
            """
            INSERT INTO after_hours_sessions (user_id, started_at, expires_at, ended_at,
                latitude, longitude, fuzzed_latitude, fuzzed_longitude)
            SELECT %s, expiry - %s * interval '1 second', expiry, CASE WHEN %s THEN expiry END,
                52.52, 13.405, 52.521, 13.404
            FROM (SELECT date_trunc('second', now() + %s * interval '1 second') AS expiry) AS e RETURNING id""",
            member_id,
            length,
            ended,
            left,
        )
        return str(rows[0].id)

    def match(self, session: str, member: str, other: str, *, over: bool = False) -> str:
        """Insert a match as the Node service does, live for ten minutes or over for as long; return its id."""
        rows = self.execute(
            """INSERT INTO after_hours_matches (session_id, user_id_1, user_id_2, created_at, expires_at, due_at)
               SELECT %s, %s, %s, now() - d, now() + CASE WHEN %s THEN -d ELSE d END, CASE WHEN NOT %s THEN now() END
               FROM (SELECT interval '10 minutes' AS d) AS one RETURNING id""",
            session,
            member,
            other,
            over,
            over,
        )
        return str(rows[0].id)

    def travel(self, seconds: float) -> None:
        """Move every session, match and search `seconds` into the past. No trigger takes it for a change."""
        moves = [
            f"UPDATE {model.__tablename__} SET {', '.join(f'{name} = {name} - t.d' for name in _moments(model))}"
            " FROM (SELECT %s * interval '1 second' AS d) AS t"
            for model in (AfterHoursSession, Match, Search)
        ]
        self.execute("; ".join(["SET LOCAL session_replication_role = replica", *moves]), *[seconds] * len(moves))

    def sessions(self, member_id: str) -> list[Any]:
        """Return the member's sessions, oldest first."""
        return self.execute("SELECT * FROM after_hours_sessions WHERE user_id = %s ORDER BY started_at", member_id)

    def count(self, table: str) -> int:
        """Return how many rows a table has."""
        count: int = self.execute(f"SELECT count(*) AS n FROM {table}")[0].n
        return count

    def let_leases_expire(self) -> None:
        """Let every publish lease of the outbox expire."""
        self.execute("UPDATE after_hours_untold SET tell_at = tell_at - interval '11 seconds'")

    def waiting(self) -> int:
        """Return how many connections to this database wait for a lock."""
        return self.count("pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'")

    def has_ended(self, member_id: str) -> bool:
        """Return whether the member's first session has ended."""
        return self.sessions(member_id)[0].ended_at is not None


def _moments(model: Any) -> list[str]:
    """Return the columns of a table that are moments."""
    return [column.name for column in model.__table__.c if isinstance(column.type, type(Timestamp))]


def scheduled(redis: Redis) -> dict[str, float]:
    """Return the armed timers and periodic jobs, and the moments they are due, the next first."""
    entries = cast("list[tuple[bytes, float]]", redis.zrange(SCHEDULED, 0, -1, withscores=True))
    return {raw.decode(): due for raw, due in entries}


def prefer(factory: Factory, member: str, **wish: Any) -> None:
    """Give a member preferences, by the names of their columns."""
    columns = ", ".join(wish)
    values = ", ".join(["%s"] * len(wish))
    factory.execute(
        f"INSERT INTO after_hours_preferences (user_id, {columns}) VALUES (%s, {values})", member, *wish.values()
    )


def go_live(factory: Factory, member: str, latitude: float = 52.52, longitude: float = 13.4, left: float = 900) -> str:
    """Start a session of a member, whose blurred point is the one given; return its id."""
    session = factory.session(member, left=left)
    factory.execute(
        """UPDATE after_hours_sessions SET fuzzed_latitude = %s, fuzzed_longitude = %s,
           started_at = least(clock_timestamp(), expires_at - interval '1 second') WHERE id = %s""",
        latitude,
        longitude,
        session,
    )
    return session


def many_sessions(factory: Factory, member: str, number: int) -> None:
    """Give a member sessions of the past, a place each."""
    factory.execute(
        """INSERT INTO after_hours_sessions
               (user_id, started_at, expires_at, ended_at, fuzzed_latitude, fuzzed_longitude)
           SELECT %s, moment, moment + interval '1 second', moment + interval '1 second', 52 + n / 1e6, 13.4
           FROM generate_series(1, %s) AS n
           CROSS JOIN LATERAL (SELECT now() - interval '1 hour' - n * interval '2 seconds' AS moment) AS m""",
        member,
        number,
    )

"""Members who may go live, their tokens, and their sessions; written in bulk."""

import time
from pathlib import Path

import jwt

from benchmarks.load.stack import SECRET, Stack

HOUR = 3600  # seconds
DAY = 24 * HOUR


def seed_members(stack: Stack, first: int, last: int, *, gender: str = "Female", seeks: str = "Bisexual") -> None:
    """Make the members numbered first…last: verified, consenting, premium, with a profile."""
    for statement in (
        """INSERT INTO users (id, provider, id_verified, after_hours_consent)
           SELECT 'member-' || n, 'load', true, true FROM generate_series(%s, %s) AS n""",
        """INSERT INTO user_subscriptions (user_id, is_active, expires_at)
           SELECT 'member-' || n, true, now() + interval '30 days' FROM generate_series(%s, %s) AS n""",
        """INSERT INTO profiles (user_id, name, age, gender, sexual_preference)
           SELECT 'member-' || n, 'Robin', 18 + n %% 50, gender, seeks
           FROM (SELECT %s AS gender, %s AS seeks) AS given, generate_series(%s, %s) AS n""",
        """INSERT INTO after_hours_profiles (user_id, description)
           SELECT 'member-' || n, 'Out tonight' FROM generate_series(%s, %s) AS n""",
    ):
        of_profiles = (gender, seeks) if "seeks" in statement else ()
        stack.execute(statement, *of_profiles, first, last)
    stack.execute("ANALYZE")


def seed_sessions(stack: Stack, first: int, last: int, *, at: int, spread: int = 1) -> None:
    """Give the members numbered first…last a session each, warned already.

    at: the second (since the epoch) at which the first of them expire. spread: over how many seconds they expire.
    """
    stack.execute(
        """
        INSERT INTO after_hours_sessions
            (user_id, started_at, expires_at, warned_at, latitude, longitude, fuzzed_latitude, fuzzed_longitude)
        SELECT 'member-' || n, now() - interval '1 minute', to_timestamp(%s + (n - %s) %% %s), now(),
            52 + n %% 1000 / 1000.0, 13 + n %% 997 / 1000.0, 52 + n %% 1000 / 1000.0, 13 + n %% 997 / 1000.0
        FROM generate_series(%s, %s) AS n""",
        at,
        first,
        spread,
        first,
        last,
    )


def seed_searches(stack: Stack, first: int, last: int) -> None:
    """Let the members numbered first…last, who are live, wait to be found by others; nobody has to be looked for."""
    stack.execute(
        """
        INSERT INTO after_hours_search (user_id, session_id, key, wish, me, since, looked_at, told_at)
        SELECT user_id, s.id, discovery_key, discovery_wish, after_hours_self(gender, age), now(), now(), now()
        FROM after_hours_sessions AS s JOIN profiles USING (user_id)
        WHERE ended_at IS NULL AND user_id IN (SELECT 'member-' || n FROM generate_series(%s, %s) AS n)
        ON CONFLICT (user_id) DO UPDATE SET look_at = NULL, looked_at = now(), told_at = now()""",
        first,
        last,
    )
    stack.execute("ANALYZE after_hours_search")


def drop_sessions(stack: Stack, first: int, last: int) -> None:
    """Delete the sessions of the members numbered first…last, and their devices."""
    for table in ("device_fingerprints", "after_hours_sessions"):
        stack.execute(
            f"DELETE FROM {table} WHERE user_id IN (SELECT 'member-' || n FROM generate_series(%s, %s) AS n)",  # noqa: S608
            first,
            last,
        )


def write_tokens(path: Path, first: int, last: int) -> None:
    """Write the tokens of the members numbered first…last as a Lua table."""
    expiry = int(time.time()) + DAY
    tokens = (
        jwt.encode({"userId": f"member-{n}", "iat": expiry, "exp": expiry}, SECRET, algorithm="HS256")
        for n in range(first, last + 1)
    )
    path.write_text("return {" + ",\n".join(f'"{token}"' for token in tokens) + "}\n")

"""Every statement finds its rows by an index, on 200,000 sessions, whether it is planned for its values or for any."""

import inspect
import re
import uuid
from collections.abc import Callable, Iterator
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from typing import Any

from flask import Flask

from afterhours_service.cleanup import queries as cleanup
from afterhours_service.matching import queries as matching
from afterhours_service.places.blur import Point
from afterhours_service.rights import queries as members
from afterhours_service.sessions import queries as sessions
from afterhours_service.stores import host
from tests.factories import Factory
from tests.wire import Wire

WEEK, MINUTES = timedelta(days=7), timedelta(minutes=15)
KEPT = cleanup.Kept(WEEK, timedelta(days=90))
PLACE = Point(52.52, 13.405)
DEVICE: dict[str, str | None] = {"device_id": "d", "device_model": "m", "platform": "ios"}

PLACES = {
    "created_at": "2026-01-01",
    "ended_at": "2026-01-01",
    "expires_at": "2026-01-01",
    "id": str(uuid.UUID(int=7)),
    "last_seen": "2026-01-01",
    "user_id": "m7",
}


def start() -> None:
    with suppress(sessions.StartRefusedError):  # the second time
        sessions.start("m19999", MINUTES, PLACE, PLACE, uuid.UUID(int=1).hex, DEVICE)


def find() -> None:
    for name, step in cleanup.STEPS.items():
        for after in (None, [PLACES[column.key] for column in step.order]):
            cleanup.find(name, 200, KEPT, after)


def decline() -> None:
    match = uuid.UUID(int=7)
    with suppress(ValueError):  # there is no such match
        matching.decline("m7", match, MINUTES)
    with suppress(ValueError):
        matching.end_unanswered(match, MINUTES)


def delete_rows() -> None:
    for name, step in cleanup.STEPS.items():
        cleanup.delete_rows(name, [[PLACES[column.key] for column in step.order]], KEPT)


CALLS: dict[Callable[..., Any], tuple[Any, ...]] = {
    host.standing: ("m7",),
    sessions.active: ("m7",),
    sessions.standing_and_active: ("m7",),
    sessions.standing_and_memories: ("m7", [uuid.UUID(int=n).hex for n in range(12)]),
    start: (),
    sessions.prerequisites: ("m7",),
    sessions.end: ("m7", MINUTES, MINUTES),
    sessions.extend: ("m7", 15, MINUTES, MINUTES, "key"),
    sessions.end_due: (1000, timedelta(seconds=10)),
    sessions.claim_pending: (1000, timedelta(seconds=10)),
    sessions.mark_published: ([1],),
    sessions.give_back: ([1],),
    sessions.publish_seconds: (),
    sessions.warn_due: (1000, timedelta(minutes=2)),
    sessions.expiry_seconds: (),
    sessions.needed_seconds: ([1_800_000_000, 1_800_000_001], timedelta(minutes=2)),
    sessions.list_active: (100,),
    sessions.census: (),
    sessions.now: (),
    sessions.is_look_due: (1_800_000_000,),
    matching.census: (),
    matching.claim: (10, MINUTES),
    matching.enter_pool: (["m7", "m8"],),
    matching.leave_to_be_found: (["m7", "m8"],),
    matching.note_matched: (["m7", "m8"],),
    matching.refresh: (["m7", "m8"],),
    matching.edges: (["m7", "m8"], 3, MINUTES),
    matching.judge: ([("m7", "m8")], MINUTES, MINUTES, MINUTES, MINUTES),
    matching.claim_due: (10, MINUTES),
    matching.mark_published: ([uuid.UUID(int=7)], datetime.now(UTC)),
    matching.sides: ([uuid.UUID(int=7)],),
    matching.side: ("m7",),
    matching.other: ("m7", uuid.UUID(int=7)),
    matching.hold: ("m7", uuid.UUID(int=7)),
    matching.accept: ("m7", uuid.UUID(int=7)),
    decline: (),
    matching.claim_untold: (10,),
    matching.insert_missing: (1, MINUTES),
    matching.delete_left: (1,),
    matching.end_forbidden: (1,),
    matching.release: (1,),
    matching.look_again: (1, MINUTES),
    matching.due_seconds: (),
    members.consent: ("m7",),
    members.lock: ("m7",),
    members.set_consent: ("m7", False),
    members.export: ("m7",),
    members.erase: ("m7",),
    cleanup.try_lock: (),
    find: (),
    delete_rows: (),
    cleanup.count: (KEPT,),
}
# For each execution anew (plan_cache_mode): the plan for any values is never used.
PLANNED_FOR_THEIR_VALUES = {"find", "count"}
# Whose user is gone is only known by looking at all, once a night; and what a dry run counts may be most of a table.
# The table of expiries to be published is next to empty, but in an outage of Redis.
# A look compares all who are live with all who search, every 30 seconds.
LIVE = {"after_hours_search", "after_hours_sessions", "after_hours_matches"}
LOOK_AT_ALL = {
    **dict.fromkeys(["census", "insert_missing", "delete_left", "end_forbidden", "release", "due_seconds"], LIVE),
    "export": {"after_hours_untold"},
    "start": {"after_hours_untold"},
    "find": {"after_hours_profiles", "after_hours_preferences", "users"},
    "count": {"after_hours_profiles", "after_hours_preferences", "users", "device_fingerprints", "after_hours_matches"},
}

# 20,000 members with ten sessions each: the last is active for 5,000 of them and overdue for 50, and 2 % of all have
# served their time, as have a few declines and fingerprints.
ROWS = """
    ALTER TABLE after_hours_sessions DROP CONSTRAINT after_hours_sessions_user_id_fkey;  -- only to be quicker
    INSERT INTO users (id, provider, id_verified, after_hours_consent)
        SELECT 'm' || n, 'test', true, true FROM generate_series(0, 19999) AS n;
    INSERT INTO user_subscriptions (user_id, is_active) SELECT id, true FROM users;
    INSERT INTO profiles (user_id, age) SELECT id, 30 FROM users;
    INSERT INTO blocks (user_id, blocked_user_id) SELECT id, 'm7' FROM users;
    INSERT INTO after_hours_profiles (user_id) SELECT id FROM users;
    INSERT INTO after_hours_preferences (user_id) SELECT id FROM users;
    INSERT INTO after_hours_sessions
        (user_id, started_at, expires_at, ended_at, latitude, longitude, fuzzed_latitude, fuzzed_longitude)
        SELECT 'm' || n % 20000, expiry - interval '1 hour', expiry, CASE WHEN n >= 5000 THEN expiry END, 1, 1, 1, 1
        FROM generate_series(0, 199999) AS n CROSS JOIN LATERAL (SELECT date_trunc('second', now()) + CASE
            WHEN n < 50 THEN - interval '10 seconds' WHEN n < 5000 THEN (n % 3600 + 1) * interval '1 second'
            WHEN n < 196000 THEN - n * interval '3 seconds' ELSE - interval '8 days' END AS expiry) AS e;
    INSERT INTO device_fingerprints (user_id, session_id)
        SELECT user_id, CASE WHEN random() < 0.98 THEN id END FROM after_hours_sessions LIMIT 20000;
    INSERT INTO after_hours_declines (session_id, user_id, declined_user_id, created_at)
        SELECT id, user_id, 'm' || (substr(user_id, 2)::int + 1) % 20000, ended_at
        FROM after_hours_sessions WHERE ended_at < now() - interval '6 days' LIMIT 20000
        ON CONFLICT DO NOTHING;
    INSERT INTO after_hours_places (id, user_id, fuzzed_latitude, fuzzed_longitude, visits, last_seen)
        SELECT gen_random_uuid(), 'm' || n % 20000, 1, 1, 1, current_date - n % 95 FROM generate_series(0, 99999) AS n;
    INSERT INTO after_hours_search (user_id, session_id, key, wish, me, since, look_at, looked_at)
        SELECT user_id, id, discovery_key, discovery_wish, after_hours_self('Male', 30), now(),
            CASE WHEN random() < 0.01 THEN now() + interval '1 hour' END, CASE WHEN random() < 0.01 THEN now() END
        FROM after_hours_sessions WHERE ended_at IS NULL;
    INSERT INTO after_hours_matches (session_id, user_id_1, user_id_2, created_at, expires_at, due_at)
        SELECT id, user_id, 'm' || (substr(user_id, 2)::int + 1) % 20000, started_at, expires_at,
            CASE WHEN random() < 0.01 THEN now() + interval '1 hour' END
        FROM after_hours_sessions WHERE ended_at IS NOT NULL LIMIT 40000;
    INSERT INTO after_hours_untold (tell_at, session_ids)
        SELECT now() + (10 - n) * interval '1 second', ARRAY[gen_random_uuid()] FROM generate_series(1, 20000) AS n;
    ANALYZE;
"""


def nodes(plan: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Yield the nodes of a plan."""
    yield plan
    for part in plan.get("Plans", ()):
        yield from nodes(part)


def plans(
    wire: Wire, make_app: Callable[..., Flask], factory: Factory
) -> Iterator[tuple[str, str, list[dict[str, Any]]]]:
    """Yield each call's name, the statement that explains what it asks, and the nodes of the plan."""
    for prepare in (False, True):
        with make_app(database_url=wire.url, database_prepare=prepare).app_context():
            sessions.now()  # opens the connection, which asks a few things of its own
            for call, arguments in CALLS.items():
                wire.queries.clear()
                if call is members.export:  # which asks as it is read
                    assert [name for name, pages in members.export("m7") if list(pages)]
                else:
                    call(*arguments)
                for statement in explainable(wire.queries):
                    [explained] = factory.execute(statement)
                    yield call.__name__, statement, list(nodes(explained[0][0]["Plan"]))


def test_no_statement_reads_a_table_from_end_to_end(
    wire: Wire, make_app: Callable[..., Flask], factory: Factory
) -> None:
    for module in (sessions, matching, members, cleanup):
        own = {name for name, f in inspect.getmembers(module, inspect.isfunction) if f.__module__ == module.__name__}
        called = {call.__name__ for call in CALLS} | {"end_unanswered"}
        assert {name for name in own if not name.startswith("_")} <= called

    factory.execute(ROWS)
    found = {}
    for name, statement, plan in plans(wire, make_app, factory):
        if name in PLANNED_FOR_THEIR_VALUES and "GENERIC_PLAN" in statement:
            continue
        found[name, statement] = {node["Relation Name"] for node in plan if node["Node Type"] == "Seq Scan"}
    assert {name for name, statement in found if "GENERIC_PLAN" not in statement} == {c.__name__ for c in CALLS}
    assert [key for key, tables in found.items() if not tables <= LOOK_AT_ALL.get(key[0], set())] == []


def test_no_loop_reads_a_gist_index_that_could_lose_entries(
    wire: Wire, make_app: Callable[..., Flask], factory: Factory
) -> None:
    """PostgreSQL may lose entries while the tables are small (docs/decisions/0013), unless it is asked for an order."""
    factory.execute("INSERT INTO users (id, provider) VALUES ('m7', 'test')")
    factory.execute("INSERT INTO after_hours_profiles (user_id) VALUES ('m7')")
    [[indexes]] = factory.execute("SELECT array_agg(indexname) FROM pg_indexes WHERE indexdef LIKE '%USING gist%'")
    assert len(indexes) == 2
    for name, statement, plan in plans(wire, make_app, factory):
        unordered = [node["Index Name"] for node in plan if "Index Name" in node and "Order By" not in node]
        assert not set(unordered) & set(indexes), (name, statement)


def explainable(queries: list[str]) -> Iterator[str]:
    """Yield what explains the queries; one that is prepared, by the plan that is good for any values."""
    opening = r'^\s*((BEGIN|SAVEPOINT \w+|SET LOCAL [^;]*);\s*)+|^DECLARE "\w+" CURSOR WITHOUT HOLD FOR|;\s*COMMIT\s*$'
    statements = {re.sub(opening, "", query).strip() for query in queries}
    for query in {each for each in statements if not re.match("BEGIN|COMMIT|ROLLBACK|FETCH|CLOSE|SET", each)}:
        if query.startswith("PREPARE "):
            yield f"EXPLAIN (GENERIC_PLAN, FORMAT JSON) {query.partition(' AS ')[2]}"
        elif not query.startswith("EXECUTE "):
            yield f"EXPLAIN (FORMAT JSON) {query}"

"""What has served its time is ended and deleted each night, and nothing else is."""

import contextlib
from collections.abc import Callable

import psycopg2
import pytest
from flask import Flask
from redis import Redis
from rq import Queue
from structlog.testing import capture_logs

from afterhours_service.cleanup import jobs, queries, service
from afterhours_service.config import Settings
from afterhours_service.periodic import periodic_jobs
from afterhours_service.queue import MAINTENANCE_QUEUE, Worker
from tests.factories import Factory
from tests.stopwatch import Stopwatch

DAY = 24 * 3600
WEEK = 7 * DAY
NOTHING = {"overdue_sessions": 0, "declines": 0, "sessions": 0, "fingerprints": 0, "profiles": 0, "preferences": 0}
MATCHES = "CREATE TABLE after_hours_matches (session_id uuid REFERENCES after_hours_sessions (id) ON DELETE CASCADE)"


def clean(app: Flask, seconds: float | None = None) -> tuple[dict[str, int], bool]:
    with app.app_context():
        return service.run(seconds=seconds)


def pending(app: Flask) -> dict[str, int]:
    with app.app_context():
        return service.pending()


def decline(factory: Factory, session: str, *, age: float = 0) -> None:
    factory.execute(
        """
        INSERT INTO after_hours_declines (session_id, user_id, declined_user_id, created_at)
        SELECT id, user_id, %s, now() - %s * interval '1 second' FROM after_hours_sessions WHERE id = %s""",
        factory.member(),
        age,
        session,
    )


def fingerprint(factory: Factory, session: str | None) -> None:
    factory.execute("INSERT INTO device_fingerprints (user_id, session_id) VALUES (%s, %s)", factory.member(), session)


def orphan(factory: Factory, table: str, how_many: int = 1) -> None:
    """Write rows of members who are gone, as a database without the foreign key may hold them."""
    factory.execute(f"ALTER TABLE {table} DROP CONSTRAINT IF EXISTS {table}_user_id_fkey")
    factory.execute(f"INSERT INTO {table} (user_id) SELECT 'gone' || n FROM generate_series(1, %s) AS n", how_many)


def fill(factory: Factory, each: int = 1) -> dict[str, int]:
    """Write `each` rows for every step, and some for none; return what a run works off."""
    for _ in range(each):
        factory.session(factory.member(), left=-60)
        decline(factory, factory.session(factory.member(), left=-60, ended=True), age=WEEK + 60)
        fingerprint(factory, factory.session(factory.member(), left=-WEEK - 60, ended=True))
        fingerprint(factory, None)
        factory.session(factory.member(), left=-WEEK - 60)
        kept = factory.session(factory.member())
        decline(factory, kept)
        fingerprint(factory, kept)
    orphan(factory, "after_hours_profiles", each)
    orphan(factory, "after_hours_preferences", each)
    steps = {"overdue_sessions": 2, "declines": 1, "sessions": 2, "fingerprints": 2, "profiles": 1, "preferences": 1}
    return {step: rows * each for step, rows in steps.items()}


@pytest.mark.parametrize(
    ("left", "ended", "kept"),
    [
        pytest.param(-WEEK - 5, True, False, id="ended longer ago than the retention"),
        pytest.param(-WEEK + 60, True, True, id="ended just within the retention"),
        pytest.param(-WEEK - 5, False, False, id="ran out longer ago and was never ended"),
        pytest.param(-WEEK + 60, False, True, id="ran out within the retention and was never ended"),
        pytest.param(60, False, True, id="active for another minute"),
    ],
)
def test_a_session_is_kept_for_the_retention_after_its_end(
    app: Flask, factory: Factory, left: float, ended: bool, kept: bool
) -> None:
    member = factory.member()
    factory.session(member, left=left, length=WEEK * 2, ended=ended)
    clean(app)
    rows = factory.sessions(member)
    assert len(rows) == kept
    if kept:
        assert rows[0].ended_at == (rows[0].expires_at if left < 0 else None)


def test_a_session_that_its_member_ended_is_kept_from_its_end_not_its_expiry(app: Flask, factory: Factory) -> None:
    member = factory.member()
    factory.session(member, left=-WEEK + 600)
    factory.execute("UPDATE after_hours_sessions SET ended_at = expires_at - interval '11 minutes'")
    clean(app)
    assert factory.sessions(member) == []


def test_the_retention_is_a_setting(make_app: Callable[..., Flask], factory: Factory) -> None:
    member = factory.member()
    factory.session(member, left=-2 * DAY, ended=True)
    clean(make_app(retention_days=3))
    assert len(factory.sessions(member)) == 1
    clean(make_app(retention_days=1))
    assert factory.sessions(member) == []


def test_a_session_with_matches_of_the_node_service_is_kept(app: Flask, factory: Factory) -> None:
    factory.execute(MATCHES)
    matched = factory.session(factory.member(), left=-WEEK - 60, ended=True)
    factory.session(factory.member(), left=-WEEK - 60, ended=True)
    factory.execute("INSERT INTO after_hours_matches VALUES (%s)", matched)
    assert pending(app)["sessions"] == 1
    assert clean(app)[0]["sessions"] == 1
    assert [str(row.id) for row in factory.execute("SELECT id FROM after_hours_sessions")] == [matched]
    assert factory.count("after_hours_matches") == 1


def test_declines_are_kept_for_the_retention(app: Flask, factory: Factory) -> None:
    session = factory.session(factory.member())
    decline(factory, session, age=WEEK + 5)
    decline(factory, session, age=WEEK - 60)
    assert clean(app)[0]["declines"] == 1
    [left] = factory.execute("SELECT created_at > now() - interval '7 days' AS young FROM after_hours_declines")
    assert left.young


def test_fingerprints_go_with_their_session_in_the_same_run(app: Flask, factory: Factory) -> None:
    active = factory.session(factory.member())
    for session in (active, None, factory.session(factory.member(), left=-WEEK - 60, ended=True)):
        fingerprint(factory, session)
    assert clean(app)[0]["fingerprints"] == 2
    assert [str(row.session_id) for row in factory.execute("SELECT * FROM device_fingerprints")] == [active]


@pytest.mark.parametrize("table", ["after_hours_profiles", "after_hours_preferences"])
def test_what_belongs_to_a_user_who_is_gone_is_deleted(app: Flask, factory: Factory, table: str) -> None:
    member = factory.member(profile=False)
    factory.execute(f"INSERT INTO {table} (user_id) VALUES (%s)", member)
    orphan(factory, table)
    clean(app)
    assert [row.user_id for row in factory.execute(f"SELECT user_id FROM {table}")] == [member]


def test_a_dry_run_changes_nothing_and_foretells_the_run_and_a_second_run_does_nothing(
    app: Flask, factory: Factory
) -> None:
    expected = fill(factory)
    before = [factory.execute(f"SELECT * FROM {t} ORDER BY 1") for t in ("after_hours_sessions", "device_fingerprints")]
    assert pending(app) == {**expected, "photos": 0}
    assert before == [
        factory.execute(f"SELECT * FROM {t} ORDER BY 1") for t in ("after_hours_sessions", "device_fingerprints")
    ]
    assert clean(app) == (expected, True)
    assert pending(app) == {**NOTHING, "photos": 0}
    assert clean(app) == (NOTHING, True)
    assert factory.count("after_hours_declines") == 1  # of the active session, as is its fingerprint
    assert factory.count("device_fingerprints") == 1


def test_batches_are_small_and_every_one_is_worked_off(
    app: Flask, factory: Factory, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(service, "BATCH", 2)
    expected = fill(factory, each=5)
    seen: list[tuple[str, int]] = []
    with app.app_context():
        assert service.run(progress=lambda step, rows: seen.append((step, rows))) == (expected, True)
    assert max(rows for step, rows in seen if step != "overdue_sessions") == 2
    assert sum(rows for _, rows in seen) == sum(expected.values())


def test_what_somebody_works_on_is_not_waited_for(app: Flask, factory: Factory, database_url: str) -> None:
    fill(factory)
    with contextlib.closing(psycopg2.connect(database_url)) as other, other.cursor() as cursor:
        cursor.execute("SELECT FROM after_hours_sessions WHERE ended_at IS NOT NULL FOR UPDATE")
        cursor.execute("SELECT FROM after_hours_declines FOR UPDATE")
        with Stopwatch() as took:
            counts, _ = clean(app)
        assert took.seconds < 1
        assert (counts["sessions"], counts["declines"], counts["profiles"]) == (1, 0, 1)
        other.rollback()
    counts, _ = clean(app)
    assert (counts["sessions"], counts["declines"]) == (1, 1)


def test_two_runs_never_overlap(app: Flask, factory: Factory, database_url: str) -> None:
    expected = fill(factory)
    with contextlib.closing(psycopg2.connect(database_url)) as other, other.cursor() as cursor:
        cursor.execute("SELECT pg_advisory_xact_lock(%s)", (queries._LOCK_KEY,))
        counts, done = clean(app)
        assert done
        assert sum(counts.values()) == counts["overdue_sessions"]
        other.rollback()
    assert clean(app)[0] == expected | {"overdue_sessions": 0}


def test_the_job_comes_back_behind_the_timers_until_all_is_done_and_logs_its_counts(
    app: Flask, factory: Factory, redis: Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(service, "BATCH", 2)
    monkeypatch.setattr(jobs, "SLICE_SECONDS", 0)
    expected = fill(factory, each=5)
    queue = Queue(MAINTENANCE_QUEUE, connection=redis)
    with app.app_context(), capture_logs() as logs:
        jobs.cleanup()
        assert [job.func_name for job in queue.jobs] == ["afterhours_service.cleanup.jobs.cleanup"]
        Worker([queue], connection=redis).work(burst=True)
    slices = [entry for entry in logs if entry["event"] == "cleaned up"]
    assert len(slices) > 5
    assert [entry["done"] for entry in slices] == [False] * (len(slices) - 1) + [True]
    assert {step: sum(entry.get(step, 0) for entry in slices) for step in expected} == expected
    assert queue.count == 0


def test_it_comes_at_four_in_the_morning_utc_by_default(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DATABASE_URL", "postgresql:///x")
    monkeypatch.setenv("JWT_SECRET", "x" * 32)
    monkeypatch.setenv("LOCATION_SECRET", "y" * 32)
    monkeypatch.delenv("AFTER_HOURS_CLEANUP_CRON", raising=False)
    [cleanup] = [job for job in periodic_jobs(Settings.from_environ()) if job.function.endswith("cleanup.jobs.cleanup")]
    assert cleanup.cron == "0 4 * * *"

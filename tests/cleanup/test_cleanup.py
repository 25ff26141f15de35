"""What is overdue is ended each night, what is no longer needed is deleted, and nothing else is."""

import contextlib
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psycopg2
import pytest
from flask import Flask
from redis import Redis
from rq import Queue
from rq.job import JobStatus
from rq.registry import clean_registries
from sqlalchemy import text
from structlog.testing import capture_logs

from afterhours_service.cleanup import jobs, queries, service
from afterhours_service.config import Settings
from afterhours_service.jobs.jobs import MAINTENANCE_QUEUE
from afterhours_service.jobs.runs import Run, recorded_runs
from afterhours_service.jobs.worker import Worker
from afterhours_service.processes import periodic_jobs
from afterhours_service.stores.connection import cursor
from afterhours_service.stores.statements import Statement
from tests.factories import Factory
from tests.processes import Processes, environ
from tests.stopwatch import Stopwatch, eventually

DAY = 24 * 3600
WEEK = 7 * DAY
NOTHING = dict.fromkeys(service.STEPS, 0)
MESSAGES = "CREATE TABLE after_hours_messages (match_id uuid NOT NULL REFERENCES after_hours_matches ON DELETE CASCADE)"


def clean(app: Flask) -> tuple[dict[str, int], int]:
    """Do a round, and return the rows by step, and how many were left."""
    with app.app_context():
        done = service.run()
    return done.counts, done.left


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
    """Write `each` rows for every step, and some for none; return what a run ends and deletes."""
    for _ in range(each):
        factory.session(factory.member(), left=-60)
        decline(factory, factory.session(factory.member(), left=-60, ended=True), age=WEEK + 60)
        fingerprint(factory, factory.session(factory.member(), left=-WEEK - 60, ended=True))
        fingerprint(factory, None)
        factory.session(factory.member(), left=-WEEK - 60)
        for days in (91, 90):
            factory.execute(
                "INSERT INTO after_hours_places (id, user_id, fuzzed_latitude, fuzzed_longitude, visits, last_seen)"
                " VALUES (gen_random_uuid(), %s, 1, 1, 1, (now() AT TIME ZONE 'UTC')::date - %s)",
                factory.member(),
                days,
            )
        kept = factory.session(factory.member())
        decline(factory, kept)
        fingerprint(factory, kept)
    orphan(factory, "after_hours_profiles", each)
    orphan(factory, "after_hours_preferences", each)
    steps = {
        "overdue_sessions": 2,
        "declines": 1,
        "sessions": 2,
        "remembered_places": 1,
        "fingerprints": 2,
        "profiles": 1,
        "preferences": 1,
    }
    return {**NOTHING, **{step: rows * each for step, rows in steps.items()}}


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


@pytest.mark.parametrize("chat", [True, False], ids=["with a chat", "without"])
def test_old_matches_go_but_for_those_that_were_saved_or_have_messages(
    app: Flask, factory: Factory, chat: bool
) -> None:
    matches = []
    for age in (WEEK + 60, WEEK + 60, WEEK + 60, 60):
        member, other = factory.member(), factory.member()
        match = factory.match(factory.session(member, left=-age, ended=True), member, other, over=True)
        factory.execute(
            "UPDATE after_hours_matches SET expires_at = now() - %s * interval '1 second' WHERE id = %s", age, match
        )
        matches.append(match)
    unsaved, saved, chatted, recent = matches
    factory.execute("UPDATE after_hours_matches SET converted_to_match_id = 'm' WHERE id = %s", saved)
    if chat:
        factory.execute(MESSAGES)
        factory.execute("INSERT INTO after_hours_messages VALUES (%s)", chatted)
    kept = {saved, recent, chatted} if chat else {saved, recent}
    expected = {"matches": 4 - len(kept), "sessions": 4 - len(kept), "places": len(kept) - 1}
    assert {step: pending(app)[step] for step in expected} == expected
    counts, _ = clean(app)
    assert {step: counts[step] for step in expected} == expected
    assert {str(row.id) for row in factory.execute("SELECT id FROM after_hours_matches")} == kept
    places = factory.execute(
        "SELECT m.id, (fuzzed_latitude, fuzzed_longitude) = (0, 0) AS erased FROM after_hours_sessions AS s"
        " JOIN after_hours_matches AS m ON m.session_id = s.id"
    )
    assert {str(row.id): row.erased for row in places} == {match: match != recent for match in kept}
    assert unsaved not in kept
    assert clean(app)[0] == NOTHING


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
    assert pending(app) == expected
    assert before == [
        factory.execute(f"SELECT * FROM {t} ORDER BY 1") for t in ("after_hours_sessions", "device_fingerprints")
    ]
    assert clean(app) == (expected, 0)
    assert pending(app) == NOTHING
    assert clean(app) == (NOTHING, 0)
    assert factory.count("after_hours_declines") == 1  # of the active session, as is its fingerprint
    assert factory.count("device_fingerprints") == 1


def test_batches_are_small_and_every_row_is_deleted(
    app: Flask, factory: Factory, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(service, "BATCH", 2)
    expected = fill(factory, each=5)
    seen: list[tuple[str, int]] = []
    with app.app_context():
        assert service.run(progress=lambda step, rows: seen.append((step, rows))).counts == expected
    assert max(rows for step, rows in seen if step != "overdue_sessions") == 2
    assert sum(rows for _, rows in seen) == sum(expected.values())


def test_locked_rows_are_not_waited_for(app: Flask, factory: Factory, database_url: str) -> None:
    fill(factory)
    with contextlib.closing(psycopg2.connect(database_url)) as other, other.cursor() as cursor:
        cursor.execute("SELECT FROM after_hours_sessions WHERE ended_at IS NOT NULL FOR UPDATE")
        cursor.execute("SELECT FROM after_hours_declines FOR UPDATE")
        with Stopwatch() as took:
            counts, left = clean(app)
        assert took.seconds < 1
        assert (counts["sessions"], counts["declines"], counts["profiles"]) == (1, 0, 1)
        assert left == 2
        other.rollback()
    counts, left = clean(app)
    assert (counts["sessions"], counts["declines"], left) == (1, 1, 0)


def test_two_runs_never_overlap(app: Flask, factory: Factory, database_url: str) -> None:
    expected = fill(factory)
    with contextlib.closing(psycopg2.connect(database_url)) as other, other.cursor() as cursor:
        cursor.execute("SELECT pg_advisory_xact_lock(%s)", (queries._LOCK_KEY,))
        with pytest.raises(service.Busy):
            clean(app)
        assert pending(app) == expected | {"overdue_sessions": 0}
        other.rollback()
    assert clean(app)[0] == expected | {"overdue_sessions": 0}


CHILDREN = "CREATE TABLE reports (session_id uuid REFERENCES after_hours_sessions (id))"


def old_sessions(factory: Factory, how_many: int) -> list[str]:
    """Write sessions that have served their time; return their ids, in the order in which the cleanup finds them."""
    return [factory.session(factory.member(), left=n - WEEK - 1000, ended=True) for n in range(how_many)]


def ids(factory: Factory) -> list[str]:
    return [str(row.id) for row in factory.execute("SELECT id FROM after_hours_sessions")]


def test_a_row_that_the_host_holds_keeps_no_other_from_being_deleted(
    app: Flask, factory: Factory, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(service, "BATCH", 3)
    factory.execute(CHILDREN)
    sessions = old_sessions(factory, 10)
    held = [sessions[0], sessions[4], sessions[5]]
    factory.execute("INSERT INTO reports SELECT unnest(%s::uuid[])", held)
    fingerprint(factory, None)
    counts, left = clean(app)
    assert (counts["sessions"], counts["fingerprints"], left) == (7, 1, 3)
    assert sorted(ids(factory)) == sorted(held)
    factory.execute("DELETE FROM reports")
    assert clean(app)[1] == 0
    assert ids(factory) == []


def test_neither_does_one_that_a_deletion_cascades_to_and_that_somebody_has_locked(
    app: Flask, factory: Factory, database_url: str
) -> None:
    sessions = old_sessions(factory, 5)
    fingerprint(factory, sessions[2])
    fingerprint(factory, None)
    with contextlib.closing(psycopg2.connect(database_url)) as other, other.cursor() as cursor:
        cursor.execute("SELECT FROM device_fingerprints WHERE session_id = %s FOR UPDATE", (sessions[2],))
        counts, left = clean(app)
        assert (counts["sessions"], counts["fingerprints"], left) == (4, 1, 1)
        assert ids(factory) == [sessions[2]]
        other.rollback()
    counts, left = clean(app)
    assert (counts["sessions"], counts["fingerprints"], left) == (1, 1, 0)


def test_row_by_row_too_the_cleanup_is_alone_and_waits_for_nobody(
    app: Flask, factory: Factory, monkeypatch: pytest.MonkeyPatch
) -> None:
    factory.execute(CHILDREN)
    factory.execute("INSERT INTO reports VALUES (%s)", old_sessions(factory, 3)[0])
    delete, seen = queries.delete_rows, []

    def look(*arguments: Any) -> int:
        [(another_may,)] = factory.execute("SELECT pg_try_advisory_xact_lock(%s)", queries._LOCK_KEY)
        with cursor() as opened:
            opened.execute("SHOW lock_timeout")
            seen.append((another_may, *opened))
        return delete(*arguments)

    monkeypatch.setattr(queries, "delete_rows", look)
    clean(app)
    assert seen == [(False, ("200ms",))] * 4  # all at once, then each


@pytest.mark.parametrize("step", service.STEPS)
def test_a_step_that_fails_does_not_skip_the_later_ones(
    app: Flask, factory: Factory, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    expected = fill(factory)
    work = service._work

    def failing(round_: service.Round, end: float | None) -> tuple[int, bool]:
        if round_.step == step:
            factory.execute("SELECT 1")
            Statement(text("SELECT 1 / 0")).run()
        return work(round_, end)

    monkeypatch.setattr(service, "_work", failing)
    counts, left = clean(app)
    assert left == 1
    # What is overdue cannot be old, and what is not deleted has its fingerprint still.
    less = {"overdue_sessions": {"sessions": 1}, "sessions": {"fingerprints": 1}}.get(step, {})
    assert counts == {name: 0 if name == step else rows - less.get(name, 0) for name, rows in expected.items()}


def test_many_rows_that_are_held_are_passed_over_slice_by_slice(
    app: Flask, factory: Factory, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However short the slice, it comes further than the one before."""
    monkeypatch.setattr(service, "BATCH", 4)
    factory.execute(CHILDREN)
    sessions = old_sessions(factory, 12)
    factory.execute("INSERT INTO reports SELECT unnest(%s::uuid[])", sessions[:10])
    round_ = service.Round()
    with app.app_context():
        for _ in range(40):
            service.run(round_, seconds=0)
    assert (round_.step, round_.counts["sessions"], round_.left) == (None, 2, 10)


class Chain:
    """The night as the workers do it, slice by slice, each as short as can be."""

    def __init__(self, app: Flask, redis: Redis) -> None:
        self.app, self.redis = app, redis
        self.queue = Queue(MAINTENANCE_QUEUE, connection=redis)

    def begin(self) -> None:
        with self.app.app_context():
            jobs.cleanup()

    def work(self, most: int | None = None) -> None:
        with self.app.app_context():
            Worker([self.queue], connection=self.redis).work(burst=True, max_jobs=most)

    def resume(self, times: int = 1) -> None:
        """Let so many half minutes pass."""
        for _ in range(times):
            with self.app.app_context():
                jobs.resume()

    def finished(self) -> int:
        return recorded_runs(self.redis).get("cleanup", Run()).finished


@pytest.fixture
def chain(app: Flask, redis: Redis, monkeypatch: pytest.MonkeyPatch) -> Chain:
    monkeypatch.setattr(service, "BATCH", 2)
    monkeypatch.setattr(jobs, "SLICE_SECONDS", 0)
    return Chain(app, redis)


def test_the_job_comes_back_behind_the_timers_until_all_is_done_and_says_so_once(
    chain: Chain, factory: Factory
) -> None:
    expected = fill(factory, each=5)
    with capture_logs() as logs:
        chain.begin()
        assert [job.func_name for job in chain.queue.jobs] == ["afterhours_service.cleanup.jobs.cleanup_slice"]
        chain.work(5)
        assert (chain.queue.count, chain.finished()) == (1, 0)
        chain.work()
    [end] = [entry for entry in logs if entry["event"] == "cleanup finished"]
    assert {step: end[step] for step in expected} == expected
    assert chain.finished() == 1
    rows = recorded_runs(chain.redis)["cleanup"].rows
    assert rows == expected
    assert chain.redis.get(jobs.KEY) is None
    chain.resume(3)
    assert chain.queue.count == 0


def test_a_chain_that_lost_its_next_slice_is_taken_up_and_one_that_goes_on_is_not(
    chain: Chain, factory: Factory
) -> None:
    expected = fill(factory, each=5)
    chain.begin()
    for _ in range(3):
        chain.work(1)
        chain.resume()
        assert chain.queue.count == 1
    chain.queue.empty()  # type: ignore[no-untyped-call]
    chain.resume()
    assert chain.queue.count == 1
    chain.work()
    assert chain.finished() == 1
    assert recorded_runs(chain.redis)["cleanup"].rows == expected


def test_of_two_slices_that_would_go_on_one_stops(chain: Chain, factory: Factory) -> None:
    fill(factory, each=3)
    chain.begin()
    chain.resume(2)  # the first slice waits for long
    assert chain.queue.count == 2
    chain.work(2)
    assert chain.queue.count == 1
    chain.work()
    assert chain.finished() == 1


def test_what_a_round_left_gets_another_and_the_night_is_not_finished_before(
    chain: Chain, factory: Factory, database_url: str
) -> None:
    sessions = old_sessions(factory, 5)
    with contextlib.closing(psycopg2.connect(database_url)) as other, other.cursor() as cursor:
        cursor.execute("SELECT FROM after_hours_sessions WHERE id = %s FOR UPDATE", (sessions[2],))
        chain.begin()
        chain.work()
        assert (ids(factory), chain.finished()) == ([sessions[2]], 0)
        other.rollback()
    chain.resume(2)
    chain.work()
    assert (ids(factory), chain.finished()) == ([], 1)


def test_a_night_that_cannot_be_finished_is_given_up_and_says_so(chain: Chain, factory: Factory) -> None:
    factory.execute(CHILDREN)
    sessions = old_sessions(factory, 2)
    factory.execute("INSERT INTO reports VALUES (%s)", sessions[0])
    with capture_logs() as logs:
        chain.begin()
        for _ in range(2 * jobs.TRIES + 3):
            chain.work()
            chain.resume()
    [end] = [entry for entry in logs if entry["event"] == "cleanup did not finish"]
    assert (end["log_level"], end["left"], end["sessions"]) == ("error", 1, 1)
    assert (chain.finished(), chain.redis.get(jobs.KEY), ids(factory)) == (0, None, [sessions[0]])


def test_a_slice_that_fails_or_whose_worker_died_is_run_again_by_rq(
    chain: Chain, factory: Factory, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill(factory, each=2)
    chain.begin()
    with monkeypatch.context() as broken:
        broken.setattr(service, "run", lambda *_: 1 / 0)
        chain.work(1)
    [job] = chain.queue.jobs
    assert job.retries_left == jobs.SLICE_RETRIES - 1
    # As a worker leaves it that was killed.
    chain.queue.remove(job)
    job.set_status(JobStatus.STARTED)
    registry = chain.queue.started_job_registry
    chain.redis.zadd(registry.key, {f"{job.id}:an-execution": time.time() - 1})
    clean_registries(chain.queue)
    assert chain.queue.job_ids == [job.id]
    chain.work()
    assert chain.finished() == 1


@pytest.mark.slow
@pytest.mark.xdist_group("processes")
def test_a_worker_that_is_killed_in_the_middle_leaves_nothing_behind(
    app: Flask, factory: Factory, redis: Redis, database_url: str, redis_url: str, tmp_path: Path
) -> None:
    """Within three minutes, of which the half minutes are travelled."""
    old_sessions(factory, 3 * service.BATCH)
    factory.execute("""
        CREATE FUNCTION dawdle() RETURNS trigger LANGUAGE plpgsql
        AS 'BEGIN PERFORM pg_sleep(0.003); RETURN OLD; END'
    """)
    factory.execute(
        "CREATE TRIGGER dawdle BEFORE DELETE ON after_hours_sessions FOR EACH ROW EXECUTE FUNCTION dawdle()"
    )
    chain = Chain(app, redis)
    settings = environ(database_url, redis_url, AFTER_HOURS_MINUTE_SECONDS="1")
    with Processes(tmp_path, settings) as run:
        worker = run("worker")
        chain.begin()
        eventually(lambda: len(ids(factory)) < 3 * service.BATCH)
        worker.kill()
        factory.execute("DROP TRIGGER dawdle ON after_hours_sessions")
        assert ids(factory)
        chain.resume(2)
        run("worker")
        eventually(chain.finished)
    assert ids(factory) == []


def test_it_comes_at_four_in_the_morning_utc_by_default(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in environ("postgresql:///x").items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("AFTER_HOURS_CLEANUP_CRON", raising=False)
    [cleanup] = [job for job in periodic_jobs(Settings.from_environ()) if job.id == "after-hours-cleanup"]
    assert cleanup.cron == "0 4 * * *"

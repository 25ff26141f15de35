"""Timers fire by the database's clock, and cron lines are read in UTC, wherever the scheduler runs."""

import time

import pytest
from redis import Redis
from sqlalchemy import NullPool, create_engine

from afterhours_service.config import Settings
from afterhours_service.jobs.jobs import MAINTENANCE_QUEUE, TIMERS_QUEUE
from afterhours_service.jobs.scheduler import DatabaseClock, Periodic, Scheduler, seconds_behind
from afterhours_service.jobs.timers import SCHEDULED, Timer, arm_timer

TIMER = "session-timer-1"


def arm(redis: Redis, at: float) -> None:
    """Arm a timer."""
    pipeline = redis.pipeline()
    arm_timer(pipeline, Timer(TIMER, int(at), time.sleep, (0,)))
    pipeline.execute()


@pytest.mark.parametrize(
    ("behind", "due_in", "fires"), [(90, 60, True), (-90, -60, False), (0, 60, False), (0, -1, True)]
)
def test_a_timer_fires_by_the_databases_clock(redis: Redis, behind: float, due_in: float, fires: bool) -> None:
    arm(redis, time.time() + due_in)
    Scheduler(redis, (), lambda: behind).tick()
    assert redis.llen(f"rq:queue:{TIMERS_QUEUE}") == fires
    assert redis.zcard(SCHEDULED) == (not fires)


def test_what_is_known_of_the_clock_outlives_the_database(redis: Redis) -> None:
    answers = iter([90.0, None])
    scheduler = Scheduler(redis, (), lambda: next(answers))
    for _ in range(2):
        scheduler.read_clock()
    assert scheduler.now() == pytest.approx(time.time() + 90, abs=1)


def test_the_databases_clock_is_asked(settings: Settings) -> None:
    engine = create_engine(settings.database_url)
    behind = seconds_behind(engine)
    engine.dispose()
    assert behind is not None
    assert -1 < behind <= 0
    assert seconds_behind(create_engine("postgresql+psycopg2://postgres@/nowhere?host=/nowhere")) is None


def test_cron_lines_are_read_in_utc(redis: Redis, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as elsewhere:
        elsewhere.setenv("TZ", "Asia/Tokyo")
        time.tzset()
        Scheduler(redis, (Periodic("cleanup", time.sleep, cron="0 4 * * *"),)).tick()
    time.tzset()
    at = redis.zscore(SCHEDULED, "cleanup")
    assert isinstance(at, float)
    assert at % 86400 == 4 * 3600
    assert 0 < at - time.time() <= 86400


def test_a_cron_job_comes_once_though_the_clock_is_behind(redis: Redis) -> None:
    cleanup = Periodic("cleanup", time.sleep, cron="0 4 * * *")
    scheduler = Scheduler(redis, (cleanup,))
    scheduler.tick()
    at = redis.zscore(SCHEDULED, "cleanup")
    assert isinstance(at, float)
    scheduler = Scheduler(redis, (cleanup,), lambda: at - time.time())  # it is four o'clock by the database
    scheduler.read_clock()
    for _ in range(2):
        scheduler.enqueue_due()
    assert redis.llen(f"rq:queue:{MAINTENANCE_QUEUE}") == 1
    assert redis.zscore(SCHEDULED, "cleanup") == at + 86400


def test_no_timer_waits_for_the_database_to_tell_the_time(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("afterhours_service.jobs.scheduler.CLOCK_SECONDS", 3600)  # once is enough
    engine = create_engine(settings.database_url, poolclass=NullPool)
    clock = DatabaseClock(engine)
    clock.start()
    assert clock.seconds_behind() is not None
    assert clock.seconds_behind() is None  # not again before it is read again

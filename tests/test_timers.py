"""rq-scheduler, made to outlive flushes, bad entries, Redis, and the scheduler beside it."""

import contextlib
import os
import pickle
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from redis import Redis
from redis.exceptions import ConnectionError as RedisConnectionError
from rq import Queue
from rq.job import Job

from afterhours_service import log, timers
from afterhours_service.queue import MAINTENANCE_QUEUE, TIMERS_QUEUE
from afterhours_service.timers import LEASE_SECONDS, SCHEDULED, Periodic, Scheduler, Timer, arm_timer, disarm_timer
from tests.factories import scheduled

FUNCTION = "afterhours_service.sessions.jobs.session_timer"
MINUTELY = Periodic("minutely", FUNCTION, seconds=60)
NIGHTLY = Periodic("nightly", FUNCTION, cron="0 4 * * *")
HOUR = 3600


@pytest.fixture
def scheduler(redis: Redis) -> Scheduler:
    log.configure("WARNING")  # as its process does, where no app is made
    return Scheduler(redis, (MINUTELY, NIGHTLY))


def queued(redis: Redis, queue: str = MAINTENANCE_QUEUE) -> list[str]:
    return Queue(queue, connection=redis).job_ids


def arm(redis: Redis, timer_id: str = "a-timer", at: float = 0, second: int = 7) -> None:
    with redis.pipeline() as trip:
        arm_timer(trip, Timer(timer_id, int(at), FUNCTION, (second,)))
        trip.execute()


def make_due(redis: Redis, *ids: str) -> None:
    redis.zadd(SCHEDULED, dict.fromkeys(ids, time.time() - HOUR))


def restarted(scheduler: Scheduler, *periodic: Periodic) -> Scheduler:
    scheduler.remove_lock()
    return Scheduler(scheduler.connection, periodic or scheduler.periodic)


def test_a_due_timer_is_handed_over_and_one_to_come_is_not(redis: Redis, scheduler: Scheduler) -> None:
    arm(redis, "due", time.time())
    arm(redis, "to-come", time.time() + 2)
    scheduler.tick()
    assert queued(redis, TIMERS_QUEUE) == ["due"]
    assert "to-come" in scheduled(redis)
    assert "due" not in scheduled(redis)


def test_arming_again_changes_nothing_and_disarming_leaves_nothing(redis: Redis) -> None:
    arm(redis, at=time.time() + HOUR)
    before = scheduled(redis)
    arm(redis, at=next(iter(before.values())))
    assert scheduled(redis) == before
    for _ in range(2):  # one that is not armed is no error
        with redis.pipeline() as trip:
            disarm_timer(trip, "a-timer")
            trip.execute()
    assert redis.keys() == []


def test_arming_mends_a_job_that_is_broken_and_that_a_worker_on_a_terminal_can_name(redis: Redis) -> None:
    redis.hset(Job.key_for("a-timer"), mapping={"data": b"\x80garbage"})
    arm(redis, at=time.time() + HOUR)
    job = Job.fetch("a-timer", connection=redis)
    assert (job.func_name, job.description) == (FUNCTION, "a-timer")


def test_a_timer_is_kept_until_it_is_due_and_for_two_minutes_in_its_queue(redis: Redis, scheduler: Scheduler) -> None:
    arm(redis)
    assert redis.ttl(Job.key_for("a-timer")) == -1
    scheduler.tick()
    assert redis.ttl(Job.key_for("a-timer")) in range(1, 121)


def test_periodic_jobs_are_registered_once_and_those_by_the_minute_come_at_once(
    redis: Redis, scheduler: Scheduler
) -> None:
    scheduler.tick()
    first = scheduled(redis)
    assert set(first) == {"minutely", "nightly"}
    assert queued(redis) == ["minutely"]
    assert first["minutely"] == pytest.approx(time.time() + 60, abs=2)
    scheduler.tick()
    assert scheduled(redis) == first


def test_a_restart_keeps_the_time_of_a_nightly_job_and_asks_for_the_others_at_once(
    redis: Redis, scheduler: Scheduler
) -> None:
    scheduler.tick()
    nightly = scheduled(redis)["nightly"]
    redis.delete(Queue(MAINTENANCE_QUEUE, connection=redis).key)
    restarted(scheduler).tick()
    assert scheduled(redis)["nightly"] == nightly
    assert queued(redis) == ["minutely"]


def test_a_run_that_was_missed_while_no_scheduler_ran_is_not_dropped(redis: Redis, scheduler: Scheduler) -> None:
    scheduler.tick()
    make_due(redis, "nightly")
    restarted(scheduler).tick()
    assert "nightly" in queued(redis)
    assert scheduled(redis)["nightly"] > time.time()


def test_periodic_jobs_are_registered_again_after_a_flush(redis: Redis, scheduler: Scheduler) -> None:
    scheduler.tick()
    redis.flushall()
    scheduler._next_look = 0  # a second later
    scheduler.tick()
    assert set(scheduled(redis)) == {"minutely", "nightly"}
    assert redis.exists(Job.key_for("minutely"), Job.key_for("nightly")) == 2


@pytest.mark.parametrize(
    "changed",
    [
        NIGHTLY._replace(cron="30 5 * * *"),
        NIGHTLY._replace(function="afterhours_service.sessions.jobs.reconcile"),
        NIGHTLY._replace(cron=None, seconds=30),
    ],
    ids=["cron", "function", "kind"],
)
def test_a_job_that_a_release_changed_is_replaced(redis: Redis, scheduler: Scheduler, changed: Periodic) -> None:
    scheduler.tick()
    restarted(scheduler, changed).tick()
    job = Job.fetch("nightly", connection=redis)
    assert job.func_name == changed.function
    assert job.meta.get("cron_string") == changed.cron
    assert job.meta.get("interval") == changed.seconds
    if changed.cron == "30 5 * * *":
        assert datetime.fromtimestamp(scheduled(redis)["nightly"], UTC).minute == 30


def test_a_periodic_job_that_waits_in_its_queue_is_not_put_there_twice(redis: Redis, scheduler: Scheduler) -> None:
    scheduler.tick()
    for _ in range(3):
        make_due(redis, "minutely", "nightly")
        scheduler.tick()
    assert sorted(queued(redis)) == ["minutely", "nightly"]
    assert min(scheduled(redis).values()) > time.time()


def _spoil(redis: Redis, field: str, value: bytes) -> None:
    arm(redis, "broken")
    redis.hset(Job.key_for("broken"), mapping={field: value})


BROKEN: dict[str, Callable[[Redis], object]] = {
    "no hash": lambda redis: redis.zadd(SCHEDULED, {"broken": 1}),
    "a string": lambda redis: (redis.zadd(SCHEDULED, {"broken": 1}), redis.set(Job.key_for("broken"), "x")),
    "a list": lambda redis: (redis.zadd(SCHEDULED, {"broken": 1}), redis.lpush(Job.key_for("broken"), "x")),
    "a hash of something else": lambda redis: (
        redis.zadd(SCHEDULED, {"broken": 1}),
        redis.hset(Job.key_for("broken"), "colour", "blue"),
    ),
    "data that cannot be unpickled": lambda redis: _spoil(redis, "data", b"no pickle"),
    "data of another shape": lambda redis: _spoil(redis, "data", pickle.dumps(7)),
    "no date": lambda redis: _spoil(redis, "created_at", b"yesterday"),
    "no status": lambda redis: _spoil(redis, "status", b"asleep"),
    "meta of another type": lambda redis: _spoil(redis, "meta", pickle.dumps([1])),
    "no cron line": lambda redis: _spoil(redis, "meta", pickle.dumps({"cron_string": "at dawn"})),
    "no interval": lambda redis: _spoil(redis, "meta", pickle.dumps({"interval": "often"})),
    "an id that RQ refuses": lambda redis: redis.zadd(SCHEDULED, {"session:expire:1": 1}),
    "an id that is no text": lambda redis: redis.zadd(SCHEDULED, {b"\xff\xfe": 1}),
}


@pytest.mark.parametrize("spoil", BROKEN.values(), ids=BROKEN)
def test_a_broken_job_is_dropped_and_logged_and_holds_nothing_back(
    redis: Redis, scheduler: Scheduler, spoil: Callable[[Redis], object], caplog: pytest.LogCaptureFixture
) -> None:
    spoil(redis)
    arm(redis, "whole", 2)
    scheduler.tick()
    assert queued(redis, TIMERS_QUEUE) == ["whole"]
    assert set(scheduled(redis)) == {"minutely", "nightly"}
    assert not redis.exists(Job.key_for("broken"))
    assert "broken job dropped" in caplog.text


@given(
    fields=st.dictionaries(
        st.sampled_from(["data", "meta", "origin", "status", "timeout", "ttl", "created_at", "enqueue_at_front"]),
        st.binary(max_size=3),  # short: what is unpickled here must not ask for much memory
        min_size=1,
    )
)
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_whatever_a_hash_holds_the_next_job_is_handed_over(
    redis: Redis, scheduler: Scheduler, fields: dict[str, bytes]
) -> None:
    redis.flushall()
    arm(redis, "broken")
    for field, value in fields.items():
        redis.hset(Job.key_for("broken"), mapping={field: value})
    arm(redis, "whole", 2)
    scheduler.tick()
    assert "whole" in queued(redis, TIMERS_QUEUE)
    assert "broken" not in scheduled(redis)


@pytest.mark.parametrize("spoil", ["set", "lpush"])
def test_a_periodic_job_whose_hash_was_overwritten_is_registered_again(
    redis: Redis, scheduler: Scheduler, spoil: str
) -> None:
    scheduler.tick()
    for periodic in scheduler.periodic:
        redis.delete(Job.key_for(periodic.id))
        getattr(redis, spoil)(Job.key_for(periodic.id), "x")
    restarted(scheduler).tick()
    assert Job.fetch("nightly", connection=redis).meta["cron_string"] == NIGHTLY.cron
    assert Job.fetch("minutely", connection=redis).meta["interval"] == 60


@pytest.fixture
def pair(redis: Redis, monkeypatch: pytest.MonkeyPatch) -> tuple[Scheduler, Scheduler]:
    """Return two schedulers that look at the lease in each round, and the first of which is the active one."""
    monkeypatch.setattr(timers, "LOOK_SECONDS", 0)
    first, second = Scheduler(redis, (MINUTELY,)), Scheduler(redis, (MINUTELY,))
    first.tick()
    second.tick()
    return first, second


def test_of_two_schedulers_one_is_active_and_holds_on_to_its_lease(
    redis: Redis, pair: tuple[Scheduler, Scheduler]
) -> None:
    first, second = pair
    redis.pexpire(Scheduler.scheduler_lock_key, 900)
    arm(redis)
    second.tick()
    assert queued(redis, TIMERS_QUEUE) == []
    first.tick()
    assert queued(redis, TIMERS_QUEUE) == ["a-timer"]
    assert redis.pttl(Scheduler.scheduler_lock_key) in range(901, LEASE_SECONDS * 1000 + 1)


def test_the_second_takes_over_at_once_when_the_lease_is_given_back(
    redis: Redis, pair: tuple[Scheduler, Scheduler]
) -> None:
    first, second = pair
    second.remove_lock()  # not its own: nothing happens
    second.tick()
    assert redis.get(Scheduler.scheduler_lock_key) == first.name.encode()
    first.remove_lock()
    arm(redis)
    second.tick()
    assert queued(redis, TIMERS_QUEUE) == ["a-timer"]


def test_the_second_takes_over_and_catches_up_when_the_first_died(
    redis: Redis, pair: tuple[Scheduler, Scheduler]
) -> None:
    asleep, awake = pair
    for _ in range(2):  # and back
        redis.delete(Queue(MAINTENANCE_QUEUE, connection=redis).key)
        redis.delete(Scheduler.scheduler_lock_key)  # it lapsed
        awake.tick()
        assert queued(redis) == ["minutely"]
        asleep.tick()
        assert redis.get(Scheduler.scheduler_lock_key) == awake.name.encode()
        asleep, awake = awake, asleep


def test_the_loop_outlives_every_failed_round_and_then_catches_up(
    redis: Redis, scheduler: Scheduler, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    rounds: Iterator[Exception | None] = iter(
        [RedisConnectionError("away"), RedisConnectionError("still"), None, ValueError("a defect"), None]
    )
    tick, caught_up = scheduler.tick, []

    def failing_tick() -> None:
        try:
            if error := next(rounds):
                raise error
        except StopIteration:
            scheduler.stop()
        caught_up.append(scheduler._catch_up)
        tick()

    monkeypatch.setattr(scheduler, "tick", failing_tick)
    monkeypatch.setattr(timers, "on_stop_signal", lambda _stop: None)
    monkeypatch.setattr(timers, "RECONNECT_SECONDS", 0)
    monkeypatch.setattr(timers, "POLL_SECONDS", 0)
    scheduler.run()
    assert caught_up == [True, True, False]
    assert caplog.text.count("redis away") == 1
    assert "a defect" in caplog.text
    assert not redis.exists(Scheduler.scheduler_lock_key)


def test_cron_lines_mean_utc_whatever_the_zone_of_the_host(redis: Redis, redis_url: str) -> None:
    environ = {
        "PATH": os.defpath,
        "TZ": "America/St_Johns",
        "DATABASE_URL": "postgresql://localhost/unused",
        "REDIS_URL": redis_url,
        "JWT_SECRET": "x" * 32,
        "LOCATION_SECRET": "y" * 32,
    }
    with subprocess.Popen([sys.executable, "scheduler.py"], env=environ, stderr=subprocess.DEVNULL) as process:
        deadline = time.monotonic() + 20
        while "after-hours-cleanup" not in scheduled(redis) and time.monotonic() < deadline:
            time.sleep(0.02)
        with contextlib.suppress(ProcessLookupError):
            process.send_signal(signal.SIGTERM)
    moment = datetime.fromtimestamp(scheduled(redis)["after-hours-cleanup"], UTC)
    assert (moment.hour, moment.minute, moment.second) == (4, 0, 0)
    assert 0 < (moment - datetime.now(UTC)).total_seconds() <= 24 * HOUR

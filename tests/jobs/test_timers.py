"""rq-scheduler, made to outlive flushes, bad entries, Redis, and the scheduler beside it."""

import math
import pickle
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, cast

import pytest
import structlog
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from redis import Redis
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import RedisError
from rq import Queue
from rq.job import Job, JobStatus
from rq_scheduler import Scheduler as RqScheduler

from afterhours_service.jobs import scheduler as scheduler_module
from afterhours_service.jobs.jobs import FAILURE_SECONDS, JOB_TIMEOUT_SECONDS, MAINTENANCE_QUEUE, TIMERS_QUEUE
from afterhours_service.jobs.process import warn_of_neighbours
from afterhours_service.jobs.scheduler import (
    LEASE,
    LEASE_SECONDS,
    RETRY_SECONDS,
    Periodic,
    Scheduler,
)
from afterhours_service.jobs.timers import QUEUED_SECONDS, SCHEDULED, Timer, Timers, arm_timer, disarm_timer
from afterhours_service.jobs.worker import Worker
from afterhours_service.sessions import jobs
from afterhours_service.stores.redis import connect
from afterhours_service.telemetry import log
from tests.conftest import make_settings
from tests.factories import scheduled
from tests.processes import NOWHERE, Processes, environ
from tests.stopwatch import eventually

FUNCTION = "afterhours_service.sessions.jobs.session_timer"  # as RQ stores it
MINUTELY = Periodic("minutely", jobs.session_timer, seconds=60)
NIGHTLY = Periodic("nightly", jobs.session_timer, cron="0 4 * * *")
HOUR = 3600
WHOLE, BAD = "session-timer-1", "session-timer-2"


@pytest.fixture
def scheduler(redis: Redis) -> Scheduler:
    log.configure("WARNING")  # as its process does, where no app is made
    return Scheduler(redis, (MINUTELY, NIGHTLY))


def queued(redis: Redis, queue: str = MAINTENANCE_QUEUE) -> list[str]:
    return Queue(queue, connection=redis).job_ids


def arm(redis: Redis, timer_id: str = "session-timer-7", at: float = 0, second: int = 7) -> None:
    with redis.pipeline() as pipeline:
        arm_timer(pipeline, Timer(timer_id, int(at), jobs.session_timer, (second,)))
        pipeline.execute()


def make_due(redis: Redis, *ids: str) -> None:
    redis.zadd(SCHEDULED, dict.fromkeys(ids, time.time() - HOUR))


def restarted(scheduler: Scheduler, *periodic: Periodic) -> Scheduler:
    scheduler.release_lease()
    return Scheduler(scheduler.connection, periodic or scheduler.periodic)


def test_a_due_timer_is_handed_over_and_one_to_come_is_not(redis: Redis, scheduler: Scheduler) -> None:
    arm(redis, "session-timer-due", time.time())
    arm(redis, "session-timer-to-come", time.time() + 2)
    scheduler.tick()
    assert queued(redis, TIMERS_QUEUE) == ["session-timer-due"]
    assert "session-timer-to-come" in scheduled(redis)
    assert "session-timer-due" not in scheduled(redis)


def test_the_timers_of_another_feature_are_enqueued_too(redis: Redis, scheduler: Scheduler) -> None:
    timers = Timers("other-timer-")
    timers.job(jobs.session_timer)
    with redis.pipeline() as pipeline:
        arm_timer(pipeline, timers.at(7))
        arm_timer(pipeline, timers.second_try(7, 8))
        pipeline.execute()
    scheduler.tick()
    assert queued(redis, TIMERS_QUEUE) == ["other-timer-7", "other-timer-7-at-8"]


def test_arming_again_changes_nothing_and_disarming_leaves_nothing(redis: Redis) -> None:
    arm(redis, at=time.time() + HOUR)
    before = scheduled(redis)
    arm(redis, at=next(iter(before.values())))
    assert scheduled(redis) == before
    for _ in range(2):  # one that is not armed is no error
        with redis.pipeline() as pipeline:
            disarm_timer(pipeline, "session-timer-7")
            pipeline.execute()
    assert redis.keys() == []


def test_arming_mends_a_job_that_is_broken_and_that_a_worker_on_a_terminal_can_name(redis: Redis) -> None:
    redis.hset(Job.key_for("session-timer-7"), mapping={"data": b"\x80garbage"})
    arm(redis, at=time.time() + HOUR)
    job = Job.fetch("session-timer-7", connection=redis)
    assert (job.func_name, job.description) == (FUNCTION, "session-timer-7")


def test_a_timer_is_kept_until_it_is_due_and_for_two_minutes_in_its_queue(redis: Redis, scheduler: Scheduler) -> None:
    arm(redis)
    assert redis.ttl(Job.key_for("session-timer-7")) == -1
    scheduler.tick()
    assert redis.ttl(Job.key_for("session-timer-7")) in range(1, 121)


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
        NIGHTLY._replace(function=jobs.reconcile),
        NIGHTLY._replace(cron=None, seconds=30),
    ],
    ids=["cron", "function", "kind"],
)
def test_a_job_that_a_release_changed_is_replaced(redis: Redis, scheduler: Scheduler, changed: Periodic) -> None:
    scheduler.tick()
    restarted(scheduler, changed).tick()
    job = Job.fetch("nightly", connection=redis)
    assert job.func_name == f"{jobs.__name__}.{changed.function.__name__}"
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
    arm(redis, BAD)
    redis.hset(Job.key_for(BAD), mapping={field: value})


BROKEN: dict[str, Callable[[Redis], object]] = {
    "no hash": lambda redis: redis.zadd(SCHEDULED, {BAD: 1}),
    "a string": lambda redis: (redis.zadd(SCHEDULED, {BAD: 1}), redis.set(Job.key_for(BAD), "x")),
    "a list": lambda redis: (redis.zadd(SCHEDULED, {BAD: 1}), redis.lpush(Job.key_for(BAD), "x")),
    "a hash of something else": lambda redis: (
        redis.zadd(SCHEDULED, {BAD: 1}),
        redis.hset(Job.key_for(BAD), "colour", "blue"),
    ),
    "data that cannot be unpickled": lambda redis: _spoil(redis, "data", b"no pickle"),
    "data of another shape": lambda redis: _spoil(redis, "data", pickle.dumps(7)),
    "no date": lambda redis: _spoil(redis, "created_at", b"yesterday"),
    "no status": lambda redis: _spoil(redis, "status", b"asleep"),
    "meta of another type": lambda redis: _spoil(redis, "meta", pickle.dumps([1])),
    "no cron line": lambda redis: _spoil(redis, "meta", pickle.dumps({"cron_string": "at dawn"})),
    "no interval": lambda redis: _spoil(redis, "meta", pickle.dumps({"interval": "often"})),
    "an id that RQ refuses": lambda redis: redis.zadd(SCHEDULED, {"session-timer-:1": 1}),
    "an id that is no text": lambda redis: redis.zadd(SCHEDULED, {b"session-timer-\xff\xfe": 1}),
}


@pytest.mark.parametrize("spoil", BROKEN.values(), ids=BROKEN)
def test_a_broken_job_is_dropped_and_logged_and_holds_nothing_back(
    redis: Redis, scheduler: Scheduler, spoil: Callable[[Redis], object], caplog: pytest.LogCaptureFixture
) -> None:
    spoil(redis)
    arm(redis, WHOLE, 2)
    scheduler.tick()
    assert queued(redis, TIMERS_QUEUE) == [WHOLE]
    assert set(scheduled(redis)) == {"minutely", "nightly"}
    assert not redis.exists(Job.key_for(BAD))
    assert "broken job dropped" in caplog.text


def test_a_whole_job_that_redis_does_not_take_is_no_broken_one(redis: Redis, scheduler: Scheduler) -> None:
    arm(redis, WHOLE, 2)
    redis.config_set("maxmemory", 1)  # it may delete all the same
    try:
        with pytest.raises(RedisError):
            scheduler.enqueue_due()
    finally:
        redis.config_set("maxmemory", 0)
    scheduler.enqueue_due()
    assert queued(redis, TIMERS_QUEUE) == [WHOLE]


@given(
    fields=st.dictionaries(
        st.sampled_from(["data", "meta", "status", "timeout", "ttl", "created_at", "enqueue_at_front"]),
        st.binary(max_size=3),  # short: what is unpickled here must not ask for much memory
        min_size=1,
    )
)
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_whatever_a_hash_holds_the_next_job_is_handed_over(
    redis: Redis, scheduler: Scheduler, fields: dict[str, bytes]
) -> None:
    redis.flushall()
    arm(redis, BAD)
    for field, value in fields.items():
        redis.hset(Job.key_for(BAD), mapping={field: value})
    arm(redis, WHOLE, 2)
    scheduler.tick()
    assert WHOLE in queued(redis, TIMERS_QUEUE)
    assert BAD not in scheduled(redis)


def _of_others(redis: Redis, job_id: str, **fields: bytes) -> None:
    job = Job.create("reports.send", id=job_id, origin="reports", connection=redis)
    job.save()
    if fields:
        redis.hset(job.key, mapping=fields)
    redis.zadd(SCHEDULED, {job_id: 1})


FOREIGN: dict[str, Callable[[Redis], object]] = {
    "a job of another queue": lambda redis: _of_others(redis, "report-1"),
    "a job of another queue with an id like ours": lambda redis: _of_others(redis, "session-timer-report"),
    "data of another serializer": lambda redis: _of_others(redis, "report-1", data=b'["reports.send", null, [], {}]'),
    "no hash": lambda redis: redis.zadd(SCHEDULED, {"report-1": 1}),
    "a string": lambda redis: (redis.zadd(SCHEDULED, {"report-1": 1}), redis.set(Job.key_for("report-1"), "x")),
    "an id that RQ refuses": lambda redis: redis.zadd(SCHEDULED, {"report:1": 1}),
    "an id that is no text": lambda redis: redis.zadd(SCHEDULED, {b"\xff\xfe": 1}),
}


def everything(redis: Redis) -> dict[bytes, Any]:
    """Return the contents of Redis, but for what the scheduler itself wrote."""
    ours = {SCHEDULED, LEASE, *(Job.key_for(job_id) for job_id in ("minutely", "nightly", WHOLE))}
    kept = {key: redis.dump(key) for key in redis.scan_iter() if key.decode() not in ours and b"queue" not in key}
    entries = cast("list[tuple[bytes, float]]", redis.zrange(SCHEDULED, 0, -1, withscores=True))
    return kept | {raw: due for raw, due in entries if raw not in {b"minutely", b"nightly", WHOLE.encode()}}


@pytest.mark.parametrize("write", FOREIGN.values(), ids=FOREIGN)
def test_what_is_not_ours_is_left_alone(redis: Redis, scheduler: Scheduler, write: Callable[[Redis], object]) -> None:
    write(redis)
    before = everything(redis)
    arm(redis, WHOLE, 2)
    for _ in range(3):
        scheduler.tick()
    assert queued(redis, TIMERS_QUEUE) == [WHOLE]
    assert queued(redis, "reports") == []
    assert everything(redis) == before


def test_however_much_is_not_ours_our_timers_come_and_it_is_not_looked_at_in_each_round(
    redis: Redis, scheduler: Scheduler, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scheduler_module, "CHUNK", 10)
    redis.zadd(SCHEDULED, {f"report-{n}": 1 + n / 1000 for n in range(45)})
    arm(redis, WHOLE, 2)
    scheduler.tick()
    assert queued(redis, TIMERS_QUEUE) == [WHOLE]
    scheduler._next_whole_look = math.inf
    arm(redis, "session-timer-later", time.time() + 1)
    looks: list[bytes] = []
    enqueue = scheduler._enqueue_if_ours

    def look(raw: bytes) -> bool:
        looks.append(raw)
        return enqueue(raw)

    monkeypatch.setattr(scheduler, "_enqueue_if_ours", look)
    while "session-timer-later" in scheduled(redis):
        scheduler.tick()
    assert len(looks) == 1
    arm(redis, "session-timer-past", 1)  # among what is passed over: found by the next look at all
    scheduler._next_whole_look = 0
    scheduler.tick()
    assert queued(redis, TIMERS_QUEUE)[1:] == ["session-timer-later", "session-timer-past"]
    assert len(scheduled(redis)) == 45 + 2


def test_another_applications_scheduler_can_do_its_jobs_beside_ours(redis: Redis, scheduler: Scheduler) -> None:
    _of_others(redis, "report-1")
    scheduler.tick()
    RqScheduler("reports", connection=redis, interval=1).run(burst=True)
    assert queued(redis, "reports") == ["report-1"]
    scheduler.tick()
    assert scheduler.acquire_lease()


DATABASE = "postgresql+psycopg2://app@db.internal:5432/app"


@pytest.mark.parametrize("beside", ["nobody", "scheduler", "its instance", "worker", "other queues too", "environment"])
def test_whoever_else_uses_the_database_of_redis_is_warned_of(
    redis: Redis, caplog: pytest.LogCaptureFixture, beside: str
) -> None:
    log.configure("WARNING")
    Worker([TIMERS_QUEUE, MAINTENANCE_QUEUE], connection=redis, name="ours").register_birth()  # type: ignore[no-untyped-call]
    warn_of_neighbours(redis, DATABASE)
    assert not caplog.records
    if beside == "scheduler":
        assert RqScheduler(connection=redis).acquire_lock()
    elif beside == "its instance":
        RqScheduler(connection=redis).register_birth()
    elif beside in {"worker", "other queues too"}:
        queues = ["reports"] if beside == "worker" else [TIMERS_QUEUE, "reports"]
        Worker(queues, connection=redis, name="theirs").register_birth()  # type: ignore[no-untyped-call]
    other = beside == "environment"
    warn_of_neighbours(redis, DATABASE.replace("db.", "staging.") if other else DATABASE)
    assert len(caplog.records) == (beside != "nobody")
    assert "internal" not in caplog.text


def test_whoever_cannot_be_asked_for_warns_of_nobody() -> None:
    warn_of_neighbours(connect(make_settings(DATABASE, "unix:///nowhere"), 1), DATABASE)


def test_the_job_of_a_timer_is_what_rq_would_save(redis: Redis) -> None:
    job = Job.create(
        jobs.session_timer,
        (7,),
        id="session-timer-7",
        connection=redis,
        origin=TIMERS_QUEUE,
        status=JobStatus.SCHEDULED,
        description="session-timer-7",
        timeout=JOB_TIMEOUT_SECONDS,
        ttl=QUEUED_SECONDS,
        result_ttl=0,
        failure_ttl=FAILURE_SECONDS,
        meta={"request_id": "r"},
    )
    job.save()
    saved, theirs = cast("dict[bytes, bytes]", redis.hgetall(job.key)), job_as_read(redis)
    redis.delete(job.key)
    with structlog.contextvars.bound_contextvars(request_id="r"):
        arm(redis)
    ours = cast("dict[bytes, bytes]", redis.hgetall(job.key))
    assert {**ours, b"created_at": b""} == {**saved, b"created_at": b""}
    assert job_as_read(redis) == theirs


def job_as_read(redis: Redis) -> dict[str, object]:
    """Return what RQ reads of the timer's job, but for when it was made."""
    job = Job.fetch("session-timer-7", connection=redis)
    assert (job.func_name, job.args, job.kwargs) == (FUNCTION, (7,), {})
    return {name: value for name, value in vars(job).items() if name not in {"connection", "created_at"}}


@pytest.mark.parametrize("outcome", ["failed", "lost"])
def test_a_periodic_job_that_came_to_nothing_comes_again_in_seconds(
    redis: Redis, scheduler: Scheduler, outcome: str
) -> None:
    def look() -> float:
        scheduler._next_look = 0  # a second later
        scheduler.tick()
        return scheduled(redis)["nightly"] - time.time()

    scheduler.tick()
    make_due(redis, "nightly")
    assert look() > 60
    assert look() > 60  # it is in its queue
    redis.delete(Queue(MAINTENANCE_QUEUE, connection=redis).key)
    job = Job.fetch("nightly", connection=redis)
    job.set_status(JobStatus.FINISHED)
    assert look() > 60
    job.set_status(JobStatus.FAILED if outcome == "failed" else JobStatus.QUEUED)
    assert look() <= RETRY_SECONDS
    make_due(redis, "nightly")
    look()
    assert queued(redis).count("nightly") == 1


def test_a_periodic_job_that_failed_is_forgotten_after_an_hour(redis: Redis, scheduler: Scheduler) -> None:
    scheduler.tick()
    with pytest.MonkeyPatch.context() as broken:
        broken.setattr(jobs, "session_timer", None)  # it cannot even be called
        Worker([MAINTENANCE_QUEUE], connection=redis).work(burst=True)
    failed = Queue(MAINTENANCE_QUEUE, connection=redis).failed_job_registry
    assert failed.get_job_ids() == ["minutely"]
    forgotten_at = cast("float", redis.zscore(failed.key, "minutely"))
    assert 0 < forgotten_at - time.time() <= FAILURE_SECONDS


def test_one_that_an_older_release_registered_is_registered_anew(redis: Redis, scheduler: Scheduler) -> None:
    scheduler.tick()
    redis.hdel(Job.key_for("nightly"), "failure_ttl")
    restarted(scheduler).tick()
    assert Job.fetch("nightly", connection=redis).failure_ttl == FAILURE_SECONDS


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


def test_a_registration_that_cannot_be_read_is_not_made_anew(redis: Redis, scheduler: Scheduler) -> None:
    """Anew, a nightly job that is due would come a night later."""
    scheduler.tick()
    make_due(redis, "nightly")
    before = scheduled(redis)
    redis.execute_command("ACL", "SETUSER", "default", "-hgetall")  # type: ignore[no-untyped-call]
    try:
        with pytest.raises(RedisError):
            scheduler.register_periodic()
    finally:
        redis.execute_command("ACL", "SETUSER", "default", "+hgetall")  # type: ignore[no-untyped-call]
    assert scheduled(redis) == before


@pytest.fixture
def pair(redis: Redis, monkeypatch: pytest.MonkeyPatch) -> tuple[Scheduler, Scheduler]:
    """Return two schedulers that look at the lease in each round, and the first of which is the active one."""
    monkeypatch.setattr(scheduler_module, "LOOK_SECONDS", 0)
    first, second = Scheduler(redis, (MINUTELY,)), Scheduler(redis, (MINUTELY,))
    first.tick()
    second.tick()
    return first, second


def test_of_two_schedulers_one_is_active_and_holds_on_to_its_lease(
    redis: Redis, pair: tuple[Scheduler, Scheduler]
) -> None:
    first, second = pair
    redis.pexpire(LEASE, 900)
    arm(redis)
    second.tick()
    assert queued(redis, TIMERS_QUEUE) == []
    first.tick()
    assert queued(redis, TIMERS_QUEUE) == ["session-timer-7"]
    assert redis.pttl(LEASE) in range(901, LEASE_SECONDS * 1000 + 1)


def test_the_second_takes_over_at_once_when_the_lease_is_given_back(
    redis: Redis, pair: tuple[Scheduler, Scheduler]
) -> None:
    first, second = pair
    second.release_lease()  # not its own: nothing happens
    second.tick()
    assert redis.get(LEASE) == first.name.encode()
    first.release_lease()
    arm(redis)
    second.tick()
    assert queued(redis, TIMERS_QUEUE) == ["session-timer-7"]


def test_the_second_takes_over_and_catches_up_when_the_first_died(
    redis: Redis, pair: tuple[Scheduler, Scheduler]
) -> None:
    asleep, awake = pair
    for _ in range(2):  # and back
        redis.delete(Queue(MAINTENANCE_QUEUE, connection=redis).key)
        redis.delete(LEASE)  # it lapsed
        awake.tick()
        assert queued(redis) == ["minutely"]
        asleep.tick()
        assert redis.get(LEASE) == awake.name.encode()
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
    monkeypatch.setattr(scheduler_module, "RECONNECT_SECONDS", 0)
    monkeypatch.setattr(scheduler_module, "POLL_SECONDS", 0)
    scheduler.run()
    assert caught_up == [True, True, False]
    assert caplog.text.count("redis away") == 1
    assert "a defect" in caplog.text
    assert not redis.exists(LEASE)


def test_cron_lines_mean_utc_whatever_the_zone_of_the_host(redis: Redis, redis_url: str, tmp_path: Path) -> None:
    with Processes(tmp_path, environ(NOWHERE, redis_url, TZ="America/St_Johns")) as run:
        run("scheduler")
        eventually(lambda: "after-hours-cleanup" in scheduled(redis))
    moment = datetime.fromtimestamp(scheduled(redis)["after-hours-cleanup"], UTC)
    assert (moment.hour, moment.minute, moment.second) == (4, 0, 0)
    assert 0 < (moment - datetime.now(UTC)).total_seconds() <= 24 * HOUR


def test_what_others_keep_in_redis_stops_no_process(redis: Redis) -> None:
    """A worker of another RQ may write its hash in another way."""
    key = "rq:worker:another"
    redis.sadd("rq:workers", key)
    redis.hset(key, mapping={"birth": "when", "last_heartbeat": "whenever", "queues": b"\xff"})
    warn_of_neighbours(redis, DATABASE)

"""Redis after a commit, while it is there, while it is away, and when it is back."""

import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any, cast
from unittest.mock import Mock

import pytest
import structlog
from flask import Flask
from flask.testing import FlaskClient
from redis import Redis
from redis.client import Pipeline
from redis.exceptions import RedisError
from rq import Queue
from rq.exceptions import StopRequested
from rq.job import Job, JobStatus
from rq.timeouts import JobTimeoutException

from afterhours_service.jobs.jobs import FAILURE_SECONDS, TIMERS_QUEUE, enqueue, job
from afterhours_service.jobs.scheduler import Scheduler
from afterhours_service.jobs.timers import SCHEDULED, Timer, Timers, arm_timer
from afterhours_service.jobs.worker import Worker, run_worker
from afterhours_service.sessions.jobs import reconcile
from afterhours_service.stores.redis import HTTP_TIMEOUT_SECONDS, Breaker, after_commit, is_redis_away
from afterhours_service.telemetry import metrics
from tests.client import SESSION, end, erase, extend, start, status, withdraw
from tests.factories import PLACE, Factory, bearer, scheduled
from tests.outages import OwnValkey
from tests.stopwatch import Stopwatch, eventually

Outage = Callable[[OwnValkey], None]
OUTAGES = pytest.mark.parametrize("outage", [OwnValkey.stop, OwnValkey.pause], ids=["stopped", "paused"])


class TestRedisAway:
    """Each test may do to its Valkey what it likes."""

    @pytest.fixture
    def redis_url(self, own_valkey: OwnValkey) -> str:
        return own_valkey.url

    @OUTAGES
    def test_requests_are_answered_within_a_second(
        self, own_valkey: OwnValkey, client: FlaskClient, factory: Factory, outage: Outage
    ) -> None:
        member = factory.member()
        outage(own_valkey)
        for request, answer in ((start, 201), (extend, 200), (status, 200), (end, 200), (status, 200)):
            with Stopwatch() as took:
                response = request(client, member)
            assert response.status_code == answer
            assert took.seconds < 1

    @OUTAGES
    def test_an_outage_costs_one_timeout_and_then_nothing(
        self, own_valkey: OwnValkey, app: Flask, outage: Outage, caplog: pytest.LogCaptureFixture
    ) -> None:
        outage(own_valkey)
        with app.app_context():
            with Stopwatch() as first, after_commit() as pipeline:
                pipeline.ping()
            with Stopwatch() as others:
                for _ in range(20):
                    with after_commit() as pipeline:
                        pipeline.ping()
            assert is_redis_away()
        assert first.seconds < 2 * HTTP_TIMEOUT_SECONDS
        assert others.seconds < HTTP_TIMEOUT_SECONDS
        assert caplog.text.count("redis away") == 1

    @OUTAGES
    def test_all_is_well_by_itself_when_redis_is_back(
        self, own_valkey: OwnValkey, app: Flask, redis: Redis, factory: Factory, outage: Outage
    ) -> None:
        outage(own_valkey)
        client, member = app.test_client(), factory.member()
        start(client, member)
        own_valkey.start() if outage is OwnValkey.stop else own_valkey.resume()
        with app.app_context():
            eventually(lambda: not is_redis_away() and not metrics.BREAKER_OPEN._value.get())
            reconcile()
        assert redis.zcard(SCHEDULED) == 2
        end(client, member)
        assert redis.zcard(SCHEDULED) == 0

    @OUTAGES
    def test_health_says_degraded_and_stays_ready(
        self, own_valkey: OwnValkey, client: FlaskClient, outage: Outage
    ) -> None:
        outage(own_valkey)
        response = client.get("/readyz")
        assert response.status_code == 200
        assert (response.json or {})["status"] == "degraded"


def test_an_outage_leaves_a_connection_to_its_user(redis: Redis, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("afterhours_service.stores.redis.RECONNECT_SECONDS", 0.01)
    breaker, pool = Breaker(redis), redis.connection_pool
    in_use = pool.get_connection()
    in_use.send_command("PING")  # type: ignore[no-untyped-call]
    breaker.trip(RedisError("away"))
    assert in_use.read_response() == b"PONG"  # type: ignore[no-untyped-call]
    pool.release(in_use)
    eventually(lambda: not breaker.open and not metrics.BREAKER_OPEN._value.get())


def test_a_pipeline_that_redis_refuses_raises_nothing_and_is_no_outage(
    app: Flask, redis: Redis, caplog: pytest.LogCaptureFixture
) -> None:
    redis.set(SCHEDULED, "of another type")
    with app.app_context():
        with after_commit() as pipeline:
            arm_timer(pipeline, Timer("session-timer-7", 1, time.sleep, ()))
            pipeline.set("after", "the failure")
        assert not is_redis_away()
    assert redis.get("after") == b"the failure"
    assert "redis refused" in caplog.text


def test_a_failure_after_the_commit_is_logged_and_what_was_collected_is_sent(
    app: Flask, redis: Redis, caplog: pytest.LogCaptureFixture
) -> None:
    with app.app_context(), after_commit() as pipeline:
        pipeline.set("half", "done")
        raise LookupError
    assert redis.keys() == [b"half"]
    assert "LookupError" in caplog.text


def test_a_job_whose_time_is_over_ends_even_after_a_commit(app: Flask, monkeypatch: pytest.MonkeyPatch) -> None:
    with app.app_context():
        with pytest.raises(JobTimeoutException), after_commit():
            raise JobTimeoutException
        monkeypatch.setattr(Pipeline, "execute", Mock(side_effect=JobTimeoutException))
        with pytest.raises(JobTimeoutException), after_commit():
            pass


BROKEN = {
    "the client": "redis.client.Pipeline.execute",
    "a connection": "redis.connection.ConnectionPool.get_connection",
    "arming": "afterhours_service.sessions.deadlines.arm",
    "arming again": "afterhours_service.sessions.deadlines._arm_all",
    "releasing": "afterhours_service.sessions.deadlines._seconds",
    "publishing": "afterhours_service.jobs.events.publish",
    "counting": "afterhours_service.telemetry.metrics.SESSIONS_STARTED.inc",
    "counting extensions": "afterhours_service.telemetry.metrics.SESSIONS_EXTENDED.inc",
    "counting ends": "afterhours_service.telemetry.metrics.SESSIONS_ENDED.labels",
    "counting timers": "afterhours_service.telemetry.metrics.TIMERS.labels",
    "counting requests": "afterhours_service.telemetry.metrics.REQUESTS.labels",
    "the request's line": "afterhours_service.telemetry.log.request_line",
    "the limits": "limits.storage.RedisStorage.incr",
}


@pytest.mark.parametrize("what", BROKEN)
def test_whatever_breaks_after_a_commit_the_answer_stands(
    make_app: Callable[..., Flask],
    factory: Factory,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    what: str,
) -> None:
    app = make_app(ratelimit_enabled=True)
    app.testing = False  # as in production: what nobody caught is a 500
    client, member = app.test_client(), factory.member()
    late, later = factory.member(), factory.member()
    for overdue in (late, later):
        factory.session(overdue, left=-5)
    monkeypatch.setattr(BROKEN[what], Mock(side_effect=TypeError(what)))
    for request, who, expected in (
        (start, member, 201),
        (extend, member, 200),
        (end, member, 200),
        (start, member, 201),
        (start, late, 201),
        (withdraw, later, 200),
        (erase, late, 200),
    ):
        answer = request(client, who)
        assert answer.status_code == expected, answer.text
    assert what in caplog.text


@job
def tell_context() -> dict[str, Any]:
    return dict(structlog.contextvars.get_contextvars())


def test_the_id_of_a_request_travels_into_the_jobs_it_leads_to(
    app: Flask, client: FlaskClient, redis: Redis, factory: Factory
) -> None:
    headers = {**bearer(factory.member()), "X-Request-ID": "from-the-phone"}
    client.post(f"{SESSION}/start", json={"duration": 15, **PLACE}, headers=headers)
    timers = [Job.fetch(timer_id, connection=redis) for timer_id in scheduled(redis)]
    assert [timer.meta for timer in timers] == [{"request_id": "from-the-phone"}] * 3
    queue = Queue(TIMERS_QUEUE, connection=redis)
    asked = [queue.enqueue(tell_context, meta=meta) for meta in (timers[0].meta, {})]
    with app.app_context():
        Worker([TIMERS_QUEUE], connection=redis).work(burst=True)
    with_id, without = (job.return_value(refresh=True) for job in asked)
    assert with_id == {"job": "tell_context", "request_id": "from-the-phone"}
    assert without == {"job": "tell_context", "request_id": None}


def test_timers_that_nobody_worked_off_are_dropped(app: Flask, redis: Redis) -> None:
    """Those of a night without a worker; the reconciliation does at once what they would have done one by one."""
    scheduler = Scheduler(redis, ())
    with redis.pipeline() as pipeline:
        for second in range(50):
            arm_timer(pipeline, Timer(f"session-timer-{second}", second, time.sleep, ()))
        pipeline.execute()
    scheduler.tick()
    queue = Queue(TIMERS_QUEUE, connection=redis)
    assert queue.count == 50
    for timer_id in queue.job_ids:
        redis.pexpire(Job.key_for(timer_id), 1)  # two minutes pass
    time.sleep(0.01)
    with app.app_context():
        Worker([TIMERS_QUEUE], connection=redis).work(burst=True)
    assert queue.count == 0
    assert queue.failed_job_registry.count == 0


def test_a_job_put_into_a_queue_leaves_nothing_behind(app: Flask, redis: Redis) -> None:
    with app.app_context():
        enqueue(TIMERS_QUEUE, tell_context)
        Worker([TIMERS_QUEUE], connection=redis).work(burst=True)
    assert redis.keys("rq:job:*") == []


def fail() -> None:
    raise RuntimeError


def test_one_that_failed_is_forgotten_after_an_hour(app: Flask, redis: Redis) -> None:
    with app.app_context():
        enqueue(TIMERS_QUEUE, fail)
        Worker([TIMERS_QUEUE], connection=redis).work(burst=True)
    failed = Queue(TIMERS_QUEUE, connection=redis).failed_job_registry
    [(_, forgotten_at)] = cast("list[tuple[bytes, float]]", redis.zrange(failed.key, 0, -1, withscores=True))
    assert 0 < forgotten_at - time.time() <= FAILURE_SECONDS


def test_a_worker_stops_even_if_the_exception_that_says_so_is_swallowed(redis: Redis) -> None:
    worker = Worker([TIMERS_QUEUE], connection=redis)
    with suppress(StopRequested):
        worker.stop()
    with pytest.raises(StopRequested):
        worker.heartbeat()


def test_a_process_that_is_to_stop_finishes_its_job_and_begins_no_other(
    app: Flask, redis: Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    queue, rounds, work = Queue(TIMERS_QUEUE, connection=redis), [], Worker.work

    def work_once(worker: Worker) -> bool:
        rounds.append(worker)
        if len(rounds) == 2:
            raise StopRequested
        return work(worker)

    monkeypatch.setattr(Worker, "work", work_once)
    monkeypatch.setattr("afterhours_service.jobs.worker.RECONNECT_SECONDS", 0)
    monkeypatch.setattr("afterhours_service.jobs.process.on_stop_signal", handlers.append)
    first, second = queue.enqueue(be_told_to_stop), queue.enqueue(be_told_to_stop)
    run_worker(app)
    handlers.clear()
    assert first.get_status() == JobStatus.FINISHED
    assert queue.job_ids == [second.id]
    assert len(rounds) == 1


handlers: list[Callable[[], None]] = []


def be_told_to_stop() -> None:
    handlers[0]()


def test_a_process_that_hangs_is_cut_short_when_it_is_to_stop() -> None:
    """Even in C, where Python handles no signal."""
    script = (
        "import hashlib; from afterhours_service.jobs import process; process.STOP_SECONDS = 0.1;"
        "process.on_stop_signal(lambda: None); print('ready', flush=True); hashlib.pbkdf2_hmac('md5', b'', b'', 10**9)"
    )
    with subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout
        process.stdout.readline()
        process.send_signal(signal.SIGTERM)
        process.send_signal(signal.SIGINT)
        try:
            assert process.wait(20) == 0
        finally:
            process.kill()


def test_an_app_knows_the_job_of_its_timers() -> None:
    """In a process that imports nothing but the app, such as the API."""
    script = (
        "from afterhours_service import create_app; from afterhours_service.sessions.deadlines import TIMERS;"
        "print(TIMERS.at(7).function.__qualname__)"
    )
    output = subprocess.check_output([sys.executable, "-c", script], text=True)
    assert output.strip() == "session_timer"


def test_timers_without_a_job_are_refused_at_once() -> None:
    timers = Timers("test-timer-")
    with pytest.raises(RuntimeError, match="test-timer-"):
        timers.at(7)


def test_a_process_that_fails_ends_and_waits_for_no_signal() -> None:
    script = "from afterhours_service.jobs.process import on_stop_signal; on_stop_signal(lambda: None); exit(3)"
    assert subprocess.run([sys.executable, "-c", script], check=False, timeout=60).returncode == 3

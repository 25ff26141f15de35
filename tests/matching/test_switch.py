"""MATCHING_ENABLED: switched off, nobody is matched, and nothing else is different."""

import re
import time
from collections.abc import Callable
from typing import Any

import pytest
from flask import Flask
from flask.testing import FlaskClient
from redis import Redis
from rq import Queue

from afterhours_service.jobs.jobs import MATCHING_QUEUE, QUEUES
from afterhours_service.jobs.scheduler import Scheduler
from afterhours_service.jobs.timers import SCHEDULED, arm_timer
from afterhours_service.jobs.worker import Worker
from afterhours_service.matching import jobs
from afterhours_service.processes import periodic_jobs
from afterhours_service.sessions import search
from tests.client import API, end, extend, start, status
from tests.factories import SECRET, Factory, bearer, scheduled

LOOK = "after-hours-matching"


@pytest.fixture
def off(make_app: Callable[..., Flask]) -> Flask:
    """Return an app that does not match."""
    return make_app(matching_enabled=False, metrics_token=SECRET)


def periodic(app: Flask) -> Any:
    return periodic_jobs(app.extensions["after_hours_settings"])


def current(client: FlaskClient, member: str) -> str:
    answer: str = client.get(f"{API}/match/current", headers=bearer(member)).json["status"]
    return answer


def test_no_timer_of_matching_is_armed_and_sessions_are_as_ever(off: Flask, factory: Factory, redis: Redis) -> None:
    client, member = off.test_client(), factory.member()
    assert current(client, member) == "no_session"
    assert start(client, member).status_code == 201
    assert extend(client, member).status_code == 200
    assert {timer.rpartition("-")[0] for timer in scheduled(redis)} == {"session-timer"}
    assert factory.count("after_hours_search") == 0
    assert (status(client, member).json["active"], current(client, member)) == (True, "searching")
    assert end(client, member).status_code == 200
    assert scheduled(redis) == {}


def test_no_job_that_redis_kept_from_before_matches_anybody(
    app: Flask, off: Flask, client: FlaskClient, factory: Factory, redis: Redis
) -> None:
    """Jobs in the queue, an armed timer, and the periodic job."""
    pair = [factory.member() for _ in range(2)]
    for member in pair:
        start(client, member)
    factory.execute("UPDATE after_hours_search SET look_at = now()")
    before = Scheduler(redis, periodic(app))
    before.tick()
    for job in (jobs.go_on, jobs.look):
        Queue(MATCHING_QUEUE, connection=redis).enqueue(job)
    with redis.pipeline() as pipeline:
        arm_timer(pipeline, search.TIMERS.at(1))
        pipeline.execute()
    before.release_lease()
    redis.zadd(SCHEDULED, {LOOK: 1})
    after = Scheduler(redis, periodic(off))
    after.tick()
    assert "match-timer-1" not in scheduled(redis)
    assert len(Queue(MATCHING_QUEUE, connection=redis).job_ids) == 4  # its first run, the two, and the timer
    with off.app_context():
        Worker(QUEUES, connection=redis).work(burst=True)
    assert factory.count("after_hours_matches") == 0
    assert scheduled(redis)[LOOK] == 1  # as another application's would be
    assert all(Queue(name, connection=redis).failed_job_registry.count == 0 for name in QUEUES)

    after.release_lease()
    Scheduler(redis, periodic(app)).tick()
    with app.app_context():
        Worker(QUEUES, connection=redis).work(burst=True)
    assert factory.count("after_hours_matches") == 1
    assert scheduled(redis)[LOOK] > time.time()


def test_a_match_from_before_runs_out_and_may_be_declined(
    off: Flask, client: FlaskClient, factory: Factory, events: Callable[[], list[dict[str, Any]]], redis: Redis
) -> None:
    pair = [factory.member() for _ in range(2)]
    for member in pair:
        start(client, member)
    match = factory.match(factory.sessions(pair[0])[0].id, *pair)
    quiet = off.test_client()
    assert [current(quiet, member) for member in pair] == ["matched"] * 2
    redis.delete(SCHEDULED)
    events()
    declined = quiet.post(f"{API}/match/decline", json={"matchId": match}, headers=bearer(pair[0]))
    assert declined.status_code == 200
    assert [(event["type"], event["targetUserId"]) for event in events()] == [("after_hours:match_expired", pair[1])]
    assert [current(quiet, member) for member in pair] == ["searching"] * 2
    assert scheduled(redis) == {}


def test_who_does_not_match_reports_nobody_as_waiting(off: Flask, client: FlaskClient, factory: Factory) -> None:
    """Else an alert would fire."""
    start(client, factory.member())
    exposed = off.test_client().get("/metrics", headers={"Authorization": f"Bearer {SECRET}"}).text
    assert "after_hours_sessions_active 1" in exposed
    assert "after_hours_match_waiting" not in exposed


def test_an_operator_is_told(off: Flask) -> None:
    runner = off.test_cli_runner()
    shown = runner.invoke(args=["after-hours", "matching", "status"])
    assert re.match(r"enabled +False\n", shown.output)
    result = runner.invoke(args=["after-hours", "matching", "look"])
    assert (result.exit_code, result.output) == (1, "Error: matching is switched off (MATCHING_ENABLED)\n")

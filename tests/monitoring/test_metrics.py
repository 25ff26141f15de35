"""What Prometheus sees: counts and times that are right, behind a token, and no member in any label."""

import contextlib
import os
import re
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.request import Request, urlopen

import pytest
from flask import Flask
from flask.testing import FlaskClient
from prometheus_client.parser import text_string_to_metric_families
from redis import Redis

from afterhours_service.cleanup import jobs as cleanup
from afterhours_service.jobs.jobs import MAINTENANCE_QUEUE, QUEUES
from afterhours_service.jobs.scheduler import LEASE
from afterhours_service.jobs.worker import Worker
from afterhours_service.matching import rounds
from afterhours_service.monitoring.status import current_status
from afterhours_service.server.master import MEMORY, PREFIX
from afterhours_service.sessions import jobs
from afterhours_service.stores.connection import cursor, release_connection
from afterhours_service.stores.redis import is_redis_away
from afterhours_service.telemetry import metrics
from dev.embedded import free_port
from tests.client import API, SESSION, end, extend, start
from tests.factories import PLACE, SECRET, Factory, bearer
from tests.outages import OwnValkey
from tests.processes import Processes, environ
from tests.stopwatch import eventually

Samples = dict[tuple[str, frozenset[tuple[str, str]]], float]


@pytest.fixture
def app(make_app: Callable[..., Flask]) -> Flask:
    return make_app(metrics_token=SECRET)


def parse(exposition: str) -> Samples:
    return {
        (sample.name, frozenset(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(exposition)
        for sample in family.samples
    }


def value(samples: Samples, name: str, **labels: str) -> float:
    """Return a sample's value: 0 for one that is not there, as a counter that nothing has counted yet."""
    return samples.get((f"after_hours_{name}", frozenset(labels.items())), 0)


def scrape(client: FlaskClient) -> Samples:
    response = client.get("/metrics", headers={"Authorization": f"Bearer {SECRET}"})
    assert response.status_code == 200
    assert response.content_type.startswith("text/plain")
    return parse(response.text)


def test_the_metrics_need_their_token_and_are_nowhere_without_one(client: FlaskClient, make_app: Any) -> None:
    for headers, code in (({}, "AUTH_REQUIRED"), (bearer("m"), "TOKEN_INVALID"), ({"Authorization": "Bearer ü"}, None)):
        response = client.get("/metrics", headers=headers)
        assert response.status_code == 401
        assert code in {None, response.json["code"]}
    closed = make_app().test_client().get("/metrics", headers={"Authorization": "Bearer "})
    assert (closed.status_code, closed.json["code"]) == (404, "NOT_FOUND")


def test_a_sessions_life_is_counted(client: FlaskClient, factory: Factory) -> None:
    one, two = factory.member(), factory.member()
    before = scrape(client)
    for member, minutes in ((one, 15), (two, 30)):
        start(client, member, minutes)
    extend(client, one, 30)
    end(client, one)
    assert (value(scrape(client), "sessions_active"), value(scrape(client), "sessions_overdue_seconds")) == (1, 0)
    factory.travel(1803)
    assert (value(scrape(client), "sessions_active"), value(scrape(client), "sessions_overdue")) == (0, 1)
    assert 2 < value(scrape(client), "sessions_overdue_seconds") < 30
    with client.application.app_context():
        jobs.session_timer(0)
    after = scrape(client)

    def grown(name: str, **labels: str) -> float:
        return value(after, name, **labels) - value(before, name, **labels)

    assert (grown("sessions_started_total"), grown("sessions_extended_total")) == (2, 1)
    assert grown("sessions_ended_total", reason="user") == grown("sessions_ended_total", reason="timeout") == 1
    assert (grown("expiry_lag_seconds_bucket", le="2.0"), grown("expiry_lag_seconds_bucket", le="30.0")) == (0, 1)
    assert (grown("timers_total", action="armed"), grown("timers_total", action="released")) == (6, 4)
    assert grown("jobs_total", job="session_timer", outcome="done") == 1
    assert (value(after, "sessions_active"), value(after, "sessions_overdue")) == (0, 0)


def test_a_matchs_life_is_counted(client: FlaskClient, factory: Factory) -> None:
    before = scrape(client)
    reasons = ("declined", "unanswered", "timeout", "left", "blocked", "barred", "erased")
    for reason in reasons:  # so that the first end is an increase
        assert ("after_hours_matches_ended_total", frozenset({("reason", reason)})) in before
    for _ in range(3):
        start(client, factory.member())
    factory.execute("UPDATE after_hours_search SET look_at = now(), since = now() - interval '1 minute'")
    now = scrape(client)
    assert (value(now, "match_searching"), value(now, "match_waiting"), value(now, "matches_live")) == (3, 3, 0)
    assert 60 <= value(now, "match_waiting_seconds_max") < 120
    with client.application.app_context():
        rounds.match_due()
    now = scrape(client)
    assert (value(now, "match_searching"), value(now, "match_waiting"), value(now, "matches_live")) == (3, 1, 1)
    assert value(now, "match_late") == 0
    factory.execute("UPDATE after_hours_matches SET due_at = now() - interval '1 minute', expires_at = now()")
    assert (value(scrape(client), "match_late"), value(scrape(client), "matches_live")) == (1, 0)
    with client.application.app_context():
        rounds.finish_due()
    after = scrape(client)

    def grown(name: str, **labels: str) -> float:
        return value(after, name, **labels) - value(before, name, **labels)

    assert (grown("matches_made_total"), grown("match_round_duration_seconds_count")) == (1, 1)
    assert {reason: grown("matches_ended_total", reason=reason) for reason in reasons} == {
        **dict.fromkeys(reasons, 0),
        "timeout": 1,
    }
    assert value(after, "match_late") == 0
    assert (
        value(after, "periodic_rows_total", job="round", step="claimed"),
        value(after, "periodic_rows_total", job="round", step="matched"),
    ) == (3, 2)


def test_an_end_that_redis_did_not_take_is_counted_once(
    make_app: Callable[..., Flask], own_valkey: OwnValkey, factory: Factory
) -> None:
    """It is due again and again until it is published."""
    app = make_app(metrics_token=SECRET, redis_url=own_valkey.url)
    client = app.test_client()
    matches = []
    for _ in range(2):
        pair = [factory.member() for _ in range(2)]
        for member in pair:
            start(client, member)
        matches.append((factory.match(factory.sessions(pair[0])[0].id, *pair), pair[0]))
    before = scrape(client)
    own_valkey.stop()
    [(declined, decliner), (over, _)] = matches
    assert client.post(f"{API}/match/decline", json={"matchId": declined}, headers=bearer(decliner)).status_code == 200
    factory.execute("UPDATE after_hours_matches SET expires_at = now() WHERE id = %s", over)

    def finish() -> None:
        factory.execute("UPDATE after_hours_matches SET due_at = now() WHERE due_at IS NOT NULL")
        with app.app_context():
            assert rounds.finish_due() == 2

    for _ in range(3):
        finish()
    own_valkey.start()
    with app.app_context():
        eventually(lambda: not is_redis_away())
    finish()
    after = scrape(client)
    for reason in ("declined", "timeout"):
        name = "matches_ended_total"
        assert value(after, name, reason=reason) == value(before, name, reason=reason) + 1
    assert not factory.execute("SELECT FROM after_hours_matches WHERE due_at IS NOT NULL")


def test_requests_are_counted_by_route_status_and_code(client: FlaskClient, factory: Factory) -> None:
    route = f"{SESSION}/start"
    member = factory.member(consent=False)
    before = scrape(client)
    start(client, member)
    client.open(f"/{member}", method="BREW")
    after = scrape(client)
    refused = {"method": "POST", "route": route, "status": "403", "code": "CONSENT_REQUIRED"}
    unknown = {"method": "other", "route": "none", "status": "404", "code": "NOT_FOUND"}
    for labels in (refused, unknown):
        name = "http_requests_total"
        assert value(after, name, **labels) == value(before, name, **labels) + 1
    name, timed = "http_request_duration_seconds_count", {"method": "POST", "route": route}
    assert value(after, name, **timed) == value(before, name, **timed) + 1


def test_no_label_has_a_member_in_it(client: FlaskClient, factory: Factory) -> None:
    member = factory.member()
    for method, path in (("POST", "/session/start"), ("GET", "/consent"), ("DELETE", "/me"), ("GET", f"/{member}")):
        client.open(API + path, method=method, json={"duration": 15, **PLACE}, headers=bearer(member))
    exposed = client.get("/metrics", headers={"Authorization": f"Bearer {SECRET}"}).text
    assert member not in exposed
    labels = set(re.findall(r'[{,]([a-z_]+)="', exposed))
    assert labels <= {
        *("method", "route", "status", "code", "reason", "action", "job", "outcome", "queue", "step", "le"),
        *("implementation", "major", "minor", "patchlevel", "version", "generation"),
    }


def test_the_periodic_jobs_and_redis_are_reported(client: FlaskClient, factory: Factory, redis: Redis) -> None:
    member = factory.member()
    factory.session(member)
    factory.session(factory.member(), left=-5)
    factory.session(factory.member(), left=-8 * 86400, ended=True)
    before = scrape(client)
    assert ("after_hours_periodic_finished_timestamp_seconds", frozenset({("job", "cleanup")})) not in before
    with client.application.app_context():
        jobs.reconcile()
        jobs.reconcile()
        cleanup.cleanup()
        Worker([MAINTENANCE_QUEUE], connection=redis).work(burst=True)
        cleanup.resume()
    redis.set(LEASE, "a scheduler")
    now = scrape(client)
    for name in ("reconcile", "cleanup", "cleanup_slice", "resume"):
        done = {"job": name, "outcome": "done"}
        assert value(now, "jobs_total", **done) > value(before, "jobs_total", **done)
    assert value(now, "periodic_finished_total", job="reconcile") == 2
    assert 0 < value(now, "periodic_seconds_total", job="reconcile") < 30
    assert abs(value(now, "periodic_finished_timestamp_seconds", job="cleanup") - time.time()) < 30
    assert value(now, "periodic_rows_total", job="reconcile", step="ended") == 1
    assert value(now, "periodic_rows_total", job="reconcile", step="armed") == 2
    assert value(now, "periodic_rows_total", job="cleanup", step="sessions") == 1
    assert (value(now, "timers_armed"), value(now, "schedulers_active"), value(now, "workers")) == (2, 1, 0)
    assert value(now, "queue_jobs", queue="after-hours-maintenance") == 0
    assert value(now, "database_up") == value(now, "redis_up") == value(now, "schema_current") == 1


def test_every_worker_on_our_queues_is_counted_and_none_is_a_zero(client: FlaskClient, redis: Redis) -> None:
    """A gauge that is missing would raise no alert."""
    workers = ("after_hours_workers", frozenset[tuple[str, str]]())
    assert scrape(client)[workers] == 0
    for name, queues in (("both", QUEUES), ("timers", QUEUES[:1]), ("another's", ["reports"])):
        Worker(queues, connection=redis, name=name).register_birth()  # type: ignore[no-untyped-call]
    assert scrape(client)[workers] == 2
    with client.application.app_context():
        assert {(worker["name"], worker["queues"]) for worker in current_status().workers} == {
            ("both", ",".join(QUEUES)),
            ("timers", QUEUES[0]),
        }


def test_connections_in_use_are_reported(app: Flask) -> None:
    with app.app_context():
        with cursor() as opened:
            opened.execute("SELECT 1")
        assert (metrics.POOL_IN_USE._value.get(), metrics.POOL_LIMIT._value.get()) == (1, 15)
        release_connection()
        assert metrics.POOL_IN_USE._value.get() == 0


def test_a_run_that_fails_is_not_a_run(app: Flask, factory: Factory, redis: Redis) -> None:
    factory.execute("DROP TABLE after_hours_sessions CASCADE")
    client = app.test_client()
    before = value(scrape(client), "jobs_total", job="reconcile", outcome="failed")
    with app.app_context(), pytest.raises(Exception, match="after_hours_sessions"):
        jobs.reconcile()
    now = scrape(client)
    assert value(now, "jobs_total", job="reconcile", outcome="failed") == before + 1
    assert value(now, "periodic_finished_total", job="reconcile") == 0


def test_database_and_redis_may_be_away(
    make_app: Callable[..., Flask], own_valkey: OwnValkey, factory: Factory
) -> None:
    client = make_app(metrics_token=SECRET, redis_url=own_valkey.url).test_client()
    own_valkey.stop()
    start(client, factory.member())
    now = scrape(client)
    assert (value(now, "redis_up"), value(now, "database_up")) == (0, 1)
    assert value(now, "redis_breaker_open") == 1
    nowhere = "postgresql+psycopg2://nobody@/none?host=/nonexistent"
    now = scrape(make_app(metrics_token=SECRET, database_url=nowhere).test_client())
    assert (value(now, "redis_up"), value(now, "database_up")) == (1, 0)
    metrics.BREAKER_OPEN.set(0)
    own_valkey.start()


def read(url: str, **headers: str) -> str:
    with urlopen(Request(url, headers=headers), timeout=60) as response:
        body: str = response.read().decode()
        return body


@pytest.fixture
def run(database_url: str, redis: Redis, redis_url: str, tmp_path: Path) -> Iterator[Processes]:
    """Return what starts processes that serve their metrics."""
    metrics = {"METRICS_TOKEN": SECRET * 2, "METRICS_PORT": str(free_port())}
    with Processes(tmp_path, environ(database_url, redis_url, **metrics)) as run:
        yield run


@pytest.mark.slow
@pytest.mark.xdist_group("processes")
def test_whichever_worker_of_the_api_is_asked_tells_of_all(run: Processes) -> None:
    web, url = run.web(WEB_CONCURRENCY="3")
    origin = url.removesuffix("/api/after-hours/session")
    health = {"method": "GET", "route": "/healthz", "status": "200", "code": ""}
    token = {"Authorization": f"Bearer {SECRET * 2}"}
    for _ in range(30):
        read(f"{origin}/healthz")
    counted = [value(parse(read(f"{origin}/metrics", **token)), "http_requests_total", **health) for _ in range(6)]
    assert counted == [31] * 6  # one by the test, to see that it runs

    [folder] = MEMORY.glob(f"{PREFIX}{web.pid}-*")
    killed, *others = web.workers()
    assert list(folder.glob(f"gauge_live*_{killed}.db"))
    os.kill(killed, signal.SIGKILL)
    eventually(lambda: not list(folder.glob(f"gauge_live*_{killed}.db")))
    assert set(others) < set(eventually(lambda: len(web.workers()) == 3 and web.workers()))
    assert value(parse(read(f"{origin}/metrics", **token)), "http_requests_total", **health) == 31
    web.terminate()
    assert web.exit_code() == 0
    assert not folder.exists()


@pytest.mark.slow
@pytest.mark.xdist_group("processes")
def test_worker_and_scheduler_have_a_port_of_their_own(run: Processes, factory: Factory) -> None:
    def served() -> Samples:
        with contextlib.suppress(OSError):
            return parse(read(f"http://127.0.0.1:{run.environ['METRICS_PORT']}/metrics"))
        return {}

    scheduler = run("scheduler")
    eventually(lambda: value(served(), "scheduler_jobs_total"))
    assert value(served(), "scheduler_active") == 1
    scheduler.terminate()
    assert scheduler.exit_code() == 0
    factory.session(factory.member(), left=-5)
    # A port that is taken costs the process its metrics, and nothing else.
    workers = run("worker"), run("worker")
    eventually(
        lambda: (
            value(served(), "jobs_total", job="reconcile", outcome="done")
            or not factory.execute("SELECT FROM after_hours_sessions WHERE ended_at IS NULL")
        )  # the other one did it
    )
    eventually(lambda: any("metrics are not served" in worker.output() for worker in workers))

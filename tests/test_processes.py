"""The three real processes, started as the Procfile says: they do their work, outlive Redis, and stop when told."""

import contextlib
import functools
import json
import os
import socket
import statistics
import threading
import time
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import Any, NamedTuple
from urllib.request import Request, urlopen

import psycopg2
import pytest
from redis import Redis
from redis.client import PubSub
from rq.job import Job

from afterhours_service.jobs.events import CHANNEL
from afterhours_service.jobs.jobs import QUEUES
from afterhours_service.jobs.scheduler import LEASE, Scheduler
from afterhours_service.jobs.timers import SCHEDULED, arm_timer
from afterhours_service.sessions.deadlines import TIMERS
from tests.conftest import ROOT
from tests.factories import PLACE, Factory, bearer
from tests.outages import OwnValkey
from tests.pictures import plain
from tests.processes import PROCFILE, Process, Processes, environ
from tests.stopwatch import Stopwatch, eventually

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("processes")]

RECONCILE = "after-hours-reconcile"


@pytest.fixture
def run(database_url: str, redis_url: str, tmp_path: Path) -> Iterator[Processes]:
    """Return what starts processes on this test's own database."""
    with Processes(tmp_path, environ(database_url, redis_url, AFTER_HOURS_MINUTE_SECONDS="1")) as run:
        yield run


def post(url: str, member: str, body: dict[str, Any]) -> dict[str, Any]:
    headers = {**bearer(member), "Content-Type": "application/json"}
    with urlopen(Request(url, json.dumps(body).encode(), headers, method="POST"), timeout=60) as response:
        answer: dict[str, Any] = json.loads(response.read())["session"]
        return answer


def arm_due_timer(redis: Redis) -> None:
    with redis.pipeline() as trip:
        arm_timer(trip, TIMERS.at(1))
        trip.execute()


class Evening(NamedTuple):
    """The whole service, running, and a session of thirty seconds that began when it did; others end before."""

    factory: Factory
    events: PubSub
    member: str
    expires_at: datetime
    others: tuple[str, ...]
    processes: tuple[Process, ...]


@pytest.fixture(scope="module", autouse=True)  # so that its thirty seconds pass while the other tests run
def evening(module_database_url: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Evening]:
    with contextlib.ExitStack() as stack:
        valkey = OwnValkey(Path(os.environ["TEST_FOLDER"]) / f"evening-{os.getpid()}")
        stack.callback(valkey.stop)
        valkey.start()
        folder = tmp_path_factory.mktemp("evening")
        settings = environ(module_database_url, valkey.url, AFTER_HOURS_MINUTE_SECONDS="2")
        run = stack.enter_context(Processes(folder, settings))
        connection = stack.enter_context(contextlib.closing(psycopg2.connect(module_database_url)))
        connection.autocommit = True
        factory = Factory(connection)
        redis = stack.enter_context(Redis.from_url(valkey.url))
        events = stack.enter_context(redis.pubsub())
        events.subscribe(CHANNEL)
        processes = run("worker"), run("scheduler")
        web, url = run.web()
        eventually(lambda: Job.exists(RECONCILE, redis) and Job.fetch(RECONCILE, redis).is_finished)
        others = tuple(factory.member() for _ in range(6))
        for seconds, other in enumerate(others, start=20):
            factory.session(other, left=seconds, length=60)
        redis.zadd(SCHEDULED, {RECONCILE: 0})
        member = factory.member()
        session = post(f"{url}/start", member, {"duration": 15, **PLACE})
        yield Evening(factory, events, member, datetime.fromisoformat(session["expiresAt"]), others, (web, *processes))


def test_a_session_expires_by_itself_on_time(evening: Evening) -> None:
    told: dict[str, dict[str, datetime]] = {member: {} for member in (evening.member, *evening.others)}
    deadline = time.monotonic() + 90
    while not all("session_expired" in kinds for kinds in told.values()) and time.monotonic() < deadline:
        if message := evening.events.get_message(ignore_subscribe_messages=True, timeout=1):
            event = json.loads(message["data"])
            kind = event["type"].removeprefix("after_hours:")
            if kind == "no_matches":
                continue
            assert kind not in told[event["targetUserId"]]
            told[event["targetUserId"]][kind] = datetime.fromisoformat(event["timestamp"])
    assert list(told[evening.member]) == ["session_started", "session_expiring", "session_expired"]
    for kind, ahead in (("session_expiring", 4), ("session_expired", 0)):
        late = []
        for member, kinds in told.items():
            [row] = evening.factory.sessions(member)
            assert row.ended_at == row.expires_at
            late.append((kinds[kind] - row.expires_at).total_seconds() + ahead)
        assert min(late) >= 0
        assert statistics.median(late) <= 1  # of seven: a machine that others use stands still for a second at times
    assert evening.factory.sessions(evening.member)[0].expires_at == evening.expires_at
    for process in evening.processes:
        assert '"level": "error"' not in process.output()


def test_what_is_in_flight_is_finished_before_each_process_stops(
    run: Processes, redis: Redis, factory: Factory, database_url: str
) -> None:
    processes = run("worker"), run("scheduler")
    web, url = run.web()
    eventually(lambda: Job.exists(RECONCILE, redis) and Job.fetch(RECONCILE, redis).is_finished)
    overdue, live = factory.member(), factory.member()
    factory.session(overdue, left=-60)
    factory.session(live, left=900)
    answers: list[dict[str, Any]] = []
    request = threading.Thread(
        target=lambda: answers.append(post(f"{url}/extend", live, {"additionalMinutes": 15})), daemon=True
    )
    with contextlib.closing(psycopg2.connect(database_url)) as connection, connection.cursor() as cursor:
        cursor.execute("LOCK TABLE after_hours_sessions IN SHARE MODE")
        request.start()
        arm_due_timer(redis)
        eventually(lambda: factory.waiting() == 2)
        for process in (web, *processes):
            process.terminate()
        time.sleep(0.3)
        connection.rollback()
    assert [process.exit_code() for process in (web, *processes)] == [0, 0, 0]
    request.join(60)
    assert [answer["extendedByMinutes"] for answer in answers] == [15]
    [row] = factory.sessions(overdue)
    assert row.ended_at == row.expires_at
    # The database ends it for a worker that is gone, too; only the worker publishes it.
    assert factory.count("after_hours_untold") == 0


class TestRedisAway:
    """Each test may do to its Valkey what it likes."""

    @pytest.fixture
    def redis_url(self, own_valkey: OwnValkey) -> str:
        return own_valkey.url

    def test_worker_and_scheduler_outlive_redis_and_catch_up(
        self, run: Processes, factory: Factory, own_valkey: OwnValkey
    ) -> None:
        own_valkey.stop()
        worker, scheduler = run("worker"), run("scheduler")
        for outage in (1, 2):
            for process in (worker, scheduler):
                process.says("redis away|could not connect to Redis", times=outage)
            member = factory.member()
            factory.session(member, left=-60)
            own_valkey.start()
            eventually(functools.partial(factory.has_ended, member))
            own_valkey.stop()
        for process in (worker, scheduler):
            process.terminate()
        assert [process.exit_code() for process in (worker, scheduler)] == [0, 0]

    @pytest.mark.parametrize("command", ["worker", f"rq worker --url {{}} {' '.join(QUEUES)}"], ids=["ours", "rq"])
    def test_a_job_waits_for_a_redis_that_is_slow(
        self, run: Processes, redis: Redis, factory: Factory, own_valkey: OwnValkey, database_url: str, command: str
    ) -> None:
        member = factory.member()
        factory.session(member, left=-60)
        with (
            contextlib.closing(psycopg2.connect(database_url)) as connection,
            connection.cursor() as cursor,
            redis.pubsub() as events,  # type: ignore[no-untyped-call]
        ):
            events.subscribe(CHANNEL)
            cursor.execute("LOCK TABLE after_hours_sessions IN SHARE MODE")
            arm_due_timer(redis)
            Scheduler(redis, ()).tick()
            worker = run(command.format(own_valkey.url))
            eventually(lambda: factory.waiting() == 1)
            own_valkey.pause()
            connection.rollback()
            eventually(functools.partial(factory.has_ended, member))
            time.sleep(1)
            own_valkey.resume()
            message = eventually(lambda: events.get_message(ignore_subscribe_messages=True, timeout=1))
        assert json.loads(message["data"])["type"] == "after_hours:session_expired"
        assert "redis away" not in worker.output()

    def test_each_process_stops_whatever_it_waits_for(
        self, run: Processes, redis: Redis, own_valkey: OwnValkey
    ) -> None:
        """Worker and scheduler for a Redis that is silent, the API for the other half of a request."""
        processes = run("worker"), run("scheduler")
        web, url = run.web()
        eventually(lambda: redis.exists(LEASE) and redis.scard("rq:workers"))
        host, port = url.split("/")[2].split(":")
        with socket.create_connection((host, int(port))) as connection:
            connection.sendall(b"POST /api/after-hours/session/start HTTP/1.1\r\nContent-Le")
            time.sleep(0.2)
            own_valkey.pause()
            for process in (web, *processes):
                process.terminate()
            assert [process.exit_code() for process in (web, *processes)] == [0, 0, 0]


def test_of_two_schedulers_the_second_takes_over_when_the_first_stops(run: Processes, redis: Redis) -> None:
    def holder() -> Any:
        return redis.get(LEASE)

    schedulers = {
        process.says(r'"name": "(\w+)"')[1].encode(): process for process in (run("scheduler"), run("scheduler"))
    }
    first = eventually(holder)
    active = schedulers.pop(first)
    [(name, second)] = schedulers.items()
    active.terminate()
    assert active.exit_code() == 0
    with Stopwatch() as took:
        eventually(lambda: holder() == name)
    assert took.seconds <= 2
    second.terminate()
    assert second.exit_code() == 0
    assert holder() is None


def test_a_plain_rq_worker_works_off_timers(run: Processes, redis: Redis, redis_url: str, factory: Factory) -> None:
    member = factory.member()
    factory.session(member, left=-60)
    arm_due_timer(redis)
    Scheduler(redis, ()).tick()
    worker = run(f"rq worker --burst --url {redis_url} {' '.join(QUEUES)}")
    assert worker.exit_code(60) == 0
    [row] = factory.sessions(member)
    assert row.ended_at == row.expires_at


def test_the_first_session_of_the_readme_with_nothing_but_what_is_required(
    database_url: str, redis: Redis, redis_url: str, factory: Factory, tmp_path: Path
) -> None:
    """Every other setting is at its default, but for Redis's address: the default port may be another's here."""
    for part in ("afterhours_service", "alembic", "api.py", "worker.py", "scheduler.py"):
        (tmp_path / part).symlink_to(ROOT / part)  # a working directory of its own, for what is kept below it
    member = factory.member(profile=False)
    headers = {**bearer(member), "Content-Type": "application/json"}
    with Processes(tmp_path, environ(database_url, redis_url), cwd=tmp_path) as run:
        run("worker"), run("scheduler")
        _, url = run.web()
        api, origin = url.removesuffix("/session"), url.removesuffix("/api/after-hours/session")

        def ask(method: str, path: str, body: bytes | None = None, **more: str) -> dict[str, Any]:
            with urlopen(Request(api + path, body, {**headers, **more}, method=method), timeout=60) as response:
                answer: dict[str, Any] = json.loads(response.read())
                return answer

        assert ask("POST", "/profile", b'{"description": "New here"}')["profile"]["userId"] == member
        form = b'--x\r\nContent-Disposition: form-data; name="photo"; filename="x"\r\n\r\n%b\r\n--x--\r\n' % plain(300)
        photo = ask("POST", "/profile/photo", form, **{"Content-Type": "multipart/form-data; boundary=x"})["photo"]
        assert (tmp_path / ".state/photos" / photo["key"]).is_file()
        for link in (photo["url"], ask("GET", "/profile")["profile"]["photoUrl"]):
            assert link.startswith("http://127.0.0.1:8000/photos/")
            with urlopen(link.replace("http://127.0.0.1:8000", origin), timeout=60) as response:
                assert (response.status, response.headers["Content-Type"]) == (200, "image/jpeg")
        assert ask("POST", "/session/start", json.dumps({"duration": 15, **PLACE}).encode())["session"]
        assert ask("GET", "/session")["active"]

        factory.travel(15 * 60 + 1)  # its end is rounded up to a second
        assert not ask("GET", "/session")["active"]
        eventually(lambda: redis.zscore(SCHEDULED, RECONCILE))
        redis.zadd(SCHEDULED, {RECONCILE: 0})  # a minute passes
        eventually(functools.partial(factory.has_ended, member))


def test_each_process_refuses_a_bad_environment_and_names_every_problem(run: Processes) -> None:
    bad = {
        "DATABASE_URL": "mysql://root@localhost/app",
        "REDIS_URL": "http://localhost",
        "JWT_SECRET": "tiny-secret",
        "LOCATION_SECRET": "small-secret",
        "AFTER_HOURS_MINUTE_SECONDS": "0",
        "AFTER_HOURS_CLEANUP_CRON": "at dawn",
    }
    processes = [run(name, **bad) for name in PROCFILE]
    for process in processes:
        assert process.exit_code(60) != 0
        for name in bad:
            assert name in process.output()
        assert "tiny-secret" not in process.output()
        assert "small-secret" not in process.output()

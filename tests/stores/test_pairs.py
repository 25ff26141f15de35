"""A PostgreSQL with a standby, a Valkey with a replica and sentinels: what processes do when the primary is lost."""

import contextlib
import json
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast
from urllib.error import HTTPError
from urllib.request import Request, urlopen

import psycopg2
import pytest
from redis import Redis
from redis.exceptions import RedisError
from rq.job import Job

from afterhours_service import create_app
from afterhours_service.config.urls import for_psycopg2
from afterhours_service.jobs.events import CHANNEL
from afterhours_service.jobs.jobs import QUEUES
from afterhours_service.jobs.scheduler import LEASE
from afterhours_service.jobs.timers import RECONCILIATION, SCHEDULED
from afterhours_service.stores.connection import cursor
from afterhours_service.stores.database import db
from afterhours_service.stores.redis import connect
from dev.embedded import Home, home
from dev.pairs import PostgresPair, ValkeyPair
from tests.conftest import ROOT, make_settings
from tests.factories import PLACE, Factory, bearer
from tests.processes import Processes, environ
from tests.stopwatch import eventually

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("pairs")]


@pytest.fixture
def place(request: pytest.FixtureRequest) -> Iterator[Home]:
    with home(Path(os.environ["TEST_FOLDER"]) / f"pair-{request.node.name[-4:]}-{os.getpid()}") as place:
        yield place


@pytest.fixture
def postgres(place: Home) -> Iterator[PostgresPair]:
    pair = PostgresPair(place)
    yield pair
    pair.stop()


@pytest.fixture
def valkey(place: Home) -> Iterator[ValkeyPair]:
    pair = ValkeyPair(place)
    yield pair
    pair.stop()


@contextlib.contextmanager
def connected(url: str) -> Iterator[Factory]:
    with contextlib.closing(psycopg2.connect(url)) as connection:
        connection.autocommit = True
        yield Factory(connection)


def ask(url: str, member: str, path: str = "", body: dict[str, Any] | None = None) -> dict[str, Any] | None:
    """Return the answer to a request; None if it failed on the server's side."""
    data = json.dumps(body).encode() if body is not None else None
    headers = {**bearer(member), "Content-Type": "application/json"}
    try:
        response = urlopen(Request(f"{url}{path}", data, headers), timeout=60)
    except HTTPError as error:
        response = error
    with response:
        answer: dict[str, Any] = json.loads(response.read())
    if response.status >= 500:
        assert (response.status, "Retry-After" in response.headers) == (503, True)
        return None
    return answer


def test_the_loss_of_the_database_costs_seconds_and_no_session(
    postgres: PostgresPair, redis: Redis, redis_url: str, tmp_path: Path
) -> None:
    hosts = postgres.url.replace("5432,5433", "5433,5432")  # the standby first
    settings = environ(hosts, redis_url)
    upgrade = ["flask", "--app", "afterhours_service", "db", "upgrade"]
    subprocess.run(upgrade, cwd=ROOT, env=settings, check=True, capture_output=True)
    with Processes(tmp_path, settings) as run:
        with connected(postgres.url_of(0)) as factory:
            members = [factory.member() for _ in range(4)]
        run("worker")
        run("scheduler")
        _, url = run.web(WEB_CONCURRENCY="1")
        start = {"duration": 15, **PLACE}
        acknowledged = {members[0]: ask(url, members[0], "/start", start)}

        postgres.servers[0].kill()
        assert ask(url, members[0]) is None
        postgres.promote()
        acknowledged[members[1]] = eventually(lambda: ask(url, members[1], "/start", start))
        postgres.follow(0)
        acknowledged[members[2]] = ask(url, members[2], "/start", start)

        postgres.servers[1].pause()
        postgres.promote()
        acknowledged[members[3]] = eventually(lambda: ask(url, members[3], "/start", start))
        with connected(postgres.url_of(0)) as factory:
            on_time = factory.member()
            factory.session(on_time, left=1)
            redis.zadd(SCHEDULED, {RECONCILIATION: 0}, xx=True)
            eventually(lambda: factory.has_ended(on_time))
        postgres.servers[1].resume()
        with connected(postgres.url_of(1)) as old:
            ours = "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'after-hours'"
            eventually(lambda: old.execute(ours) == [(0,)])
            for member, answer in acknowledged.items():
                assert answer
                found = ask(url, member)
                assert found
                assert found["session"]["id"] == answer["session"]["id"]
            assert not old.sessions(members[3])
        # Nor does a process that has never seen the new primary go to the old one, which still accepts writes.
        port = hosts.rpartition("=")[2].split(",")[0]
        with create_app(make_settings(for_psycopg2(hosts), redis_url)).app_context(), cursor() as opened:
            assert (port, opened.connection.info.port) == ("5433", 5432)
            db.engine.dispose()


def test_the_loss_of_redis_costs_seconds_and_no_timer(
    valkey: ValkeyPair, database_url: str, factory: Factory, tmp_path: Path
) -> None:
    client = connect(make_settings(database_url, valkey.url), 5)
    with Processes(tmp_path, environ(database_url, valkey.url)) as run, client:
        run("worker")
        run("scheduler")
        _, url = run.web()
        eventually(lambda: Job.exists(RECONCILIATION, client) and Job.fetch(RECONCILIATION, client).is_finished)
        member, other = factory.member(), factory.member()
        assert ask(url, member, "/start", {"duration": 60, **PLACE})
        timers = timers_of(client)

        valkey.servers[1].pause()
        client.client_kill_filter(_type="slave")  # so that it has missed what it is told from now on
        assert ask(url, other, "/start", {"duration": 30, **PLACE})
        lost = timers_of(client) - timers
        assert lost
        valkey.servers[0].kill()
        valkey.servers[1].resume()
        eventually(lambda: valkey.failed_over_from(0))
        eventually(lambda: lost <= timers_of(client), 20)  # and not only at the next minute
        valkey.make_whole()

        valkey.servers[1].pause()
        eventually(lambda: valkey.failed_over_from(1))
        eventually(lambda: answers(client))
        with client.pubsub() as events:  # type: ignore[no-untyped-call]
            events.subscribe(CHANNEL)
            overdue = factory.member()
            factory.session(overdue, left=2)
            client.zadd(SCHEDULED, {RECONCILIATION: 0}, xx=True)
            eventually(lambda: expired(events.get_message(ignore_subscribe_messages=True, timeout=1)) == overdue)
        valkey.servers[1].resume()
        assert client.exists(LEASE)
        plain = run(f"rq worker --burst --config afterhours_service.jobs.rq_settings {' '.join(QUEUES)}")
        assert plain.exit_code(60) == 0, plain.output()


def expired(message: dict[str, Any] | None) -> str | None:
    """Return whose session has expired, if a message says that."""
    event = json.loads(message["data"]) if message else {}
    return event["targetUserId"] if event.get("type") == "after_hours:session_expired" else None


def answers(client: Redis) -> bool:
    """Return whether the primary that the client finds answers."""
    with contextlib.suppress(RedisError):
        return bool(client.ping())
    client.connection_pool.disconnect()
    return False


def timers_of(client: Redis) -> set[bytes]:
    if answers(client):
        scheduled = cast("list[bytes]", client.zrange(SCHEDULED, 0, -1))
        return {each for each in scheduled if each.startswith(b"session-timer-")}
    return set()

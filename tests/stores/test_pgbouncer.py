"""Behind PgBouncer the service works as it does without, also where clients share the connections to the server."""

import contextlib
import dataclasses
import json
import os
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from urllib.request import Request, urlopen

import psycopg2
import pytest
from flask import Flask, Response, request
from flask.testing import FlaskClient
from flask_migrate import downgrade, upgrade
from redis import Redis
from rq.job import Job

from afterhours_service import create_app
from afterhours_service.config import Settings
from afterhours_service.jobs.timers import arm_timer
from afterhours_service.sessions.deadlines import TIMERS
from afterhours_service.stores.database import db
from dev.embedded import free_port
from tests.client import API, FINGERPRINT, answer_match, end, erase, extend, look, start, status, upload
from tests.conftest import make_settings
from tests.factories import PLACE, SECRET, Factory, bearer
from tests.matching.pairs import FIRST_LOOK_SECONDS, work
from tests.pgbouncer import PgBouncer
from tests.pictures import plain
from tests.processes import Processes, environ
from tests.stopwatch import eventually

SIZES = {"transaction": 3, "session": 20}  # connections to the server, which a client in session mode has to itself
in_transaction_mode = pytest.mark.parametrize("mode", ["transaction"])


@pytest.fixture(params=SIZES)
def mode(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def bouncer(database_url: str, mode: str) -> Iterator[PgBouncer]:
    bouncer = PgBouncer(Path(os.environ["TEST_FOLDER"]) / f"bouncer-{os.getpid()}", database_url, mode, SIZES[mode])
    bouncer.start()
    yield bouncer
    bouncer.stop()


@pytest.fixture
def settings(settings: Settings, bouncer: PgBouncer) -> Settings:
    """Return settings with which the app connects to PgBouncer."""
    url = make_settings(bouncer.url, settings.redis_url).database_url
    return dataclasses.replace(settings, database_url=url, database_prepare=bouncer.mode == "session")


@contextlib.contextmanager
def taken(bouncer: PgBouncer) -> Iterator[list[Any]]:
    """Take all connections to the server, each with a transaction, and yield their cursors."""
    with contextlib.ExitStack() as stack:
        cursors = []
        for _ in range(bouncer.size):
            connection = stack.enter_context(contextlib.closing(bouncer.connect()))
            cursors.append(stack.enter_context(connection.cursor()))
            cursors[-1].execute("SELECT 1")
        yield cursors


def left_behind(bouncer: PgBouncer) -> list[Any]:
    """Return what is set or held on the connections to the server, which the next client would find there."""
    with taken(bouncer) as cursors:
        found = []
        for cursor in cursors:
            cursor.execute(
                """SELECT name, setting FROM pg_settings WHERE source = 'session' AND name <> ALL (%s)
                UNION ALL SELECT 'key', current_setting('after_hours.key', true)
                    WHERE current_setting('after_hours.key', true) <> ''
                UNION ALL SELECT 'prepared', statement FROM pg_prepared_statements
                UNION ALL SELECT 'channel', pg_listening_channels()
                UNION ALL SELECT 'schema', nspname FROM pg_namespace WHERE oid = pg_my_temp_schema()
                UNION ALL SELECT 'lock', objid::text FROM pg_locks
                    WHERE locktype = 'advisory' AND pid = pg_backend_pid()""",
                (["application_name", "client_encoding", "DateStyle", "TimeZone", "standard_conforming_strings"],),
            )
            found += cursor.fetchall()
        return found


def servers(factory: Factory) -> int:
    return factory.count("pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()")


def test_every_route_answers(make_app: Callable[..., Flask], factory: Factory, bouncer: PgBouncer) -> None:
    app = make_app(metrics_token=SECRET)
    called = set()

    @app.after_request
    def note(response: Response) -> Response:
        assert response.status_code < 400, (request.path, response.get_data())
        called.add((request.endpoint, request.method))
        return response

    client = app.test_client()
    one, other, third = factory.member(profile=False), factory.member(), factory.member()

    def ask(method: str, path: str, body: Any = None, member: str = one) -> Any:
        return client.open(f"{API}/{path}", method=method, json=body, headers=bearer(member))

    for method in ("POST", "GET", "PATCH"):
        ask(method, "profile", None if method == "GET" else {"description": "Out"})
        ask(method, "preferences", None if method == "GET" else {"minAge": 18})
    upload(client, one, plain())
    ask("PUT", "consent", {"granted": True})
    ask("GET", "consent")
    start(client, one, deviceFingerprint=FINGERPRINT)
    start(client, other)
    start(client, third)
    ask("POST", "declines", {"userId": third})
    ask("GET", "nearby/count")
    [photo] = [found["photoUrl"] for found in look(client, other)["members"] if found["userId"] == one]
    client.get(photo)
    ask("DELETE", f"declines/{third}")
    ask("POST", "declines", {"userId": third})
    ask("POST", "declines", {"userId": third}, other)
    factory.travel(FIRST_LOOK_SECONDS)
    work(app)
    match = ask("GET", "match/current").json["match"]["id"]
    answer_match(client, one, "accept", match)
    answer_match(client, other, "decline", match)
    extend(client, one, key="once")
    status(client, one)
    assert len(ask("GET", "me/export").get_data()) > 100
    end(client, one)
    ask("DELETE", "profile/photo")
    erase(client, one)
    client.get("/healthz")
    assert client.get("/readyz").json["schema"] == "ok"
    client.get("/metrics", headers={"Authorization": f"Bearer {SECRET}"})

    assert called == {
        (rule.endpoint, method)
        for rule in app.url_map.iter_rules()
        for method in (rule.methods or set()) - {"HEAD", "OPTIONS"}
    }
    if bouncer.mode == "transaction":
        assert left_behind(bouncer) == []


def test_many_clients_share_few_connections(app: Flask, factory: Factory, bouncer: PgBouncer) -> None:
    members = [factory.member() for _ in range(8)]
    together = threading.Barrier(len(members))

    def evening(member: str) -> list[int]:
        client = app.test_client()
        together.wait(60)
        answers = []
        for _ in range(3):
            answers += [start(client, member), status(client, member), extend(client, member), end(client, member)]
        return [answer.status_code for answer in answers]

    with ThreadPoolExecutor(len(members)) as threads:
        assert list(threads.map(evening, members)) == [[201, 200, 200, 200] * 3] * len(members)
    rows = factory.execute("SELECT latitude FROM after_hours_sessions")
    assert [row.latitude for row in rows] == [None] * 24
    if bouncer.mode == "transaction":
        assert servers(factory) == bouncer.size
        assert left_behind(bouncer) == []


def test_commands_do_their_work(app: Flask, factory: Factory, bouncer: PgBouncer) -> None:
    def run(*words: str) -> str:
        result = app.test_cli_runner().invoke(args=["after-hours", *words])
        assert result.exit_code == 0, result.output
        return result.output

    live, over, old = (factory.member() for _ in range(3))
    factory.session(live)
    factory.session(over, left=-60)
    factory.session(old, left=-30 * 86400, ended=True)
    run("reconcile")
    assert factory.has_ended(over)
    assert json.loads(run("status", "--json"))
    for words in (["sessions"], ["timers"], ["matching", "status"], ["matching", "look"], ["members", "export", live]):
        run(*words)
    run("sessions", "extend", live, "15")
    run("sessions", "end", live, "--yes")
    run("cleanup", "--yes")
    assert not factory.sessions(old)
    run("members", "erase", live, "--yes")
    if bouncer.mode == "transaction":
        assert left_behind(bouncer) == []


@pytest.mark.slow
@pytest.mark.xdist_group("processes")
@in_transaction_mode
def test_the_processes_do_their_work(
    factory: Factory,
    bouncer: PgBouncer,
    redis: Redis,
    redis_url: str,
    events: Callable[[], list[dict[str, Any]]],
    tmp_path: Path,
) -> None:
    told: set[tuple[str, str]] = set()

    def hears(member: str, kind: str) -> bool:
        told.update((event["targetUserId"], event["type"].removeprefix("after_hours:")) for event in events())
        return (member, kind) in told

    factory.execute(f"ALTER DATABASE {bouncer.name} SET after_hours.minute_seconds = 1")
    minute = {"AFTER_HOURS_MINUTE_SECONDS": "1"}
    with Processes(tmp_path, environ(bouncer.url, redis_url, DATABASE_PREPARE="false", **minute)) as run:
        port = free_port()
        web, url = run.web()
        live = run("live", LIVE_PORT=str(port))
        processes = web, live, run("worker"), run("scheduler")
        eventually(lambda: live.answers(f"http://127.0.0.1:{port}/readyz"))
        eventually(
            lambda: Job.exists("after-hours-reconcile", redis) and Job.fetch("after-hours-reconcile", redis).is_finished
        )
        over, one, other = (factory.member() for _ in range(3))
        factory.session(over, left=-1)
        with redis.pipeline() as trip:
            arm_timer(trip, TIMERS.at(1))
            trip.execute()
        body = json.dumps({"duration": 15, **PLACE}).encode()
        for member in (one, other):
            headers = {**bearer(member), "Content-Type": "application/json"}
            with urlopen(Request(f"{url}/start", body, headers), timeout=60) as answer:
                assert answer.status == 201
        eventually(lambda: hears(over, "session_expired"))
        eventually(lambda: hears(one, "match") and hears(other, "match"))
        for process in processes:
            assert '"level": "error"' not in process.output()
            process.terminate()
        assert [process.exit_code() for process in processes] == [0] * 4
    assert factory.has_ended(over)
    assert left_behind(bouncer) == []


def test_the_schema_is_upgraded_past_it(app: Flask, client: FlaskClient, factory: Factory, database_url: str) -> None:
    with create_app(make_settings(database_url, "redis://localhost")).app_context():
        downgrade(revision="-1")
        assert client.get("/readyz").json["schema"] == "behind"
        upgrade()
        db.engine.dispose()
    assert client.get("/readyz").json["schema"] == "ok"
    assert start(client, factory.member()).status_code == 201


@in_transaction_mode
def test_who_waits_too_long_for_a_connection_is_answered(
    client: FlaskClient, factory: Factory, bouncer: PgBouncer
) -> None:
    member = factory.member()
    with taken(bouncer):
        assert status(client, member).status_code == 503
    assert status(client, member).status_code == 200


def test_while_it_is_away_members_are_answered_503(client: FlaskClient, factory: Factory, bouncer: PgBouncer) -> None:
    member = factory.member()
    assert start(client, member).status_code == 201
    bouncer.stop()
    assert [status(client, member).status_code, end(client, member).status_code] == [503, 503]
    bouncer.start()
    assert [status(client, member).status_code, end(client, member).status_code] == [200, 200]


def test_a_server_that_ends_its_connections_costs_who_was_writing_an_answer(
    client: FlaskClient, factory: Factory, bouncer: PgBouncer, database_url: str
) -> None:
    member = factory.member()
    with (
        contextlib.closing(psycopg2.connect(database_url)) as connection,
        connection.cursor() as cursor,
        ThreadPoolExecutor(1) as thread,
    ):
        cursor.execute("LOCK TABLE after_hours_sessions IN SHARE MODE")
        answer = thread.submit(start, client, member)
        eventually(lambda: factory.waiting() == 1)
        factory.execute(
            """SELECT pg_terminate_backend(pid) FROM pg_stat_activity
            WHERE datname = current_database() AND pid NOT IN (pg_backend_pid(), %s)""",
            connection.info.backend_pid,
        )
        assert answer.result(60).status_code == 503
    assert start(client, member).status_code == 201


@in_transaction_mode
def test_what_pgbouncer_heard_of_a_server_before_its_promotion_is_not_believed(
    client: FlaskClient, factory: Factory, bouncer: PgBouncer
) -> None:
    member = factory.member()
    factory.execute(f"ALTER DATABASE {bouncer.name} SET default_transaction_read_only = on")
    bouncer.stop()
    bouncer.start()
    assert status(client, member).status_code == 503
    factory.execute("SET default_transaction_read_only = off")
    factory.execute(f"ALTER DATABASE {bouncer.name} RESET default_transaction_read_only")
    factory.execute(
        """SELECT pg_terminate_backend(pid) FROM pg_stat_activity
        WHERE datname = current_database() AND pid <> pg_backend_pid()"""
    )
    eventually(lambda: status(client, member).status_code == 200)

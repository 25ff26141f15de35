"""What a moment without PostgreSQL or Redis costs a request, a worker, a scheduler."""

import re
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import psycopg2
import pytest
from flask import Flask, g
from psycopg2.extensions import TRANSACTION_STATUS_IDLE
from redis import Redis
from rq.job import Job
from sqlalchemy import Integer, bindparam, cast, column, insert, literal_column, select, table, text
from sqlalchemy.exc import DBAPIError

from afterhours_service.jobs.jobs import TIMERS_QUEUE
from afterhours_service.jobs.scheduler import Scheduler
from afterhours_service.jobs.timers import SCHEDULED, Timer, arm_timer, disarm_timer
from afterhours_service.jobs.worker import Worker
from afterhours_service.sessions import queries
from afterhours_service.stores import statements
from afterhours_service.stores.connection import cursor, release_connection, transaction
from afterhours_service.stores.database import db
from afterhours_service.stores.host import User
from afterhours_service.stores.statements import Statement
from tests.factories import Factory, bearer
from tests.wire import Wire

_N = cast(bindparam("n"), Integer)
ONE: Statement[Any] = Statement(select(literal_column("1")))
QUOTIENT: Statement[Any] = Statement(select(bindparam("n").op("/")(_N).label("quotient")))
NEXT: Statement[Any] = Statement(select((_N + literal_column("1")).label("next")))

TIMER = Timer("session-timer-1", 1, time.sleep, (0,))


def test_an_answer_outlives_the_connection_that_it_was_read_from(app: Flask, factory: Factory) -> None:
    @app.after_request
    def cut(response: object) -> object:
        factory.execute(
            """SELECT pg_terminate_backend(pid) FROM pg_stat_activity
               WHERE datname = current_database() AND application_name = 'after-hours'"""
        )
        return response

    member, client = factory.member(), app.test_client()
    for _ in range(2):
        assert client.get("/api/after-hours/session", headers=bearer(member)).status_code == 200


def test_a_connection_that_only_its_error_tells_of_is_not_used_again(app: Flask) -> None:
    with app.app_context():
        with cursor() as opened:
            broken = opened.connection
        with pytest.raises(DBAPIError) as caught, cursor():
            raise psycopg2.OperationalError("SSL error: decryption failed or bad record mac")
        assert caught.value.connection_invalidated
        assert broken.closed
        assert ONE.all() == [(1,)]


def test_a_connection_comes_back_to_the_pool_as_it_was(app: Flask) -> None:
    with app.app_context():
        with pytest.raises(DBAPIError) as caught, cursor() as opened:
            opened.execute("BEGIN; SELECT 1 / 0")
        assert not caught.value.connection_invalidated
        assert ONE.all() == [(1,)]
        driver = g.connection.dbapi_connection
        release_connection()
        release_connection()  # once is enough
        assert (driver.autocommit, driver.get_transaction_status()) == (False, TRANSACTION_STATUS_IDLE)
        assert db.engine.pool.checkedout() == 0  # type: ignore[attr-defined]


def test_a_connection_prepares_each_statement_once(wire: Wire, make_app: Callable[..., Flask]) -> None:
    with make_app(database_url=wire.url).app_context():
        ONE.all()  # opens the connection, which asks a few things of its own
        wire.queries.clear()
        for numerator in (1, 2):
            assert QUOTIENT.all(n=numerator) == [(1,)]
        [prepare, first, second] = wire.queries
        name = prepare.split()[1]
        assert prepare.strip() == f"PREPARE {name} AS SELECT $1 / CAST($1 AS INTEGER) AS quotient"
        assert [first.strip(), second.strip()] == [f"EXECUTE {name} (1)", f"EXECUTE {name} (2)"]

        with pytest.raises(DBAPIError):
            QUOTIENT.all(n=0)
        assert QUOTIENT.all(n=3) == [(1,)]
        assert [query.split()[0] for query in wire.queries[3:]] == ["EXECUTE", "EXECUTE"]

        with transaction():
            NEXT.all(n=6)
        assert NEXT.all(n=6) == [(7,)]  # a plan outlives the transaction it was made in
        assert [query.split()[0] for query in wire.queries[5:]] == ["BEGIN;", "EXECUTE", "COMMIT", "EXECUTE"]

        g.connection.dbapi_connection.close()  # and the next connection knows nothing yet
        assert QUOTIENT.all(n=4) == [(1,)]
        assert [query.split()[0] for query in wire.queries[-2:]] == ["PREPARE", "EXECUTE"]


def test_a_transaction_that_the_server_rolls_back_does_not_pass_for_committed(app: Flask, factory: Factory) -> None:
    """After an error that somebody caught, PostgreSQL answers COMMIT by a rollback, and without an error."""
    writes: Statement[Any] = Statement(insert(User).values(id="m", provider="test"))

    def write_and_catch() -> None:
        with transaction():
            writes.run()
            with suppress(DBAPIError), transaction():
                QUOTIENT.all(n=0)

    with app.app_context():
        with pytest.raises(DBAPIError, match="rolled back"):
            write_and_catch()
        assert NEXT.all(n=1) == [(2,)]  # the connection can still be used
    assert factory.count("users") == 0


def test_what_writes_is_not_tried_again_when_its_connection_is_lost(app: Flask, factory: Factory) -> None:
    """It may have been done."""
    writes = Statement[Any](
        select(literal_column("1")).add_cte(insert(User).values(id="m", provider="test").returning(User.id).cte())
    )
    with app.app_context():
        assert ONE.all() == [(1,)]
        g.connection.dbapi_connection.close()
        assert ONE.all() == [(1,)]
        g.connection.dbapi_connection.close()
        with pytest.raises(DBAPIError) as caught:
            writes.all()
        assert caught.value.connection_invalidated
        assert factory.count("users") == 0
        assert writes.all() == [(1,)]
    assert factory.count("users") == 1


@pytest.mark.parametrize(
    "disagree",
    ["ALTER TABLE thing ALTER name TYPE text", "DEALLOCATE ALL"],
    ids=["a column's type changed", "somebody forgot the plans"],
)
def test_a_plan_that_no_longer_holds_costs_its_connection_and_no_more(
    app: Flask, factory: Factory, disagree: str
) -> None:
    factory.execute("CREATE TABLE thing (name varchar(9))")
    thing = table("thing", column("name"))
    found = select(thing.c.name).where(thing.c.name == bindparam("given"))
    read = Statement[Any](found)
    run = Statement[Any](text(str(found)))  # which may write, for all that is known
    with app.app_context():
        for statement in (run, read):
            assert statement.all(given="a") == []
            with cursor() as opened:
                opened.execute(disagree)
            if statement is run:
                with pytest.raises(DBAPIError) as caught:
                    statement.all(given="a")
                assert caught.value.connection_invalidated
            assert statement.all(given="a") == []
            factory.execute("ALTER TABLE thing ALTER name TYPE varchar(9)")


def test_a_name_that_the_server_knows_already_costs_its_connection_and_no_more(app: Flask) -> None:
    with app.app_context():
        NEXT.all(n=1)
        g.connection.info["after_hours_prepared"].clear()  # as if cut short between the statement and the note
        assert NEXT.all(n=1) == [(2,)]


def test_a_plan_from_an_empty_table_is_given_up(app: Flask, factory: Factory, monkeypatch: pytest.MonkeyPatch) -> None:
    def index() -> str:
        with cursor() as opened:
            [call] = [each for each in g.connection.info["after_hours_prepared"] if each.count("%") == 1]
            opened.execute(f"EXPLAIN {call}", {"member_id": "m7"})
            [found] = re.findall(r"idx_\w+", str(opened.fetchall()))
            return str(found)

    factory.execute("ALTER TABLE after_hours_sessions SET (autovacuum_enabled = false)")  # which would analyze it
    with app.app_context():
        for _ in range(6):  # from here on the plan is the same for any member
            assert queries.active("m7") is None
        factory.execute(
            "INSERT INTO users (id, provider) SELECT 'm' || n, 'test' FROM generate_series(1, 5000) AS n;"
            "INSERT INTO after_hours_sessions (user_id, expires_at, fuzzed_latitude, fuzzed_longitude)"
            " SELECT id, now() + interval '1 hour', 1, 1 FROM users",
        )
        assert queries.active("m7")
        assert index() == "idx_after_hours_sessions_expires"  # reads everybody's
        monkeypatch.setattr(statements, "PLANS_LAST", 0)
        assert queries.active("m7")
        assert index() == "idx_after_hours_sessions_active_user"


def test_where_connections_are_shared_nothing_is_prepared(wire: Wire, make_app: Callable[..., Flask]) -> None:
    with make_app(database_url=wire.url, database_prepare=False).app_context():
        assert NEXT.all(n=1) == [(2,)]
    assert wire.queries[-1].strip() == "SELECT CAST(1 AS INTEGER) + 1 AS next"


def test_a_session_goes_its_way_where_connections_are_shared(make_app: Callable[..., Flask], factory: Factory) -> None:
    client, headers = make_app(database_prepare=False).test_client(), bearer(factory.member())
    body = {"duration": 15, "latitude": 52.52, "longitude": 13.405, "deviceFingerprint": {"deviceId": "d"}}
    for method, path, json, status in (
        ("POST", "session/start", body, 201),
        ("POST", "session/extend", {"additionalMinutes": 15}, 200),
        ("GET", "session", None, 200),
        ("GET", "nearby", None, 200),
        ("GET", "nearby/count", None, 200),
        ("POST", "session/end", None, 200),
    ):
        response = client.open(f"/api/after-hours/{path}", method=method, json=json, headers=headers)
        assert response.status_code == status


def test_a_timer_that_was_handed_over_is_not_taken_from_its_worker(redis: Redis) -> None:
    pipeline = redis.pipeline()
    arm_timer(pipeline, TIMER)
    pipeline.execute()
    Scheduler(redis, ()).tick()
    disarm_timer(pipeline, TIMER.id)
    pipeline.execute()
    assert redis.exists(Job.key_for(TIMER.id))


def test_a_disarmed_timer_leaves_nothing_behind(redis: Redis) -> None:
    pipeline = redis.pipeline()
    arm_timer(pipeline, TIMER._replace(at=int(time.time()) + 60))
    disarm_timer(pipeline, TIMER.id)
    pipeline.execute()
    assert not redis.keys()


def test_unreadable_jobs_stop_neither_scheduler_nor_worker(redis: Redis) -> None:
    redis.hset("rq:job:session-timer-1", mapping={"data": b"\x80garbage", "created_at": "yesterday"})
    redis.set("rq:job:session-timer-2", "not a hash")
    redis.zadd(SCHEDULED, {"session-timer-1": 0, "session-timer-2": 0, "session-timer-3": 0})
    pipeline = redis.pipeline()
    arm_timer(pipeline, TIMER)
    pipeline.execute()
    Scheduler(redis, ()).tick()
    assert redis.zcard(SCHEDULED) == 0

    redis.hset("rq:job:garbage", mapping={"data": b"\x80garbage", "created_at": "yesterday"})
    redis.set("rq:job:string", "not a hash")
    Job.create("afterhours_service.sessions.jobs.gone", connection=redis, id="gone", origin=TIMERS_QUEUE).save()
    redis.lpush(f"rq:queue:{TIMERS_QUEUE}", "garbage", "string", "nothing", "gone")
    for _ in range(4):  # each unreadable one ends a round, after which `run_worker` begins another
        Worker([TIMERS_QUEUE], connection=redis).work(burst=True)
    assert not redis.exists(Job.key_for(TIMER.id))  # it was done
    assert redis.llen(f"rq:queue:{TIMERS_QUEUE}") == 0

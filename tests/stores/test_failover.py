"""Servers that are there and do not serve: a Redis that became a replica, a PostgreSQL that takes no writes."""

import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from flask import Flask
from flask.testing import FlaskClient
from redis import Redis
from redis.exceptions import RedisError
from rq.job import Job
from sqlalchemy import text

from afterhours_service.config import Settings
from afterhours_service.jobs import worker
from afterhours_service.jobs.events import CHANNEL
from afterhours_service.jobs.scheduler import LEASE
from afterhours_service.sessions import service
from afterhours_service.stores.database import db
from afterhours_service.stores.redis import is_away, is_redis_away
from afterhours_service.stores.statements import Statement
from tests.client import API, start
from tests.factories import Factory, bearer, scheduled
from tests.outages import OwnValkey
from tests.processes import Processes, environ
from tests.stopwatch import eventually


class TestRedis:
    """A name, which is a link to a socket, and two servers that it may lead to."""

    @pytest.fixture
    def old(self) -> Iterator[OwnValkey]:
        yield from self.running("old")

    @pytest.fixture
    def new(self) -> Iterator[OwnValkey]:
        yield from self.running("new")

    def running(self, name: str) -> Iterator[OwnValkey]:
        server = OwnValkey(Path(os.environ["TEST_FOLDER"]) / f"{name}-{os.getpid()}")
        server.start()
        yield server
        server.stop()

    @pytest.fixture
    def name(self, old: OwnValkey, tmp_path: Path) -> Path:
        path = tmp_path / "redis.sock"
        path.symlink_to(old.path)
        return path

    @pytest.fixture
    def redis_url(self, name: Path) -> str:
        return f"unix://{name}?db=0"

    @pytest.fixture
    def fail_over(self, name: Path, old: OwnValkey, new: OwnValkey) -> Callable[[], Redis]:
        """Return what moves the name to the new server, lets the old one live on as a replica; a client of the new."""

        def fail_over() -> Redis:
            with Redis.from_url(old.url) as client:
                client.replicaof("127.0.0.1", 1)
            moved = name.with_suffix(".new")
            moved.symlink_to(new.path)
            moved.replace(name)
            return Redis.from_url(new.url)

        return fail_over

    @pytest.fixture
    def impatient(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(worker, "RECONNECT_SECONDS", 0.05)

    @pytest.mark.usefixtures("impatient")
    def test_requests_find_the_new_primary(
        self, make_app: Callable[..., Flask], factory: Factory, fail_over: Callable[[], Redis]
    ) -> None:
        app = make_app()
        client = app.test_client()
        first, second, third = (factory.member() for _ in "123")
        start(client, first)
        with fail_over() as new:
            assert start(client, second).status_code == 201
            with app.app_context():
                eventually(lambda: not is_redis_away())
            start(client, third)
            assert len(scheduled(new)) == 3
            assert client.get("/readyz").json["redis"] == "ok"

    def test_expiries_that_only_a_replica_heard_are_not_taken_for_told(
        self, make_app: Callable[..., Flask], factory: Factory, redis: Redis
    ) -> None:
        factory.session(factory.member(), left=-5)
        redis.replicaof("127.0.0.1", 1)
        with make_app().app_context():
            service.do_what_is_due()
            assert is_redis_away()
        assert factory.count("after_hours_untold") == 1

    @pytest.mark.parametrize("stale", ["yes", "no"])
    def test_readiness_says_that_a_replica_does_not_serve(
        self, make_app: Callable[..., Flask], stale: str, redis: Redis
    ) -> None:
        redis.config_set("replica-serve-stale-data", stale)
        redis.replicaof("127.0.0.1", 1)
        app = make_app()
        answer = app.test_client().get("/readyz")
        found = answer.json or {}
        assert (answer.status_code, found["status"], found["redis"]) == (200, "degraded", "read-only")
        with app.app_context():
            assert is_redis_away()  # so that no request need find out

    @pytest.mark.slow
    @pytest.mark.xdist_group("processes")
    def test_worker_and_scheduler_find_the_new_primary(
        self,
        old: OwnValkey,
        redis_url: str,
        fail_over: Callable[[], Redis],
        factory: Factory,
        database_url: str,
        tmp_path: Path,
    ) -> None:
        settings = environ(database_url, redis_url, AFTER_HOURS_MINUTE_SECONDS="1")
        with Processes(tmp_path, settings) as run:
            worker = run("worker")
            run("scheduler")
            with Redis.from_url(old.url) as client:
                eventually(lambda: Job.exists("after-hours-reconcile", client) and client.scard("rq:workers"))
            member = factory.member()
            with fail_over() as new, new.pubsub() as events:
                events.subscribe(CHANNEL)
                factory.session(member, left=-5)
                eventually(lambda: new.exists(LEASE) and new.scard("rq:workers"))
                eventually(lambda: factory.has_ended(member))
                message = eventually(lambda: events.get_message(ignore_subscribe_messages=True, timeout=1))
            assert json.loads(message["data"])["targetUserId"] == member
            assert worker.output().count("redis away") <= 3  # it did not ask the old one until that hung up


@pytest.mark.parametrize(
    ("answer", "away"),
    [
        ("READONLY You can't write against a read only replica.", True),
        ("MASTERDOWN Link with MASTER is down and replica-serve-stale-data is set to 'no'.", True),
        ("LOADING Redis is loading the dataset in memory", True),
        ("NOREPLICAS Not enough good replicas to write.", True),
        ("UNBLOCKED force unblock from blocking operation, instance state changed (master -> replica?)", True),
        ("ERR Error running script (call to f_0): @user_script:1: -READONLY You can't write against a replica.", True),
        ("NOSCRIPT No matching script.", False),
        ("NOPERM User x has no permissions to run the 'publish' command", False),
        ("OOM command not allowed when used memory > 'maxmemory'.", False),
        ("WRONGTYPE Operation against a key holding the wrong kind of value", False),
    ],
)
def test_what_redis_answers_tells_whether_it_serves(answer: str, away: bool) -> None:
    from redis._parsers.base import BaseParser

    error = BaseParser.parse_error(answer)  # type: ignore[no-untyped-call]
    assert isinstance(error, RedisError)
    assert is_away(error) is away


@pytest.mark.parametrize(
    ("rules", "said"),
    [
        ("-publish", "refuses PUBLISH (NOPERM)"),
        ("resetchannels", "refuses PUBLISH (NOPERM)"),
        ("-eval -set", "refuses EVAL (NOPERM), SET (NOPERM)"),
        ("resetkeys %R~*", "refuses EVAL (NOPERM), SET (NOPERM), ZADD (NOPERM)"),
        ("-multi", "refuses MULTI (NOPERM)"),
    ],
)
def test_readiness_names_what_redis_would_refuse_this_user(
    make_app: Callable[..., Flask],
    redis: Redis,
    redis_url: str,
    events: Callable[[], list[Any]],
    rules: str,
    said: str,
) -> None:
    redis.execute_command("ACL", "SETUSER", "limited", "reset", "on", ">pw", "~*", "&*", "+@all", *rules.split())  # type: ignore[no-untyped-call]
    try:
        client = make_app(redis_url=redis_url.replace("unix://", "unix://limited:pw@")).test_client()
        assert (client.get("/readyz").json or {})["redis"] == said
        assert redis.keys("*") == []
        assert events() == []
    finally:
        redis.execute_command("ACL", "DELUSER", "limited")  # type: ignore[no-untyped-call]


def test_readiness_says_that_redis_is_full(app: Flask, redis: Redis) -> None:
    redis.config_set("maxmemory", 1)
    redis.config_set("maxmemory-policy", "noeviction")
    try:
        assert (app.test_client().get("/readyz").json or {})["redis"] == "refuses SET (OOM), ZADD (OOM)"
    finally:
        redis.config_set("maxmemory", 0)


READ_ONLY = "ALTER DATABASE {} SET default_transaction_read_only = {}"


class TestPostgreSQL:
    """A database that takes no writes for a while."""

    @pytest.fixture
    def read_only(self, factory: Factory) -> Callable[[str], None]:
        """Return what makes the database read-only (on) or not (off), for connections that begin from now on."""
        [(name,)] = factory.execute("SELECT current_database()")

        def switch(state: str) -> None:
            factory.execute(READ_ONLY.format(name, state))

        return switch

    def test_a_read_only_database_is_unavailable_and_leaves_nothing_behind(
        self, app: Flask, client: FlaskClient, factory: Factory, read_only: Callable[[str], None]
    ) -> None:
        members = [factory.member() for _ in range(4)]
        read_only("on")
        with app.app_context():
            db.engine.dispose()
        for _ in "12":
            answer = start(client, members[0])
            assert answer.status_code == 503
            assert answer.headers["Retry-After"]
        found = client.get("/readyz")
        assert (found.status_code, (found.json or {})["database"]) == (503, "read-only")
        assert app.test_cli_runner().invoke(args=["after-hours", "check"]).exit_code == 1
        read_only("off")
        assert client.get("/readyz").status_code == 200
        for member in members:
            assert start(client, member).status_code == 201

    @pytest.mark.parametrize("ask", ["start", "preferences", "readyz"], ids=["driver", "session", "readiness"])
    def test_connections_that_became_read_only_are_dropped(
        self, app: Flask, client: FlaskClient, factory: Factory, ask: str
    ) -> None:
        """As when the setting of a running server changes, or PgBouncer leads to another one."""
        member = factory.member()
        with app.app_context():
            drivers = [db.engine.raw_connection() for _ in range(3)]
            for driver in drivers:
                driver.cursor().execute("SET default_transaction_read_only = on")
                driver.commit()
                driver.close()
        request: Callable[[], Any] = {
            "start": lambda: start(client, member),
            "preferences": lambda: client.post(f"{API}/preferences", json={}, headers=bearer(member)),
            "readyz": lambda: client.get("/readyz"),
        }[ask]
        statuses = [request().status_code for _ in "123"]
        assert statuses == [503, *{"start": (201, 409), "preferences": (201, 409), "readyz": (200, 200)}[ask]]

    @pytest.mark.parametrize(
        ("code", "status"),
        [
            *(
                (code, 503)
                for code in ("25006", "57P01", "57P03", "53100", "53300", "08006", "40001", "40P01", "55P03")
            ),
            *((code, 503) for code in ("57014", "58030")),
            *((code, 500) for code in ("42P01", "22012", "54001", "XX000")),
        ],
    )
    def test_the_class_of_an_error_tells_whether_to_try_again(
        self, app: Flask, factory: Factory, code: str, status: int
    ) -> None:
        factory.execute(
            f"""CREATE FUNCTION fail() RETURNS trigger LANGUAGE plpgsql AS
                $$ BEGIN RAISE EXCEPTION 'no' USING ERRCODE = '{code}'; END $$;
                CREATE TRIGGER fail BEFORE INSERT ON after_hours_sessions FOR EACH ROW EXECUTE FUNCTION fail();
                CREATE TRIGGER fail BEFORE INSERT ON after_hours_preferences FOR EACH ROW EXECUTE FUNCTION fail()"""
        )
        app.testing = False
        client, member = app.test_client(), factory.member()
        assert start(client, member).status_code == status
        assert client.post(f"{API}/preferences", json={}, headers=bearer(member)).status_code == status


def show(setting: str) -> Any:
    [(value,)] = Statement[Any](text(f"SHOW {setting}")).all()
    return value


def test_every_connection_has_the_isolation_that_statements_rely_on(
    make_app: Callable[..., Flask], settings: Settings, factory: Factory
) -> None:
    [(name,)] = factory.execute("SELECT current_database()")
    factory.execute(f"ALTER DATABASE {name} SET default_transaction_isolation = serializable")
    app = make_app(database_url=f"{settings.database_url}&options=-c%20default_transaction_isolation%3Dserializable")
    with app.app_context():
        assert show("transaction_isolation") == "read committed"
        with db.engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
            assert connection.execute(db.text("SHOW transaction_isolation")).scalar() == "read committed"


def test_options_of_the_url_are_kept(
    make_app: Callable[..., Flask], settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    ours = {"statement_timeout": "5s", "lock_timeout": "2s", "application_name": "after-hours", "search_path": "app"}

    def shown(url: str) -> dict[str, str]:
        with make_app(database_url=url).app_context():
            return {name: show(name) for name in ours}

    url = f"{settings.database_url}&options=-csearch_path%3Dapp"
    assert shown(url) == ours
    assert shown(f"{url}%20-c%20lock_timeout%3D3s&application_name=x&connect_timeout=9") == ours | {
        "lock_timeout": "3s",
        "application_name": "x",
    }
    monkeypatch.setenv("PGOPTIONS", "-csearch_path=app")
    assert shown(settings.database_url) == ours


def test_a_standby_is_not_connected_to(settings: Settings, make_app: Callable[..., Flask]) -> None:
    url = f"{settings.database_url}&options=-cdefault_transaction_read_only%3Don"
    with make_app(database_url=url).app_context(), pytest.raises(Exception, match="read-only"):
        show("transaction_read_only")
    with make_app(database_url=f"{url}&target_session_attrs=any").app_context():
        assert show("transaction_read_only") == "on"

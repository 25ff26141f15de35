"""What an operator types: `flask after-hours …`."""

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import Result
from flask import Flask
from flask.testing import FlaskClient
from redis import Redis

from afterhours_service.timers import LEASE
from tests.conftest import ROOT
from tests.factories import SECRET, Factory, bearer

Run = Callable[..., Result]


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
    dry, wet, again = run("cleanup", "--dry-run"), run("cleanup"), run("cleanup")
    assert (dry.exit_code, wet.exit_code, again.exit_code) == (0, 0, 0)
    assert counts(dry.output) == counts(wet.output)
    assert counts(wet.output)["overdue sessions"] == counts(wet.output)["sessions"] == 1
    assert set(counts(again.output).values()) == {0}
    assert "would be worked off" in dry.output
    assert "would" not in wet.output


def test_on_a_terminal_a_cleanup_shows_its_progress(
    factory: Factory, database_url: str, redis_url: str, redis: object
) -> None:
    factory.session(factory.member(), left=-8 * 24 * 3600, ended=True)
    reader, terminal = os.openpty()
    done = subprocess.run(
        [Path(sys.executable).parent / "flask", "--app", "afterhours_service", "after-hours", "cleanup"],
        check=False,
        cwd=ROOT,
        env={
            "PATH": os.defpath,
            "DATABASE_URL": database_url,
            "REDIS_URL": redis_url,
            "JWT_SECRET": SECRET,
            "LOCATION_SECRET": SECRET[::-1],
        },
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
    for words in (["sessions", "end", member], ["members", "erase", member]):
        for answer in ("n\n", ""):
            result = runner.invoke(args=["after-hours", *words], input=answer)
            assert (result.exit_code, "Aborted" in result.output) == (1, True)
            assert member in result.output
    assert [str(row.id) for row in factory.sessions(member) if row.ended_at is None] == [session]
    assert runner.invoke(args=["after-hours", "sessions", "end", member], input="y\n").exit_code == 0


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
    run("cleanup")
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
        assert (result.exit_code, result.output) == (1, "Error: Redis is away: ConnectionError\n")


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
    assert json.loads(run("cleanup", "--json").output)["overdue_sessions"] == 1

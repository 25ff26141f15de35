"""What an operator types: `flask after-hours …`."""

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

from tests.conftest import ROOT
from tests.factories import SECRET, Factory

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
    result = run("sessions", "end", member)
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
        result = run("sessions", "end", user)
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
            "LOCATION_SECRET": SECRET,
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

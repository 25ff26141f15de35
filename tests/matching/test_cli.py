"""What an operator sees of matching, and can do about it."""

import json
import re
import time
from collections.abc import Callable
from datetime import datetime
from typing import Any

import pytest
from click.testing import Result
from flask import Flask
from flask.testing import FlaskClient

from afterhours_service.matching import rounds
from tests.client import start
from tests.factories import Factory, prefer

Run = Callable[..., Result]


@pytest.fixture
def run(app: Flask) -> Run:
    """Return a function that runs a command of matching."""
    return lambda *words: app.test_cli_runner().invoke(args=["after-hours", "matching", *words])


def shown(run: Run) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(run("status", "--json").output)
    return found


def live(client: FlaskClient, factory: Factory, *, alone: bool = False) -> str:
    """Let a member go live, who fits all, or nobody."""
    member = factory.member()
    if alone:
        prefer(factory, member, min_age=98, max_age=99)
    assert start(client, member).status_code == 201
    return member


def test_where_nobody_is_live_there_is_nothing_to_tell(run: Run) -> None:
    assert shown(run) == {
        "enabled": True,
        "searching": 0,
        "waiting": 0,
        "median_seconds": 0,
        "longest_seconds": 0,
        "matches": 0,
        "due": 0,
        "late": 0,
        "matched_share": None,
        "last_round": None,
        "last_round_claimed": None,
        "last_round_matched": None,
        "last_round_seconds": None,
        "last_look": None,
    }
    assert re.search(r"^last round +-$", run("status").output, re.MULTILINE)


def test_who_waits_for_how_long_and_who_is_matched(run: Run, app: Flask, client: FlaskClient, factory: Factory) -> None:
    pair = [live(client, factory) for _ in range(2)]
    alone = [live(client, factory, alone=True) for _ in range(3)]
    over = live(client, factory, alone=True)
    factory.execute("UPDATE after_hours_sessions SET started_at = now() - interval '1 hour' WHERE user_id = %s", over)
    factory.execute("UPDATE after_hours_sessions SET expires_at = now() WHERE user_id = %s", over)
    factory.execute("UPDATE after_hours_search SET look_at = now()")
    with app.app_context():
        assert rounds.match_due().matched == 2
    for member, seconds in zip([*alone, *pair], (10, 20, 600, 7000, 7000), strict=True):
        factory.execute(
            "UPDATE after_hours_search SET since = now() - %s * interval '1 second' WHERE user_id = %s", seconds, member
        )
    found = shown(run)
    assert (found["searching"], found["waiting"], found["matches"], found["matched_share"]) == (5, 3, 1, 0.4)
    assert 20 <= found["median_seconds"] < 80
    assert 600 <= found["longest_seconds"] < 660
    assert (found["last_round_claimed"], found["last_round_matched"]) == (6, 2)
    assert 0 < found["last_round_seconds"] < 60
    assert abs(datetime.fromisoformat(found["last_round"]).timestamp() - time.time()) < 60
    facts = run("status").output
    assert re.search(r"^last round claimed +6$", facts, re.MULTILINE)
    assert not any(member in facts for member in [*pair, *alone])


def test_the_last_round_is_not_the_sum_of_all(run: Run, app: Flask, client: FlaskClient, factory: Factory) -> None:
    for claimed in (2, 1):
        for _ in range(claimed):
            live(client, factory)
        factory.execute("UPDATE after_hours_search SET look_at = now() WHERE match_id IS NULL")
        with app.app_context():
            rounds.match_due()
            rounds.match_due()  # nobody is due: no round
        assert shown(run)["last_round_claimed"] == claimed


def test_what_no_worker_does_is_due_and_then_late(run: Run, client: FlaskClient, factory: Factory) -> None:
    pair = [live(client, factory) for _ in range(2)]
    live(client, factory)
    factory.match(factory.sessions(pair[0])[0].id, *pair)
    factory.execute("UPDATE after_hours_matches SET due_at = now() + interval '1 minute'")
    assert (shown(run)["due"], shown(run)["late"]) == (0, 0)
    for seconds, due, late in ((20, 2, 0), (40, 2, 2)):
        factory.execute("UPDATE after_hours_matches SET due_at = now() - %s * interval '1 second'", seconds)
        factory.execute(
            "UPDATE after_hours_search SET look_at = now() - %s * interval '1 second' WHERE match_id IS NULL", seconds
        )
        assert (shown(run)["due"], shown(run)["late"]) == (due, late)


def test_a_look_by_hand_does_what_a_worker_would(
    run: Run, client: FlaskClient, factory: Factory, events: Callable[[], list[dict[str, Any]]]
) -> None:
    pair = {live(client, factory) for _ in range(2)}
    factory.execute("DELETE FROM after_hours_search")
    factory.execute("UPDATE after_hours_sessions SET started_at = started_at - interval '1 minute'")
    done = json.loads(run("look", "--json").output)
    assert done["missing"] == 2
    assert {each["targetUserId"] for each in events() if each["type"] == "after_hours:match"} == pair
    assert shown(run)["last_look"]
    assert re.search(r"^missing +0$", run("look").output, re.MULTILINE)

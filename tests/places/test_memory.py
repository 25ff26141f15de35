"""What the blur remembers: in the database, beside the sessions, for longer than they are kept."""

import contextlib
import random
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import psycopg2
import pytest
from flask import Flask
from flask.testing import FlaskClient

from afterhours_service.cleanup import service as cleanup
from afterhours_service.places.blur import COUNTED_VISITS
from tests.client import end, erase, start, withdraw
from tests.factories import Factory
from tests.stopwatch import eventually

HOME: dict[str, Any] = {"latitude": 52.52, "longitude": 13.405}
METRE = 1 / 111_195  # degrees of latitude


def at(north: float) -> dict[str, Any]:
    """Return a place so many metres north of home."""
    return HOME | {"latitude": HOME["latitude"] + north * METRE}


@pytest.fixture
def visit(client: FlaskClient, factory: Factory) -> Callable[[str, float], tuple[float, float]]:
    """Return what makes a member go live for a moment, metres north of home, and returns where they were shown."""

    def visit(member: str, north: float) -> tuple[float, float]:
        assert start(client, member, **at(north)).status_code == 201
        end(client, member)
        latest = max(factory.sessions(member), key=lambda row: row.started_at)
        return float(latest.fuzzed_latitude), float(latest.fuzzed_longitude)

    return visit


def remembered(factory: Factory, member: str) -> list[int]:
    """Return the visits of each place that is remembered."""
    return [row.visits for row in factory.execute("SELECT visits FROM after_hours_places WHERE user_id = %s", member)]


def test_a_home_is_shown_at_one_point_wherever_else_its_member_goes(
    visit: Callable[[str, float], tuple[float, float]], factory: Factory
) -> None:
    for seed in range(3):
        dice, member = random.Random(seed), factory.member()
        shown = set()
        for _ in range(8):
            shown.add(visit(member, dice.uniform(-25, 25)))
            visit(member, dice.choice([-1, 1]) * dice.uniform(300, 700))  # what is nearer is tried without a database
        assert len(shown) == 1


def test_a_place_is_remembered_for_longer_than_the_session(
    app: Flask, visit: Callable[[str, float], tuple[float, float]], factory: Factory
) -> None:
    member = factory.member()
    first = visit(member, 0)
    factory.execute("UPDATE after_hours_places SET fuzzed_latitude = 52.5201, fuzzed_longitude = 13.4051")
    factory.execute("DELETE FROM after_hours_sessions")
    assert first != visit(member, 40) == (52.5201, 13.4051)


def test_what_is_remembered_is_counted_up_to_a_number(
    visit: Callable[[str, float], tuple[float, float]], factory: Factory
) -> None:
    member = factory.member()
    for _ in range(2):
        visit(member, 0)
    assert remembered(factory, member) == [2]
    factory.execute("UPDATE after_hours_places SET visits = %s", COUNTED_VISITS)
    visit(member, 0)
    assert remembered(factory, member) == [COUNTED_VISITS]
    factory.execute("UPDATE after_hours_places SET fuzzed_latitude = 0")  # out of bounds: the cell's own point again
    visit(member, 0)
    assert remembered(factory, member) == [1]


def test_the_sessions_of_the_release_before_are_not_looked_at(
    visit: Callable[[str, float], tuple[float, float]], factory: Factory
) -> None:
    member = factory.member()
    factory.session(member, left=-900, ended=True)
    factory.execute("UPDATE after_hours_sessions SET fuzzed_latitude = 52.5203, fuzzed_longitude = 13.4053")
    assert visit(member, 0) != (52.5203, 13.4053)


def test_two_starts_at_once_agree(app: Flask, factory: Factory) -> None:
    """One wins, and its place alone is remembered."""
    for _ in range(5):
        member = factory.member()
        clients = [app.test_client(), app.test_client()]
        with ThreadPoolExecutor(2) as pool:
            going = [
                pool.submit(start, client, member, **at(north)) for client, north in zip(clients, (0, 120), strict=True)
            ]
        answers = [future.result().status_code for future in going]
        assert sorted(answers) == [201, 409]
        assert remembered(factory, member) == [1]


def test_a_place_that_another_start_remembers_at_this_moment_is_no_failure(
    app: Flask, client: FlaskClient, factory: Factory, database_url: str
) -> None:
    member = factory.member()
    start(client, member, **HOME)
    end(client, member)
    with (
        contextlib.closing(psycopg2.connect(database_url)) as other,
        other.cursor() as cursor,
        ThreadPoolExecutor(1) as pool,
    ):
        cursor.execute("UPDATE after_hours_places SET visits = 5")
        answer = pool.submit(lambda: start(app.test_client(), member, **HOME).status_code)
        eventually(factory.waiting)
        other.commit()
        assert answer.result() == 201
    assert remembered(factory, member) == [6]


def test_the_nightly_cleanup_forgets_what_was_not_visited_for_the_days_of_the_setting(
    app: Flask, client: FlaskClient, factory: Factory
) -> None:
    member = factory.member()
    start(client, member, **HOME)
    end(client, member)
    for days, kept in ((90, [1]), (1, [])):
        factory.execute("UPDATE after_hours_places SET last_seen = last_seen - %s", days)
        with app.app_context():
            cleanup.run()
        assert remembered(factory, member) == kept


def test_erasure_forgets_at_once_and_withdrawal_does_not(client: FlaskClient, factory: Factory) -> None:
    member = factory.member()
    start(client, member, **HOME)
    withdraw(client, member)
    assert remembered(factory, member) == [1]
    erase(client, member)
    assert remembered(factory, member) == []


def test_a_member_whom_the_host_deletes_is_forgotten(client: FlaskClient, factory: Factory) -> None:
    member = factory.member()
    start(client, member, **HOME)
    factory.execute("DELETE FROM users WHERE id = %s", member)
    assert remembered(factory, member) == []

"""An exact place, planted everywhere it could come in, comes out nowhere."""

import os
import re
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from flask import Flask
from flask.testing import FlaskClient
from redis import Redis

from afterhours_service.places.blur import Point
from tests.client import FINGERPRINT, SESSION, end, start
from tests.factories import Factory, bearer
from tests.stopwatch import eventually

LATITUDE, LONGITUDE = 48.13715926, 11.57535897
PLACE: dict[str, Any] = {"latitude": LATITUDE, "longitude": LONGITUDE}
# The digits, to a decimetre, however they are scaled or written; the blurred point is hundreds of metres away.
TRACE = re.compile(r"48[.,]?137159|11[.,]?575359")
REFUSE = """
    CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RAISE 'refused'; END $$;
    CREATE TRIGGER refuse BEFORE INSERT ON after_hours_sessions FOR EACH ROW EXECUTE FUNCTION refuse()"""


def everything_in(redis: Redis) -> str:
    """Return every key of Redis and its value, compressed ones included, as text."""
    texts = []
    for key in redis.scan_iter():
        texts.append(repr(key))
        texts.append(repr(redis.dump(key)))
        if redis.type(key) == b"hash":
            texts.append(repr(redis.hgetall(key)))
    return "".join(texts)


def test_an_ended_session_has_no_exact_place_whoever_ends_it(client: FlaskClient, factory: Factory) -> None:
    by_member, by_other = factory.member(), factory.member()
    for member in (by_member, by_other):
        assert start(client, member, **PLACE).status_code == 201
        [row] = factory.sessions(member)
        assert (float(row.latitude), float(row.longitude)) == (LATITUDE, LONGITUDE)
    end(client, by_member)
    factory.execute("UPDATE after_hours_sessions SET ended_at = now() WHERE user_id = %s", by_other)
    # The Node service, were it to write a session that has ended already, or to end one and write its place again.
    factory.session(by_other, left=-60, ended=True)
    factory.execute("UPDATE after_hours_sessions SET latitude = 48.13715926 WHERE user_id = %s", by_other)
    rows = factory.sessions(by_member) + factory.sessions(by_other)
    assert [(row.latitude, row.longitude) for row in rows] == [(None, None)] * 3
    assert all(row.fuzzed_latitude is not None for row in rows)


def test_the_database_may_not_hold_the_blurred_place_of_an_old_grid_against_a_member(
    client: FlaskClient, factory: Factory
) -> None:
    member = factory.member()
    factory.session(member, left=-900, ended=True)  # blurred by the Node service, at random
    start(client, member, **PLACE)
    first = factory.sessions(member)[-1]
    factory.travel(3600)
    start(client, member, **PLACE)
    second = factory.sessions(member)[-1]
    assert first.id != second.id
    assert (first.fuzzed_latitude, first.fuzzed_longitude) == (second.fuzzed_latitude, second.fuzzed_longitude)


@pytest.fixture
def postgresql_log() -> Callable[[], str]:
    """Return a function that returns what PostgreSQL has logged since; at its default level."""
    path = Path(os.environ["TEST_FOLDER"]) / "services.log"
    if not path.exists() or "/after-hours-" not in os.environ["TEST_SERVER_URL"]:
        pytest.skip("the server of DATABASE_URL keeps its log elsewhere")
    begin = path.stat().st_size

    def read() -> str:
        with path.open("rb") as file:
            file.seek(begin)
            return file.read().decode(errors="replace")

    return read


def test_no_failure_tells_a_place(
    app: Flask,
    factory: Factory,
    redis: Redis,
    events: Callable[[], list[dict[str, Any]]],
    capfd: pytest.CaptureFixture[str],
    postgresql_log: Callable[[], str],
) -> None:
    app.testing = False  # failures are answered and logged, as in production
    client, member = app.test_client(), factory.member()
    answers = [
        start(client, member, **PLACE | extra).text
        for extra in ({"duration": 16}, {"latitude": 4813.715926}, {"more": LATITUDE}, {})
    ]
    answers.append(start(client, member, **PLACE).text)  # a session is active already
    answers.append(client.post(f"{SESSION}/start", data=f'{{"latitude": {LATITUDE}, ', headers=bearer(member)).text)
    answers.append(client.get(f"/api/after-hours/{LATITUDE}?at={LATITUDE},{LONGITUDE}").text)
    # The statement itself fails: a device cannot be stored, the row is refused, a table is missing.
    for breakage in (
        "DROP TABLE device_fingerprints",
        REFUSE,
        "DROP TABLE after_hours_profiles",
    ):
        factory.execute(breakage)
        answers.append(start(client, factory_member(factory), **PLACE, deviceFingerprint=FINGERPRINT).text)
    assert '"INTERNAL_ERROR"' in answers[-1]
    output = capfd.readouterr()
    # It is the right log, and has the failed statement.
    log: str = eventually(lambda: read if "after_hours_profiles" in (read := postgresql_log()) else "")
    found = {
        "answers": TRACE.findall("".join(answers)),
        "output": TRACE.findall(output.out + output.err),
        "log": TRACE.findall(log),
        "redis": TRACE.findall(everything_in(redis)),
        "events": TRACE.findall(str(events())),
    }
    assert not any(found.values()), found
    assert not solve(log)


def solve(log: str) -> bool:
    """Return whether whoever has the log can find the place, by numbers of it that mask one another."""
    noise = {int(number) for number in re.findall(r"\d{12,19}", log)}
    noise |= {int(part, 16) for part in re.findall(r"[0-9a-f]{12}", log)}
    noise |= {uuid.UUID(found).int >> 80 for found in re.findall(r"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}", log)}
    assert noise
    north, east = round(LATITUDE * 1e8), round(LONGITUDE * 1e8)
    above = 180 * 10**8
    sought = {north, east, north + above, east + above, north ^ east, (north + above) ^ (east + above)}
    return not sought.isdisjoint({0 ^ one for one in noise} | {one ^ other for one in noise for other in noise})


@pytest.mark.parametrize(
    ("breakage", "error", "status"),
    [
        (
            "ALTER TABLE after_hours_places RENAME COLUMN visits TO v",
            r"visits\S* does not exist",
            500,
        ),
        (REFUSE, "refused", 500),
        ("ALTER TABLE device_fingerprints ADD CHECK (device_id = '') NOT VALID", "violates check constraint", 201),
    ],
    ids=["the first statement", "the second", "the third"],
)
def test_no_single_failing_statement_lets_the_place_be_solved_for(
    app: Flask, factory: Factory, postgresql_log: Callable[[], str], breakage: str, error: str, status: int
) -> None:
    """With everything that PostgreSQL may log of it: every statement, parameters whole, who waits for whom."""
    database = factory.execute("SELECT current_database() AS name")[0].name
    for setting in ("log_statement = 'all'", "log_parameter_max_length_on_error = -1", "log_lock_waits = on"):
        factory.execute(f"ALTER DATABASE {database} SET {setting}")
    app.testing = False
    client = app.test_client()
    # Its statements are prepared by now.
    assert start(client, factory.member(), deviceFingerprint=FINGERPRINT).status_code == 201
    factory.execute(breakage)
    member = factory.member()
    assert start(client, member, **PLACE, deviceFingerprint=FINGERPRINT).status_code == status
    eventually(lambda: re.search(rf"ERROR:\s+.*{error}(?s:.*)STATEMENT:", postgresql_log()))
    log = postgresql_log()
    assert member in log
    assert not TRACE.search(log)
    assert not solve(log)


def factory_member(factory: Factory) -> str:
    """Make a member who may go live, whether or not the table of After Hours profiles is still there."""
    return factory.member(profile=bool(factory.execute("SELECT to_regclass('after_hours_profiles') AS t")[0].t))


def test_a_place_prints_without_its_coordinates() -> None:
    place = Point(LATITUDE, LONGITUDE)
    assert not TRACE.search(f"{place} {place!r} {[place]} {ValueError(place)!r}")

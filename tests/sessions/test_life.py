"""A member goes live, extends, ends, and is gone on time."""

import uuid
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from flask import Flask
from flask.testing import FlaskClient
from redis import Redis

from afterhours_service.sessions import service
from tests.client import FINGERPRINT, end, extend, failure, moment, start, status
from tests.factories import PLACE, Factory, scheduled
from tests.wire import Wire


@pytest.mark.parametrize("minutes", [15, 30, 60])
def test_start_answers_the_session(client: FlaskClient, factory: Factory, minutes: int) -> None:
    before = datetime.now(UTC)
    response = start(client, factory.member(), minutes)
    assert response.status_code == 201
    assert response.is_json
    assert response.json.keys() == {"success", "session"}
    assert response.json["success"] is True
    session = response.json["session"]
    assert session.keys() == {"id", "startedAt", "expiresAt", "durationMinutes"}
    assert uuid.UUID(session["id"])
    assert session["durationMinutes"] == minutes
    assert abs(moment(session["startedAt"]) - before) < timedelta(seconds=5)
    assert session["expiresAt"].endswith(".000Z")


def test_start_stores_whole_seconds_never_short(client: FlaskClient, factory: Factory) -> None:
    member = factory.member()
    start(client, member, 30)
    [row] = factory.sessions(member)
    assert row.expires_at.microsecond == 0
    assert 1800 <= (row.expires_at - row.started_at).total_seconds() < 1801


def test_start_stores_the_place_and_another_one_to_be_shown(client: FlaskClient, factory: Factory) -> None:
    member = factory.member()
    start(client, member)
    [row] = factory.sessions(member)
    assert (float(row.latitude), float(row.longitude)) == (PLACE["latitude"], PLACE["longitude"])
    assert abs(row.fuzzed_latitude - row.latitude) < 0.006
    assert abs(row.fuzzed_longitude - row.longitude) < 0.009
    assert row.ended_at is None


@pytest.mark.parametrize(("latitude", "longitude"), [(90, 180), (-90, -180), (0, 180), (89.9999, 0), (-0.0, 1e-320)])
def test_a_member_may_be_anywhere(client: FlaskClient, factory: Factory, latitude: float, longitude: float) -> None:
    assert start(client, factory.member(), latitude=latitude, longitude=longitude).status_code == 201


def test_a_second_start_is_answered_with_the_first_session(client: FlaskClient, factory: Factory) -> None:
    member = factory.member()
    first = start(client, member, 30).json["session"]
    response = start(client, member, 60)
    assert failure(response) == (409, "SESSION_ALREADY_ACTIVE")
    session = response.json["session"]
    assert session.keys() == {"id", "startedAt", "expiresAt", "remainingSeconds"}
    assert {name: session[name] for name in ("id", "startedAt", "expiresAt")} == {
        name: first[name] for name in ("id", "startedAt", "expiresAt")
    }
    assert 1790 <= session["remainingSeconds"] <= 1800
    assert len(factory.sessions(member)) == 1


def test_members_do_not_see_each_other(client: FlaskClient, factory: Factory) -> None:
    one, other = factory.member(), factory.member()
    start(client, one)
    assert status(client, other).json["session"] is None
    assert failure(end(client, other)) == (404, "NO_ACTIVE_SESSION")
    assert start(client, other).status_code == 201


def test_a_start_needs_a_profile(client: FlaskClient, factory: Factory) -> None:
    member = factory.member(profile=False)
    assert failure(start(client, member)) == (400, "PROFILE_REQUIRED")
    assert factory.sessions(member) == []


def test_status_counts_down(client: FlaskClient, factory: Factory) -> None:
    member = factory.member()
    assert status(client, member).json == {"success": True, "active": False, "session": None}
    started = start(client, member).json["session"]
    factory.travel(300)
    response = status(client, member)
    assert (response.status_code, response.json["success"], response.json["active"]) == (200, True, True)
    session = response.json["session"]
    assert session.keys() == {"id", "startedAt", "expiresAt", "remainingSeconds"}
    assert session["id"] == started["id"]
    assert moment(started["expiresAt"]) - moment(session["expiresAt"]) == timedelta(seconds=300)
    assert 590 <= session["remainingSeconds"] <= 600


def test_end_ends_now(client: FlaskClient, factory: Factory) -> None:
    member = factory.member()
    started = start(client, member).json["session"]
    response = end(client, member)
    assert response.status_code == 200
    assert response.json.keys() == {"success", "message", "session"}
    assert response.json["success"] is True
    assert response.json["message"]
    session = response.json["session"]
    assert session.keys() == {"id", "endedAt"}
    assert session["id"] == started["id"]
    assert moment(started["startedAt"]) <= moment(session["endedAt"]) < moment(started["expiresAt"])
    assert status(client, member).json["active"] is False
    assert failure(end(client, member)) == (404, "NO_ACTIVE_SESSION")


@pytest.mark.parametrize(
    "how",
    [
        {"data": b"", "content_type": "application/json"},
        {"data": b"{nonsense", "content_type": "application/json"},
        {"json": {"anything": "goes"}},
        {"data": b"\xff" * 100_000},
        {"data": {"a": "form"}},
    ],
)
def test_end_does_not_mind_a_body(client: FlaskClient, factory: Factory, how: dict[str, Any]) -> None:
    member = factory.member()
    start(client, member)
    assert end(client, member, **how).status_code == 200


def test_there_is_no_cooldown(client: FlaskClient, factory: Factory) -> None:
    member = factory.member()
    for _ in range(3):
        assert start(client, member).status_code == 201
        assert end(client, member).status_code == 200
    assert len(factory.sessions(member)) == 3


def test_extensions_add_up_without_limit(client: FlaskClient, factory: Factory) -> None:
    member = factory.member()
    started = start(client, member).json["session"]
    expiry = moment(started["expiresAt"])
    for minutes in (15, 30, 60, 60, 60, 60, 60, 60):
        response = extend(client, member, minutes)
        expiry += timedelta(minutes=minutes)
        assert response.status_code == 200
        assert response.json.keys() == {"success", "session"}
        session = response.json["session"]
        assert session.keys() == {"id", "expiresAt", "extendedByMinutes"}
        assert (session["id"], session["extendedByMinutes"]) == (started["id"], minutes)
        assert moment(session["expiresAt"]) == expiry
    assert status(client, member).json["session"]["expiresAt"] == session["expiresAt"]


def test_an_extension_with_a_key_that_is_repeated_extends_once_and_answers_the_same(
    client: FlaskClient, factory: Factory, events: Callable[[], list[dict[str, Any]]], redis: Redis
) -> None:
    member = factory.member()
    start(client, member)
    first = extend(client, member, 30, "k-1")
    timers = scheduled(redis)
    events()
    for minutes in (30, 60):  # the key tells which extension it is, not the body
        assert extend(client, member, minutes, "k-1").json == first.json
    assert (events(), scheduled(redis)) == ([], timers)
    # Without a key, or with another one, it is another extension.
    expiry = moment(first.json["session"]["expiresAt"])
    bare = extend(client, member)
    assert moment(bare.json["session"]["expiresAt"]) == expiry + timedelta(minutes=15)
    assert extend(client, member, 30, "k-1").json == first.json
    other = extend(client, member, 60, "k-2")
    assert moment(other.json["session"]["expiresAt"]) == expiry + timedelta(minutes=75)
    assert extend(client, member, 60, "k-2").json == other.json
    assert len(events()) == 2
    [row] = factory.sessions(member)
    assert row.expires_at == expiry + timedelta(minutes=75)


def test_a_new_session_knows_no_key_of_the_old_one(client: FlaskClient, factory: Factory) -> None:
    member, other = factory.member(), factory.member()
    start(client, member)
    extend(client, member, key="k")
    end(client, member)
    assert failure(extend(client, member, key="k")) == (404, "NO_ACTIVE_SESSION")
    started = start(client, member).json["session"]
    extended = extend(client, member, key="k").json["session"]
    assert moment(extended["expiresAt"]) - moment(started["expiresAt"]) == timedelta(minutes=15)
    start(client, other)
    assert extend(client, other, key="k").status_code == 200  # nor does another member's


def test_an_adopted_expiry_with_a_fraction_is_extended_to_a_whole_second(client: FlaskClient, factory: Factory) -> None:
    member = factory.member()
    factory.session(member)
    factory.execute("UPDATE after_hours_sessions SET expires_at = expires_at + interval '0.25 seconds'")
    [before] = factory.sessions(member)
    extend(client, member)
    [after] = factory.sessions(member)
    assert after.expires_at - before.expires_at == timedelta(minutes=15, seconds=0.75)


def test_only_an_active_session_is_extended(client: FlaskClient, factory: Factory) -> None:
    assert failure(extend(client, factory.member())) == (404, "NO_ACTIVE_SESSION")


def test_an_overdue_session_does_not_count(client: FlaskClient, factory: Factory) -> None:
    member = factory.member()
    start(client, member)
    factory.travel(901)
    assert status(client, member).json == {"success": True, "active": False, "session": None}
    assert failure(extend(client, member)) == (404, "NO_ACTIVE_SESSION")
    assert failure(end(client, member)) == (404, "NO_ACTIVE_SESSION")
    [row] = factory.sessions(member)
    assert row.ended_at is None


def test_an_overdue_session_blocks_no_start_and_ended_at_its_expiry(
    app: Flask, client: FlaskClient, factory: Factory, events: Callable[[], list[dict[str, Any]]]
) -> None:
    member = factory.member()
    overdue = factory.session(member, left=-3600)
    assert start(client, member).status_code == 201
    old, new = factory.sessions(member)
    assert (str(old.id), old.ended_at) == (overdue, old.expires_at)
    assert new.ended_at is None
    with app.app_context():
        service.do_what_is_due()
    assert [event["type"] for event in events()] == ["after_hours:session_expired", "after_hours:session_started"]


def test_a_refused_start_leaves_the_overdue_session_to_be_announced(
    app: Flask, client: FlaskClient, factory: Factory, events: Callable[[], list[dict[str, Any]]]
) -> None:
    member = factory.member(profile=False)
    factory.session(member, left=-60)
    assert failure(start(client, member)) == (400, "PROFILE_REQUIRED")
    with app.app_context():
        service.do_what_is_due()
    assert [event["type"] for event in events()] == ["after_hours:session_expired"]


def test_a_shorter_minute_makes_shorter_sessions(make_app: Callable[..., Flask], factory: Factory) -> None:
    client, member = make_app(minute_seconds=1).test_client(), factory.member()
    session = start(client, member, 30).json["session"]
    extended = extend(client, member, 60).json["session"]
    assert session["durationMinutes"] == 30
    [row] = factory.sessions(member)
    assert 90 <= (row.expires_at - row.started_at).total_seconds() < 91
    assert extended["extendedByMinutes"] == 60


def test_a_member_deleted_since_the_gate_is_nobody(client: FlaskClient, factory: Factory) -> None:
    member = factory.member()
    factory.execute("""
        CREATE FUNCTION leave() RETURNS trigger LANGUAGE plpgsql AS
        $$ BEGIN DELETE FROM users WHERE id = NEW.user_id; RETURN NEW; END $$;
        CREATE TRIGGER leave BEFORE INSERT ON after_hours_sessions FOR EACH ROW EXECUTE FUNCTION leave()""")
    assert failure(start(client, member)) == (403, "VERIFICATION_REQUIRED")
    assert failure(start(client, member, deviceFingerprint={"platform": "ios"})) == (403, "VERIFICATION_REQUIRED")


@pytest.mark.parametrize(
    ("fingerprint", "stored"),
    [
        (FINGERPRINT, [("A-1", "Pixel 9", "android")]),
        ({"platform": "ios"}, [(None, None, "ios")]),
        ({"deviceId": "A-1", "deviceModel": None, "platform": None}, [("A-1", None, None)]),
        ({"deviceId": "😀" * 255, "deviceModel": "é" * 100}, [("😀" * 255, "é" * 100, None)]),
        ({"deviceId": None, "deviceModel": None, "platform": None}, []),
        ({}, []),
        (None, []),
    ],
)
def test_the_fingerprint_is_stored_with_the_start(
    client: FlaskClient, factory: Factory, fingerprint: Any, stored: list[Any]
) -> None:
    member = factory.member()
    response = start(client, member, deviceFingerprint=fingerprint)
    assert response.status_code == 201
    rows = factory.execute(
        "SELECT user_id, session_id::text, device_id, device_model, platform FROM device_fingerprints"
    )
    assert rows == [(member, response.json["session"]["id"], *device) for device in stored]


def test_a_refused_start_stores_no_fingerprint(client: FlaskClient, factory: Factory) -> None:
    member = factory.member()
    start(client, member)
    assert start(client, member, deviceFingerprint=FINGERPRINT).status_code == 409
    assert factory.count("device_fingerprints") == 0


@pytest.mark.parametrize(
    "trouble",
    [
        "ALTER TABLE device_fingerprints ADD CHECK (platform = 'windows')",
        "ALTER TABLE device_fingerprints ALTER COLUMN device_model TYPE varchar(1)",
        "DROP TABLE device_fingerprints",
        """CREATE FUNCTION fail() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RAISE 'not today'; END $$;
           CREATE TRIGGER fail BEFORE INSERT ON device_fingerprints FOR EACH ROW EXECUTE FUNCTION fail()""",
    ],
    ids=["a check", "a length", "no table", "a trigger"],
)
def test_a_fingerprint_that_cannot_be_stored_does_not_block_the_start(
    client: FlaskClient, factory: Factory, trouble: str
) -> None:
    member = factory.member()
    factory.execute(trouble)
    assert start(client, member, deviceFingerprint=FINGERPRINT).status_code == 201
    assert len(factory.sessions(member)) == 1


@pytest.mark.parametrize("sqlstate", ["55P03", "57014", "53100", "40001", "40P01"])
def test_bad_luck_costs_no_fingerprint(client: FlaskClient, factory: Factory, sqlstate: str) -> None:
    """A lock wait, a cancelled statement and a full disk fail the start with it; after a deadlock it is tried again."""
    member = factory.member()
    factory.execute(f"""
        CREATE SEQUENCE tries;
        CREATE FUNCTION fail() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
            IF nextval('tries') = 1 THEN RAISE 'bad luck' USING ERRCODE = '{sqlstate}'; END IF; RETURN NEW; END $$;
        CREATE TRIGGER fail BEFORE INSERT ON device_fingerprints FOR EACH ROW EXECUTE FUNCTION fail()""")
    response = start(client, member, deviceFingerprint=FINGERPRINT)
    if not sqlstate.startswith("40"):
        assert failure(response) == (503, "SERVICE_UNAVAILABLE")
        assert factory.sessions(member) == []
        response = start(client, member, deviceFingerprint=FINGERPRINT)
    assert response.status_code == 201
    assert [row.device_id for row in factory.execute("SELECT device_id FROM device_fingerprints")] == ["A-1"]


@pytest.mark.parametrize("overdue", [False, True])
def test_a_start_takes_two_round_trips_and_a_status_one_with_the_gate(
    wire: Wire, make_app: Callable[..., Flask], factory: Factory, overdue: bool
) -> None:
    client, member = make_app(database_url=wire.url).test_client(), factory.member()
    if overdue:
        factory.session(member, left=-60)
    assert (
        start(client, factory.member(), deviceFingerprint=FINGERPRINT).status_code == 201
    )  # the statements are known now
    assert status(client, member).status_code == 200
    wire.queries.clear()
    assert start(client, member, deviceFingerprint=FINGERPRINT).status_code == 201
    assert len(wire.queries) == 2
    wire.queries.clear()
    assert status(client, member).json["active"]
    assert len(wire.queries) == 1


@pytest.mark.parametrize("prepare", [True, False])
def test_a_place_is_stored_as_it_was_sent_on_a_connection_of_ones_own_and_on_a_shared_one(
    make_app: Callable[..., Flask], factory: Factory, prepare: bool
) -> None:
    client = make_app(database_prepare=prepare).test_client()
    place: dict[str, Any]
    for latitude, longitude in ((52.52000812, 13.40495423), (-90, 180), (90, -180), (0, -0.00000001)):
        member = factory.member()
        place = {"latitude": latitude, "longitude": longitude}
        assert start(client, member, **place, deviceFingerprint=FINGERPRINT).status_code == 201
        [row] = factory.sessions(member)
        assert (float(row.latitude), float(row.longitude)) == (latitude, longitude)
    factory.execute("DROP TABLE device_fingerprints")
    assert start(client, factory.member(), deviceFingerprint=FINGERPRINT).status_code == 201

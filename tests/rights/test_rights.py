"""A member's rights: consent, a copy of everything, its erasure."""

import contextlib
import json
import threading
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psycopg2
import pytest
from flask import Flask
from flask.testing import FlaskClient
from flask_migrate import upgrade
from redis import Redis
from sqlalchemy.exc import OperationalError

from afterhours_service import create_app
from afterhours_service.config import Settings
from afterhours_service.rights import service as members
from afterhours_service.sessions import service
from afterhours_service.stores.database import Base, db
from tests.client import API, end, erase, start, status, upload
from tests.conftest import make_settings
from tests.factories import Factory, bearer, many_sessions, scheduled, token
from tests.host import NODE
from tests.pictures import plain
from tests.rights.rows import HOST_TABLES, IS_OF, OUR_TABLES, OUTBOX, held
from tests.stopwatch import eventually
from tests.wire import Wire

Events = Callable[[], list[dict[str, Any]]]


@pytest.fixture
def app(make_app: Callable[..., Flask], tmp_path: Path) -> Flask:
    return make_app(storage_folder=tmp_path)


def consent(client: FlaskClient, member: str, **body: Any) -> Any:
    if body:
        return client.put(f"{API}/consent", json=body, headers=bearer(member))
    return client.get(f"{API}/consent", headers=bearer(member))


def full_member(client: FlaskClient, factory: Factory) -> str:
    """Make a member on whom every table of ours has a row."""
    member, other = factory.member(), factory.member()
    for _ in range(2):
        assert upload(client, member, plain(300)).status_code == 200
    client.patch(f"{API}/profile", json={"description": "Vinyl and noodles"}, headers=bearer(member))
    assert client.post(f"{API}/preferences", json={}, headers=bearer(member)).status_code == 201
    factory.session(member, left=-7200, ended=True)
    session = start(client, member, deviceFingerprint={"deviceId": "d-1", "platform": "ios"}).json["session"]["id"]
    factory.execute(
        "INSERT INTO after_hours_declines (session_id, user_id, declined_user_id) VALUES (%s, %s, %s)",
        session,
        member,
        other,
    )
    factory.match(session, member, other, over=True)
    return member


MESSAGES = "CREATE TABLE after_hours_messages (match_id uuid NOT NULL REFERENCES after_hours_matches ON DELETE CASCADE)"
LEAVING = [
    ("POST", "session/end", None),
    ("DELETE", "profile/photo", None),
    ("GET", "consent", None),
    ("PUT", "consent", {"granted": False}),
    ("GET", "me/export", None),
    ("DELETE", "me", None),
]


@pytest.mark.parametrize("lost", ["premium", "verified", "consent"])
def test_who_no_longer_passes_the_gate_can_still_leave(
    client: FlaskClient, factory: Factory, events: Events, redis: Redis, tmp_path: Path, lost: str
) -> None:
    member = full_member(client, factory)
    events()
    if lost == "premium":
        factory.execute("UPDATE user_subscriptions SET is_active = false")
    else:
        column = {"verified": "id_verified", "consent": "after_hours_consent"}[lost]
        factory.execute(f"UPDATE users SET {column} = false")
    assert client.get(f"{API}/session", headers=bearer(member)).status_code == 403
    for method, path, body in LEAVING[:2]:
        answer = client.open(f"{API}/{path}", method=method, json=body, headers=bearer(member))
        assert answer.status_code == 200, answer.json
    assert [event["type"] for event in events()] == ["after_hours:session_ended"]
    assert all(row.ended_at and row.latitude is None for row in factory.sessions(member))
    assert scheduled(redis) == {}
    assert not list(tmp_path.rglob("*.jpg"))
    again = end(client, member)
    assert (again.status_code, again.json["code"]) == (404, "NO_ACTIVE_SESSION")


@pytest.mark.parametrize(("method", "path", "body"), LEAVING)
def test_leaving_needs_a_good_token_and_the_database(
    make_app: Callable[..., Flask], factory: Factory, method: str, path: str, body: Any
) -> None:
    client = make_app(database_url="postgresql+psycopg2://nobody@/none?host=/nonexistent").test_client()
    expired = {"Authorization": f"Bearer {token(factory.member(), -1)}"}
    assert client.open(f"{API}/{path}", method=method, json=body, headers=expired).json["code"] == "TOKEN_EXPIRED"
    away = client.open(f"{API}/{path}", method=method, json=body, headers=bearer("m"))
    assert (away.status_code, away.json["code"]) == (503, "SERVICE_UNAVAILABLE")
    assert int(away.headers["Retry-After"]) > 0


def test_consent_is_told_and_given_without_premium(client: FlaskClient, factory: Factory) -> None:
    member = factory.member(premium=False, verified=False, consent=None)
    assert consent(client, member).json == {"success": True, "consent": {"granted": False, "changedAt": None}}
    first = consent(client, member, granted=True)
    assert (first.status_code, first.json["consent"]["granted"]) == (200, True)
    assert first.json["consent"]["changedAt"].endswith("Z")
    assert consent(client, member, granted=True).json == first.json == consent(client, member).json
    assert consent(client, member, granted=False).json["consent"]["granted"] is False


@pytest.mark.parametrize(
    "body", [{}, {"granted": "true"}, {"granted": None}, {"granted": 1}, {"granted": True, "x": 1}]
)
def test_consent_is_a_plain_yes_or_no(client: FlaskClient, factory: Factory, body: dict[str, Any]) -> None:
    member = factory.member(consent=False)
    response = client.put(f"{API}/consent", json=body, headers=bearer(member))
    assert (response.status_code, response.json["code"]) == (400, "VALIDATION_ERROR")
    assert consent(client, member).json["consent"]["granted"] is False


def test_only_the_two_columns_of_the_host_are_written(client: FlaskClient, factory: Factory) -> None:
    member, other = factory.member(), factory.member()

    def rows() -> dict[str, Any]:
        return {row.id: row._asdict() for row in factory.execute("SELECT * FROM users")}

    before = rows()
    consent(client, member, granted=False)
    after = rows()
    assert after[other] == before[other]
    changed = {name for name in after[member] if after[member][name] != before[member][name]}
    assert changed == {"after_hours_consent", "after_hours_consent_at"}


def test_a_withdrawal_ends_the_session_and_shuts_the_gate(
    client: FlaskClient, factory: Factory, events: Events, redis: Redis
) -> None:
    member = factory.member()
    session = start(client, member).json["session"]["id"]
    assert len(scheduled(redis)) == 3
    events()
    assert consent(client, member, granted=False).status_code == 200
    [row] = factory.sessions(member)
    assert row.ended_at < row.expires_at
    assert (row.latitude, row.longitude) == (None, None)
    assert scheduled(redis) == {}
    [event] = events()
    assert (event["type"], event["payload"]["sessionId"]) == ("after_hours:session_ended", session)
    assert start(client, member).json["code"] == "CONSENT_REQUIRED"
    assert consent(client, member, granted=False).status_code == 200
    assert events() == []


def test_a_withdrawal_ends_a_session_that_ran_out_at_its_expiry(
    client: FlaskClient, factory: Factory, events: Events
) -> None:
    member = factory.member()
    factory.session(member, left=-5)
    consent(client, member, granted=False)
    [row] = factory.sessions(member)
    assert (row.ended_at, row.latitude) == (row.expires_at, None)
    [event] = events()
    assert (event["type"], event["payload"]["reason"]) == ("after_hours:session_expired", "timeout")
    assert not factory.execute("SELECT FROM after_hours_untold")


def test_the_expiry_of_a_session_that_ran_out_before_a_withdrawal_is_told_when_redis_is_back(
    app: Flask, settings: Settings, factory: Factory, events: Events
) -> None:
    member = factory.member()
    session = factory.session(member, left=-5)
    away = create_app(make_settings(settings.database_url, "unix:///nowhere"))
    assert consent(away.test_client(), member, granted=False).status_code == 200
    with away.app_context():
        db.engine.dispose()
    factory.let_leases_expire()
    with app.app_context():
        service.do_what_is_due()
    [event] = events()
    assert (event["type"], event["payload"]["sessionId"]) == ("after_hours:session_expired", session)


def test_a_withdrawal_that_fails_changes_nothing(app: Flask, client: FlaskClient, factory: Factory) -> None:
    app.testing = False
    member = factory.member()
    start(client, member)
    factory.execute(
        """CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RAISE 'refused'; END $$;
           CREATE TRIGGER refuse BEFORE UPDATE ON after_hours_sessions FOR EACH ROW EXECUTE FUNCTION refuse()"""
    )
    assert consent(client, member, granted=False).status_code == 500
    assert consent(client, member).json["consent"]["granted"] is True


@pytest.mark.parametrize("right", ["withdrawal", "erasure"])
def test_a_start_that_waits_for_a_right_to_be_exercised_does_not_slip_through(
    app: Flask, factory: Factory, database_url: str, right: str
) -> None:
    """The start has passed the gate, and the other's transaction is not over."""
    member = factory.member()
    headers = bearer(member)
    client = app.test_client()
    assert client.get(f"{API}/session", headers=headers).status_code == 200
    other = psycopg2.connect(database_url)
    answers: list[int] = []
    with other.cursor() as cursor:
        cursor.execute("SELECT FROM users WHERE id = %s FOR UPDATE", (member,))
        if right == "withdrawal":
            cursor.execute("UPDATE users SET after_hours_consent = false WHERE id = %s", (member,))
        else:
            cursor.execute("DELETE FROM after_hours_profiles WHERE user_id = %s", (member,))
        thread = threading.Thread(target=lambda: answers.append(start(client, member).status_code))
        thread.start()
        eventually(factory.waiting)
        other.commit()
        thread.join()
    other.close()
    assert answers == [403 if right == "withdrawal" else 400]
    assert start(client, member).json["code"] == ("CONSENT_REQUIRED" if right == "withdrawal" else "PROFILE_REQUIRED")
    assert factory.sessions(member) == []


# What of our tables an export calls by which name.
EXPORTED = {
    "after_hours_profiles": "profile",
    "after_hours_preferences": "preferences",
    "after_hours_sessions": "sessions",
    "after_hours_declines": "declines",
    "device_fingerprints": "devices",
    "after_hours_search": "search",
    "after_hours_places": "places",
    "after_hours_matches": "matches",
    OUTBOX: "unpublishedExpiries",
}
RENAMED = {"fuzzed_latitude": "blurredLatitude", "fuzzed_longitude": "blurredLongitude"}
EXACT = "the exact place leaves the service for nobody, and is what the member's own device sent"
OTHERS = "the other member's, or exported by another name, as the member sees it"
IS_ME = "the member's own id, which the export begins with"
LEFT_OUT = {
    "after_hours_sessions.latitude": EXACT,
    "after_hours_sessions.longitude": EXACT,
    **{f"{table}.user_id": IS_ME for table in OUR_TABLES if table not in IS_OF},
    **{
        f"after_hours_matches.{column}": OTHERS
        for column in (
            *("user_id_1", "user_id_2", "session_id_2", "user1_accepted_at", "user2_accepted_at", "user1_save_vote"),
            *("user2_save_vote", "converted_to_match_id", "declined_by", "ended_by"),
        )
    },
    f"{OUTBOX}.id": "one row may be about many members' sessions",
    f"{OUTBOX}.tell_at": "exported as publishAt",
    f"{OUTBOX}.session_ids": "exported as sessionId, the member's alone",
}
THE_HOSTS = "kept by the host or its chat service, whose export it belongs to"
# Every column of the database, but our own user_id, that names a member.
NAMING_A_MEMBER = {
    "after_hours_declines.declined_user_id": "exported of one's own declines; others' of the member are theirs",
    **dict.fromkeys(
        [f"after_hours_matches.{column}" for column in ("user_id_1", "user_id_2", "declined_by")],
        "exported as otherUserId and declinedByMe",
    ),
    **dict.fromkeys(
        [
            "users.id",
            "profiles.user_id",
            "user_subscriptions.user_id",
            "blocks.user_id",
            "blocks.blocked_user_id",
            "after_hours_messages.sender_id",
            "banned_photo_hashes.user_id",
        ],
        THE_HOSTS,
    ),
}


def test_an_export_shows_every_row_and_every_column_that_is_held(client: FlaskClient, factory: Factory) -> None:
    member, other = full_member(client, factory), full_member(client, factory)
    factory.execute(
        "INSERT INTO after_hours_declines (session_id, user_id, declined_user_id) SELECT id, user_id, %s"
        " FROM after_hours_sessions WHERE user_id = %s AND ended_at IS NULL",
        member,
        other,
    )
    factory.execute(
        f"INSERT INTO {OUTBOX} (tell_at, session_ids) SELECT now(), array_agg(id) FROM after_hours_sessions"
    )
    data = client.get(f"{API}/me/export", headers=bearer(member)).json["data"]
    assert other not in json.dumps(data)
    sessions = {session["id"] for session in data["sessions"]}
    assert {expiry["sessionId"] for expiry in data["unpublishedExpiries"]} == sessions
    for table, rows in held(factory, member).items():
        shown = data[EXPORTED[table]]
        assert len([shown] if isinstance(shown, dict) else shown) == rows, table
    for table, name in EXPORTED.items():
        shown = data[name] if isinstance(data[name], dict) else data[name][-1]
        for column in Base.metadata.tables[table].columns.keys():  # noqa: SIM118 - iterated, it yields columns
            head, *rest = column.split("_")
            field = RENAMED.get(column, head + "".join(word.title() for word in rest))
            assert (field in shown) is not (f"{table}.{column}" in LEFT_OUT), (table, column)


def test_every_column_that_names_a_member_is_exported_or_left_out_for_a_reason(
    make_database: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    url = make_database(None)
    with contextlib.closing(psycopg2.connect(url)) as connection:
        connection.autocommit = True
        host = Factory(connection)
        host.execute(NODE)
        app = create_app(make_settings(url, "redis://localhost"))
        with app.app_context():
            upgrade()
            db.engine.dispose()
        naming = {
            f"{row.t}.{row.c}"
            for row in host.execute("""
                SELECT attrelid::regclass::text AS t, attname AS c
                FROM pg_attribute JOIN pg_class ON pg_class.oid = attrelid
                WHERE relkind IN ('r', 'v', 'm', 'p') AND relnamespace = 'public'::regnamespace AND attnum > 0
                    AND (attname ~ 'user|member' AND format_type(atttypid, NULL) ~ 'char|text' OR EXISTS (
                        SELECT FROM pg_constraint WHERE conrelid = attrelid AND attnum = ANY (conkey)
                            AND confrelid = 'users'::regclass))""")
        }
    assert naming == (NAMING_A_MEMBER.keys() | {f"{t}.user_id" for t in OUR_TABLES if t not in IS_OF}) - {"users.id"}


def test_a_large_export_is_whole_though_little_of_it_is_in_memory(
    wire: Wire, make_app: Callable[..., Flask], factory: Factory, tmp_path: Path
) -> None:
    app = make_app(database_url=wire.url, storage_folder=tmp_path)
    client = app.test_client()
    member = full_member(client, factory)
    many_sessions(factory, member, 10_000)
    export = client.get(f"{API}/me/export", headers=bearer(member)).json["data"]
    assert len({session["id"] for session in export["sessions"]}) == 10_002
    with app.app_context():
        pieces = members.export(member)
        tracemalloc.start()
        size = sum(map(len, pieces))
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
    assert sum(query.startswith("FETCH FORWARD 1000 ") for query in wire.queries) >= 10  # of the driver's memory, too
    assert peak < size
    done = app.test_cli_runner().invoke(args=["after-hours", "members", "export", member])
    assert json.loads(done.output)["sessions"] == export["sessions"]


def test_an_export_is_of_one_moment(app: Flask, client: FlaskClient, factory: Factory) -> None:
    member = full_member(client, factory)
    with app.app_context():
        pieces = members.export(member)
        first = next(pieces)
        assert erase(client, member).status_code == 200
        data = json.loads(first + "".join(pieces))
    assert [len(data[name]) for name in ("sessions", "declines", "devices")] == [2, 1, 1]


def test_an_export_leaves_its_connection_as_it_was(
    wire: Wire, make_app: Callable[..., Flask], factory: Factory
) -> None:
    client, member = make_app(database_url=wire.url).test_client(), factory.member()

    def trips_of_a_status() -> int:
        before = len(wire.queries)
        assert status(client, member).status_code == 200
        return len(wire.queries) - before

    status(client, member)  # prepares what it asks
    trips = trips_of_a_status()
    assert client.get("/api/after-hours/me/export", headers=bearer(member)).get_data()
    assert trips_of_a_status() == trips


def test_an_export_that_fails_midway_does_not_look_like_a_whole_one(client: FlaskClient, factory: Factory) -> None:
    member = factory.member()
    many_sessions(factory, member, 5000)
    response = client.get(f"{API}/me/export", headers=bearer(member))
    assert response.status_code == 200
    assert "Content-Length" not in response.headers  # so that the server cuts the connection
    pieces = response.iter_encoded()
    received = next(pieces) + next(pieces)
    factory.execute(
        """SELECT pg_terminate_backend(pid) FROM pg_stat_activity
           WHERE datname = current_database() AND pid <> pg_backend_pid()"""
    )
    rest: list[bytes] = []
    with pytest.raises(OperationalError):
        rest.extend(pieces)
    with pytest.raises(json.JSONDecodeError):
        json.loads(received + b"".join(rest))


def test_an_export_has_every_table_and_no_exact_place(client: FlaskClient, factory: Factory) -> None:
    member = full_member(client, factory)
    response = client.get(f"{API}/me/export", headers=bearer(member))
    assert response.status_code == 200
    data = response.json["data"]
    assert (data["userId"], data["consent"]["granted"]) == (member, True)
    assert data["profile"]["description"] == "Vinyl and noodles"
    for name in ("photoUrl", "thumbnailUrl"):
        assert client.get(data["profile"][name].partition("8000")[2], buffered=True).status_code == 200
    assert data["preferences"]["maxDistanceKm"] == 10
    assert [len(data[name]) for name in ("sessions", "declines", "devices")] == [2, 1, 1]
    assert data["devices"][0]["deviceId"] == "d-1"
    assert "52.52," not in response.text
    assert "latitude" not in data["sessions"][1]
    assert data["sessions"][0]["blurredLatitude"] == 52.521


def test_what_the_service_before_this_one_kept_is_exported_where_there_is_any(
    client: FlaskClient, factory: Factory
) -> None:
    def kept() -> tuple[Any, Any]:
        data = client.get(f"{API}/me/export", headers=bearer(member)).json["data"]
        return data["profile"]["photoHash"], data["preferences"]["interests"]

    member = full_member(client, factory)
    factory.execute("UPDATE after_hours_profiles SET photo_hash = 'abc'")
    assert kept() == ("abc", None)
    factory.execute("ALTER TABLE after_hours_preferences ADD interests text[] DEFAULT '{jazz}'")
    assert kept() == ("abc", ["jazz"])


def test_the_export_of_somebody_on_whom_nothing_is_held_is_empty(client: FlaskClient, factory: Factory) -> None:
    member = factory.member(profile=False, premium=False)
    data = client.get(f"{API}/me/export", headers=bearer(member)).json["data"]
    assert (data["profile"], data["preferences"]) == (None, None)
    assert data["sessions"] == data["declines"] == data["devices"] == []
    nobody = client.get(f"{API}/me/export", headers=bearer("nobody"))
    assert (nobody.status_code, nobody.json["data"]["consent"]) == (200, None)


def test_an_erasure_leaves_nothing_but_the_hosts_rows(
    client: FlaskClient, factory: Factory, events: Events, redis: Redis, tmp_path: Path
) -> None:
    member, other = full_member(client, factory), full_member(client, factory)
    assert all(held(factory, member).values())
    photos = [path for path in tmp_path.rglob("*.jpg") if member in str(path)]
    assert len(photos) == 2
    left_behind = photos[0].parent / "left-behind.jpg"  # as a crash between upload and commit leaves it
    left_behind.touch()
    events()
    timers = len(scheduled(redis))
    before = factory.execute("SELECT * FROM users ORDER BY id")
    for _ in range(2):
        response = erase(client, member)
        assert (response.status_code, response.json["success"]) == (200, True)
    assert not any(held(factory, member).values())
    assert all(held(factory, other).values())
    assert factory.execute("SELECT * FROM users ORDER BY id") == before
    assert not [path for path in tmp_path.rglob("*.jpg") if member in str(path)]
    assert len([path for path in tmp_path.rglob("*.jpg") if other in str(path)]) == 2
    assert [event["type"] for event in events()] == ["after_hours:session_ended"]
    assert len(scheduled(redis)) <= timers
    assert client.get(f"{API}/profile", headers=bearer(member)).json["code"] == "PROFILE_NOT_FOUND"


def test_every_table_of_ours_says_whose_its_rows_are_and_is_known_to_the_tests(app: Flask, factory: Factory) -> None:
    tables = {
        row.t
        for row in factory.execute(
            "SELECT relname AS t FROM pg_class WHERE relkind = 'r' AND relnamespace = 'public'::regnamespace"
        )
    }
    assert tables - HOST_TABLES - {"after_hours_alembic_version", OUTBOX} == OUR_TABLES.keys()
    assert all("user_id" in columns or table in IS_OF for table, columns in OUR_TABLES.items())


def test_an_erasure_spares_the_hosts_matches_and_takes_the_place_from_their_session(
    client: FlaskClient, factory: Factory
) -> None:
    member = factory.member()
    session, other = factory.session(member, left=-3600, ended=True), factory.member()
    factory.execute(MESSAGES)
    match, _ = factory.match(session, member, other, over=True), factory.match(session, other, member, over=True)
    factory.execute("INSERT INTO after_hours_messages VALUES (%s)", match)
    erase(client, member)
    assert [str(row.id) for row in factory.execute("SELECT id FROM after_hours_matches")] == [match]
    [row] = factory.sessions(member)
    assert (row.fuzzed_latitude, row.fuzzed_longitude, row.latitude) == (0, 0, None)


def test_an_erasure_goes_through_with_redis_and_storage_away(
    make_app: Callable[..., Flask], factory: Factory, tmp_path: Path
) -> None:
    member = factory.member()
    factory.execute("UPDATE after_hours_profiles SET photo_url = '../odd//key' WHERE user_id = %s", member)
    factory.session(member)
    (tmp_path / "file").touch()
    client = make_app(redis_url="unix:///nonexistent/socket", storage_folder=tmp_path / "file").test_client()
    assert erase(client, member).status_code == 200
    assert not any(held(factory, member).values())


def test_each_right_leaves_a_line_in_the_log_without_content(
    make_app: Callable[..., Flask], factory: Factory, capfd: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    client = make_app(log_level="INFO", storage_folder=tmp_path).test_client()
    member = full_member(client, factory)
    capfd.readouterr()
    consent(client, member, granted=False)
    client.get(f"{API}/me/export", headers=bearer(member))
    erase(client, member)
    log = capfd.readouterr().err
    lines = [line for line in log.splitlines() if '"afterhours_service.rights.service"' in line]
    assert len(lines) == 3
    assert all(member in line and '"request_id"' in line for line in lines)
    assert not any(word in log for word in ("Vinyl", "d-1", "52.5", ".jpg"))

"""What is in flight while a member withdraws consent, erases everything, or is deleted.

Real requests in threads; another connection's lock holds one of them at the moment in question.
"""

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing, contextmanager
from typing import Any

import psycopg2
import pytest
from flask import Flask
from flask.testing import FlaskClient
from psycopg2.errors import LockNotAvailable

from afterhours_service.profiles import imaging
from afterhours_service.profiles import photo as photos
from afterhours_service.sessions.service import do_what_is_due
from tests.client import API, FINGERPRINT, decline, end, erase, extend, start, upload, withdraw
from tests.factories import Factory, bearer
from tests.pictures import plain
from tests.rights.rows import held
from tests.stopwatch import eventually

Hold = Callable[..., Any]
Call = Callable[[FlaskClient, str], Any]
CALLS: dict[str, Call] = {
    "start": lambda client, member: start(client, member, deviceFingerprint=FINGERPRINT),
    "create profile": lambda client, member: client.post(f"{API}/profile", json={}, headers=bearer(member)),
    "create preferences": lambda client, member: client.post(f"{API}/preferences", json={}, headers=bearer(member)),
    "change preferences": lambda client, member: client.patch(
        f"{API}/preferences", json={"maxDistanceKm": 50}, headers=bearer(member)
    ),
    "decline": lambda client, member: decline(client, member, f"other of {member}"),
    "photo": lambda client, member: upload(client, member, plain(300)),
    "withdraw": withdraw,
    "erase": erase,
}
# What only one statement does, and so takes no lock of the member's first.
ALSO: dict[str, Call] = {
    "extend": extend,
    "end": end,
    "describe": lambda client, member: client.patch(
        f"{API}/profile", json={"description": "Out tonight"}, headers=bearer(member)
    ),
    "delete photo": lambda client, member: client.delete(f"{API}/profile/photo", headers=bearer(member)),
    "take back": lambda client, member: client.delete(f"{API}/declines/other", headers=bearer(member)),
}
pytestmark = pytest.mark.usefixtures("patience")


@pytest.fixture
def hold(database_url: str) -> Hold:
    """Return a context manager in which the locks of a statement are held."""

    @contextmanager
    def hold(statement: str, *parameters: Any) -> Iterator[None]:
        with closing(psycopg2.connect(database_url)) as connection:
            connection.cursor().execute(statement, parameters or None)
            yield
            connection.commit()

    return hold


@pytest.fixture
def send(app: Flask) -> Iterator[Callable[[str, str], Future[Any]]]:
    """Return a function that makes a call in a thread of its own."""
    with ThreadPoolExecutor(10) as threads:
        yield lambda call, member: threads.submit(CALLS[call], app.test_client(), member)


def wait_for(factory: Factory, waiting: int, *futures: Future[Any]) -> None:
    """Wait until so many connections wait for a lock; one of the futures may not be done before."""

    def all_wait() -> bool:
        assert not any(future.done() for future in futures), [f.result().text for f in futures if f.done()]
        return factory.waiting() >= waiting

    eventually(all_wait)


def answer(future: Future[Any]) -> tuple[int, str | None]:
    response = future.result(60)
    return response.status_code, response.json.get("code")


def live_member(factory: Factory, *, overdue: bool = False, **others: Any) -> str:
    """Make a member with a row in every table, whose `decline` finds somebody to decline."""
    member = factory.member(**others)
    other = f"other of {member}"
    factory.execute(
        "INSERT INTO users (id, provider, id_verified, after_hours_consent) VALUES (%s, 'test', true, true)", other
    )
    factory.execute("INSERT INTO user_subscriptions (user_id, is_active) VALUES (%s, true)", other)
    factory.session(other)
    old = factory.session(member, left=-900, ended=True)
    factory.session(member, left=-1 if overdue else 900)
    factory.execute("INSERT INTO after_hours_preferences (user_id) VALUES (%s)", member)
    factory.execute(
        "INSERT INTO after_hours_declines (session_id, user_id, declined_user_id) VALUES (%s, %s, %s)",
        old,
        member,
        factory.member(),
    )
    return member


@pytest.mark.parametrize("call", CALLS)
def test_the_member_is_locked_before_anything_else(
    factory: Factory, hold: Hold, send: Callable[..., Future[Any]], call: str
) -> None:
    """Two that lock a session and its member in different orders deadlock."""
    member = live_member(factory, overdue=call == "start")
    rows = [
        f"SELECT FROM {table} WHERE user_id = '{member}' FOR UPDATE NOWAIT"
        for table in ("after_hours_sessions", "after_hours_preferences", "after_hours_declines", "after_hours_profiles")
    ]
    with hold("SELECT FROM users WHERE id = %s FOR UPDATE", member):
        sent = send(call, member)
        wait_for(factory, 1, sent)
        for statement in rows:
            factory.execute(statement)
    assert sent.result(60).status_code < 500


DEADLOCK = """
    CREATE SEQUENCE tries;
    CREATE FUNCTION fail() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
        IF nextval('tries') = 1 THEN RAISE 'two wait for each other' USING ERRCODE = '40P01'; END IF; RETURN NULL;
    END $$;
"""
FAIL = "CREATE TRIGGER fail AFTER INSERT OR UPDATE OR DELETE ON {} FOR EACH STATEMENT EXECUTE FUNCTION fail();"
WRITTEN = ("users", *(f"after_hours_{name}" for name in ("sessions", "preferences", "declines", "profiles")))


@pytest.mark.parametrize("call", [*CALLS, *ALSO])
def test_what_a_deadlock_rolled_back_is_done_again(app: Flask, factory: Factory, call: str) -> None:
    """The host locks in an order of its own, and two members may be each other's match by the time they wait."""
    member = (
        live_member(factory) if call not in ("start", "create profile") else factory.member(profile=call == "start")
    )
    if call == "create preferences":
        factory.execute("DELETE FROM after_hours_preferences")
    factory.execute(DEADLOCK + "".join(map(FAIL.format, WRITTEN)))
    response = (CALLS | ALSO)[call](app.test_client(), member)
    assert response.status_code < 300, response.text
    assert factory.execute("SELECT last_value FROM tries")[0].last_value > 1


def test_an_expiry_that_a_deadlock_rolled_back_is_done_again(app: Flask, factory: Factory) -> None:
    factory.session(factory.member(), left=-1)
    factory.execute(DEADLOCK + FAIL.format("after_hours_sessions"))
    with app.app_context():
        assert do_what_is_due().ended == 1


def test_an_erasure_locks_a_session_before_what_hangs_on_it(
    factory: Factory, hold: Hold, send: Callable[..., Future[Any]]
) -> None:
    """The cleanup, whose deletion of sessions cascades, locks them in this order, and asks for no member."""
    member = live_member(factory)
    old = factory.sessions(member)[0]
    factory.execute("INSERT INTO device_fingerprints (user_id, session_id) VALUES (%s, %s)", member, old.id)
    with hold("SELECT FROM after_hours_sessions WHERE id = %s FOR UPDATE", old.id):
        erasure = send("erase", member)
        wait_for(factory, 1, erasure)
        for table in ("after_hours_declines", "device_fingerprints"):
            try:
                factory.execute(f"SELECT FROM {table} WHERE session_id = %s FOR UPDATE NOWAIT", old.id)
            except LockNotAvailable:
                pytest.fail(f"{table} is locked already")
    assert answer(erasure) == (200, None)


@pytest.mark.parametrize(
    ("call", "refusal"),
    [
        ("start", (400, "PROFILE_REQUIRED")),
        ("create profile", (409, "ERASURE_IN_PROGRESS")),
        ("create preferences", (409, "ERASURE_IN_PROGRESS")),
        ("change preferences", (404, "PREFERENCES_NOT_FOUND")),
        ("decline", (400, "NO_ACTIVE_SESSION")),
        ("photo", (404, "PROFILE_NOT_FOUND")),
    ],
)
def test_what_comes_during_an_erasure_leaves_nothing_behind(
    factory: Factory, hold: Hold, send: Callable[..., Future[Any]], call: str, refusal: tuple[int, str]
) -> None:
    member = live_member(factory)
    with hold("SELECT FROM after_hours_sessions WHERE user_id = %s FOR UPDATE", member):
        erasure = send("erase", member)
        wait_for(factory, 1, erasure)  # for the session; it has the member
        sent = send(call, member)
        if refusal[1] != "ERASURE_IN_PROGRESS":
            wait_for(factory, 2, sent)
        else:
            assert answer(sent) == refusal
    assert answer(erasure) == (200, None)
    assert answer(sent) == refusal
    assert not any(held(factory, member).values())
    if refusal[1] == "ERASURE_IN_PROGRESS":  # afterwards anybody may begin anew
        assert answer(send(call, member)) == (201, None)


@pytest.mark.parametrize("call", ["create profile", "create preferences"])
def test_an_erasure_waits_for_what_is_being_created(
    factory: Factory, hold: Hold, send: Callable[..., Future[Any]], call: str
) -> None:
    member = factory.member(profile=False)
    with hold("LOCK TABLE profiles"):  # which both read on the way
        sent = send(call, member)
        wait_for(factory, 1, sent)
        erasure = send("erase", member)
        wait_for(factory, 2, erasure)
    assert (answer(sent), answer(erasure)) == ((201, None), (200, None))
    assert not any(held(factory, member).values())


def test_a_photo_that_was_sent_before_an_erasure_is_not_the_next_profiles(
    app: Flask, factory: Factory, monkeypatch: pytest.MonkeyPatch, send: Callable[..., Future[Any]]
) -> None:
    member = factory.member()
    sent, go_on = threading.Event(), threading.Event()

    def wait(data: bytes) -> Any:
        sent.set()
        assert go_on.wait(60)
        return imaging.process(data)

    monkeypatch.setattr(photos, "process", wait)
    upload = send("photo", member)
    assert sent.wait(60)
    assert answer(send("erase", member)) == (200, None)
    assert answer(send("create profile", member)) == (201, None)
    go_on.set()
    assert answer(upload) == (404, "PROFILE_NOT_FOUND")
    assert [row.photo_url for row in factory.execute("SELECT photo_url FROM after_hours_profiles")] == [None]


@pytest.mark.parametrize("overdue", [False, True])
@pytest.mark.parametrize(
    ("loss", "refusal"),
    [
        ("UPDATE users SET after_hours_consent = false WHERE id = %s", (403, "CONSENT_REQUIRED")),
        ("DELETE FROM users WHERE id = %s", (403, "VERIFICATION_REQUIRED")),
        ("DELETE FROM after_hours_profiles WHERE user_id = %s", (400, "PROFILE_REQUIRED")),
    ],
    ids=["consent", "member", "profile"],
)
def test_a_start_that_loses_says_what_it_lost(
    factory: Factory, hold: Hold, send: Callable[..., Future[Any]], loss: str, refusal: tuple[int, str], overdue: bool
) -> None:
    member = factory.member()
    if overdue:
        factory.session(member, left=-60)
    with hold("SELECT FROM users WHERE id = %s FOR UPDATE; " + loss, member, member):
        started = send("start", member)
        wait_for(factory, 1, started)
    assert answer(started) == refusal
    assert [row.ended_at for row in factory.sessions(member)] == [None] * (
        overdue and refusal[1] != "VERIFICATION_REQUIRED"
    )


@pytest.mark.parametrize("call", ["create profile", "create preferences", "change preferences", "photo"])
@pytest.mark.parametrize(
    ("loss", "refusal"),
    [
        ("UPDATE users SET after_hours_consent = false WHERE id = %s", (403, "CONSENT_REQUIRED")),
        ("DELETE FROM users WHERE id = %s", (403, "VERIFICATION_REQUIRED")),
    ],
    ids=["consent", "member"],
)
def test_what_is_in_flight_when_the_gate_shuts_is_refused(
    factory: Factory,
    hold: Hold,
    send: Callable[..., Future[Any]],
    call: str,
    loss: str,
    refusal: tuple[int, str],
) -> None:
    member = factory.member(profile=call == "photo")
    if call == "change preferences":
        factory.execute("INSERT INTO after_hours_preferences (user_id) VALUES (%s)", member)
    before = held(factory, member)
    with hold("SELECT FROM users WHERE id = %s FOR UPDATE; " + loss, member, member):
        sent = send(call, member)
        wait_for(factory, 1, sent)
    assert answer(sent) == refusal
    assert held(factory, member) == (before if refusal[1] == "CONSENT_REQUIRED" else dict.fromkeys(before, 0))


ERASE_AT_COMMIT = """
    CREATE FUNCTION erase() RETURNS trigger LANGUAGE plpgsql AS $$
    BEGIN EXECUTE format('DELETE FROM %I WHERE user_id = $1', TG_TABLE_NAME) USING NEW.user_id; RETURN NULL; END $$;
    CREATE CONSTRAINT TRIGGER erase AFTER INSERT OR UPDATE ON after_hours_preferences DEFERRABLE INITIALLY DEFERRED
        FOR EACH ROW EXECUTE FUNCTION erase();
    CREATE CONSTRAINT TRIGGER erase AFTER INSERT OR UPDATE ON after_hours_profiles DEFERRABLE INITIALLY DEFERRED
        FOR EACH ROW EXECUTE FUNCTION erase();
"""


@pytest.mark.parametrize("call", ["create preferences", "change preferences", "create profile"])
def test_what_is_erased_between_commit_and_answer_is_answered(app: Flask, factory: Factory, call: str) -> None:
    member = factory.member(profile=False)
    if call == "change preferences":
        factory.execute("INSERT INTO after_hours_preferences (user_id) VALUES (%s)", member)
    factory.execute(ERASE_AT_COMMIT)
    response = CALLS[call](app.test_client(), member)
    assert response.status_code == (200 if call == "change preferences" else 201)
    assert response.json[call.split()[1]]["userId"] == member
    assert not any(held(factory, member).values())

"""Every end of a match: who is told, what is remembered, and when the two are looked for again."""

import math
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime
from typing import Any

import pytest
from flask import Flask
from flask.testing import FlaskClient
from redis import Redis

from afterhours_service.matching import rounds, rules
from afterhours_service.sessions import service as sessions
from tests.client import API, answer_match, current, end, erase, extend, failure, moment, seen, withdraw
from tests.factories import Factory, bearer, scheduled
from tests.matching.pairs import Pair, live, look, matched, row, told, work
from tests.stopwatch import eventually

Events = Callable[[], list[dict[str, Any]]]

MESSAGES = """
    CREATE TABLE after_hours_messages (
        match_id uuid NOT NULL REFERENCES after_hours_matches (id) ON DELETE CASCADE, sender_id text, text text)
"""


def searching(factory: Factory) -> dict[str, Any]:
    """Return when each member is looked for next; those who are matched are not in it."""
    found = factory.execute("SELECT user_id, look_at FROM after_hours_search WHERE match_id IS NULL")
    return {search.user_id: search.look_at for search in found}


def now(factory: Factory) -> datetime:
    moment: datetime = factory.execute("SELECT clock_timestamp() AS now")[0].now
    return moment


def assert_apart(app: Flask, factory: Factory, pair: Pair) -> None:
    """Assert that the two do not meet again while these sessions last."""
    for _ in range(2):
        factory.execute("UPDATE after_hours_search SET look_at = now()")
        work(app)
    assert factory.count("after_hours_matches") == 1


# --- a decline ---


def test_after_a_decline_the_other_is_looked_for_at_once_and_the_decliner_after_half_a_minute(
    app: Flask, client: FlaskClient, factory: Factory, redis: Redis, events: Events
) -> None:
    pair = matched(app, factory)
    events()
    redis.flushall()
    before = now(factory)
    assert answer_match(client, pair.one, "decline", pair.match).status_code == 200
    assert told(events()) == [(pair.other, "match_expired")]
    found = row(factory, pair.match)
    assert (found.declined_by, found.ended_by, found.end_reason) == (pair.one, pair.one, "declined")
    assert before <= found.declined_at <= found.ended_at
    assert found.due_at is None, "its end is published"
    assert {current(client, member)["status"] for member in (pair.one, pair.other)} == {"searching"}

    looks = searching(factory)
    assert looks[pair.other] == found.ended_at
    assert looks[pair.one].microsecond == 0
    assert 30 <= (looks[pair.one] - found.ended_at).total_seconds() < 31
    seconds = {math.ceil(found.ended_at.timestamp()), int(looks[pair.one].timestamp())}
    assert {f"match-timer-{second}" for second in seconds} <= scheduled(redis).keys()

    third = live(client, factory)
    factory.execute("UPDATE after_hours_search SET look_at = now() WHERE user_id = %s", third)
    work(app)
    assert current(client, third)["match"]["profile"]["userId"] == pair.other
    assert current(client, pair.one)["status"] == "searching"
    fourth = live(client, factory)
    factory.travel(31)
    work(app)
    assert current(client, fourth)["match"]["profile"]["userId"] == pair.one
    work(app)
    assert told(events(), "match_expired") == [], "the end was published once"


def test_a_decline_is_remembered_where_those_of_nearby_are(app: Flask, client: FlaskClient, factory: Factory) -> None:
    pair = matched(app, factory)
    assert seen(client, pair.one) == [pair.other]
    answer_match(client, pair.one, "decline", pair.match)
    assert seen(client, pair.one) == seen(client, pair.other) == []
    [remembered] = factory.execute("SELECT * FROM after_hours_declines")
    session = factory.sessions(pair.one)[0].id
    assert (remembered.user_id, remembered.declined_user_id) == (pair.one, pair.other)
    assert (remembered.session_id, remembered.last_session_id, remembered.decline_count) == (session, session, 1)

    assert client.delete(f"{API}/declines/{pair.other}", headers=bearer(pair.one)).status_code == 200
    assert seen(client, pair.one) == [pair.other]
    assert_apart(app, factory, pair)


def test_the_memory_of_a_decline_outlasts_the_sessions(app: Flask, client: FlaskClient, factory: Factory) -> None:
    pair = matched(app, factory)
    answer_match(client, pair.one, "decline", pair.match)
    for meets in (False, False, True):
        for member in (pair.one, pair.other):
            end(client, member)
            assert client.post(
                f"{API}/session/start",
                json={"duration": 15, "latitude": 52.52, "longitude": 13.405},
                headers=bearer(member),
            )
        factory.travel(31)
        work(app)
        assert (current(client, pair.one)["status"] == "matched") == meets


def test_a_decline_of_nearby_keeps_two_apart(app: Flask, client: FlaskClient, factory: Factory) -> None:
    one, other = live(client, factory), live(client, factory)
    client.post(f"{API}/declines", json={"userId": other}, headers=bearer(one))
    factory.travel(16)
    work(app)
    assert factory.count("after_hours_matches") == 0


def test_a_decline_of_a_known_decline_begins_anew(app: Flask, client: FlaskClient, factory: Factory) -> None:
    """As discovery's: the row of an older session is renewed."""
    pair = matched(app, factory)
    old = factory.session(pair.one, left=-9000, ended=True)
    factory.execute(
        """INSERT INTO after_hours_declines (session_id, user_id, declined_user_id, last_session_id, created_at)
           VALUES (%s, %s, %s, %s, now() - interval '8 days')""",
        old,
        pair.one,
        pair.other,
        old,
    )
    answer_match(client, pair.one, "decline", pair.match)
    [remembered] = factory.execute("SELECT * FROM after_hours_declines")
    assert remembered.decline_count == 2
    assert str(remembered.last_session_id) == str(factory.sessions(pair.one)[-1].id) != old


def test_a_decline_by_the_card_itself_is_no_decline(
    app: Flask, client: FlaskClient, factory: Factory, events: Events, monkeypatch: pytest.MonkeyPatch
) -> None:
    """When that is the case is for the rule to say: it is asked with the database's clock."""
    asked = []

    def no(moment: datetime, respond_by: datetime | None) -> bool:
        asked.append((moment, respond_by))
        return False

    pair = matched(app, factory)
    events()
    monkeypatch.setattr(rules, "counts_as_decline", no)
    before = now(factory)
    assert answer_match(client, pair.one, "decline", pair.match).status_code == 200
    found = row(factory, pair.match)
    [(moment, respond_by)] = asked
    assert before < moment < now(factory)
    assert respond_by == found.respond_by
    assert (found.declined_by, found.ended_by, found.end_reason, found.lives) == (None, None, "unanswered", False)
    assert told(events()) == sorted([(pair.one, "match_expired"), (pair.other, "match_expired")])
    assert factory.count("after_hours_declines") == 0
    assert set(searching(factory).values()) == {found.ended_at}, "both at once"
    assert seen(client, pair.one) == [pair.other]
    assert_apart(app, factory, pair)
    assert told(events(), "match_expired") == []


# --- nobody answers, or somebody does ---


def test_a_match_that_nobody_answers_is_over(app: Flask, client: FlaskClient, factory: Factory, events: Events) -> None:
    pair = matched(app, factory)
    events()
    factory.travel(301)
    for member in (pair.one, pair.other):  # whether a worker has noticed or not
        assert current(client, member)["status"] == "searching"
        assert failure(answer_match(client, member, "accept", pair.match)) == (404, "MATCH_NOT_FOUND")
    work(app)
    found = row(factory, pair.match)
    assert (found.lives, found.declined_by, found.end_reason) == (False, None, "unanswered")
    assert told(events(), "match_expired") == sorted([(pair.one, "match_expired"), (pair.other, "match_expired")])
    assert factory.count("after_hours_declines") == 0
    assert seen(client, pair.one) == [pair.other]
    assert_apart(app, factory, pair)


def accept(app: Flask, factory: Factory, pair: Pair) -> None:
    assert answer_match(app.test_client(), pair.other, "accept", pair.match).status_code == 200


def vote(app: Flask, factory: Factory, pair: Pair) -> None:
    factory.execute("UPDATE after_hours_matches SET user2_save_vote = true")


def write(app: Flask, factory: Factory, pair: Pair) -> None:
    factory.execute(MESSAGES)
    factory.execute("INSERT INTO after_hours_messages VALUES (%s, %s, 'Hi')", pair.match, pair.other)


@pytest.mark.parametrize("do", [accept, vote, write])
def test_an_answer_stops_the_auto_decline(
    app: Flask, client: FlaskClient, factory: Factory, events: Events, do: Callable[[Flask, Factory, Pair], None]
) -> None:
    pair = matched(app, factory)
    expires_at = current(client, pair.one)["match"]["expiresAt"]
    do(app, factory, pair)
    factory.travel(301)
    events()
    work(app)
    for member in (pair.one, pair.other):
        match = current(client, member)["match"]
        assert match["autoDeclineAt"] is None
        assert (moment(expires_at) - moment(match["expiresAt"])).total_seconds() == 301
    assert told(events()) == []

    factory.travel(300)
    assert current(client, pair.one)["status"] == "searching", "ten minutes are over"
    work(app)
    assert row(factory, pair.match).end_reason == "timeout"
    assert told(events(), "match_expired") == sorted([(pair.one, "match_expired"), (pair.other, "match_expired")])


def test_an_empty_table_of_messages_is_no_answer(app: Flask, factory: Factory) -> None:
    pair = matched(app, factory)
    factory.execute(MESSAGES)
    factory.travel(301)
    work(app)
    assert row(factory, pair.match).end_reason == "unanswered"


def test_a_worker_is_woken_for_each_moment(app: Flask, factory: Factory, redis: Redis) -> None:
    pair = matched(app, factory)
    found = row(factory, pair.match)
    assert found.due_at == found.respond_by
    assert f"match-timer-{found.respond_by.timestamp():.0f}" in scheduled(redis)
    accept(app, factory, pair)
    factory.travel(301)
    work(app)
    found = row(factory, pair.match)
    assert found.due_at == found.expires_at
    assert f"match-timer-{found.expires_at.timestamp():.0f}" in scheduled(redis)


# --- a session that ends, runs out or is extended ---


def end_by_member(app: Flask, factory: Factory, member: str) -> None:
    assert end(app.test_client(), member).status_code == 200


def end_by_operator(app: Flask, factory: Factory, member: str) -> None:
    with app.app_context():
        sessions.end(member, "operator")


def end_by_withdrawal(app: Flask, factory: Factory, member: str) -> None:
    assert withdraw(app.test_client(), member).status_code == 200


def end_by_erasure(app: Flask, factory: Factory, member: str) -> None:
    assert erase(app.test_client(), member).status_code == 200


def end_by_another_service(app: Flask, factory: Factory, member: str) -> None:
    factory.execute("UPDATE after_hours_sessions SET ended_at = now() WHERE user_id = %s", member)


@pytest.mark.parametrize("leaves_first", [True, False], ids=["one", "other"])
@pytest.mark.parametrize(
    "do", [end_by_member, end_by_operator, end_by_withdrawal, end_by_erasure, end_by_another_service]
)
def test_who_leaves_takes_the_match_along(
    app: Flask,
    client: FlaskClient,
    factory: Factory,
    events: Events,
    redis: Redis,
    do: Callable[[Flask, Factory, str], None],
    leaves_first: bool,
) -> None:
    pair = matched(app, factory)
    leaver, other = (pair.one, pair.other) if leaves_first else (pair.other, pair.one)
    accept(app, factory, pair)
    events()
    redis.zremrangebyscore("rq:scheduler:scheduled_jobs", "-inf", "inf")
    do(app, factory, leaver)
    assert current(client, other) == {"success": True, "active": True, "status": "searching", "match": None}
    live_matches = "after_hours_matches WHERE declined_by IS NULL AND expires_at > now()"
    assert factory.count(live_matches) == 0, "in the same transaction"
    look_at = searching(factory)[other]
    assert look_at <= now(factory)
    assert leaver not in searching(factory)
    if do is not end_by_another_service:
        assert [timer for timer in scheduled(redis) if timer.startswith("match-timer-")], "a worker is woken"
    work(app)
    assert told(events(), "match_expired") == [(other, "match_expired")]
    third = live(client, factory)
    factory.travel(16)
    work(app)
    assert current(client, third)["match"]["profile"]["userId"] == other


def test_a_match_ends_with_the_session_that_runs_out_first(
    app: Flask, client: FlaskClient, factory: Factory, events: Events
) -> None:
    short = live(client, factory)
    factory.travel(9 * 60)
    long = live(client, factory)
    factory.travel(16)
    work(app)
    match = current(client, short)["match"]
    expires_at = factory.sessions(short)[0].expires_at
    assert moment(match["expiresAt"]) == expires_at
    assert answer_match(client, long, "accept", match["id"]).status_code == 200
    events()
    factory.travel((expires_at - now(factory)).total_seconds())
    assert current(client, short)["status"] == "no_session"
    assert current(client, long)["status"] == "searching"
    work(app)
    found = row(factory, match["id"])
    assert (found.end_reason, found.ended_at) == ("timeout", found.expires_at)
    assert told(events(), "match_expired") == sorted([(short, "match_expired"), (long, "match_expired")])
    look(app)
    assert searching(factory).keys() == {long}


def test_an_extension_moves_the_end_within_ten_minutes(app: Flask, client: FlaskClient, factory: Factory) -> None:
    one, other = live(client, factory), live(client, factory)
    factory.travel(9 * 60)
    work(app)
    match = current(client, one)["match"]
    created_at = row(factory, match["id"]).created_at

    def ends_at() -> datetime:
        ends = {current(client, member)["match"]["expiresAt"] for member in (one, other)}
        [text] = ends
        return moment(text)

    first = min(factory.sessions(member)[0].expires_at for member in (one, other))
    assert ends_at() == first
    assert extend(client, one).status_code == 200
    assert ends_at() == factory.sessions(other)[0].expires_at, "the other's session ends no later than before"
    assert extend(client, other).status_code == 200
    assert 600 <= (ends_at() - created_at).total_seconds() < 601
    assert extend(client, other, 60).status_code == 200
    assert 600 <= (ends_at() - created_at).total_seconds() < 601
    accept(app, factory, Pair(one, other, match["id"]))
    factory.travel(7 * 60)  # the sessions would be over by now
    work(app)
    assert current(client, one)["status"] == "matched"
    factory.travel(3 * 60 + 1)
    assert current(client, one)["status"] == "searching"


# --- what the host decides ---


def test_lost_premium_ends_a_match_at_the_next_look(
    app: Flask, client: FlaskClient, factory: Factory, events: Events
) -> None:
    pair = matched(app, factory)
    events()
    factory.execute("UPDATE user_subscriptions SET is_active = false WHERE user_id = %s", pair.one)
    work(app)
    assert current(client, pair.other)["status"] == "matched"
    look(app)
    assert current(client, pair.other)["status"] == "searching"
    found = row(factory, pair.match)
    assert (found.lives, found.declined_by, found.end_reason) == (False, None, "barred")
    assert told(events(), "match_expired") == sorted([(pair.one, "match_expired"), (pair.other, "match_expired")])
    assert_apart(app, factory, pair)


@pytest.mark.parametrize("due", ["due_at", "now() + interval '1 minute'"], ids=["one by one", "at once"])
def test_a_look_goes_through_all_matches_some_at_a_time(
    app: Flask, factory: Factory, monkeypatch: pytest.MonkeyPatch, due: str
) -> None:
    monkeypatch.setattr(rounds, "CHUNK", 2)
    pairs = [matched(app, factory) for _ in range(6)]
    factory.execute(f"UPDATE after_hours_matches SET due_at = {due}")
    for pair in pairs[3:]:
        factory.execute("UPDATE users SET id_verified = false WHERE id = %s", pair.other)
    look(app)
    assert [row(factory, pair.match).lives for pair in pairs] == [True] * 3 + [False] * 3


@pytest.mark.parametrize("blocks_first", [True, False], ids=["one", "other"])
def test_a_block_hides_a_match_at_once_and_ends_it_at_the_next_look(
    app: Flask, client: FlaskClient, factory: Factory, events: Events, blocks_first: bool
) -> None:
    pair = matched(app, factory)
    events()
    blocker, blocked = (pair.one, pair.other) if blocks_first else (pair.other, pair.one)
    factory.execute("INSERT INTO blocks (id, user_id, blocked_user_id) VALUES ('b', %s, %s)", blocker, blocked)
    for member in (pair.one, pair.other):
        assert current(client, member)["status"] == "searching"
        assert failure(answer_match(client, member, "accept", pair.match)) == (404, "MATCH_NOT_FOUND")
    assert row(factory, pair.match).respond_by is not None, "what is refused changes nothing"
    assert told(events()) == []
    look(app)
    found = row(factory, pair.match)
    assert (found.lives, found.declined_by, found.end_reason) == (False, None, "blocked")
    assert told(events(), "match_expired") == sorted([(pair.one, "match_expired"), (pair.other, "match_expired")])
    assert_apart(app, factory, pair)


def test_a_decline_by_the_hosts_chat_service_counts_at_once(
    app: Flask, client: FlaskClient, factory: Factory, events: Events
) -> None:
    pair = matched(app, factory)
    events()
    factory.execute(
        "UPDATE after_hours_matches SET declined_by = %s, declined_at = now() WHERE id = %s", pair.one, pair.match
    )
    assert {current(client, member)["status"] for member in (pair.one, pair.other)} == {"searching"}
    looks = searching(factory)
    ended_at = row(factory, pair.match).ended_at
    assert looks[pair.other] == ended_at
    assert 30 <= (looks[pair.one] - ended_at).total_seconds() < 31
    assert told(events()) == []
    look(app)
    assert told(events(), "match_expired") == [(pair.other, "match_expired")]
    assert answer_match(client, pair.one, "decline", pair.match).status_code == 200, "they have declined it"
    assert failure(answer_match(client, pair.other, "decline", pair.match)) == (404, "MATCH_NOT_FOUND")
    assert_apart(app, factory, pair)


# --- at the same moment ---


@pytest.mark.usefixtures("patience")
@pytest.mark.parametrize("turn", range(5))
def test_of_two_who_decline_while_one_accepts_one_ends_the_match(
    app: Flask, factory: Factory, events: Events, turn: int
) -> None:
    pair = matched(app, factory)
    events()
    requests = [(pair.one, "accept"), (pair.one, "decline"), (pair.other, "decline")]
    barrier = threading.Barrier(len(requests))

    def ask(member: str, verb: str) -> int:
        client = app.test_client()
        barrier.wait()
        status: int = answer_match(client, member, verb, pair.match).status_code
        return status

    with ThreadPoolExecutor(len(requests)) as executor:
        accepted, *declined = executor.map(ask, *zip(*requests, strict=True))
    assert accepted in {200, 404}
    assert sorted(declined) == [200, 404]
    decliner, other = (pair.one, pair.other) if declined[0] == 200 else (pair.other, pair.one)
    found = row(factory, pair.match)
    assert (found.declined_by, found.ended_by, found.end_reason) == (decliner, decliner, "declined")
    work(app)
    assert told(events(), "match_expired") == [(other, "match_expired")]
    assert factory.execute("SELECT user_id, declined_user_id FROM after_hours_declines") == [(decliner, other)]


@pytest.mark.usefixtures("patience")
def test_one_who_declines_twice_at_once_is_answered_twice_and_the_other_told_once(
    app: Flask, factory: Factory, events: Events
) -> None:
    pair = matched(app, factory)
    events()
    barrier = threading.Barrier(3)

    def ask(_: int) -> int:
        client = app.test_client()
        barrier.wait()
        status: int = answer_match(client, pair.one, "decline", pair.match).status_code
        return status

    with ThreadPoolExecutor(3) as executor:
        assert list(executor.map(ask, range(3))) == [200] * 3
    assert told(events()) == [(pair.other, "match_expired")]
    assert factory.execute("SELECT decline_count FROM after_hours_declines") == [(1,)]


@pytest.mark.usefixtures("patience")
@pytest.mark.parametrize("verb", ["accept", "decline"])
def test_an_answer_that_waited_for_the_end_of_the_match_comes_too_late(
    app: Flask, factory: Factory, events: Events, verb: str
) -> None:
    """The end is later than the moment at which the answer began to wait."""
    pair = matched(app, factory)
    events()
    factory.execute("BEGIN")
    factory.execute("SELECT FROM after_hours_matches WHERE id = %s FOR UPDATE", pair.match)
    with ThreadPoolExecutor(1) as executor:
        answer = executor.submit(answer_match, app.test_client(), pair.one, verb, pair.match)
        eventually(factory.waiting)
        factory.execute("UPDATE after_hours_matches SET expires_at = clock_timestamp() WHERE id = %s", pair.match)
        factory.execute("COMMIT")
        assert failure(answer.result()) == (404, "MATCH_NOT_FOUND")
    found = row(factory, pair.match)
    assert (found.declined_by, found.user1_accepted_at, found.user2_accepted_at) == (None, None, None)
    assert told(events()) == []
    assert factory.count("after_hours_declines") == 0


@pytest.mark.usefixtures("patience")
@pytest.mark.parametrize("whom", ["one", "other"])
def test_a_decline_waits_for_an_erasure_before_it_locks_the_match(app: Flask, factory: Factory, whom: str) -> None:
    """An erasure locks its member and then ends the match: the other way round they would wait for each other."""
    pair = matched(app, factory)
    factory.execute("BEGIN")
    factory.execute("SELECT FROM users WHERE id = %s FOR UPDATE", getattr(pair, whom))
    with ThreadPoolExecutor(1) as executor:
        answer = executor.submit(answer_match, app.test_client(), pair.one, "decline", pair.match)
        eventually(factory.waiting)
        factory.execute("SELECT FROM after_hours_matches WHERE id = %s FOR UPDATE NOWAIT", pair.match)
        factory.execute("COMMIT")
        assert answer.result().status_code == 200

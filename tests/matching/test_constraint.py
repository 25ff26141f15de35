"""Nobody gets into two live matches, whoever inserts them."""

import contextlib
import itertools
import threading
from collections.abc import Iterator
from datetime import timedelta
from typing import Any

import psycopg2
import pytest
from flask import Flask
from flask.testing import FlaskClient
from psycopg2.errors import UniqueViolation

from afterhours_service.matching import queries
from tests.client import end, extend, start
from tests.factories import PLACE, Factory, prefer
from tests.matching.conftest import Work
from tests.stopwatch import eventually

# As the Node service does it, but for looking for somebody.
NODE = """
    INSERT INTO after_hours_matches (session_id, user_id_1, user_id_2, expires_at)
    SELECT a.id, a.user_id, b.user_id, least(a.expires_at, b.expires_at, now() + interval '10 minutes')
    FROM after_hours_sessions AS a, after_hours_sessions AS b
    WHERE (a.user_id, b.user_id) = (%s, %s) AND a.ended_at IS NULL AND b.ended_at IS NULL
"""
# By the clock, not by when the statement arrived: a match that ended between that and the snapshot would count.
TWICE = """
    SELECT member, count(*) FROM after_hours_matches CROSS JOIN LATERAL (VALUES (user_id_1), (user_id_2)) AS v (member)
    WHERE declined_by IS NULL AND expires_at > clock_timestamp() GROUP BY member HAVING count(*) > 1
"""


@pytest.fixture
def connect(database_url: str) -> Iterator[Any]:
    with contextlib.ExitStack() as stack:

        def make() -> Any:
            return stack.enter_context(contextlib.closing(psycopg2.connect(database_url)))

        yield make


def live(client: FlaskClient, factory: Factory, *, by_node: bool) -> str:
    member = factory.member()
    if by_node:  # no start of ours: there is no row in after_hours_search
        factory.session(member)
    else:
        assert start(client, member).status_code == 201
    return member


@pytest.mark.parametrize("by_node", [True, False], ids=["sessions of the Node service", "ours"])
def test_of_two_inserts_at_once_one_waits_and_is_refused(
    client: FlaskClient, factory: Factory, connect: Any, by_node: bool
) -> None:
    one, shared, other = (live(client, factory, by_node=by_node) for _ in range(3))
    first, second = connect(), connect()
    first.cursor().execute(NODE, (one, shared))
    refused = []

    def insert() -> None:
        try:
            second.cursor().execute(NODE, (shared, other))
        except UniqueViolation as error:
            refused.append(error)

    thread = threading.Thread(target=insert)
    thread.start()
    eventually(lambda: factory.waiting() == 1)
    first.commit()
    thread.join()
    assert len(refused) == 1
    assert factory.count("after_hours_matches") == 1


def test_who_inserts_the_match_that_a_round_is_making_waits_and_is_refused(
    client: FlaskClient, factory: Factory, connect: Any
) -> None:
    one, other = sorted(live(client, factory, by_node=False) for _ in range(2))
    sessions = {each: factory.sessions(each)[0].id for each in (one, other)}
    making, second = connect(), connect()
    making.cursor().execute("SELECT FROM users WHERE id IN (%s, %s) FOR NO KEY UPDATE", (one, other))
    failed = []

    def insert() -> None:
        try:
            second.cursor().execute(NODE, (one, other))
        except psycopg2.Error as error:
            failed.append(type(error))

    thread = threading.Thread(target=insert)
    thread.start()
    eventually(lambda: factory.waiting() == 1)
    making.cursor().execute(
        "INSERT INTO after_hours_matches (session_id, session_id_2, user_id_1, user_id_2, expires_at)"
        " VALUES (%s, %s, %s, %s, now() + interval '1 minute')",
        (sessions[one], sessions[other], one, other),
    )
    making.commit()
    thread.join()
    assert failed == [UniqueViolation]
    assert factory.count("after_hours_matches") == 1


def test_nor_in_one_statement_nor_while_a_match_of_ours_is_live(
    client: FlaskClient, factory: Factory, work: Work
) -> None:
    members = [live(client, factory, by_node=False) for _ in range(3)]
    with pytest.raises(UniqueViolation):
        factory.execute(NODE.replace("= (%s, %s)", "IN ((%s, %s), (%s, %s))"), *members[:2], *members[1:])
    assert factory.count("after_hours_matches") == 0
    work()
    [match] = factory.execute("SELECT user_id_1, user_id_2 FROM after_hours_matches")
    [alone] = set(members) - set(match)
    for one, other in ((match.user_id_1, alone), (alone, match.user_id_2), match):
        with pytest.raises(UniqueViolation):
            factory.execute(NODE, one, other)
    factory.execute("UPDATE after_hours_matches SET declined_by = user_id_1")
    factory.execute(NODE, match.user_id_2, alone)
    assert factory.execute(TWICE) == []


def test_a_round_goes_on_if_a_search_does_not_know_the_match_of_its_member(
    client: FlaskClient, factory: Factory, work: Work
) -> None:
    one, other = (live(client, factory, by_node=False) for _ in range(2))
    factory.execute(NODE, one, other)
    members = [one, *(live(client, factory, by_node=False) for _ in range(3))]
    factory.execute("UPDATE after_hours_search SET match_id = NULL, look_at = now() WHERE user_id = %s", one)
    work()
    assert factory.count("after_hours_matches") == 2
    [search] = factory.execute("SELECT match_id, looked_at, look_at FROM after_hours_search WHERE user_id = %s", one)
    assert search.match_id
    assert search.looked_at is search.look_at is None
    assert factory.execute(TWICE) == []
    waiting = factory.execute("SELECT user_id FROM after_hours_search WHERE match_id IS NULL")
    assert {row.user_id for row in waiting} < set(members[1:])


def test_a_match_that_is_over_stays_over(client: FlaskClient, factory: Factory) -> None:
    one, other = (live(client, factory, by_node=False) for _ in range(2))
    factory.execute(NODE, one, other)
    factory.execute("UPDATE after_hours_matches SET declined_by = %s", other)
    factory.execute("UPDATE after_hours_matches SET declined_by = NULL, expires_at = now() + interval '1 hour'")
    [match] = factory.execute("SELECT * FROM after_hours_matches")
    assert (match.ended_by, match.end_reason) == (other, "declined")
    assert match.expires_at <= match.ended_at


def test_a_member_who_declined_can_be_deleted(client: FlaskClient, factory: Factory) -> None:
    one, other = (live(client, factory, by_node=False) for _ in range(2))
    factory.execute(NODE, one, other)
    factory.execute("UPDATE after_hours_matches SET declined_by = %s", other)
    factory.execute("DELETE FROM users WHERE id = %s", other)
    assert factory.count("after_hours_matches") == 0


def test_matches_of_the_past_are_free(client: FlaskClient, factory: Factory) -> None:
    """Such as a restore writes them."""
    one, other = (live(client, factory, by_node=False) for _ in range(2))
    session = str(factory.sessions(one)[0].id)
    factory.match(session, one, other, over=True)
    factory.match(session, other, one, over=True)
    assert factory.execute("SELECT match_id FROM after_hours_search WHERE match_id IS NOT NULL") == []


def test_a_node_matcher_beside_ours_is_refused_and_nobody_is_in_two(
    client: FlaskClient, app: Flask, factory: Factory, connect: Any, work: Work
) -> None:
    members = [live(client, factory, by_node=bool(number % 2)) for number in range(12)]
    refused = 0
    node = connect()
    node.autocommit = True
    stop = threading.Event()

    def insert() -> None:
        nonlocal refused
        for pair in itertools.cycle(itertools.combinations(members, 2)):
            if stop.is_set():
                return
            try:
                node.cursor().execute(NODE, pair)
            except UniqueViolation:
                refused += 1

    thread = threading.Thread(target=insert)
    thread.start()
    try:
        for rounds in range(500):
            work()
            assert factory.execute(TWICE) == []
            factory.execute("UPDATE after_hours_matches SET declined_by = user_id_1 WHERE random() < 0.5")
            if rounds >= 10 and refused:  # the thread may come late on a busy machine
                break
    finally:
        stop.set()
        thread.join()
    assert refused
    assert factory.execute(TWICE) == []


def test_who_leaves_a_session_of_the_node_service_leaves_its_match(client: FlaskClient, factory: Factory) -> None:
    """There is no search, nor is there while matching is switched off."""
    one, other = (live(client, factory, by_node=True) for _ in range(2))
    for leaver in (one, other):
        factory.execute("DELETE FROM after_hours_matches")
        factory.execute("UPDATE after_hours_sessions SET ended_at = NULL")
        factory.execute(NODE, one, other)
        assert end(client, leaver).status_code == 200
        [match] = factory.execute("SELECT *, expires_at > now() AS lives FROM after_hours_matches")
        assert (match.lives, match.declined_by, match.ended_by, match.end_reason) == (False, None, leaver, "left")


def test_an_extension_that_waited_for_a_round_extends_the_match_it_made(
    client: FlaskClient, factory: Factory, connect: Any
) -> None:
    one, other = sorted(live(client, factory, by_node=False) for _ in range(2))
    factory.execute("UPDATE after_hours_sessions SET expires_at = now() + interval '3 minutes' WHERE user_id = %s", one)
    sessions = {each: factory.sessions(each)[0] for each in (one, other)}
    making = connect()
    making.cursor().execute("SELECT FROM after_hours_search WHERE user_id IN (%s, %s) FOR NO KEY UPDATE", (one, other))
    making.cursor().execute(
        "INSERT INTO after_hours_matches (session_id, session_id_2, user_id_1, user_id_2, expires_at, lasts_until)"
        " VALUES (%s, %s, %s, %s, %s, now() + interval '10 minutes')",
        (sessions[one].id, sessions[other].id, one, other, sessions[one].expires_at),
    )
    thread = threading.Thread(target=lambda: extend(client, one))
    thread.start()
    eventually(lambda: factory.waiting() == 1)
    making.commit()
    thread.join()
    [match] = factory.execute("SELECT * FROM after_hours_matches")
    assert match.expires_at == match.lasts_until


def test_matches_are_inserted_at_read_committed_only(client: FlaskClient, factory: Factory, connect: Any) -> None:
    one, other = (live(client, factory, by_node=True) for _ in range(2))
    connection = connect()
    connection.set_session(isolation_level="REPEATABLE READ")
    with pytest.raises(psycopg2.errors.FeatureNotSupported):
        connection.cursor().execute(NODE, (one, other))


def test_who_seemed_to_fit_and_does_not_any_more_keeps_nobody_waiting(
    client: FlaskClient, factory: Factory, work: Work
) -> None:
    asker, nearest, next_one = (factory.member() for _ in range(3))
    for member, gender, seeks in ((asker, "Male", "Female"), (nearest, "Female", "Male"), (next_one, "Female", "Male")):
        factory.execute("UPDATE profiles SET gender = %s WHERE user_id = %s", gender, member)
        prefer(factory, member, seeking_gender=seeks, min_age=18, max_age=40)
    for member, north in ((nearest, 0.0), (next_one, 0.05)):
        assert start(client, member, latitude=PLACE["latitude"] + north).status_code == 201
    work()
    factory.execute("UPDATE profiles SET age = 60 WHERE user_id = %s", nearest)
    assert start(client, asker).status_code == 201
    work()
    [match] = factory.execute("SELECT * FROM after_hours_matches")
    assert {match.user_id_1, match.user_id_2} == {asker, next_one}


def test_those_who_waited_longest_are_looked_at_again_first(
    client: FlaskClient, factory: Factory, app: Flask, work: Work
) -> None:
    members = sorted(factory.member() for _ in range(4))
    for member in members:
        prefer(factory, member, max_distance_km=1)
    for number, member in enumerate(members):
        assert start(client, member, latitude=10.0 + number).status_code == 201
    work()
    factory.execute("UPDATE after_hours_search SET looked_at = now() - interval '1 hour'")
    seen = []
    for _ in range(2):
        with app.app_context():
            assert queries.look_again(2, timedelta(minutes=5)) == 2
        seen += [
            row.user_id for row in factory.execute("SELECT user_id FROM after_hours_search WHERE look_at IS NOT NULL")
        ]
        work()
        factory.execute("UPDATE after_hours_search SET looked_at = looked_at - interval '10 minutes'")
    assert sorted(seen) == members

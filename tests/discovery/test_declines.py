"""A decline hides two members from each other: silently, for a while."""

from collections.abc import Callable
from typing import Any

import pytest
from flask import Flask
from flask.testing import FlaskClient

from afterhours_service.cleanup import service as cleanup
from tests.client import API, decline, seen
from tests.factories import Factory, Live, bearer, go_live, prefer


def again(factory: Factory, member: str) -> None:
    """End the member's session, and start the next."""
    factory.execute("UPDATE after_hours_sessions SET ended_at = now() WHERE user_id = %s AND ended_at IS NULL", member)
    factory.travel(60)
    go_live(factory, member)


@pytest.mark.parametrize(
    ("my_next", "their_next", "hidden"),
    [(0, 0, True), (1, 0, True), (2, 0, True), (3, 0, False), (4, 0, False), (0, 3, True), (2, 3, True), (3, 3, False)],
)
def test_it_lasts_for_this_session_and_the_next_two_of_who_declined(
    client: FlaskClient, factory: Factory, live: Live, my_next: int, their_next: int, hidden: bool
) -> None:
    me, other = live(), live()
    assert decline(client, me, other).status_code == 201
    for member, sessions in ((me, my_next), (other, their_next)):
        for _ in range(sessions):
            again(factory, member)
    assert (seen(client, me) == []) == hidden
    assert (seen(client, other) == []) == hidden


def test_the_same_decline_twice_changes_nothing(client: FlaskClient, factory: Factory, live: Live) -> None:
    me, other = live(), live()
    decline(client, me, other)
    before = factory.execute("SELECT * FROM after_hours_declines")
    assert decline(client, me, other).status_code == 201
    again(factory, me)
    assert decline(client, me, other).status_code == 201
    assert factory.execute("SELECT * FROM after_hours_declines") == before


def test_a_decline_made_anew_begins_anew(client: FlaskClient, factory: Factory, live: Live) -> None:
    me, other = live(), live()
    decline(client, me, other)
    factory.execute("UPDATE after_hours_declines SET created_at = created_at - interval '8 days'")
    for _ in range(3):
        again(factory, me)
    assert decline(client, me, other).status_code == 201
    [row] = factory.execute("SELECT *, created_at > now() - interval '1 hour' AS fresh FROM after_hours_declines")
    current = factory.sessions(me)[-1].id
    assert (row.decline_count, row.session_id, row.last_session_id, row.fresh) == (2, current, current, True)
    assert seen(client, other) == []
    for _ in range(3):
        again(factory, me)
    assert seen(client, other) == [me]


def test_it_is_taken_back(client: FlaskClient, live: Live) -> None:
    me, other = live(), live()
    decline(client, me, other)
    for _ in range(2):  # what is not there is taken back as well
        assert client.delete(f"{API}/declines/{other}", headers=bearer(me)).status_code == 200
    assert seen(client, me) == [other]
    assert seen(client, other) == [me]


def test_nobody_takes_back_anothers(client: FlaskClient, live: Live) -> None:
    me, other = live(), live()
    decline(client, me, other)
    assert client.delete(f"{API}/declines/{me}", headers=bearer(other)).status_code == 200
    assert seen(client, other) == []


def test_it_is_silent(client: FlaskClient, live: Live, events: Callable[[], list[dict[str, Any]]]) -> None:
    me, other = live(), live()
    events()
    decline(client, me, other)
    assert events() == []


def test_who_cannot_be_seen_is_as_unknown_as_who_does_not_exist(
    client: FlaskClient, factory: Factory, live: Live
) -> None:
    me = live()
    far, unfit, blocking, leaving, declining = live(40), live(), live(), live(left=100), live()
    prefer(factory, unfit, seeking_gender="Male")
    factory.execute("INSERT INTO blocks (id, user_id, blocked_user_id) VALUES ('b', %s, %s)", blocking, me)
    decline(client, declining, me)
    answers = [
        decline(client, me, other)
        for other in ("nobody", me, far, unfit, blocking, leaving, declining, factory.member())
    ]
    assert {(answer.status_code, answer.json["code"]) for answer in answers} == {(404, "MEMBER_NOT_FOUND")}
    assert len({answer.data for answer in answers}) == 1
    assert factory.count("after_hours_declines") == 1


@pytest.mark.parametrize("body", [{}, {"userId": ""}, {"userId": 1}, {"userId": "x" * 256}, {"userId": "\0"}])
def test_a_malformed_decline_is_refused(client: FlaskClient, live: Live, body: dict[str, Any]) -> None:
    response = client.post(f"{API}/declines", json=body, headers=bearer(live()))
    assert (response.status_code, response.json["code"]) == (400, "VALIDATION_ERROR")


def test_a_decline_needs_a_session(client: FlaskClient, factory: Factory, live: Live) -> None:
    me, other = factory.member(), live()
    answers = [
        decline(client, me, other),
        client.delete(f"{API}/declines/{other}", headers=bearer(me)),
    ]
    assert [(answer.status_code, answer.json["code"]) for answer in answers] == [(400, "NO_ACTIVE_SESSION")] * 2


def test_an_id_that_no_database_can_hold_is_not_declined(client: FlaskClient, live: Live) -> None:
    assert client.delete(f"{API}/declines/%00", headers=bearer(live())).status_code in {200, 404}


@pytest.mark.parametrize(
    ("made_days_ago", "renewed_days_ago", "kept"),
    [(6, None, True), (8, None, False), (8, 6, True), (20, 8, False)],
)
def test_the_cleanup_deletes_what_was_last_made_before_the_retention(
    app: Flask, factory: Factory, made_days_ago: float, renewed_days_ago: float | None, kept: bool
) -> None:
    """A renewal as the Node service writes it: only last_session_id follows."""
    me, other = factory.member(), factory.member()
    sessions = []
    for days in (made_days_ago, renewed_days_ago):
        if days is not None:
            sessions.append(factory.session(me, left=-60, ended=True))
            factory.execute(
                """UPDATE after_hours_sessions SET started_at = started_at - %s * interval '1 day',
                   expires_at = expires_at - %s * interval '1 day', ended_at = ended_at - %s * interval '1 day'
                   WHERE id = %s""",
                days,
                days,
                days,
                sessions[-1],
            )
    factory.execute(
        """INSERT INTO after_hours_declines (session_id, user_id, declined_user_id, last_session_id, created_at)
           VALUES (%s, %s, %s, %s, now() - %s * interval '1 day')""",
        sessions[0],
        me,
        other,
        sessions[-1],
        made_days_ago,
    )
    with app.app_context():
        pending = cleanup.pending()["declines"]
        counts = cleanup.run().counts
    assert (pending, counts["declines"]) == ((0, 0) if kept else (1, 1))
    assert factory.count("after_hours_declines") == kept

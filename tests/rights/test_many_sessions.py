"""What one member's many sessions cost, in rows read: no more than a few of them, whoever asks."""

import uuid
from collections.abc import Callable, Iterator
from datetime import timedelta
from typing import Any

import pytest
from flask import Flask
from flask.testing import FlaskClient

from afterhours_service.discovery import queries as discovery
from afterhours_service.rights import queries as members
from afterhours_service.sessions import queries as sessions
from afterhours_service.stores.connection import cursor
from afterhours_service.stores.statements import Statement
from tests.client import end, erase, look, start, withdraw
from tests.factories import Factory, go_live, many_sessions
from tests.wire import Wire

MANY = 20_000
LEAD = timedelta(minutes=2)


def rows_read(plan: dict[str, Any]) -> Iterator[float]:
    """Yield how many rows each step of a plan that was run has looked at."""
    left_out = sum(plan.get(f"Rows Removed by {what}", 0) for what in ("Filter", "Index Recheck", "Join Filter"))
    yield (plan["Actual Rows"] + left_out) * plan["Actual Loops"]
    for part in plan.get("Plans", ()):
        yield from rows_read(part)


def cost(statement: Statement[Any] | str, before: str = "", **parameters: Any) -> float:
    """Run a statement, and return how many rows the busiest step of its plan has looked at; nothing is kept."""
    if isinstance(statement, Statement):
        before, statement = statement._before, statement._text
    with cursor() as opened:
        opened.execute(f"BEGIN; {before} EXPLAIN (ANALYZE, FORMAT JSON) {statement}", parameters)
        [(plan,)] = opened.fetchall()
        opened.execute("ROLLBACK")
    return max(rows_read(plan[0]["Plan"]))


@pytest.fixture
def old_hand(factory: Factory) -> str:
    """Return a live member with many sessions."""
    member = factory.member()
    many_sessions(factory, member, MANY)
    factory.execute(
        "INSERT INTO after_hours_places (id, user_id, fuzzed_latitude, fuzzed_longitude, visits, last_seen)"
        " SELECT gen_random_uuid(), %s, 1, 1, 1, current_date FROM generate_series(1, %s)",
        member,
        MANY,
    )
    go_live(factory, member)
    return member


def test_a_start_and_an_end_read_no_more_than_the_latest(app: Flask, old_hand: str) -> None:
    with app.app_context():
        places = [uuid.uuid4().hex for _ in range(15)]
        assert cost(sessions._PREPARATION, member_id=old_hand, places=places) <= len(places)
        assert cost(sessions._ACTIVE, member_id=old_hand) <= 1
        assert cost(sessions._END, member_id=old_hand, lead=LEAD) <= 2
        extension: dict[str, Any] = {"lead": LEAD, "length": LEAD, "minutes": 2, "key": None}
        assert cost(sessions._EXTEND, member_id=old_hand, **extension) <= 2


@pytest.mark.parametrize("since", [0, MANY], ids=["just made", "made before all sessions"])
def test_a_decline_costs_those_who_look_around_a_few_rows(
    app: Flask, client: FlaskClient, factory: Factory, old_hand: str, since: int
) -> None:
    other = factory.member()
    go_live(factory, other)
    factory.execute(
        """INSERT INTO after_hours_declines (session_id, user_id, declined_user_id)
           SELECT id, user_id, %s FROM after_hours_sessions WHERE user_id = %s
           ORDER BY started_at DESC OFFSET %s LIMIT 1""",
        other,
        old_hand,
        since,
    )
    factory.execute("ANALYZE")
    with app.app_context():
        for member, another in ((other, old_hand), (old_hand, other)):
            me = discovery.asker(member)
            assert me
            around = {**discovery._parameters(me, LEAD), "limit": 20, "other_id": another}
            for statement in (discovery._PAGE, discovery._COUNT, discovery._CANDIDATE, discovery._DECLINE_IN_FORCE):
                assert cost(statement, **statement._constants, **around) <= 3
    assert len(look(client, other)["members"]) == (1 if since else 0)


def test_no_statement_of_an_erasure_deletes_more_than_a_batch(
    wire: Wire, make_app: Callable[..., Flask], factory: Factory, old_hand: str
) -> None:
    """A statement that outlasts the timeout would be refused for ever."""
    factory.execute(
        "INSERT INTO device_fingerprints (user_id, session_id) SELECT user_id, id FROM after_hours_sessions"
    )
    other = factory.member()
    factory.execute(
        "INSERT INTO after_hours_matches (session_id, user_id_1, user_id_2, expires_at, converted_to_match_id)"
        " SELECT id, user_id, %s, started_at, 'saved' FROM after_hours_sessions ORDER BY started_at LIMIT 11000",
        other,
    )
    client = make_app(database_url=wire.url, database_prepare=False).test_client()
    assert erase(client, old_hand).status_code == 200
    for begin, number in (
        ("DELETE FROM device_fingerprints", MANY),
        ("DELETE FROM after_hours_sessions", MANY - 11_000),
        ("UPDATE after_hours_sessions SET fuzzed_latitude", 11_000),
    ):
        statements = [query for query in wire.queries if query.strip().startswith(begin)]
        assert len(statements) > number // members._BATCH
        assert all(f"LIMIT {members._BATCH}" in query for query in statements)
    assert factory.count("device_fingerprints") == 0
    left = factory.sessions(old_hand)
    assert len(left) == factory.count("after_hours_matches") == 11_000
    assert {(row.fuzzed_latitude, row.fuzzed_longitude) for row in left} == {(0, 0)}


def test_a_member_of_many_sessions_goes_live_and_leaves(client: FlaskClient, factory: Factory, old_hand: str) -> None:
    for request, answer in ((end, 200), (start, 201), (withdraw, 200), (erase, 200)):
        assert request(client, old_hand).status_code == answer
    assert factory.sessions(old_hand) == []

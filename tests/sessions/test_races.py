"""Members in a hurry: whatever comes at once, the database keeps one truth and nobody sees a 500.

Each test meets the real app with real threads, all let go at the same moment.
"""

import threading
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import pytest
from flask import Flask

from tests.client import end, extend, start, status
from tests.factories import Factory

pytestmark = pytest.mark.usefixtures("patience")


def at_once(app: Flask, *calls: Callable[..., Any], member: str) -> list[Any]:
    """Make every call in a thread of its own, at the same moment; return the responses in the order of the calls."""
    barrier = threading.Barrier(len(calls))

    def run(call: Callable[..., Any]) -> Any:
        client = app.test_client()
        barrier.wait(60)
        return call(client, member)

    with ThreadPoolExecutor(len(calls)) as threads:
        return list(threads.map(run, calls))


def codes(responses: list[Any]) -> Counter[int]:
    return Counter(response.status_code for response in responses)


@pytest.mark.parametrize("overdue", [False, True])
def test_of_fifty_starts_one_wins(app: Flask, factory: Factory, overdue: bool) -> None:
    member = factory.member()
    if overdue:
        factory.session(member, left=-60)
    responses = at_once(app, *[start] * 50, member=member)
    assert codes(responses) == {201: 1, 409: 49}
    assert len({response.json["session"]["id"] for response in responses}) == 1
    assert [row.ended_at is None for row in factory.sessions(member)] == [False, True][not overdue :]


def test_twenty_extensions_of_fifteen_add_three_hundred_minutes(app: Flask, factory: Factory) -> None:
    member = factory.member()
    factory.session(member)
    [before] = factory.sessions(member)
    responses = at_once(app, *[extend] * 20, member=member)
    assert codes(responses) == {200: 20}
    [after] = factory.sessions(member)
    assert (after.expires_at - before.expires_at).total_seconds() == 300 * 60
    assert len({response.json["session"]["expiresAt"] for response in responses}) == 20


def test_twenty_extensions_with_one_key_are_one(app: Flask, factory: Factory) -> None:
    member = factory.member()
    factory.session(member)
    [before] = factory.sessions(member)
    responses = at_once(app, *[partial(extend, key="k")] * 20, member=member)
    assert codes(responses) == {200: 20}
    [after] = factory.sessions(member)
    assert (after.expires_at - before.expires_at).total_seconds() == 15 * 60
    assert len({response.json["session"]["expiresAt"] for response in responses}) == 1


def test_of_ten_ends_one_ends(app: Flask, factory: Factory) -> None:
    member = factory.member()
    factory.session(member)
    assert codes(at_once(app, *[end] * 10, member=member)) == {200: 1, 404: 9}


def test_an_extension_and_an_end_leave_an_ended_session(app: Flask, factory: Factory) -> None:
    for _ in range(5):
        member = factory.member()
        factory.session(member)
        extended, ended = at_once(app, extend, end, member=member)
        assert ended.status_code == 200
        assert extended.status_code in {200, 404}
        [row] = factory.sessions(member)
        assert row.ended_at is not None


def test_starts_against_ends_keep_every_session_whole(app: Flask, factory: Factory) -> None:
    member = factory.member()
    factory.session(member)
    responses = at_once(app, *[start, end] * 10, member=member)
    assert codes(responses[::2]).keys() <= {201, 409}
    assert codes(responses[1::2]).keys() <= {200, 404}
    started, ended = codes(responses)[201], codes(responses)[200]
    rows = factory.sessions(member)
    assert len(rows) == 1 + started
    assert sum(row.ended_at is not None for row in rows) == ended
    assert status(app.test_client(), member).json["active"] is (started == ended)

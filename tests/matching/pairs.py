"""Members who are matched, and the worker who matches them."""

from typing import Any, NamedTuple

from flask import Flask
from flask.testing import FlaskClient

from afterhours_service.matching import jobs
from tests.client import current, start
from tests.factories import Factory

FIRST_LOOK_SECONDS = 16  # a quarter of a minute, rounded up


class Pair(NamedTuple):
    """Two members who are matched with each other, and their match."""

    one: str
    other: str
    match: str


def live(client: FlaskClient, factory: Factory, minutes: int = 15) -> str:
    """Make a member who has just gone live."""
    member = factory.member()
    assert start(client, member, minutes).status_code == 201
    return member


def work(app: Flask) -> None:
    """Do what a timer of matching does."""
    with app.app_context():
        jobs.go_on()


def look(app: Flask) -> None:
    """Do what the periodic job does."""
    with app.app_context():
        jobs.look()


def matched(app: Flask, factory: Factory, minutes: int = 15) -> Pair:
    """Make two members, and match them."""
    client = app.test_client()
    one, other = live(client, factory, minutes), live(client, factory, minutes)
    factory.travel(FIRST_LOOK_SECONDS)
    work(app)
    match = current(client, one)["match"]
    assert match["profile"]["userId"] == other
    return Pair(one, other, match["id"])


def row(factory: Factory, match: str) -> Any:
    """Return the row of a match, with `lives`: whether the host's chat service takes it for live."""
    statement = "SELECT *, declined_by IS NULL AND expires_at > now() AS lives FROM after_hours_matches WHERE id = %s"
    [found] = factory.execute(statement, match)
    return found


def told(events: list[dict[str, Any]], *kinds: str) -> list[tuple[str, str]]:
    """Return who was told what of matches: of these kinds, or of all."""
    of_matches = ("match", "match_accepted", "match_expired")
    return sorted(
        (event["targetUserId"], kind)
        for event in events
        if (kind := event["type"].removeprefix("after_hours:")) in (kinds or of_matches)
    )

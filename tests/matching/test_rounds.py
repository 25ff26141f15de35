"""Rounds on a real database: who is due is matched, and both are told."""

from typing import Any

from flask import Flask
from flask.testing import FlaskClient

from afterhours_service.matching import rounds
from tests.client import start
from tests.factories import Factory


def live(client: FlaskClient, factory: Factory) -> str:
    member = factory.member()
    assert start(client, member).status_code == 201
    return member


def due(factory: Factory) -> None:
    factory.execute("UPDATE after_hours_search SET look_at = now() WHERE look_at IS NOT NULL")


def test_two_who_fit_are_matched_and_told(client: FlaskClient, app: Flask, factory: Factory, events: Any) -> None:
    pair = {live(client, factory), live(client, factory)}
    with app.app_context():
        assert rounds.match_due().claimed == 0, "a quarter of a minute is not over"
        due(factory)
        assert rounds.match_due() == (2, 1, 2)
    [match] = factory.execute("SELECT * FROM after_hours_matches")
    assert {match.user_id_1, match.user_id_2} == pair
    assert [each["type"] for each in events()][-2:] == ["after_hours:match"] * 2

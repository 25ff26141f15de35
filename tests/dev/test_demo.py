"""The demo members are what they are announced to be."""

import pytest
from flask import Flask
from flask.testing import FlaskClient

from afterhours_service.config import Settings
from afterhours_service.matching import jobs
from dev import demo
from tests.client import current, start
from tests.factories import PLACE, Factory

# What somebody has changed since, table by table: for every demo member that has a row there.
CHANGES = {
    "users": "id_verified = NOT id_verified, after_hours_consent = NOT after_hours_consent",
    "profiles": "name = 'Somebody', age = 50, gender = 'Agender'",
    "user_subscriptions": "is_active = NOT is_active",
    "after_hours_profiles": "description = 'Changed', photo_url = NULL",
    "after_hours_preferences": "seeking_gender = 'Male', max_distance_km = 3",
}


def seed(app: Flask) -> None:
    with app.app_context():
        demo.seed()


@pytest.mark.parametrize("member", demo.MEMBERS, ids=lambda member: member.id)
def test_each_demo_member_gets_the_answer_that_is_announced(
    app: Flask, client: FlaskClient, settings: Settings, member: demo.Member
) -> None:
    seed(app)
    response = client.post(
        "/api/after-hours/session/start",
        json={"duration": 15, **PLACE},
        headers={"Authorization": f"Bearer {demo.token(member.id, settings)}"},
    )
    code = response.json["code"] if response.json and response.status_code >= 400 else ""
    assert f"{response.status_code} {code}".strip() == member.answer


def test_the_two_who_can_go_live_are_matched_with_each_other(app: Flask, client: FlaskClient, factory: Factory) -> None:
    seed(app)
    pair = [member.id for member in demo.MEMBERS if member.answer == "201"]
    for member in pair:
        assert start(client, member).status_code == 201
    factory.travel(16)  # a quarter of a minute, rounded up
    with app.app_context():
        jobs.go_on()
    assert [current(client, member)["match"]["profile"]["userId"] for member in pair] == pair[::-1]


def test_there_is_a_happy_one_and_one_for_each_refusal_of_the_gate() -> None:
    answers = {member.answer for member in demo.MEMBERS}
    assert answers >= {"201", "403 PREMIUM_REQUIRED", "403 VERIFICATION_REQUIRED", "403 CONSENT_REQUIRED"}


def test_seeding_again_changes_nothing(app: Flask, factory: Factory) -> None:
    seed(app)
    for table, change in CHANGES.items():
        changed = factory.execute(f"UPDATE {table} SET {change} RETURNING *")
        assert len(changed) >= len(demo.MEMBERS) - 2, table
    before = [factory.execute(f"SELECT * FROM {table} ORDER BY 1") for table in CHANGES]
    seed(app)
    assert [factory.execute(f"SELECT * FROM {table} ORDER BY 1") for table in CHANGES] == before

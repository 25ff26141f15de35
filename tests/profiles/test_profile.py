"""The After Hours profile over HTTP."""

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from flask import Flask
from flask.testing import FlaskClient
from hypothesis import given
from hypothesis import strategies as st

from afterhours_service.profiles import rules
from tests.factories import Factory, bearer

URL = "/api/after-hours/profile"
FAMILY = "\U0001f468\u200d\U0001f469\u200d\U0001f467"  # one character to people, five to Python, 18 bytes

ACCENTED = "e" + "\u0301" * 10  # one character to people, 21 bytes


def test_a_profile_is_made_read_and_changed(client: FlaskClient, factory: Factory) -> None:
    member = factory.member(profile=False)
    assert client.get(URL, headers=bearer(member)).json["code"] == "PROFILE_NOT_FOUND"
    made = client.post(URL, json={"description": "  Hello \n there "}, headers=bearer(member))
    assert made.status_code == 201
    profile = made.json["profile"]
    assert set(profile) == {"userId", "name", "age", "photoUrl", "description", "createdAt", "updatedAt"}
    assert (profile["userId"], profile["name"], profile["age"]) == (member, "Robin", 30)
    assert (profile["description"], profile["photoUrl"]) == ("Hello \n there", None)
    assert client.get(URL, headers=bearer(member)).json["profile"] == profile
    changed = client.patch(URL, json={"description": "Other"}, headers=bearer(member)).json["profile"]
    assert (changed["description"], changed["createdAt"]) == ("Other", profile["createdAt"])
    assert changed["updatedAt"] >= profile["updatedAt"]


def test_name_and_age_follow_the_main_profile(client: FlaskClient, factory: Factory) -> None:
    member = factory.member()
    factory.execute("UPDATE profiles SET name = 'Kim', age = 31 WHERE user_id = %s", member)
    profile = client.patch(URL, json={"description": "x"}, headers=bearer(member)).json["profile"]
    assert (profile["name"], profile["age"]) == ("Kim", 31)


def test_a_member_without_a_main_profile_still_gets_an_answer(client: FlaskClient, factory: Factory) -> None:
    member = factory.member(profile=False, main_profile=False)
    profile = client.post(URL, json={}, headers=bearer(member)).json["profile"]
    assert (profile["name"], profile["age"], profile["description"]) == (None, None, None)


def test_a_second_profile_is_refused(client: FlaskClient, factory: Factory) -> None:
    answer = client.post(URL, json={"description": "again"}, headers=bearer(factory.member()))
    assert (answer.status_code, answer.json["code"]) == (409, "PROFILE_EXISTS")


@pytest.mark.parametrize(
    ("body", "description"),
    [({}, "before"), ({"description": None}, None), ({"description": " \t\n "}, None), ({"description": "new"}, "new")],
)
def test_patch_tells_left_out_from_null(
    client: FlaskClient, factory: Factory, body: dict[str, Any], description: str | None
) -> None:
    member = factory.member()
    factory.execute("UPDATE after_hours_profiles SET description = 'before' WHERE user_id = %s", member)
    assert client.patch(URL, json=body, headers=bearer(member)).json["profile"]["description"] == description


def test_patch_without_a_profile_is_refused(client: FlaskClient, factory: Factory) -> None:
    member = factory.member(profile=False)
    for body in ({}, {"description": "x"}):
        assert client.patch(URL, json=body, headers=bearer(member)).json["code"] == "PROFILE_NOT_FOUND"


@pytest.mark.parametrize("text", [ACCENTED * 476, "x" * 500, FAMILY * 500, "é" * 500, "  " + "x" * 500 + "\n"], ids=len)
def test_500_characters_as_people_count_them_fit(client: FlaskClient, factory: Factory, text: str) -> None:
    answer = client.patch(URL, json={"description": text}, headers=bearer(factory.member()))
    assert answer.json["profile"]["description"] == text.strip()


@pytest.mark.parametrize(
    "text",
    [
        "x" * 501,
        FAMILY * 501,
        ACCENTED * 500,
        "a\x00b",
        "a\x07b",
        "a\x1b[31mb",
        "a\u202eb",
        "\ud800",
        5,
        True,
        ["x"],
        {"a": 1},
    ],
    ids=lambda text: ascii(text)[:12],
)
def test_other_descriptions_are_refused_and_change_nothing(client: FlaskClient, factory: Factory, text: Any) -> None:
    member = factory.member()
    factory.execute("UPDATE after_hours_profiles SET description = 'before' WHERE user_id = %s", member)
    answer = client.patch(URL, json={"description": text}, headers=bearer(member))
    assert (answer.status_code, answer.json["code"]) == (400, "VALIDATION_ERROR")
    assert [problem["field"] for problem in answer.json["errors"]] == ["description"]
    assert factory.execute("SELECT description FROM after_hours_profiles")[0].description == "before"


def test_of_many_creations_at_once_one_wins(app: Flask, factory: Factory) -> None:
    member = factory.member(profile=False)

    def create(_: int) -> int:
        return app.test_client().post(URL, json={}, headers=bearer(member)).status_code

    with ThreadPoolExecutor(8) as pool:
        assert sorted(pool.map(create, range(8))) == [201] + [409] * 7


@given(st.text())
def test_a_tidy_text_stays_as_it_is(text: str) -> None:
    tidy = rules.tidy(text)
    assert tidy is None or (tidy == rules.tidy(tidy) and tidy == tidy.strip())
    assert rules.length(text) <= len(text)

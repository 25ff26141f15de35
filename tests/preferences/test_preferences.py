"""Preferences: smart defaults once, and a range of ages that always has somebody in it."""

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from flask import Flask
from flask.testing import FlaskClient
from hypothesis import given
from hypothesis import strategies as st

from afterhours_service.preferences import rules
from tests.factories import Factory, bearer

URL = "/api/after-hours/preferences"
DEFAULTS = {"seekingGender": "Any", "maxDistanceKm": 10, "minAge": 18, "maxAge": 99, "sexualOrientation": None}


def values(preferences: dict[str, Any]) -> dict[str, Any]:
    return {name: preferences[name] for name in DEFAULTS}


def test_defaults_are_set_on_creation(client: FlaskClient, factory: Factory) -> None:
    member = factory.member()
    assert client.get(URL, headers=bearer(member)).json["code"] == "PREFERENCES_NOT_FOUND"
    made = client.post(URL, json={}, headers=bearer(member))
    assert made.status_code == 201
    assert values(made.json["preferences"]) == DEFAULTS
    assert client.get(URL, headers=bearer(member)).json["preferences"] == made.json["preferences"]
    again = client.post(URL, json={}, headers=bearer(member))
    assert (again.status_code, again.json["code"]) == (409, "PREFERENCES_EXIST")


@pytest.mark.parametrize(
    ("gender", "preference", "seeking"),
    [
        ("Female", "Straight", "Male"),
        ("Male", "Straight", "Female"),
        ("Male", "Gay", "Male"),
        ("Female", "Gay", "Female"),
        ("female", " lesbian ", "Female"),
        ("MALE", "Heterosexual", "Female"),
        ("Non-binary", "Straight", "Any"),
        ("Female", "Bisexual", "Any"),
        ("Male", "Queer", "Any"),
        ("Male", None, "Any"),
        (None, "Straight", "Any"),
        ("", "", "Any"),
    ],
)
def test_whom_a_member_is_likely_to_seek(gender: str | None, preference: str | None, seeking: str) -> None:
    assert rules.likely_seeking(gender, preference) == seeking


def test_the_main_profile_decides_only_on_creation(client: FlaskClient, factory: Factory) -> None:
    member = factory.member()
    main = "UPDATE profiles SET gender = %s, sexual_preference = 'Straight' WHERE user_id = %s"
    factory.execute(main, "Female", member)
    assert client.post(URL, json={}, headers=bearer(member)).json["preferences"]["seekingGender"] == "Male"
    factory.execute(main, "Male", member)
    changed = client.patch(URL, json={"minAge": 30}, headers=bearer(member)).json["preferences"]
    assert changed["seekingGender"] == "Male"


def test_what_is_given_beats_the_defaults(client: FlaskClient, factory: Factory) -> None:
    member = factory.member()
    given_ = {
        "seekingGender": "Non-binary", "maxDistanceKm": 200, "minAge": 40, "maxAge": 40, "sexualOrientation": "Queer",
    }  # fmt: skip
    assert values(client.post(URL, json=given_, headers=bearer(member)).json["preferences"]) == given_


def test_patch_keeps_what_it_is_not_given(client: FlaskClient, factory: Factory) -> None:
    member = factory.member()
    first = client.post(URL, json={"sexualOrientation": "Gay", "maxAge": 50}, headers=bearer(member)).json
    second = client.patch(URL, json={"maxDistanceKm": 5}, headers=bearer(member)).json
    assert values(second["preferences"]) == {**values(first["preferences"]), "maxDistanceKm": 5}
    third = client.patch(URL, json={"sexualOrientation": None}, headers=bearer(member)).json
    assert values(third["preferences"]) == {**values(second["preferences"]), "sexualOrientation": None}
    assert values(client.patch(URL, json={}, headers=bearer(member)).json["preferences"]) == values(
        third["preferences"]
    )


def test_patch_without_preferences_is_refused(client: FlaskClient, factory: Factory) -> None:
    answer = client.patch(URL, json={"minAge": 20}, headers=bearer(factory.member()))
    assert (answer.status_code, answer.json["code"]) == (404, "PREFERENCES_NOT_FOUND")


def test_whole_numbers_may_be_written_with_a_point(client: FlaskClient, factory: Factory) -> None:
    body = {"maxDistanceKm": 50.0, "minAge": 20.0, "maxAge": 40.0}
    made = client.post(URL, json=body, headers=bearer(factory.member()))
    assert made.status_code == 201
    assert '"maxDistanceKm":50,' in made.text.replace(" ", "")
    assert {name: made.json["preferences"][name] for name in body} == body


def test_ages_are_checked_against_the_stored_ones(client: FlaskClient, factory: Factory) -> None:
    member = factory.member()
    client.post(URL, json={"minAge": 30, "maxAge": 40}, headers=bearer(member))
    for body in ({"minAge": 41}, {"maxAge": 29}, {"minAge": 50, "maxAge": 45}):
        answer = client.patch(URL, json=body, headers=bearer(member))
        assert (answer.status_code, answer.json["errors"][0]["field"]) == (400, "minAge")
    assert client.patch(URL, json={"minAge": 41, "maxAge": 45}, headers=bearer(member)).status_code == 200


@pytest.mark.parametrize(
    "body",
    [
        {"seekingGender": "Women"}, {"seekingGender": None}, {"seekingGender": 1}, {"maxDistanceKm": 0},
        {"maxDistanceKm": 201}, {"maxDistanceKm": "10"}, {"maxDistanceKm": 10.5}, {"maxDistanceKm": True},
        {"maxAge": "40"}, {"minAge": float("inf")},
        {"minAge": 17}, {"maxAge": 100}, {"minAge": None}, {"sexualOrientation": "straight"}, {"userId": "me"},
        {"minAge": 50, "maxAge": 40},
    ],
)  # fmt: skip
def test_malformed_preferences_are_refused_and_write_nothing(
    client: FlaskClient, factory: Factory, body: dict[str, Any]
) -> None:
    answer = client.post(URL, json=body, headers=bearer(factory.member()))
    assert (answer.status_code, answer.json["code"]) == (400, "VALIDATION_ERROR")
    assert len(answer.json["errors"]) == 1
    assert factory.count("after_hours_preferences") == 0


def test_of_many_creations_at_once_one_wins(app: Flask, factory: Factory) -> None:
    member = factory.member()

    def create(_: int) -> int:
        return app.test_client().post(URL, json={}, headers=bearer(member)).status_code

    with ThreadPoolExecutor(8) as pool:
        assert sorted(pool.map(create, range(8))) == [201] + [409] * 7


def test_opposite_changes_at_once_never_leave_an_empty_range(app: Flask, factory: Factory) -> None:
    member = factory.member()
    app.test_client().post(URL, json={"minAge": 30, "maxAge": 60}, headers=bearer(member))

    def change(body: dict[str, int]) -> int:
        return app.test_client().patch(URL, json=body, headers=bearer(member)).status_code

    with ThreadPoolExecutor(2) as pool:
        assert sorted(pool.map(change, [{"minAge": 55}, {"maxAge": 35}])) == [200, 400]


_AGE = st.none() | st.integers(rules.MIN_AGE, rules.MAX_AGE)


@given(_AGE, _AGE)
def test_a_range_fits_when_somebody_is_in_it(min_age: int | None, max_age: int | None) -> None:
    low, high = rules.MIN_AGE if min_age is None else min_age, rules.MAX_AGE if max_age is None else max_age
    assert rules.ages_fit(min_age, max_age) == bool(range(low, high + 1))


@given(st.text(), st.text())
def test_a_likely_gender_is_one_that_preferences_may_have(gender: str, preference: str) -> None:
    assert rules.likely_seeking(gender, preference) in rules.GENDERS

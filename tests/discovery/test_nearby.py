"""Who is shown, in which order, and what of them."""

from typing import Any

import pytest
from flask import Flask
from flask.testing import FlaskClient

from afterhours_service.discovery import service
from afterhours_service.places.blur import Point, distance_metres, shown_distance_km
from tests.client import API, look, seen
from tests.factories import Factory, Live, bearer, prefer

ANYONE = {"max_distance_km": 200}
NAME = "after-hours-photos/m/0b5e8c9e-6f1e-4b7a-9b1e-2a3c4d5e6f70-photo"
KEY = f"{NAME}.jpg"


def test_a_member_is_shown_as_the_contract_says(client: FlaskClient, factory: Factory, live: Live) -> None:
    me, other = live(), live(52.53)
    factory.execute(
        "UPDATE after_hours_profiles SET description = 'Out', photo_url = %s WHERE user_id = %s", KEY, other
    )
    answer = look(client, me)
    [session] = factory.sessions(other)
    [shown] = answer["members"]
    assert KEY in shown.pop("photoUrl")
    assert f"{NAME}-thumbnail.jpg" in shown.pop("thumbnailUrl")
    assert answer == {
        "success": True,
        "nextCursor": None,
        "members": [
            {
                "userId": other,
                "name": "Robin",
                "age": 30,
                "description": "Out",
                "distanceKm": 2,
                "expiresAt": session.expires_at.strftime("%Y-%m-%dT%H:%M:%S.000Z"),
            }
        ],
    }


def test_the_nearest_come_first(client: FlaskClient, live: Live) -> None:
    me = live()
    far, near, middle = live(52.58), live(52.521), live(52.55)
    assert seen(client, me) == [near, middle, far]


@pytest.mark.parametrize(
    ("mine", "theirs", "fit"),
    [
        ({}, {}, True),
        ({"seeking_gender": "Female"}, {}, True),
        ({"seeking_gender": "Male"}, {}, False),
        ({}, {"seeking_gender": "Non-binary"}, False),
        ({"min_age": 30, "max_age": 30}, {"min_age": 30, "max_age": 30}, True),
        ({"min_age": 31}, {}, False),
        ({}, {"max_age": 29}, False),
        ({"max_distance_km": 2}, {"max_distance_km": 2}, True),
        ({"max_distance_km": 1}, {"max_distance_km": 2}, False),
        ({"max_distance_km": 2}, {"max_distance_km": 1}, False),
    ],
)
def test_both_must_want_each_other(
    client: FlaskClient, live: Live, mine: dict[str, Any], theirs: dict[str, Any], fit: bool
) -> None:
    me = live(wish={"max_distance_km": 10} | mine)
    other = live(52.53, wish={"max_distance_km": 10} | theirs)
    assert (seen(client, me) == [other]) == fit
    assert (seen(client, other) == [me]) == fit


@pytest.mark.parametrize("gender", ["Male", "Female", "Non-binary", "female", "Agender", None])
@pytest.mark.parametrize("seeking", ["Any", "Male", "Female", "Non-binary"])
def test_a_gender_is_found_by_who_seeks_it(client: FlaskClient, live: Live, gender: str | None, seeking: str) -> None:
    me, other = live(wish={"seeking_gender": seeking}), live(gender=gender)
    assert seen(client, me) == ([other] if seeking in ("Any", (gender or "").title().replace("-B", "-b")) else [])


@pytest.mark.parametrize(
    ("age", "wish", "found"),
    [
        (None, {}, True),
        (None, {"min_age": 18, "max_age": 98}, False),
        (None, {"min_age": 19, "max_age": 99}, False),
        (17, {}, False),
        (18, {}, True),
        (99, {}, True),
        (100, {}, False),
    ],
)
def test_an_unknown_age_is_found_by_who_takes_all_ages(
    client: FlaskClient, live: Live, age: int | None, wish: dict[str, Any], found: bool
) -> None:
    me, other = live(wish={"seeking_gender": "Any"} | wish), live(age=age)
    assert (seen(client, me) == [other]) == found
    assert (seen(client, other) == [me]) == found


@pytest.mark.parametrize(
    ("here", "there"),
    [((0, 179.99), (0, -179.99)), ((89.99, 0), (89.99, 180)), ((-89.99, -90), (-89.99, 90)), ((90, 0), (89.95, 77))],
)
def test_no_edge_of_the_map_parts_two_members(
    client: FlaskClient, live: Live, here: tuple[float, float], there: tuple[float, float]
) -> None:
    me, other = live(*here), live(*there)
    [shown] = look(client, me)["members"]
    assert shown["userId"] == other
    assert shown["distanceKm"] == shown_distance_km(Point(*here), Point(*there))
    assert seen(client, other) == [me]


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE user_subscriptions SET is_active = false WHERE user_id = %s",
        "UPDATE user_subscriptions SET expires_at = now() WHERE user_id = %s",
        "UPDATE users SET id_verified = NULL WHERE id = %s",
        "UPDATE users SET after_hours_consent = false WHERE id = %s",
        "UPDATE profiles SET gender = 'Male' WHERE user_id = %s",
        "UPDATE profiles SET age = 60 WHERE user_id = %s",
        "UPDATE after_hours_sessions SET ended_at = now() WHERE user_id = %s",
        "UPDATE after_hours_sessions SET expires_at = now() + interval '119 seconds' WHERE user_id = %s",
        "INSERT INTO blocks (id, user_id, blocked_user_id) VALUES ('b', '{me}', %s)",
        "INSERT INTO blocks (id, user_id, blocked_user_id) VALUES ('b', %s, '{me}')",
        "INSERT INTO after_hours_preferences (user_id, seeking_gender) VALUES (%s, 'Non-binary')",
        "DELETE FROM users WHERE id = %s",
    ],
)
def test_who_no_longer_fits_is_gone_at_once(client: FlaskClient, factory: Factory, live: Live, statement: str) -> None:
    me = live(wish={"seeking_gender": "Female", "max_age": 50})
    other = live()
    assert seen(client, me) == [other]
    factory.execute(statement.format(me=me), other)
    assert seen(client, me) == []


def test_a_change_of_preferences_counts_at_once(client: FlaskClient, factory: Factory, live: Live) -> None:
    me, other = live(), live()
    prefer(factory, other, seeking_gender="Male")
    assert seen(client, me) == []
    factory.execute("UPDATE after_hours_preferences SET seeking_gender = 'Female' WHERE user_id = %s", other)
    assert seen(client, me) == [other]
    factory.execute("UPDATE after_hours_preferences SET max_age = 29 WHERE user_id = %s", other)
    assert seen(client, me) == []
    factory.execute("DELETE FROM after_hours_preferences WHERE user_id = %s", other)
    assert seen(client, me) == [other]


def test_a_change_of_the_main_profile_counts_for_others_once_its_member_looks(
    client: FlaskClient, factory: Factory, live: Live
) -> None:
    me, other = live(wish={"seeking_gender": "Male"}), live()
    factory.execute("UPDATE profiles SET gender = 'Male' WHERE user_id = %s", other)
    assert seen(client, other) == [me]
    assert seen(client, me) == [other]


def test_a_thousand_questions_find_no_more_than_the_blurred_point(app: Flask, factory: Factory, live: Live) -> None:
    """Every answer is what anybody could work out from the blurred point alone."""
    me, other = live(wish=ANYONE), live(52.5, 13.3, wish=ANYONE)
    factory.execute("UPDATE after_hours_sessions SET latitude = 52.5043, longitude = 13.3061 WHERE user_id = %s", other)
    blurred = Point(52.5, 13.3)
    with app.app_context():
        for i in range(1000):
            place = Point(51.5 + i % 40 * 0.05, 12.3 + i // 40 * 0.08)
            factory.execute(
                "UPDATE after_hours_sessions SET fuzzed_latitude = %s, fuzzed_longitude = %s WHERE user_id = %s",
                *place,
                me,
            )
            shown = [member.distance_km for member in service.nearby(me, 20, None).members]
            seen_from_here = distance_metres(place, blurred) <= 200_000
            assert shown == ([shown_distance_km(place, blurred)] if seen_from_here else [])


@pytest.mark.parametrize("path", ["nearby", "nearby/count"])
def test_who_is_not_live_sees_nobody(client: FlaskClient, factory: Factory, live: Live, path: str) -> None:
    live()
    for member in (factory.member(), live(left=-1)):
        response = client.get(f"{API}/{path}", headers=bearer(member))
        assert (response.status_code, response.json["code"]) == (400, "NO_ACTIVE_SESSION")


@pytest.mark.parametrize("others", [0, 1, 5])
def test_a_count_is_the_number_of_those_who_are_shown(client: FlaskClient, live: Live, others: int) -> None:
    me = live(wish={"max_distance_km": 3})
    for _ in range(others):
        live(52.53)
    live(52.56)
    answer = client.get(f"{API}/nearby/count", headers=bearer(me)).json
    assert answer == {"success": True, "count": others, "orMore": False, "maxDistanceKm": 3}
    assert len(seen(client, me)) == others


@pytest.mark.parametrize(("others", "told"), [(49, (49, False)), (50, (50, True)), (51, (50, True))])
def test_nobody_is_counted_beyond_fifty(client: FlaskClient, live: Live, others: int, told: tuple[int, bool]) -> None:
    me, *_ = [live() for _ in range(1 + others)]
    answer = client.get(f"{API}/nearby/count", headers=bearer(me)).json
    assert (answer["count"], answer["orMore"]) == told

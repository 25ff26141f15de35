"""On random small worlds the answer is what plain Python makes of the same rows."""

from itertools import pairwise
from random import Random
from typing import Any, NamedTuple

from flask.testing import FlaskClient
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from afterhours_service.places.blur import Point, distance_metres, shown_distance_km
from tests.client import API, look
from tests.factories import Factory, bearer, go_live, prefer

PLACES = [(52.52, 13.4), (52.52, 13.401), (0.0, 179.99), (0.0, -180.0), (90.0, 0.0), (-89.95, 100.0)]
GENDERS = ["Male", "female", "Non-binary", "Agender", None]
# What takes someone out of sight, and the rows that say so.
LOSSES = {
    "premium": "UPDATE user_subscriptions SET is_active = false WHERE user_id = %s",
    "verification": "UPDATE users SET id_verified = false WHERE id = %s",
    "consent": "UPDATE users SET after_hours_consent = NULL WHERE id = %s",
}


class Wish(NamedTuple):
    seeking_gender: str = "Any"
    min_age: int = 18
    max_age: int = 99
    max_distance_km: int = 10


class Person(NamedTuple):
    place: Point
    gender: str | None
    age: int | None
    wish: Wish | None
    left: int
    loss: str | None


class World(NamedTuple):
    people: list[Person]
    blocks: set[tuple[int, int]]
    declines: dict[int, tuple[int, int]]  # who declined whom, and how many sessions ago


def make_world(dice: Random) -> World:
    """Throw a world in which some fit and some don't: hypothesis alone would seldom let anyone meet."""

    def one_of(*values: Any) -> Any:
        return dice.choice(values)

    north, east = dice.choice(PLACES)

    def person() -> Person:
        up, right = dice.uniform(-0.08, 0.08), dice.uniform(-0.08, 0.08)
        youngest, oldest = one_of((18, 99), (18, 99), (18, 30), (25, 30), (18, 98), (31, 99))
        seeking = one_of("Any", "Any", "Any", "Male", "Female", "Non-binary")
        wish = Wish(seeking, youngest, oldest, one_of(10, 20, 200, 1))
        return Person(
            Point(max(-90.0, min(90.0, round(north + up, 3))), round((east + right + 540) % 360 - 180, 3)),
            dice.choice(GENDERS),
            one_of(18, 25, 25, 30, 30, 30, 31, 99, None, 17, 100),
            one_of(None, wish),
            one_of(900, 900, 900, 900, 130, 110),
            one_of(None, None, None, None, *LOSSES) if dice.random() < 0.3 else None,
        )

    people = [person() for _ in range(dice.randint(2, 20))]
    pairs = [
        (who, whom) for who in range(len(people)) for whom in range(len(people)) if who != whom and 0 in (who, whom)
    ]
    return World(
        [people[0]._replace(loss=None), *people[1:]],
        set(dice.sample(pairs, min(2, len(pairs)))),
        {who: (whom, dice.randint(0, 4)) for who, whom in dice.sample(pairs, min(5, len(pairs)))},
    )


def wants(a: Person, b: Person) -> bool:
    """Return whether a would like b."""
    wish = a.wish or Wish()
    fits = wish.seeking_gender == "Any" or wish.seeking_gender.lower() == (b.gender or "").lower()
    youngest, oldest = (18, 99) if b.age is None else (b.age, b.age)
    return (
        fits
        and wish.min_age <= youngest
        and oldest <= wish.max_age
        and distance_metres(a.place, b.place) <= wish.max_distance_km * 1000
    )


def sees(world: World, one: int, other: int) -> bool:
    """Return whether the one of the people, who is live, sees the other."""
    me, them = world.people[one], world.people[other]
    hidden = world.blocks | {(who, whom) for who, (whom, since) in world.declines.items() if since <= 2}
    return (
        one != other
        and wants(me, them)
        and wants(them, me)
        and them.left >= 120
        and them.loss is None
        and not {(one, other), (other, one)} & hidden
    )


def reference(world: World) -> set[int]:
    """Return whom the first of the people sees."""
    return {number for number in range(len(world.people)) if sees(world, 0, number)}


def write(factory: Factory, world: World) -> list[str]:
    """Write the world into an emptied database, and return the ids of its people."""
    factory.execute("TRUNCATE users, blocks CASCADE")
    ids = []
    sessions = []
    for person in world.people:
        member = factory.member()
        ids.append(member)
        factory.execute(
            "UPDATE profiles SET gender = %s, age = %s WHERE user_id = %s", person.gender, person.age, member
        )
        if person.wish:
            prefer(factory, member, **person.wish._asdict())
    for decliner, (declined, since) in world.declines.items():
        started = [
            factory.execute(
                """INSERT INTO after_hours_sessions
                       (user_id, started_at, expires_at, ended_at, fuzzed_latitude, fuzzed_longitude)
                   SELECT %s, moment, moment + interval '1 minute', moment + interval '1 minute', 0, 0
                   FROM (SELECT now() - interval '1 day' - %s * interval '1 hour' AS moment) AS m RETURNING id""",
                ids[decliner],
                back,
            )[0].id
            for back in range(since, 0, -1)
        ]
        sessions.append((decliner, declined, started))
    live = [go_live(factory, member, *p.place, p.left) for member, p in zip(ids, world.people, strict=True)]
    for decliner, declined, started in sessions:
        first = started[0] if started else live[decliner]
        factory.execute(
            "INSERT INTO after_hours_declines (session_id, user_id, declined_user_id) VALUES (%s, %s, %s)",
            first,
            ids[decliner],
            ids[declined],
        )
    for who, whom in world.blocks:
        factory.execute(
            "INSERT INTO blocks (id, user_id, blocked_user_id) VALUES (%s, %s, %s)",
            f"{who} {whom}",
            ids[who],
            ids[whom],
        )
    for member, person in zip(ids, world.people, strict=True):
        if person.loss:
            factory.execute(LOSSES[person.loss], member)
    return ids


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(seed=st.integers(0, 2**32), limit=st.integers(1, 5))
def test_the_answer_is_the_references(client: FlaskClient, factory: Factory, seed: int, limit: int) -> None:
    world = make_world(Random(seed))
    ids = write(factory, world)
    expected = reference(world)
    numbers = {member: number for number, member in enumerate(ids)}
    shown: list[dict[str, Any]] = []
    cursor = None
    while True:
        answer = look(client, ids[0], limit=limit, **({"cursor": cursor} if cursor else {}))
        assert len(answer["members"]) == limit or answer["nextCursor"] is None
        shown += answer["members"]
        cursor = answer["nextCursor"]
        if cursor is None:
            break
    found = [numbers[member["userId"]] for member in shown]
    assert len(found) == len(set(found))
    assert set(found) == expected
    here = world.people[0].place
    distances = [distance_metres(here, world.people[number].place) for number in found]
    assert all(near <= far + 1e-6 for near, far in pairwise(distances))  # but for rounding
    assert [member["distanceKm"] for member in shown] == [
        shown_distance_km(here, world.people[number].place) for number in found
    ]
    count = client.get(f"{API}/nearby/count", headers=bearer(ids[0])).json
    assert (count["count"], count["orMore"]) == (len(expected), False)

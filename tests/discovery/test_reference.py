"""On random small worlds the answer is what plain Python makes of the same rows."""

from itertools import pairwise
from typing import Any, NamedTuple

from flask.testing import FlaskClient
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from afterhours_service.location import Point, distance_metres, shown_distance_km
from tests.discovery.conftest import API, go_live, look, prefer
from tests.factories import Factory, bearer

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


def ages() -> st.SearchStrategy[tuple[int, int]]:
    limits = st.sampled_from([18, 25, 30, 31, 98, 99])
    return st.tuples(limits, limits).map(lambda pair: (min(pair), max(pair)))


@st.composite
def worlds(draw: st.DrawFn) -> World:
    wishes = st.builds(
        lambda seeking, ages, km: Wish(seeking, ages[0], ages[1], km),
        st.sampled_from(["Any", "Any", "Male", "Female", "Non-binary"]),
        ages(),
        st.sampled_from([1, 10, 200]),
    )
    offsets = st.floats(-0.2, 0.2).map(lambda degrees: round(degrees, 3))
    places = st.builds(
        lambda base, up, right: Point(
            max(-90.0, min(90.0, round(base[0] + up, 3))), round((base[1] + right + 540) % 360 - 180, 3)
        ),
        st.sampled_from(PLACES),
        offsets,
        offsets,
    )
    people = st.builds(
        Person,
        places,
        st.sampled_from(GENDERS),
        st.sampled_from([None, 17, 18, 25, 30, 30, 31, 99, 100]),
        st.none() | wishes,
        st.sampled_from([900, 900, 900, 130, 110]),
        st.sampled_from([None] * 9 + list(LOSSES)),
    )
    me = draw(people)._replace(loss=None)
    others = draw(st.lists(people, min_size=1, max_size=12))
    pairs = st.tuples(st.integers(0, len(others)), st.integers(0, len(others))).filter(lambda pair: pair[0] != pair[1])
    declines = draw(st.lists(st.tuples(pairs, st.integers(0, 4)), max_size=3))
    return World(
        [me, *others], draw(st.sets(pairs, max_size=2)), {who: (whom, since) for (who, whom), since in declines}
    )


def wants(a: Person, b: Person) -> bool:
    """Tell whether a would like b."""
    wish = a.wish or Wish()
    fits = wish.seeking_gender == "Any" or wish.seeking_gender.lower() == (b.gender or "").lower()
    youngest, oldest = (18, 99) if b.age is None else (b.age, b.age)
    return (
        fits
        and wish.min_age <= youngest
        and oldest <= wish.max_age
        and distance_metres(a.place, b.place) <= wish.max_distance_km * 1000
    )


def reference(world: World) -> set[int]:
    """Return whom the first of the people sees."""
    me = world.people[0]
    hidden = world.blocks | {(who, whom) for who, (whom, since) in world.declines.items() if since <= 2}
    return {
        number
        for number, other in enumerate(world.people)
        if number
        and wants(me, other)
        and wants(other, me)
        and other.left >= 120
        and other.loss is None
        and not {(0, number), (number, 0)} & hidden
    }


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
    for member, person in zip(ids, world.people, strict=True):
        if person.loss:
            factory.execute(LOSSES[person.loss], member)
    return ids


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(world=worlds(), limit=st.integers(1, 5))
def test_the_answer_is_the_references(client: FlaskClient, factory: Factory, world: World, limit: int) -> None:
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
    assert count["count"] == (len(expected) if len(expected) >= 5 else None)

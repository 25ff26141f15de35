import math
import random

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from afterhours_service.places import blur as places
from afterhours_service.places.blur import (
    BLUR_BOUND_METRES,
    EARTH_RADIUS_METRES,
    NEAR_METRES,
    REACH_METRES,
    Memory,
    Point,
    Surroundings,
    blur,
    distance_metres,
    shown_distance_km,
    surroundings,
)
from benchmarks.blurs import Cells, Plane
from benchmarks.privacy import CASES, Case, Outcome, simulate, trilaterate

SECRET = b"0123456789abcdef0123456789abcdef"
BERLIN = Point(52.52, 13.405)
METRES_PER_DEGREE = math.radians(EARTH_RADIUS_METRES)

points = st.builds(Point, st.floats(-90, 90), st.floats(-180, 180))
member_ids = st.text(max_size=40)
offsets = st.floats(-1000, 1000)


def around(point: Point, member_id: str = "a", secret: bytes = SECRET) -> Surroundings:
    return surroundings(point, member_id=member_id, secret=secret)


def moved(point: Point, *, east: float = 0, north: float = 0) -> Point:
    """`point` moved by so many metres."""
    return Plane(point).points(np.array([[east, north]]))[0]


class Mind:
    """A member's memory, as the database keeps it."""

    def __init__(self, member_id: str = "a") -> None:
        self.member_id = member_id
        self.memory: dict[str, tuple[Point, int]] = {}

    def shown(self, point: Point) -> Point:
        """Return where a member who goes live at the point is shown."""
        cells = around(point, self.member_id)
        memories = [Memory(n, *self.memory[cell]) for n, cell in enumerate(cells.places) if cell in self.memory]
        shown = blur(point, cells, memories)
        last, visits = self.memory.get(cells.places[0], (shown, 0))
        self.memory[cells.places[0]] = (shown, visits + 1 if last == shown else 1)
        return shown


@settings(deadline=None)
@given(points, member_ids)
@example(Point(90, 0), "a")
@example(Point(-90, 180), "a")
@example(Point(0, -180), "a")
@example(Point(0, 180), "a")
@example(Point(math.nextafter(90, 0), 123), "a")
def test_a_blurred_point_lies_within_the_bound_and_is_canonical(point: Point, member_id: str) -> None:
    blurred = blur(point, around(point, member_id))
    assert distance_metres(point, blurred) <= REACH_METRES + 70.01  # so that 90 m are left for the noise of GPS
    assert -90 <= blurred.latitude <= 90
    assert -180 <= blurred.longitude < 180
    assert blurred == Point(round(blurred.latitude, 8), round(blurred.longitude, 8))


@settings(deadline=None, max_examples=50)
@given(points, member_ids, st.lists(st.tuples(offsets, offsets), max_size=20))
def test_the_bound_holds_in_every_remembered_cell(
    point: Point, member_id: str, walk: list[tuple[float, float]]
) -> None:
    """Whatever is remembered: of their own cells, of others', and what others passed on."""
    mind = Mind(member_id)
    for east, north in walk:
        here = moved(point, east=east, north=north)
        assert distance_metres(here, mind.shown(here)) <= BLUR_BOUND_METRES
    for cell in mind.memory:  # as remembered as can be, and asked about from anywhere
        mind.memory[cell] = (mind.memory[cell][0], 10)
    assert distance_metres(point, mind.shown(point)) <= BLUR_BOUND_METRES


@settings(deadline=None, max_examples=50)
@given(points, member_ids, st.randoms())
def test_what_is_remembered_counts_in_no_other_order_than_the_cells(
    point: Point, member_id: str, rng: random.Random
) -> None:
    cells = around(point, member_id)
    spots = [moved(point, east=rng.uniform(-700, 700)) for _ in range(4)]
    memories = [Memory(number, rng.choice(spots), rng.randint(1, 3)) for number in range(len(cells.places))]
    blurred = blur(point, cells, memories)
    rng.shuffle(memories)
    assert blur(point, cells, memories) == blurred


@settings(deadline=None, max_examples=50)
@given(points, member_ids)
def test_the_cells_around_a_point_are_all_that_are_near(point: Point, member_id: str) -> None:
    """Against a search of everything within 5 rows and 3 NEAR_METRES."""
    turned = places.turn(places.vector_of(point), places.rotation_of(member_id, SECRET))
    found = places.cells_near(turned)
    spread = [
        (distance, cell, centre)
        for east in range(-540, 541, 60)
        for north in range(-540, 541, 90)
        for _, cell, centre in places.cells_near(places.vector_of(moved(degrees(turned), east=east, north=north)))
        if (distance := distance_metres(degrees(centre), degrees(turned))) <= NEAR_METRES - 0.01
    ]
    assert {cell for _, cell, _ in spread} <= {cell for _, cell, _ in found}
    assert found[0][0] <= 70
    assert [distance for distance, _, _ in found] == sorted(distance for distance, _, _ in found)
    assert len({cell for _, cell, _ in found}) == len(found)


def degrees(vector: places.Vector) -> Point:
    x, y, z = vector
    return Point(math.degrees(math.atan2(z, math.hypot(x, y))), math.degrees(math.atan2(y, x)))


@pytest.mark.parametrize("pole", [-90, 90])
@pytest.mark.parametrize("metres_from_pole", [0, 1, 50, 100, 200, 400, 700, 1000, 2000, 10_000, 100_000])
def test_the_cells_around_the_poles_of_the_grid_are_complete_too(pole: int, metres_from_pole: int) -> None:
    latitude = pole - math.copysign(metres_from_pole / METRES_PER_DEGREE, pole)
    for longitude in range(-180, 181, 7):
        here = places.vector_of(Point(latitude, longitude))
        near = {cell for _, cell, _ in places.cells_near(here)}
        for bearing in range(0, 360, 30):
            step = moved(Point(latitude, longitude), east=60 * math.sin(bearing), north=60 * math.cos(bearing))
            distance, cell, centre = places.cells_near(places.vector_of(step))[0]
            assert distance <= 70
            if distance_metres(degrees(centre), degrees(here)) < NEAR_METRES - 0.01:
                assert cell in near


@pytest.mark.parametrize(
    ("one", "same"),
    [
        (Point(10, -180), Point(10, 180)),
        (Point(90, 0), Point(90, 77)),
        (Point(-90, -180), Point(-90, 5)),
        (Point(0.0, 0.0), Point(-0.0, -0.0)),
    ],
)
def test_two_names_of_one_place_have_one_blur(one: Point, same: Point) -> None:
    assert around(one) == around(same)


def test_the_blur_never_changes() -> None:
    """A change of these is a change of every member's cells: it would give an adversary a second, independent look."""
    berlin = around(BERLIN, "member-1")
    assert berlin.shown == Point(52.52049293, 13.40769879)
    assert berlin.places[0] == "906f798fe4d42b73a8601283869945f2"
    sydney = around(Point(-33.8688, 151.2093), "member-2")
    assert sydney.shown == Point(-33.86835081, 151.21386004)


def test_members_and_secrets_have_cells_of_their_own() -> None:
    seen = [
        around(BERLIN, member_id, secret)
        for member_id in ("1", "2", "12", "é", "")
        for secret in (SECRET, SECRET[::-1])
    ]
    assert len({cells.shown for cells in seen}) == 10
    assert len({place for cells in seen for place in cells.places}) == sum(len(cells.places) for cells in seen)


def test_the_points_of_members_are_spread_evenly_around_a_place() -> None:
    """Over all members, and over one member's cells, blurred points have no direction and no preferred distance."""
    for shown in (
        Plane(BERLIN).metres([around(BERLIN, str(member)).shown for member in range(1500)]),
        np.array(
            [
                Plane(here).metres([around(here).shown])[0]
                for here in (moved(BERLIN, east=300 * (n % 40), north=300 * (n // 40)) for n in range(1500))
            ]
        ),
    ):
        assert np.abs(shown.mean(axis=0)) == pytest.approx(0, abs=25)
        assert (np.hypot(*shown.T) < 218).mean() == pytest.approx(0.25, abs=0.05)


@pytest.mark.parametrize("seed", range(5))
def test_a_home_is_shown_at_one_point_whatever_its_member_does_around_it(seed: int) -> None:
    rng = np.random.default_rng(seed)
    mind, home = Mind(f"member-{seed}"), moved(BERLIN, east=5000 * seed)
    shown = set()
    for _ in range(60):
        east, north = rng.normal(0, 30, 2)
        shown.add(mind.shown(moved(home, east=east, north=north)))
        mind.shown(moved(home, east=rng.uniform(-700, 700), north=rng.uniform(-700, 700)))
    assert len(shown) == 1


def test_what_was_shown_most_often_around_here_is_shown_again() -> None:
    cells = around(BERLIN)
    near, far, beyond = moved(BERLIN, east=100), moved(BERLIN, east=590), moved(BERLIN, east=610)
    assert blur(BERLIN, cells, [Memory(0, near, 2), Memory(3, far, 3)]) == far
    assert blur(BERLIN, cells, [Memory(0, near, 2), Memory(3, far, 1), Memory(4, far, 1)]) == near  # the nearer cell's
    assert blur(BERLIN, cells, [Memory(0, beyond, 9), Memory(5, near, 1)]) == near
    assert blur(BERLIN, cells, [Memory(0, beyond, 9)]) == cells.shown


@pytest.mark.parametrize(
    ("a", "b", "metres"),
    [
        (Point(0, 0), Point(0, 0), 0),
        (Point(0, 0), Point(0, 1), METRES_PER_DEGREE),
        (Point(90, 0), Point(-90, 0), 180 * METRES_PER_DEGREE),
        (Point(0, -179.5), Point(0, 179.5), METRES_PER_DEGREE),
        (Point(89.5, 0), Point(89.5, 180), METRES_PER_DEGREE),
        (Point(45, 10), Point(-45, -170), 180 * METRES_PER_DEGREE),
        (Point(36.12, -86.67), Point(33.94, -118.40), 2_886_448),  # BNA to LAX, a well-known check, radius scaled
    ],
)
def test_distance(a: Point, b: Point, metres: float) -> None:
    assert distance_metres(a, b) == pytest.approx(metres, rel=1e-6, abs=1e-6)
    assert distance_metres(b, a) == distance_metres(a, b)


@pytest.mark.parametrize(
    ("metres", "kilometres"), [(0, 1), (1, 1), (999, 1), (1001, 2), (1999, 2), (2001, 3), (199_001, 200)]
)
def test_shown_distance(metres: float, kilometres: int) -> None:
    assert shown_distance_km(Point(0, 0), Point(metres / METRES_PER_DEGREE, 0)) == kilometres


def test_a_point_shows_no_coordinate() -> None:
    point = Point(52.52, 13.405)
    for text in (repr(point), str(point), f"{point}", repr([point]), repr({"at": point})):
        assert "52" not in text
        assert "13" not in text


def test_the_benchmarks_blur_is_the_blur() -> None:
    rng = np.random.default_rng(1)
    for member in range(5):
        home = moved(BERLIN, east=member * 1000)
        plane, mind = Plane(home), Mind(f"member-{member}")
        cells = Cells(plane, 600, member_id=mind.member_id, secret=SECRET)
        fixes = rng.uniform(-500, 500, (80, 2))
        shown = plane.metres([mind.shown(fix) for fix in plane.points(fixes)])
        simulated = cells.points[cells.track(fixes, [0] * len(fixes), 90).shown]
        assert np.abs(shown - simulated).max() < 0.01


def within_100_metres(errors: list[float]) -> float:
    return float(np.mean(np.array(errors) <= 100))


@pytest.fixture(scope="module")
def found() -> dict[str, Outcome]:
    """Return what an adversary finds after 10 sessions of 24 members; the benchmark has many more of both."""
    return {case.title: simulate(case, 24, [30.0], [10])[30.0, 10] for case in CASES if case.blur == "cells"}


def the(title: str) -> Case:
    [case] = [case for case in CASES if case.title == title]
    return case


@pytest.mark.xdist_group("blur")  # simulated once, not by each parallel worker
@pytest.mark.parametrize(
    "title",
    [
        "home anywhere",
        "home on a cell's edge",
        "others within 1 km before",
        "others within 1 km in between",
        "others within 1 km after, then home again",
        "one other place within 1 km, in turn",
        "home every 30 days, others in between",
    ],
)
def test_a_home_is_not_found(title: str, found: dict[str, Outcome]) -> None:
    outcome = found[title]
    assert np.median(outcome.strongest) >= 230  # 290 and 10 % in the benchmark, which has less luck
    assert outcome.found <= 0.2
    assert np.mean(outcome.points) <= 1.2


@pytest.mark.xdist_group("blur")
def test_what_is_not_promised_is_as_bad_as_the_docs_say(found: dict[str, Outcome]) -> None:
    assert np.median(found["two accounts"].strongest) >= 150
    assert np.median(found["memory lost before each session"].strongest) < 250
    assert np.median(found["he knows the member's cells"].strongest) < 100
    assert np.median(found["he has the database and the secret"].strongest) < 60


def test_the_attack_works_on_the_blurs_before() -> None:
    noise = simulate(the("random noise, as at first"), 10, [8.0], [1000])[8.0, 1000]
    assert noise.found == 1
    assert np.median(noise.errors["likelihood"]) < 15
    grid = simulate(the("the same; others within 1 km in between"), 8, [30.0], [100])[30.0, 100]
    assert np.median(grid.strongest) < 200


def test_distances_betray_the_blurred_point_and_no_more() -> None:
    misses, errors = trilaterate("the blur", 40)
    assert max(misses) < 1
    assert np.median(errors) >= 200
    _, errors = trilaterate("the exact point", 3)
    assert max(errors) < 1

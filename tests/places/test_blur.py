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
    Point,
    blur,
    distance_metres,
    shown_distance_km,
)
from benchmarks.attack import Plane, cells_around, keyed_blur, keyed_track, squared_distances
from benchmarks.privacy import ANYWHERE, EDGE, FUZZ, Errors, simulate, trilaterate

SECRET = b"0123456789abcdef0123456789abcdef"
BERLIN = Point(52.52, 13.405)
METRES_PER_DEGREE = math.radians(EARTH_RADIUS_METRES)

points = st.builds(Point, st.floats(-90, 90), st.floats(-180, 180))
member_ids = st.text(max_size=40)


def moved(point: Point, *, east: float = 0, north: float = 0) -> Point:
    """`point` moved by so many metres."""
    return Plane(point).points(np.array([[east, north]]))[0]


@settings(deadline=None)
@given(points, member_ids)
@example(Point(90, 0), "a")
@example(Point(-90, 180), "a")
@example(Point(0, -180), "a")
@example(Point(0, 180), "a")
@example(Point(math.nextafter(90, 0), 123), "a")
def test_a_blurred_point_lies_within_the_bound_and_is_canonical(point: Point, member_id: str) -> None:
    blurred = blur(point, member_id=member_id, secret=SECRET)
    assert distance_metres(point, blurred) <= BLUR_BOUND_METRES
    assert -90 <= blurred.latitude <= 90
    assert -180 <= blurred.longitude < 180
    assert blurred == Point(round(blurred.latitude, 8), round(blurred.longitude, 8))


@settings(deadline=None)
@given(points, member_ids)
def test_a_blurred_point_is_its_own_blur(point: Point, member_id: str) -> None:
    blurred = blur(point, member_id=member_id, secret=SECRET)
    assert blur(blurred, member_id=member_id, secret=SECRET) == blurred


@settings(deadline=None)
@given(
    points, member_ids, st.lists(st.tuples(st.floats(-2000, 2000), st.floats(-2000, 2000)), max_size=6), st.randoms()
)
def test_the_bound_holds_and_order_is_nothing_whatever_was_shown_before(
    point: Point, member_id: str, offsets: list[tuple[float, float]], rng: random.Random
) -> None:
    previous = [
        blur(moved(point, east=east, north=north), member_id=member_id, secret=SECRET) for east, north in offsets
    ]
    blurred = blur(point, member_id=member_id, secret=SECRET, previous=previous)
    assert distance_metres(point, blurred) <= BLUR_BOUND_METRES
    rng.shuffle(previous)
    assert blur(point, member_id=member_id, secret=SECRET, previous=previous + previous[:1]) == blurred


@pytest.mark.parametrize("pole", [-90, 90])
@pytest.mark.parametrize("metres_from_pole", [0, 1, 100, 400, 700, 1000, 2000, 10_000, 100_000])
def test_the_bound_holds_at_the_poles_of_the_grid_too(pole: int, metres_from_pole: int) -> None:
    unturned = ((1.0, 0.0, 0.0), (0.0, 1.0, 0.0), (0.0, 0.0, 1.0))
    latitude = pole - math.copysign(metres_from_pole / METRES_PER_DEGREE, pole)
    for longitude in range(-180, 181, 5):
        point = Point(latitude, longitude)
        centre = places._cell_centre(point, unturned)
        assert distance_metres(point, centre) <= BLUR_BOUND_METRES
        assert places._cell_centre(centre, unturned) == centre


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
    assert blur(one, member_id="a", secret=SECRET) == blur(same, member_id="a", secret=SECRET)


def test_the_blur_never_changes() -> None:
    """A change of these is a change of every member's grid: it would give an adversary a second, independent look."""
    assert blur(BERLIN, member_id="member-1", secret=SECRET) == Point(52.51775092, 13.4018048)
    sydney = Point(-33.8688, 151.2093)
    assert blur(sydney, member_id="member-2", secret=SECRET) == Point(-33.86922081, 151.21186175)


def test_members_and_secrets_have_grids_of_their_own() -> None:
    blurred = {
        blur(BERLIN, member_id=member_id, secret=secret)
        for member_id in ("1", "2", "12", "é", "")
        for secret in (SECRET, SECRET[::-1])
    }
    assert len(blurred) == 10


def test_the_grids_of_members_are_spread_evenly_around_a_place() -> None:
    """Offset and orientation are secret: over all members, blurred points have no direction and no preferred place."""
    blurred = [blur(BERLIN, member_id=str(member), secret=SECRET) for member in range(1500)]
    offsets = Plane(BERLIN).metres(blurred)
    assert np.abs(offsets.mean(axis=0)) == pytest.approx(0, abs=25)
    assert (np.hypot(*offsets.T) < 200).mean() == pytest.approx(math.pi * 200**2 / 526_000, abs=0.04)


def edge_between_two_cells(member_id: str) -> tuple[Point, Point, Point]:
    """A point on an edge, the southern and the northern of its two cells."""
    here = blur(BERLIN, member_id=member_id, secret=SECRET)
    plane = Plane(here)
    cells = plane.metres(cells_around([here], member_id=member_id, secret=SECRET))
    neighbour = cells[np.hypot(*cells.T).argsort()[1]]
    edge, there = plane.points(np.array([neighbour / 2, neighbour]))
    south, north = sorted([here, blur(there, member_id=member_id, secret=SECRET)])
    return edge, south, north


def test_a_member_stays_in_a_cell_as_long_as_the_bound_allows() -> None:
    edge, *cells = edge_between_two_cells("a")
    for cell in cells:
        for east, north in [(-100, 0), (100, 0), (0, -100), (0, 100)]:
            point = moved(edge, east=east, north=north)
            assert blur(point, member_id="a", secret=SECRET, previous=[cell]) == cell


def test_a_member_who_has_gone_farther_is_shown_in_the_new_cell() -> None:
    far = moved(BERLIN, east=2000)
    assert blur(far, member_id="a", secret=SECRET, previous=[blur(BERLIN, member_id="a", secret=SECRET)]) == blur(
        far, member_id="a", secret=SECRET
    )


def test_visits_to_both_cells_cannot_make_a_home_on_their_edge_flicker() -> None:
    edge, south, north = edge_between_two_cells("a")
    for east in range(-100, 101, 20):
        for previous in ([north, south], [south, north], [north] * 9 + [south]):
            assert blur(moved(edge, east=east), member_id="a", secret=SECRET, previous=previous) == south


def test_points_of_another_grid_do_not_count_as_shown() -> None:
    """An old secret's points, or those of a fuzz that was random, would else betray where they were drawn around."""
    foreign = [moved(BERLIN, east=10), blur(BERLIN, member_id="a", secret=SECRET[::-1])]
    assert blur(BERLIN, member_id="a", secret=SECRET, previous=foreign) == blur(BERLIN, member_id="a", secret=SECRET)


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
    for member in range(20):
        member_id = f"member-{member}"
        plane = Plane(moved(BERLIN, east=member * 1000))
        centres = cells_around([plane.home], member_id=member_id, secret=SECRET)
        metres = rng.uniform(-500, 500, (20, 2))
        fixes = plane.points(metres)
        squares = squared_distances(metres, plane.metres(centres))
        assert [centres[cell] for cell in keyed_blur(squares)] == [
            blur(fix, member_id=member_id, secret=SECRET) for fix in fixes
        ]
        shown: list[Point] = []
        for fix in fixes:
            shown.append(blur(fix, member_id=member_id, secret=SECRET, previous=shown[-5:]))
        assert [centres[cell] for _, cell in keyed_track(squares, retained=5)] == shown
        remembered = frozenset({0, 1, 4, len(centres) // 2})
        assert [centres[cell] for cell in keyed_blur(squares, remembered)] == [
            blur(fix, member_id=member_id, secret=SECRET, previous=[centres[cell] for cell in remembered])
            for fix in fixes
        ]


def within_100_metres(errors: list[float]) -> float:
    return float(np.mean(np.array(errors) <= 100))


@pytest.mark.xdist_group("blur")  # simulated once, not by each parallel worker
@pytest.mark.parametrize("home", [ANYWHERE, EDGE])
@pytest.mark.parametrize("estimator", ["mean", "median", "intersection", "likelihood"])
def test_a_thousand_sessions_betray_no_more_than_one(
    home: str, estimator: str, keyed_errors: dict[str, Errors]
) -> None:
    errors = keyed_errors[home]
    once, often = errors[1, estimator], errors[1000, estimator]
    assert np.median(often) >= 250
    assert np.median(often) >= 0.95 * np.median(once)
    assert within_100_metres(often) <= within_100_metres(once)


@pytest.fixture(scope="module")
def keyed_errors() -> dict[str, Errors]:
    return {home: simulate(home, 30.0, 20) for home in (ANYWHERE, EDGE)}


def test_the_attack_works_on_the_fuzz_before() -> None:
    errors = simulate(FUZZ, 8.0, 10)
    assert within_100_metres(errors[1000, "mean"]) == 1
    assert np.median(errors[1000, "likelihood"]) < 15


def test_distances_betray_the_blurred_point_and_no_more() -> None:
    misses, errors = trilaterate("the keyed blur", 40)
    assert max(misses) < 1
    assert np.median(errors) >= 200
    _, errors = trilaterate("the exact point", 3)
    assert max(errors) < 1

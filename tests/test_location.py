"""The blur: near enough to meet, too far to be found at the door."""

import math
import random
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from afterhours_service.location import BLUR_RADIUS_METRES, EARTH_RADIUS_METRES, Point, blur

# Half a step of the third decimal, north and east: what rounding may add.
ROUNDING_METRES = math.hypot(*[math.radians(0.0005) * EARTH_RADIUS_METRES] * 2)


def metres(one: Point, other: Point) -> float:
    """Return the distance on the sphere (haversine)."""
    a, b, c, d = map(math.radians, (*one, *other))
    half = math.sin((c - a) / 2) ** 2 + math.cos(a) * math.cos(c) * math.sin((d - b) / 2) ** 2
    return 2 * EARTH_RADIUS_METRES * math.asin(math.sqrt(min(1, half)))


@given(st.builds(Point, st.floats(-90, 90), st.floats(-180, 180)), st.integers())
def test_the_blurred_place_is_within_the_disc_and_on_earth(place: Point, seed: int) -> None:
    shown = blur(place, random.Random(seed).random)
    assert metres(place, shown) <= BLUR_RADIUS_METRES + ROUNDING_METRES + 0.01
    assert -90 <= shown.latitude <= 90
    assert -180 <= shown.longitude <= 180
    assert shown == Point(round(shown.latitude, 3), round(shown.longitude, 3))


@pytest.mark.parametrize("latitude", [0.0, 60.0, -75.0])
def test_the_disc_is_filled_evenly(latitude: float) -> None:
    place, numbers = Point(latitude, 179.9995), random.Random(7)
    distances = [metres(place, blur(place, numbers.random)) for _ in range(4000)]
    for share in (0.25, 0.5, 0.75):
        inside = sum(distance <= BLUR_RADIUS_METRES * math.sqrt(share) for distance in distances) / len(distances)
        assert inside == pytest.approx(share, abs=0.06)


@pytest.mark.parametrize(
    ("place", "bearing", "shown"),
    [
        (Point(0, 0), 0, Point(0.004, 0)),
        (Point(0, 180), 0.25, Point(0, -179.996)),
        (Point(0, -180), 0.75, Point(0, 179.996)),
        (Point(89.997, 0), 0, Point(89.999, 180)),
        (Point(-89.997, 90), 0.5, Point(-89.999, -90)),
    ],
)
def test_the_blur_goes_over_the_antimeridian_and_the_poles(place: Point, bearing: float, shown: Point) -> None:
    numbers = iter([0.999999, bearing])
    blurred = blur(place, lambda: next(numbers))
    assert metres(blurred, shown) < 1
    assert blurred.latitude == shown.latitude


@pytest.mark.parametrize("latitude", [90.0, -90.0])
def test_at_a_pole_every_longitude_is_as_likely(latitude: float) -> None:
    numbers = random.Random(7)
    quarters = Counter(blur(Point(latitude, 10), numbers.random).longitude // 90 for _ in range(2000))
    assert len(quarters) == 4
    assert min(quarters.values()) > 400


def test_a_point_prints_without_its_place() -> None:
    assert "52" not in f"{Point(52.52, 13.405)} {Point(52.52, 13.405)!r}"

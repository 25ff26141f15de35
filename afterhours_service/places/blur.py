"""The location blur and the distance shown: pure functions, no state, standard library only.

A member's exact point never leaves the service; others are shown distances from its *blur*. Each member has a grid
of their own, turned at random by a secret, and the blur is the centre of the grid's cell around the point. The same
place always gives the same answer, so there is nothing to average. docs/privacy.md says what this promises and
what it doesn't; benchmarks/privacy.py attacks it.
"""

import hmac
import math
from collections.abc import Sequence
from typing import NamedTuple, TypeAlias

EARTH_RADIUS_METRES = 6_371_008.8
"""Mean radius R1 = (2a + b) / 3 of WGS 84. A sphere is at most 0.6 % off the ellipsoid."""

CELL_RADIUS_METRES = 450.0
"""From the centre to a corner of a cell, a regular hexagon. Buys the privacy: half of all points are farther than
289 m from their cell's centre."""

BLUR_BOUND_METRES = 600.0
"""The true point is never farther than this from the blurred one. What lies between the cell and the bound, 150 m at
its corners and 210 m at its sides, is what GPS noise may do before a member who stays is shown in another cell."""

SHOWN_STEP_METRES = 1000.0
"""Distances are shown in whole steps. Buys little, as a step's edge can be searched for; the blur is the protection."""

_ROWS = math.ceil(math.pi * EARTH_RADIUS_METRES / (1.5 * CELL_RADIUS_METRES))
_ROW_HEIGHT_DEGREES = 180 / _ROWS
_CELL_WIDTH_METRES = math.sqrt(3) * CELL_RADIUS_METRES
_WIDTH_STEP = 1.01
"""Rows hold equally many cells, and so fit together as hexagons, as long as their widths differ by less than this.
Where the number changes, in one row out of a hundred, cells are irregular and reach up to 520 m from their centre."""

_SAME_POINT_METRES = 1.0
"""A blurred point is recognised although another platform's arithmetic differs in the last stored digit."""

_Matrix: TypeAlias = tuple[tuple[float, ...], ...]


class Point(NamedTuple):
    """A place on Earth in degrees. Its text shows no coordinates, so that no log, error or traceback does."""

    latitude: float
    longitude: float

    def __repr__(self) -> str:
        return "Point(…)"


def blur(point: Point, *, member_id: str, secret: bytes, previous: Sequence[Point] = ()) -> Point:
    """The point to publish for `point`: at most BLUR_BOUND_METRES away, and the same at every return.

    `previous` are the blurred points the member was lately shown at, in any order. If any lie within the bound, the
    southernmost is shown again. Which one wins must depend neither on the order and number of visits nor on which is
    nearest: a member who lives on the edge between two cells and visits both would be shown in either at random.
    Points that aren't centres of this member's present grid (an old secret's, another algorithm's) don't count.
    """
    rotation = _rotation(member_id, secret)
    within_bound = [
        shown
        for shown in previous
        if distance_metres(point, shown) <= BLUR_BOUND_METRES
        and distance_metres(shown, _cell_centre(shown, rotation)) <= _SAME_POINT_METRES
    ]
    return min(within_bound, default=_cell_centre(point, rotation))


def distance_metres(a: Point, b: Point) -> float:
    """Great-circle distance by the haversine formula (R. W. Sinnott, "Virtues of the Haversine", 1984)."""
    latitude_a, latitude_b = math.radians(a.latitude), math.radians(b.latitude)
    half_longitude = math.radians(b.longitude - a.longitude) / 2
    haversine = (
        math.sin((latitude_b - latitude_a) / 2) ** 2
        + math.cos(latitude_a) * math.cos(latitude_b) * math.sin(half_longitude) ** 2
    )
    return 2 * EARTH_RADIUS_METRES * math.asin(min(1.0, math.sqrt(haversine)))


def shown_distance_km(a: Point, b: Point) -> int:
    """The distance that members are shown, in kilometres: "within 1 km", "within 2 km", … Both points are blurred."""
    return max(1, math.ceil(distance_metres(a, b) / SHOWN_STEP_METRES))


def _rotation(member_id: str, secret: bytes) -> _Matrix:
    """The member's secret rotation of the globe, uniform among all of them.

    A uniform unit quaternion out of three uniform numbers: K. Shoemake, "Uniform Random Rotations", Graphics Gems III,
    1992. The numbers are the member's HMAC-SHA256 (RFC 2104); the prefix keeps other uses of the secret apart.
    """
    digest = hmac.digest(secret, b"after-hours/location-blur/1\0" + member_id.encode(), "sha256")
    u, v, w = (int.from_bytes(digest[start : start + 8]) / 2**64 for start in (0, 8, 16))
    x, y = math.sqrt(1 - u) * math.sin(math.tau * v), math.sqrt(1 - u) * math.cos(math.tau * v)
    z, r = math.sqrt(u) * math.sin(math.tau * w), math.sqrt(u) * math.cos(math.tau * w)
    return (
        (1 - 2 * (y * y + z * z), 2 * (x * y - r * z), 2 * (x * z + r * y)),
        (2 * (x * y + r * z), 1 - 2 * (x * x + z * z), 2 * (y * z - r * x)),
        (2 * (x * z - r * y), 2 * (y * z + r * x), 1 - 2 * (x * x + y * y)),
    )


def _cell_centre(point: Point, rotation: _Matrix) -> Point:
    """The centre of the member's cell that holds `point`, rounded to the 8 decimals (1 mm) that are stored."""
    turned = _turn(point, rotation)
    row = math.floor((turned.latitude + 90) / _ROW_HEIGHT_DEGREES)
    rows = range(max(0, row - 1), min(row + 2, _ROWS))
    candidates = (_centre_in_row(near, turned.longitude) for near in rows)
    nearest = min(candidates, key=lambda centre: distance_metres(centre, turned))
    latitude, longitude = _turn(nearest, tuple(zip(*rotation, strict=True)))
    longitude = round(longitude, 8)
    return Point(round(latitude, 8), -180.0 if longitude == 180 else longitude)


def _centre_in_row(row: int, longitude: float) -> Point:
    """The row's cell centre that is nearest to `longitude`. Every other row is shifted by half a cell, like bricks."""
    latitude = (row + 0.5) * _ROW_HEIGHT_DEGREES - 90
    circumference = math.tau * EARTH_RADIUS_METRES * math.cos(math.radians(latitude))
    cells = math.ceil(_WIDTH_STEP ** math.ceil(math.log(circumference / _CELL_WIDTH_METRES, _WIDTH_STEP)))
    shift = row % 2 / 2
    column = round(longitude / 360 * cells - shift) % cells
    return Point(latitude, (column + shift) / cells * 360)


def _turn(point: Point, rotation: _Matrix) -> Point:
    latitude, longitude = math.radians(point.latitude), math.radians(point.longitude)
    unit = (math.cos(latitude) * math.cos(longitude), math.cos(latitude) * math.sin(longitude), math.sin(latitude))
    x, y, z = (sum(a * b for a, b in zip(line, unit, strict=True)) for line in rotation)
    return Point(math.degrees(math.atan2(z, math.hypot(x, y))), math.degrees(math.atan2(y, x)))

"""The location blur and the distance shown: pure functions, no state, standard library only.

A member's exact point never leaves the service; others are shown distances from its *blur*. The Earth is covered with
small cells, laid out at random for each member by a secret, and each cell has a pseudo-random point up to
REACH_METRES away. A member in a cell is shown at its point, unless the memory of the cells around says that they were
shown elsewhere: a place is shown at one point, on whatever side of a cell's edge GPS puts it. docs/privacy.md says what
this promises and what it doesn't; benchmarks/privacy.py attacks it.
"""

import hashlib
import hmac
import math
from collections.abc import Iterable
from typing import NamedTuple, TypeAlias

EARTH_RADIUS_METRES = 6_371_008.8
"""Mean radius R1 = (2a + b) / 3 of WGS 84. A sphere is at most 0.6 % off the ellipsoid."""

CELL_RADIUS_METRES = 60.0
"""From the centre to a corner of a cell, a regular hexagon. Small, so that a cell's point tells where the cell is, and
nothing about where its edges are; large enough for a place to lie in few cells, whatever GPS says."""

REACH_METRES = 436.0
"""A cell's point is uniform in the disc of this radius around the cell's centre. Buys the privacy: half of all points
are farther than 308 m from the centre. What is left to the bound, 94 m beyond the corners, is what GPS noise may do."""

BLUR_BOUND_METRES = 600.0
"""The true point is never farther than this from the blurred one."""

NEAR_METRES = 180.0
"""Cells whose centres are nearer than this are asked what they remember: six times the noise of bad GPS (30 m)."""

COUNTED_VISITS = 10
"""Enough for a home to outweigh the places around it. How often a member was there beyond that is not kept."""

SHOWN_STEP_METRES = 1000.0
"""Distances are shown in whole steps. Buys little, as a step's edge can be searched for; the blur is the protection."""

_ROWS = math.ceil(math.pi * EARTH_RADIUS_METRES / (1.5 * CELL_RADIUS_METRES))
_ROW_HEIGHT_DEGREES = 180 / _ROWS
_ROWS_NEAR = round(NEAR_METRES / (math.radians(_ROW_HEIGHT_DEGREES) * EARTH_RADIUS_METRES))
_CELL_WIDTH_METRES = math.sqrt(3) * CELL_RADIUS_METRES
_COLUMNS_NEAR = 1.05 * NEAR_METRES / _CELL_WIDTH_METRES
_WIDTH_STEP = math.log(1.01)
"""Rows hold equally many cells, and so fit together as hexagons, as long as their widths differ by less than 1 %.
Where the number changes, in one row out of a hundred or so, cells are irregular, up to 70 m from centre to corner."""

Vector: TypeAlias = tuple[float, float, float]
Matrix: TypeAlias = tuple[Vector, Vector, Vector]


class Point(NamedTuple):
    """A place on Earth in degrees. Its text shows no coordinates, so that no log, error or traceback does."""

    latitude: float
    longitude: float

    def __repr__(self) -> str:
        return "Point(…)"


class Surroundings(NamedTuple):
    """The cells around a point.

    places: their opaque ids, 32 hexadecimal digits each, the nearest first: the first holds the point.
    shown: the point of the first.
    """

    places: list[str]
    shown: Point


class Memory(NamedTuple):
    """What is remembered of a cell: where the member was last shown there, and how often in a row.

    number: which of the surrounding cells it is; the one that holds the point is 0.
    """

    number: int
    shown: Point
    visits: int


def surroundings(point: Point, *, member_id: str, secret: bytes) -> Surroundings:
    """Return the member's cells around `point`."""
    rotation = rotation_of(member_id, secret)
    turned = turn(vector_of(point), rotation)
    cells = cells_near(turned)
    key = key_of(member_id, secret)
    digests = [digest_of(cell, key) for _, cell, _ in cells]
    shown = point_around(cells[0][2], digests[0], rotation)
    return Surroundings([digest[:16].hex() for digest in digests], shown)


def blur(point: Point, around: Surroundings, memories: Iterable[Memory] = ()) -> Point:
    """Return the point to show for `point`: at most BLUR_BOUND_METRES away, and the same at every return.

    Of the points that the cells around remember and that are within the bound, it is the one with the most visits: a
    home outweighs whatever else its member does around it. The nearest cell decides between equals.
    """
    visits: dict[Point, int] = {}
    for memory in sorted(memories):
        if distance_metres(point, memory.shown) <= BLUR_BOUND_METRES:
            visits[memory.shown] = visits.get(memory.shown, 0) + memory.visits
    return max(visits, key=lambda shown: visits[shown], default=around.shown)


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


def rotation_of(member_id: str, secret: bytes) -> Matrix:
    """Return the member's secret rotation of the globe, uniform among all of them.

    A uniform unit quaternion out of three uniform numbers: K. Shoemake, "Uniform Random Rotations", Graphics Gems III,
    1992. The numbers are the member's HMAC-SHA256 (RFC 2104); the prefix keeps other uses of the secret apart.
    """
    digest = hmac.digest(secret, b"after-hours/location-blur/2\0" + member_id.encode(), "sha256")
    u, v, w = (int.from_bytes(digest[start : start + 8]) / 2**64 for start in (0, 8, 16))
    x, y = math.sqrt(1 - u) * math.sin(math.tau * v), math.sqrt(1 - u) * math.cos(math.tau * v)
    z, r = math.sqrt(u) * math.sin(math.tau * w), math.sqrt(u) * math.cos(math.tau * w)
    return (
        (1 - 2 * (y * y + z * z), 2 * (x * y - r * z), 2 * (x * z + r * y)),
        (2 * (x * y + r * z), 1 - 2 * (x * x + z * z), 2 * (y * z - r * x)),
        (2 * (x * z - r * y), 2 * (y * z + r * x), 1 - 2 * (x * x + y * y)),
    )


def cells_near(point: Vector) -> list[tuple[float, tuple[int, int], Vector]]:
    """Return the cell that holds `point`, and those whose centres are near, the nearest first.

    point: a unit vector, turned by the member's rotation. Of each cell: the distance of its centre in metres, its row
    and column, and the centre, turned as the point is.

    Every other row is shifted by half a cell, like bricks.
    """
    x, y, z = point
    longitude, latitude = math.atan2(y, x) / math.tau, math.degrees(math.atan2(z, math.hypot(x, y)))
    own_row = min(math.floor((latitude + 90) / _ROW_HEIGHT_DEGREES), _ROWS - 1)
    found = []
    for row in range(max(0, own_row - _ROWS_NEAR), min(own_row + _ROWS_NEAR + 1, _ROWS)):
        parallel = math.radians((row + 0.5) * _ROW_HEIGHT_DEGREES - 90)
        up, out = math.sin(parallel), math.cos(parallel)
        ideal = math.tau * EARTH_RADIUS_METRES * out / _CELL_WIDTH_METRES
        cells = math.ceil(math.exp(_WIDTH_STEP * math.ceil(math.log(ideal) / _WIDTH_STEP)))
        shift = row % 2 / 2
        middle = longitude * cells - shift
        # Around the poles of the grid a straight line is much shorter than a parallel: there, all cells of the row.
        reach = _COLUMNS_NEAR if cells > 50 else cells / 2
        for number in range(math.ceil(middle - reach), math.ceil(middle + reach)):
            angle = math.tau * (number + shift) / cells
            centre = (out * math.cos(angle), out * math.sin(angle), up)
            # The straight line is as good as the arc: shorter by less than a thousandth of a millimetre.
            distance = EARTH_RADIUS_METRES * math.dist(centre, point)
            found.append((distance, (row, number % cells), centre))
    found.sort()
    return found[:1] + [cell for cell in found[1:] if cell[0] <= NEAR_METRES]


def key_of(member_id: str, secret: bytes) -> bytes:
    """Return the 32 bytes that make a member's cells their own."""
    return hmac.digest(secret, b"after-hours/places/1\0" + member_id.encode(), "sha256")


def digest_of(cell: tuple[int, int], key: bytes) -> bytes:
    """Return the 32 bytes that a member's cell is known by: its id, then the numbers that its point is made of.

    Keyed BLAKE2 (RFC 7693) takes a quarter of HMAC-SHA256's time.
    """
    row, column = cell
    return hashlib.blake2b(row.to_bytes(4) + column.to_bytes(4), digest_size=32, key=key).digest()


def point_around(centre: Vector, digest: bytes, rotation: Matrix) -> Point:
    """Return the cell's point, uniform in the disc around its centre; rounded to 8 decimals (1 mm), as it is stored."""
    u, bearing = (
        int.from_bytes(digest[start : start + 8]) / 2**64 * scale for start, scale in ((16, 1), (24, math.tau))
    )
    angle = REACH_METRES * math.sqrt(u) / EARTH_RADIUS_METRES
    along, east, north = math.cos(angle), math.sin(angle) * math.sin(bearing), math.sin(angle) * math.cos(bearing)
    x, y, z = centre
    out = math.hypot(x, y)
    at = (
        along * x - east * y / out - north * z * x / out,
        along * y + east * x / out - north * z * y / out,
        along * z + north * out,
    )
    x, y, z = turn(at, transposed(rotation))
    longitude = round(math.degrees(math.atan2(y, x)), 8)
    latitude = round(math.degrees(math.atan2(z, math.hypot(x, y))), 8)
    return Point(latitude, -180.0 if longitude == 180 else longitude)


def vector_of(point: Point) -> Vector:
    """Return the unit vector from the Earth's centre to the point."""
    latitude, longitude = math.radians(point.latitude), math.radians(point.longitude)
    return math.cos(latitude) * math.cos(longitude), math.cos(latitude) * math.sin(longitude), math.sin(latitude)


def turn(vector: Vector, rotation: Matrix) -> Vector:
    """Return the vector, turned."""
    x, y, z = vector
    (a, b, c), (d, e, f), (g, h, i) = rotation
    return a * x + b * y + c * z, d * x + e * y + f * z, g * x + h * y + i * z


def transposed(rotation: Matrix) -> Matrix:
    """Return the rotation that turns back."""
    (a, b, c), (d, e, f), (g, h, i) = rotation
    return (a, d, g), (b, e, h), (c, f, i)

"""The three blurs that the project has had, simulated for many sessions at once.

All in metres east and north of the member's home, on the plane that touches the Earth there: an array of shape (…, 2).
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from afterhours_service.places import blur as places
from afterhours_service.places.blur import BLUR_BOUND_METRES, COUNTED_VISITS, EARTH_RADIUS_METRES, NEAR_METRES, Point

Array = NDArray[np.float64]

FUZZ_RADIUS_METRES = 500
GRID_RADIUS_METRES = 450
GRID_REMEMBERED_SESSIONS = 14
"""What a member who went live twice a day left within the retention of 7 days."""


@dataclass(frozen=True)
class Plane:
    """The plane that touches the Earth at `home`: true to a millimetre within 1 km, to 2 cm within 10 km."""

    home: Point

    def points(self, metres: Array) -> list[Point]:
        east, north, up = self._axes()
        x, y, z = (up + (metres[:, :1] * east + metres[:, 1:] * north) / EARTH_RADIUS_METRES).T
        latitudes, longitudes = np.degrees(np.arctan2(z, np.hypot(x, y))), np.degrees(np.arctan2(y, x))
        return list(map(Point, latitudes.tolist(), longitudes.tolist()))

    def metres(self, points: Sequence[Point]) -> Array:
        east, north, up = self._axes()
        latitude, longitude = np.radians(np.array(points)).T
        x, y, z = np.cos(latitude) * np.cos(longitude), np.cos(latitude) * np.sin(longitude), np.sin(latitude)
        units = np.stack([x, y, z], axis=-1)
        return EARTH_RADIUS_METRES * np.stack([units @ east, units @ north], axis=-1) / (units @ up)[:, None]

    def _axes(self) -> tuple[Array, Array, Array]:
        latitude, longitude = np.radians(self.home)
        east = np.array([-np.sin(longitude), np.cos(longitude), 0])
        up = np.array([np.cos(latitude) * np.cos(longitude), np.cos(latitude) * np.sin(longitude), np.sin(latitude)])
        return east, np.cross(up, east), up


def in_disc(rng: np.random.Generator, count: int, radius: float, inner: float = 0) -> Array:
    """Return `count` points, uniform between two circles around the origin."""
    distance = np.sqrt(rng.uniform(inner**2, radius**2, count))
    angle = rng.uniform(0, math.tau, count)
    return np.stack([distance * np.cos(angle), distance * np.sin(angle)], axis=-1)


def fuzz(points: Array, plane: Plane, rng: np.random.Generator) -> Array:
    """The first: at each start a fresh, uniform point within 500 m, rounded to 3 decimals of a degree."""
    fuzzed = points + in_disc(rng, len(points), FUZZ_RADIUS_METRES)
    return plane.metres([Point(round(p.latitude, 3), round(p.longitude, 3)) for p in plane.points(fuzzed)])


def grid(rng: np.random.Generator) -> Array:
    """Return the second's cells around the origin, from south to north: a lattice turned and moved at random."""
    width = math.sqrt(3) * GRID_RADIUS_METRES
    row, column = np.meshgrid(np.arange(-6, 7), np.arange(-6, 7))
    cells = np.stack([(column + row % 2 / 2) * width, row * 1.5 * GRID_RADIUS_METRES], axis=-1).reshape(-1, 2)
    angle, shift = rng.uniform(0, math.tau), in_disc(rng, 1, 2 * GRID_RADIUS_METRES)
    turn = np.array([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]])
    turned: Array = (cells + shift) @ turn
    return turned[turned[:, 1].argsort()]


def grid_track(fixes: Array, cells: Array) -> list[int]:
    """The second: the southernmost of the latest cells that are within the bound, or else the nearest."""
    distances = np.linalg.norm(fixes[:, None] - cells, axis=-1)
    shown: list[int] = []
    for distance in distances:
        remembered = [cell for cell in shown[-GRID_REMEMBERED_SESSIONS:] if distance[cell] <= BLUR_BOUND_METRES]
        shown.append(min(remembered, default=int(distance.argmin())))
    return shown


class Cells:
    """The present: a member's cells within some distance of home, and the memory of them."""

    def __init__(self, plane: Plane, reach: float, *, member_id: str, secret: bytes) -> None:
        axis = np.arange(-reach - NEAR_METRES, reach + 2 * NEAR_METRES, NEAR_METRES)
        mesh = np.stack(np.meshgrid(axis, axis), axis=-1).reshape(-1, 2)
        rotation = places.rotation_of(member_id, secret)
        turned = [places.turn(places.vector_of(point), rotation) for point in plane.points(mesh)]
        found = {cell: centre for point in turned for _, cell, centre in places.cells_near(point)}
        centres = [places.turn(centre, places.transposed(rotation)) for centre in found.values()]
        degrees = [Point(math.degrees(math.asin(z)), math.degrees(math.atan2(y, x))) for x, y, z in centres]
        key = places.key_of(member_id, secret)
        digests = [places.digest_of(cell, key) for cell in found]
        self.centres = plane.metres(degrees)
        """Of shape (cells, 2)."""
        self.points = plane.metres(
            [places.point_around(*each, rotation) for each in zip(found.values(), digests, strict=True)]
        )
        """What each cell shows if nothing is remembered."""

    def track(self, fixes: Array, days: Sequence[float], place_days: float) -> "Track":
        """Go live at each of the fixes, on days that do not decrease. place_days: how long a cell is remembered."""
        memory: dict[int, tuple[int, int, float]] = {}  # by cell: whose point was shown, how often in a row, when last
        shown: list[int] = []
        squares = np.hypot(*(fixes[:, None].astype(np.float32) - self.centres.astype(np.float32)).transpose(2, 0, 1))
        for fix, day, distances in zip(fixes, days, squares, strict=True):
            near = np.flatnonzero(distances <= NEAR_METRES)
            ordered = near[distances[near].argsort()].tolist()
            visits: dict[int, int] = {}
            for cell in ordered:
                if cell in memory and memory[cell][2] >= day - place_days:
                    point, times, _ = memory[cell]
                    if math.dist(fix, self.points[point]) <= BLUR_BOUND_METRES:
                        visits[point] = visits.get(point, 0) + times
            own = ordered[0]
            chosen = max(visits, key=lambda point: visits[point], default=own)
            before = memory.get(own)
            is_same = before is not None and before[0] == chosen and before[2] >= day - place_days
            memory[own] = (chosen, min(before[1] + 1, COUNTED_VISITS) if is_same and before else 1, day)
            shown.append(chosen)
        return Track(shown, memory)


@dataclass(frozen=True)
class Track:
    """Whose point was shown at each start, and what is remembered of each cell in the end, as in `Cells.track`."""

    shown: list[int]
    memory: dict[int, tuple[int, int, float]]

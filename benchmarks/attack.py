"""What an adversary makes of the points that a member is shown at: the two blurs, simulated, and his estimates.

All in metres east and north of the member's home, on the plane that touches the Earth there: an array of shape
(…, 2). The adversary is given more than he could have. He knows the algorithm, the noise of GPS, which sessions were
at home and that homes lie on a lattice of 10 m; against the keyed blur he is even told the member's secret grid.
"""

import math
from collections import Counter
from dataclasses import dataclass
from functools import cache

import numpy as np
from numpy.typing import NDArray

from afterhours_service.places.blur import BLUR_BOUND_METRES, EARTH_RADIUS_METRES, Point, blur

Array = NDArray[np.float64]
Estimates = dict[str, Array]
State = tuple[frozenset[int], int]
"""The cells that are remembered when a member goes live, and the one they are shown in."""


ESTIMATORS = ("mean", "median", "intersection", "likelihood")
HORIZONS = (1, 10, 100, 1000)
LATTICE_METRES = 10
LEGACY_RADIUS_METRES = 500
LEGACY_DECIMALS = 3
_RASTER_METRES = 5
_REACH_METRES = 700
"""A home is not farther from where it is shown than the bound and three times the noise of GPS."""


@dataclass(frozen=True)
class Plane:
    """The plane that touches the Earth at `home`: true to a millimetre within 1 km, to 2 cm within 10 km."""

    home: Point

    def points(self, metres: Array) -> list[Point]:
        east, north, up = self._axes()
        x, y, z = (up + (metres[:, :1] * east + metres[:, 1:] * north) / EARTH_RADIUS_METRES).T
        latitudes, longitudes = np.degrees(np.arctan2(z, np.hypot(x, y))), np.degrees(np.arctan2(y, x))
        return list(map(Point, latitudes.tolist(), longitudes.tolist()))

    def metres(self, points: list[Point]) -> Array:
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


def cells_around(places: list[Point], *, member_id: str, secret: bytes) -> list[Point]:
    """The centres of the member's cells around `places`, from south to north: in the order of the rule in `blur`."""
    axis = np.arange(-3.0, 4.0) * 475  # so fine that each cell holds a point of the mesh
    mesh = np.stack(np.meshgrid(axis, axis), axis=-1).reshape(-1, 2)
    centres = [blur(place, member_id=member_id, secret=secret) for place in places]
    points = [point for centre in centres for point in Plane(centre).points(mesh)]
    return sorted({blur(point, member_id=member_id, secret=secret) for point in points})


def squared_distances(points: Array, cells: Array) -> Array:
    """One row for each cell, one column for each point."""
    east, north = np.ascontiguousarray(points.T, dtype=np.float32)  # true to a millimetre
    cell_east, cell_north = cells.T[..., None].astype(np.float32)
    squares: Array = (east - cell_east) ** 2 + (north - cell_north) ** 2
    return squares


def keyed_blur(squares: Array, shown: frozenset[int] = frozenset()) -> NDArray[np.intp]:
    """`blur` for many points at once, as indices into the member's cells. A test holds the two equal."""
    blurred: NDArray[np.intp] = squares.argmin(axis=0)
    for cell in sorted(shown, reverse=True):
        blurred[squares[cell] <= BLUR_BOUND_METRES**2] = cell
    return blurred


def keyed_track(squares: Array, retained: int) -> list[State]:
    """What a member is shown in at one point after the other, if the last `retained` cells are remembered."""
    shown: list[int] = []
    track: list[State] = []
    blurred: dict[frozenset[int], list[int]] = {}
    for visit in range(squares.shape[1]):
        remembered = frozenset(shown[max(0, visit - retained) :])
        if remembered not in blurred:
            blurred[remembered] = keyed_blur(squares, remembered).tolist()
        shown.append(blurred[remembered][visit])
        track.append((remembered, shown[visit]))
    return track


def legacy_fuzz(points: Array, plane: Plane, rng: np.random.Generator) -> Array:
    """The fuzz before: at each start a fresh, uniform point within 500 m, rounded to 3 decimals of a degree."""
    radius = LEGACY_RADIUS_METRES * np.sqrt(rng.random(len(points)))
    angle = rng.uniform(0, math.tau, len(points))
    fuzzed = points + np.stack([radius * np.cos(angle), radius * np.sin(angle)], axis=-1)
    return plane.metres([Point(round(p.latitude, 3), round(p.longitude, 3)) for p in plane.points(fuzzed)])


def attack_legacy(published: Array, latitude: float, noise: float) -> list[Estimates]:
    """The estimates of home after each of HORIZONS sessions."""
    log_chance, disc = _legacy_rasters(round(latitude, 1), noise)
    estimates = []
    for sessions in HORIZONS:
        seen = published[:sessions]
        homes = _lattice(seen.mean(axis=0), min(_REACH_METRES, 40 + 1300 / math.sqrt(sessions)))
        side = math.isqrt(len(homes))
        log_likelihood, discs = np.zeros((side, side)), np.zeros((side, side))
        for east, north in np.rint((homes[0] - seen) / _RASTER_METRES).astype(int) + len(disc) // 2:
            every_home = slice(east, east + 2 * side, 2), slice(north, north + 2 * side, 2)
            log_likelihood += log_chance[every_home]
            discs += disc[every_home]
        estimates.append(_estimates(seen, homes, discs.ravel(), log_likelihood.ravel()))
    return estimates


def attack_keyed(states: list[State], cells: Array, noise: float) -> list[Estimates]:
    """The estimates of home after each of HORIZONS sessions there."""
    homes = _lattice(cells[states[0][1]], _REACH_METRES)
    squares = squared_distances(homes, cells)
    within_bound = squares <= BLUR_BOUND_METRES**2
    log_chances = {
        (remembered, shown): _log_chance(keyed_blur(squares, remembered) == shown, noise)
        for remembered, shown in set(states)
    }
    estimates = []
    for sessions in HORIZONS:
        seen = [shown for _, shown in states[:sessions]]
        log_likelihood = np.zeros(len(homes))
        for state, times in Counter(states[:sessions]).items():
            log_likelihood += times * log_chances[state]
        estimates.append(_estimates(cells[seen], homes, within_bound[sorted(set(seen))].sum(axis=0), log_likelihood))
    return estimates


def _estimates(seen: Array, homes: Array, discs: Array, log_likelihood: Array) -> Estimates:
    """`discs` says how many of the discs around the points seen hold each possible home."""
    weights = np.exp(log_likelihood - log_likelihood.max())
    return {
        "mean": seen.mean(axis=0),
        "median": np.median(seen, axis=0),
        "intersection": homes[discs == discs.max()].mean(axis=0),
        # No peak but a plateau, as wide as a cell: of its points, the weighted mean has the least mean square error.
        "likelihood": weights @ homes / weights.sum(),
    }


def _lattice(centre: Array, reach: float) -> Array:
    """The possible homes around `centre`: all points whose coordinates are multiples of 10 m."""
    axis = np.arange(-(reach // LATTICE_METRES), reach // LATTICE_METRES + 1) * LATTICE_METRES
    east, north = np.rint(centre / LATTICE_METRES) * LATTICE_METRES
    return np.stack(np.meshgrid(east + axis, north + axis, indexing="ij"), axis=-1).reshape(-1, 2)


def _log_chance(shown_here: NDArray[np.bool_], noise: float) -> Array:
    """For each possible home, the log of the chance that a noisy fix from it falls where `shown_here` is true."""
    side = math.isqrt(len(shown_here))
    smooth = _smoothing(side, LATTICE_METRES, noise, 0)
    chance = smooth @ shown_here.reshape(side, side) @ smooth
    return np.log(np.maximum(chance, 1e-9)).ravel()


@cache
def _legacy_rasters(latitude: float, noise: float) -> tuple[Array, NDArray[np.bool_]]:
    """By the offset of the point shown from home: the log of its chance, and whether it can be that far at all."""
    axis = np.arange(-2000, 2001, _RASTER_METRES)
    distance = np.hypot(axis[:, None], axis)
    rounding = math.radians(10**-LEGACY_DECIMALS) * EARTH_RADIUS_METRES
    east = _smoothing(len(axis), _RASTER_METRES, noise, rounding * math.cos(math.radians(latitude)))
    north = _smoothing(len(axis), _RASTER_METRES, noise, rounding)
    chance = east @ (distance <= LEGACY_RADIUS_METRES) @ north
    return np.log(np.maximum(chance, 1e-9)), distance <= LEGACY_RADIUS_METRES + rounding / math.sqrt(2) + 2 * noise


@cache
def _smoothing(side: int, step: float, noise: float, width: float) -> Array:
    """The matrix that smooths along one axis of a raster: normal noise, then a uniform error of `width` metres."""
    distance = np.arange(side) * step
    spread = np.linspace(-width / 2, width / 2, 41) if width else np.zeros(1)
    edges = np.arange(-side, side + 1) * step - step / 2
    cumulative = np.array(
        [np.mean([math.erf((edge - shift) / (noise * math.sqrt(2))) for shift in spread]) for edge in edges]
    )
    density = np.diff(cumulative) / 2
    index = np.rint((distance[:, None] - distance) / step).astype(int) + side
    matrix: Array = density[index]
    return matrix

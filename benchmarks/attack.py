"""What an adversary makes of the points that a member is shown at: his estimates of home, against each blur.

He knows the algorithm, the noise of GPS, and which sessions were at home. In metres east and north of the true home;
shapes are (…, 2).
"""

import math
from collections import Counter
from collections.abc import Sequence
from functools import cache

import numpy as np
from numpy.typing import NDArray

from afterhours_service.places.blur import BLUR_BOUND_METRES, CELL_RADIUS_METRES, EARTH_RADIUS_METRES, REACH_METRES
from benchmarks.blurs import FUZZ_RADIUS_METRES, Array
from benchmarks.blurs import GRID_REMEMBERED_SESSIONS as _REMEMBERED

Estimates = dict[str, Array]

_LATTICE_METRES = 10
_RASTER_METRES = 5
_SEARCH_METRES = 700
"""A home is not farther from where it is shown than the bound and three times the noise of GPS."""


def attack_fuzz(seen: Array, latitude: float, noise: float) -> Estimates:
    """Return the estimates from fuzzed points: each is a fresh, independent clue."""
    log_chance = _fuzz_raster(round(latitude, 1), noise)
    homes = _lattice(seen.mean(axis=0), min(_SEARCH_METRES, 40 + 1300 / math.sqrt(len(seen))))
    side = math.isqrt(len(homes))
    log_likelihood = np.zeros((side, side))
    for east, north in np.rint((homes[0] - seen) / _RASTER_METRES).astype(int) + len(log_chance) // 2:
        log_likelihood += log_chance[slice(east, east + 2 * side, 2), slice(north, north + 2 * side, 2)]
    return {"mean": seen.mean(axis=0), "likelihood": _centre(homes, log_likelihood.ravel())}


def attack_grid(shown: Sequence[int], is_home: Sequence[bool], cells: Array, noise: float) -> Estimates:
    """Return the estimates of who is even told the member's grid.

    shown: the cell of each session, at home and elsewhere. is_home: which were at home.
    """
    at_home = [visit for visit, at in enumerate(is_home) if at]
    homes = _lattice(cells[shown[at_home[0]]], _SEARCH_METRES)
    distances = np.linalg.norm(homes[:, None] - cells, axis=-1)
    within_bound, nearest = distances <= BLUR_BOUND_METRES, distances.argmin(axis=1)
    states = Counter((frozenset(shown[max(0, visit - _REMEMBERED) : visit]), shown[visit]) for visit in at_home)
    log_likelihood = np.zeros(len(homes))
    for (remembered, cell), times in states.items():
        blurred = nearest.copy()
        for each in sorted(remembered, reverse=True):
            blurred[within_bound[:, each]] = each
        log_likelihood += times * _log_chance(blurred == cell, noise)
    seen = cells[[shown[visit] for visit in at_home]]
    return {"mean": seen.mean(axis=0), "likelihood": _centre(homes, log_likelihood)}


def attack_points(points: Array, times: Sequence[int], noise: float) -> Estimates:
    """Return the estimates from the distinct points of one member's present blur, and how often each was shown."""
    return {
        "mean": points.mean(axis=0),
        "mean of sessions": np.average(points, axis=0, weights=np.array(times)),
        "likelihood": _most_likely(points, noise),
    }


def _most_likely(points: Array, noise: float) -> Array:
    """Return the mean of all homes, weighted with the chance that the first point each cell drew is where it is.

    A cell's centre is spread around home, its point around the centre: two discs, whose overlap is the density.
    """
    homes = _lattice(points.mean(axis=0), _SEARCH_METRES)
    spread = 0.9 * CELL_RADIUS_METRES + noise
    log_likelihood = np.zeros(len(homes))
    for point in points:
        distance = np.maximum(np.linalg.norm(homes - point, axis=-1), 1e-9)
        density = np.maximum(_overlap(distance, spread, REACH_METRES) / (math.pi * spread**2), 1e-3)
        log_likelihood += np.log(np.where(distance <= BLUR_BOUND_METRES + 2 * noise, density, 1e-9))
    return _centre(homes, log_likelihood)


def _overlap(distance: Array, a: float, b: float) -> Array:
    """Return the area that two circles share, for a < b.

    https://mathworld.wolfram.com/Circle-CircleIntersection.html
    """
    x = np.clip((distance**2 + a * a - b * b) / (2 * distance * a), -1, 1)
    y = np.clip((distance**2 + b * b - a * a) / (2 * distance * b), -1, 1)
    product = (a + b - distance) * (distance + a - b) * (distance - a + b) * (distance + a + b)
    lens: Array = a * a * np.arccos(x) + b * b * np.arccos(y) - 0.5 * np.sqrt(np.maximum(0, product))
    return np.where(distance <= b - a, math.pi * a * a, np.where(distance >= a + b, 0, lens))


def _centre(homes: Array, log_likelihood: Array) -> Array:
    """Return the mean of the homes by their likelihood: it has the least mean square error."""
    weights = np.exp(log_likelihood - log_likelihood.max())
    centre: Array = weights @ homes / weights.sum()
    return centre


def _lattice(centre: Array, reach: float) -> Array:
    """Return the possible homes around `centre`: all points whose coordinates are multiples of 10 m."""
    axis = np.arange(-(reach // _LATTICE_METRES), reach // _LATTICE_METRES + 1) * _LATTICE_METRES
    east, north = np.rint(centre / _LATTICE_METRES) * _LATTICE_METRES
    return np.stack(np.meshgrid(east + axis, north + axis, indexing="ij"), axis=-1).reshape(-1, 2)


def _log_chance(shown_here: NDArray[np.bool_], noise: float) -> Array:
    """Return, for each possible home, the log of the chance that a noisy fix from it falls where `shown_here` is."""
    side = math.isqrt(len(shown_here))
    smooth = _smoothing(side, _LATTICE_METRES, noise, 0)
    chance = smooth @ shown_here.reshape(side, side) @ smooth
    return np.log(np.maximum(chance, 1e-9)).ravel()


@cache
def _fuzz_raster(latitude: float, noise: float) -> Array:
    """Return, by the offset of the point shown from home, the log of its chance."""
    axis = np.arange(-2000, 2001, _RASTER_METRES)
    distance = np.hypot(axis[:, None], axis)
    rounding = math.radians(10**-3) * EARTH_RADIUS_METRES
    east = _smoothing(len(axis), _RASTER_METRES, noise, rounding * math.cos(math.radians(latitude)))
    north = _smoothing(len(axis), _RASTER_METRES, noise, rounding)
    return np.log(np.maximum(east @ (distance <= FUZZ_RADIUS_METRES) @ north, 1e-9))


@cache
def _smoothing(side: int, step: float, noise: float, width: float) -> Array:
    """Return what smooths along an axis of a raster: normal noise, then a uniform error of `width` metres."""
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

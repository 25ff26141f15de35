"""The published attack on the location blur: `python -m benchmarks.privacy [--members N] [--svg FILE]`.

Simulates members who go live from home again and again, and an adversary who sees every point they are shown at, under
the fuzz before (a fresh random point within 500 m at every start) and under the keyed blur. Prints Markdown tables.
The seed is fixed: the figures are the same at every run.
"""

import argparse
import math
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path

import numpy as np

from afterhours_service.places.blur import Point, blur, distance_metres, shown_distance_km
from benchmarks.attack import (
    ESTIMATORS,
    HORIZONS,
    Array,
    Estimates,
    Plane,
    attack_keyed,
    attack_legacy,
    cells_around,
    keyed_track,
    legacy_fuzz,
    squared_distances,
)
from benchmarks.picture import draw

SECRET = b"a secret of the benchmark's own, 32+ bytes"
CITY = Point(52.52, 13.405)
CITY_RADIUS_METRES = 10_000
NOISES_METRES = (8.0, 30.0)
RETAINED_SESSIONS = 14
"""What a member who goes live twice a day leaves within the retention of 7 days."""

FUZZ = "fuzz before; home anywhere"
ANYWHERE = "home anywhere"
EDGE = "home on an edge"
VERTEX = "home at a vertex"
COMMUTER = "commuter: the other place 1–10 km away"
NEIGHBOUR = "commuter: the other place within 1 km"
BOTH_CELLS = "home on an edge; frequents both cells"
FORGOTTEN = "home anywhere; memory lost every time"
EDGE_FORGOTTEN = "home on an edge; memory lost every time"
SCENARIOS = (FUZZ, ANYWHERE, EDGE, VERTEX, COMMUTER, NEIGHBOUR, BOTH_CELLS, FORGOTTEN, EDGE_FORGOTTEN)

SOURCES = (EXACT_POINT, LEGACY_POINT, BLURRED_POINT) = ("the exact point", "the fuzz before, once", "the keyed blur")
"""What the distance shown could be taken from."""

SUMMARY = ("median", "5th percentile", "worst", "within 100 m")

Errors = dict[tuple[int, str], list[float]]
"""The errors in metres of all members, by number of sessions and estimator."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--members", type=int, default=1000)
    parser.add_argument("--svg", type=Path, help="draw both clouds around one home into this file, and do nothing else")
    arguments = parser.parse_args()
    if arguments.svg:
        arguments.svg.write_text(draw(CITY, secret=SECRET), encoding="utf-8")
        return
    cases = [(scenario, noise) for scenario in SCENARIOS for noise in NOISES_METRES]
    with ProcessPoolExecutor() as pool:
        simulated = pool.map(partial(simulate, members=arguments.members), *zip(*cases, strict=True))
        fixes = list(pool.map(partial(trilaterate, members=arguments.members), SOURCES))
        results = dict(zip(cases, simulated, strict=True))
    _print_head(f"The strongest estimator in brief, {arguments.members:,} members", "median error", "within 100 m")
    for (scenario, noise), errors in results.items():
        strongest = [_strongest(errors, sessions) for sessions in HORIZONS]
        medians = " · ".join(f"{np.median(found):.0f}" for found in strongest)
        shares = " · ".join(f"{_within_100_metres(found):.1%}" for found in strongest)
        print(f"| {scenario}, GPS noise {noise:.0f} m | {medians} m | {shares} |")
    _print_head("The strongest estimator", *SUMMARY)
    for (scenario, noise), errors in results.items():
        for sessions in HORIZONS:
            print(f"| {scenario}, {noise:.0f} m, {sessions:,} sessions | {_summary(_strongest(errors, sessions))} |")
    _print_head("Each estimator at 1,000 sessions", *SUMMARY)
    for (scenario, noise), errors in results.items():
        for estimator in ESTIMATORS:
            print(f"| {scenario}, {noise:.0f} m, {estimator} | {_summary(errors[1000, estimator])} |")
    _print_head("Distances asked, by the point they are taken from", *SUMMARY, "farthest from that point")
    for source, (misses, home_errors) in zip(SOURCES, fixes, strict=True):
        print(f"| {source} | {_summary(home_errors)} | {max(misses):.2f} m |")


def _print_head(title: str, *columns: str) -> None:
    print(f"\n### {title}\n\n| case | {' | '.join(columns)} |\n| --- |{' ---: |' * len(columns)}")


def _summary(errors: list[float]) -> str:
    median, fifth = np.percentile(errors, [50, 5])
    return f"{median:.0f} m | {fifth:.0f} m | {max(errors):.0f} m | {_within_100_metres(errors):.1%}"


def _within_100_metres(errors: list[float]) -> float:
    return sum(error <= 100 for error in errors) / len(errors)


def _strongest(errors: Errors, sessions: int) -> list[float]:
    """The errors of the estimator with the smallest median."""
    return min((errors[sessions, estimator] for estimator in ESTIMATORS), key=np.median)


def simulate(scenario: str, noise: float, members: int) -> Errors:
    """All estimates of all members' homes, in one scenario."""
    errors: Errors = {(sessions, estimator): [] for sessions in HORIZONS for estimator in ESTIMATORS}
    for member in range(members):
        rng = np.random.default_rng([SCENARIOS.index(scenario), int(noise), member])
        attack = _attack_fuzz if scenario == FUZZ else _attack_member
        for sessions, estimates in zip(HORIZONS, attack(scenario, noise, f"member-{member}", rng), strict=True):
            for estimator, estimate in estimates.items():
                errors[sessions, estimator].append(float(np.hypot(*estimate)))
    return errors


def _attack_fuzz(_scenario: str, noise: float, _member_id: str, rng: np.random.Generator) -> list[Estimates]:
    plane = Plane(_somewhere(rng))
    fixes = rng.normal(0, noise, (max(HORIZONS), 2))
    return attack_legacy(legacy_fuzz(fixes, plane, rng), plane.home.latitude, noise)


def _attack_member(scenario: str, noise: float, member_id: str, rng: np.random.Generator) -> list[Estimates]:
    home = _somewhere(rng)
    if scenario in (EDGE, BOTH_CELLS, EDGE_FORGOTTEN):
        home = _on_edge(home, member_id, position=rng.random())
    if scenario == VERTEX:
        home = _on_edge(home, member_id, position=0)
    plane = Plane(home)
    other_places: Array = np.zeros((0, 2))
    if scenario == COMMUTER:
        other_places = _at(rng.uniform(1000, 10_000), rng.uniform(0, math.tau))[None]
    if scenario == NEIGHBOUR:
        other_places = _at(1000 * math.sqrt(rng.random()), rng.uniform(0, math.tau))[None]
    if scenario == BOTH_CELLS:
        cells = _cells(plane, member_id)
        other_places = cells[np.hypot(*cells.T).argsort()[:2]]
    places = np.concatenate([np.zeros((1, 2)), other_places])
    cells = _cells(plane, member_id, places)
    place = rng.permutation(max(HORIZONS) * len(places)) % len(places)
    fixes = places[place] + rng.normal(0, noise, (len(place), 2))
    retained = 0 if scenario in (FORGOTTEN, EDGE_FORGOTTEN) else RETAINED_SESSIONS
    track = keyed_track(squared_distances(fixes, cells), retained)
    return attack_keyed([state for state, where in zip(track, place.tolist(), strict=True) if where == 0], cells, noise)


def _cells(plane: Plane, member_id: str, places: Array | None = None) -> Array:
    """The centres of the member's cells around `places` (or the home), in metres."""
    points = [plane.home] if places is None else plane.points(places)
    return plane.metres(cells_around(points, member_id=member_id, secret=SECRET))


def _somewhere(rng: np.random.Generator) -> Point:
    place = _at(CITY_RADIUS_METRES * math.sqrt(rng.random()), rng.uniform(0, math.tau))
    return Plane(CITY).points(place[None])[0]


def _at(distance: float, bearing: float) -> Array:
    return distance * np.array([math.sin(bearing), math.cos(bearing)])


def _on_edge(near: Point, member_id: str, position: float) -> Point:
    """The point at `position` (from 0 to 1) along the first edge of the cell around `near`."""
    plane = Plane(blur(near, member_id=member_id, secret=SECRET))
    cells = _cells(plane, member_id)
    own, *neighbours = cells[np.hypot(*cells.T).argsort()[:7]]
    neighbours.sort(key=lambda cell: math.atan2(*(cell - own)))
    vertices = [(own + neighbours[i] + neighbours[i + 1]) / 3 for i in (0, 1)]
    return plane.points((vertices[0] + position * (vertices[1] - vertices[0]))[None])[0]


def trilaterate(source: str, members: int) -> tuple[list[float], list[float]]:
    """An adversary who walks along three lines and searches each for a place where the distance shown takes a step.

    He may put his own *blurred* point where he likes, to the centimetre. Returns how far his fixes are from the points
    that the distances were taken from, and from the homes.
    """
    misses, errors = [], []
    for member in range(members):
        rng = np.random.default_rng([len(SCENARIOS), member])
        plane = Plane(_somewhere(rng))
        shown = plane.home
        if source == LEGACY_POINT:
            shown = plane.points(legacy_fuzz(np.zeros((1, 2)), plane, rng))[0]
        if source == BLURRED_POINT:
            shown = blur(plane.home, member_id=f"member-{member}", secret=SECRET)
        fix = _fix_from_steps(plane, shown, rng)
        misses.append(distance_metres(fix, shown))
        errors.append(distance_metres(fix, plane.home))
    return misses, errors


def _fix_from_steps(plane: Plane, target: Point, rng: np.random.Generator) -> Point:
    """The target's place, out of answers of shown_distance_km alone."""
    first_bearing = rng.uniform(0, math.tau)
    circles = []
    for bearing in first_bearing + np.array([0, 1, 2]) * math.tau / 3:
        near, far = 2000.0, 4000.0
        steps = shown_distance_km(plane.points(_at(near, bearing)[None])[0], target)
        while far - near > 0.01:
            middle = (near + far) / 2
            if shown_distance_km(plane.points(_at(middle, bearing)[None])[0], target) > steps:
                far = middle
            else:
                near = middle
        circles.append((_at(near, bearing), steps * 1000))
    fix = np.zeros(2)
    for _ in range(10):  # Gauss-Newton
        offsets = np.array([fix - centre for centre, _ in circles])
        distances = np.hypot(*offsets.T)
        excess = distances - [radius for _, radius in circles]
        fix = fix - np.linalg.lstsq(offsets / distances[:, None], excess, rcond=None)[0]
    return plane.points(fix[None])[0]


if __name__ == "__main__":
    main()

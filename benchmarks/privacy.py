"""The published attack on the location blur: `python -m benchmarks.privacy [--members N] [--svg FILE]`.

Simulates members who go live from home again and again, and an adversary who sees every point they are shown at, under
the three blurs that the project has had. Prints Markdown tables. The seed is fixed: the figures are the same at every
run.
"""

import argparse
import math
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal

import numpy as np

from afterhours_service.places.blur import Point, blur, distance_metres, shown_distance_km
from afterhours_service.places.blur import surroundings as look_around
from benchmarks.attack import Estimates, attack_fuzz, attack_grid, attack_points
from benchmarks.blurs import Array, Cells, Plane, Track, fuzz, grid, grid_track, in_disc
from benchmarks.picture import draw

SECRET = b"a secret of the benchmark's own, 32+ bytes"
CITY = Point(52.52, 13.405)
CITY_RADIUS_METRES = 10_000
NOISES_METRES = (8.0, 30.0)
HORIZONS = (1, 10, 100, 1000)
PLACE_DAYS = 90.0
NEARBY_METRES = 1000


@dataclass(frozen=True)
class Case:
    """What a member does, and what the adversary knows.

    others: when they are elsewhere within 1 km, as often as at home, at another place each time; `one` is always the
    same place, and visited in turn with home. every_days: how far apart the visits home are. knows: beyond the points
    and the algorithm, the member's cells, or the whole memory and the secret.
    """

    title: str
    blur: Literal["fuzz", "grid", "cells"] = "cells"
    home: Literal["anywhere", "edge"] = "anywhere"
    others: Literal["never", "before", "between", "after", "one", "far"] = "never"
    every_days: float = 1
    accounts: int = 1
    knows: Literal["", "cells", "memory"] = ""


CASES = (
    Case("random noise, as at first", blur="fuzz"),
    Case("grid of 450 m cells, as before; he knows the grid", blur="grid"),
    Case("the same; others within 1 km in between", blur="grid", others="between"),
    Case("home anywhere"),
    Case("home on a cell's edge", home="edge"),
    Case("others within 1 km before", others="before"),
    Case("others within 1 km in between", others="between"),
    Case("others within 1 km after, then home again", others="after"),
    Case("one other place within 1 km, in turn", others="one"),
    Case("others 1 to 10 km away in between", others="far"),
    Case("home every 30 days, others in between", others="between", every_days=30),
    Case("two accounts", accounts=2),
    Case("five accounts", accounts=5),
    Case("memory lost before each session", every_days=PLACE_DAYS + 1),
    Case("he knows the member's cells", knows="cells"),
    Case("he has the database and the secret", knows="memory"),
)
SOURCES = (EXACT_POINT, FUZZED_POINT, BLURRED_POINT) = ("the exact point", "random noise, once", "the blur")
"""What the distance shown could be taken from."""


@dataclass(frozen=True)
class Outcome:
    """What came of one case, noise and number of sessions.

    errors: of all members, in metres, by estimator. points: how many points home was shown at, of all members.
    """

    errors: dict[str, list[float]]
    points: list[int]

    @property
    def strongest(self) -> Array:
        """The errors of the estimator with the smallest median."""
        return np.array(min(self.errors.values(), key=np.median))

    @property
    def found(self) -> float:
        """The share of homes found within 100 m."""
        return float((self.strongest <= 100).mean())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--members", type=int, default=100)
    parser.add_argument("--svg", type=Path, help="draw what is shown of one home into this file, and do nothing else")
    arguments = parser.parse_args()
    if arguments.svg:
        arguments.svg.write_text(draw(CITY, secret=SECRET), encoding="utf-8")
        return
    with ProcessPoolExecutor() as pool:
        simulated = pool.map(partial(simulate, members=arguments.members), CASES)
        results = dict(zip(CASES, simulated, strict=True))
        fixes = list(pool.map(partial(trilaterate, members=arguments.members), SOURCES))
    horizons = " · ".join(f"{sessions:,}" for sessions in HORIZONS)
    print(f"### After {horizons} sessions at home, {arguments.members:,} members, the best estimate of each row\n")
    print("| case, noise of GPS | median error, m | within 100 m, % | points shown |\n| --- | ---: | ---: | ---: |")
    for case in CASES:
        for noise in NOISES_METRES:
            outcomes = [results[case][noise, sessions] for sessions in HORIZONS]
            medians = " · ".join(f"{np.median(outcome.strongest):.0f}" for outcome in outcomes)
            shares = " · ".join(f"{100 * outcome.found:.0f}" for outcome in outcomes)
            print(f"| {case.title}, {noise:.0f} m | {medians} | {shares} | {np.mean(outcomes[-1].points):.2f} |")
    print("\n### After 1,000 sessions\n\n| case, noise of GPS | median | 5th percentile | worst | within 100 m |")
    print("| --- |" + " ---: |" * 4)
    for case in CASES:
        for noise in NOISES_METRES:
            print(f"| {case.title}, {noise:.0f} m | {_summary(results[case][noise, 1000].strongest)} |")
    print("\n### Distances asked, by the point they are taken from\n")
    print(
        "| case | median | 5th percentile | worst | within 100 m | farthest from that point |\n| --- |" + " ---: |" * 5
    )
    for source, (misses, errors) in zip(SOURCES, fixes, strict=True):
        print(f"| {source} | {_summary(np.array(errors))} | {max(misses):.2f} m |")


def _summary(errors: Array) -> str:
    fifth, median = np.percentile(errors, [5, 50])
    return f"{median:.0f} m | {fifth:.0f} m | {errors.max():.0f} m | {(errors <= 100).mean():.1%}"


def simulate(
    case: Case, members: int, noises: Sequence[float] = NOISES_METRES, horizons: Sequence[int] = HORIZONS
) -> dict[tuple[float, int], Outcome]:
    """Return, by noise of GPS in metres and number of sessions, what came of all members."""
    outcomes = {(noise, sessions): Outcome({}, []) for noise in noises for sessions in horizons}
    attack = {"fuzz": _attack_fuzz, "grid": _attack_grid, "cells": _attack_cells}[case.blur]
    for member in range(members):
        rng = np.random.default_rng([CASES.index(case), member])
        for row, (estimates, points) in zip(
            outcomes, attack(case, f"member-{member}", list(outcomes), rng), strict=True
        ):
            outcomes[row].points.append(points)
            for estimator, estimate in estimates.items():
                outcomes[row].errors.setdefault(estimator, []).append(float(np.hypot(*estimate)))
    return outcomes


Rows = Sequence[tuple[float, int]]
Found = Iterator[tuple[Estimates, int]]


def _attack_fuzz(_case: Case, _member_id: str, rows: Rows, rng: np.random.Generator) -> Found:
    plane = Plane(_somewhere(rng))
    for noise, sessions in rows:
        shown = fuzz(rng.normal(0, noise, (sessions, 2)), plane, rng)
        yield attack_fuzz(shown, plane.home.latitude, noise), len(np.unique(shown, axis=0))


def _attack_grid(case: Case, _member_id: str, rows: Rows, rng: np.random.Generator) -> Found:
    cells = grid(rng)
    for noise, sessions in rows:
        fixes, is_home, _ = _visits(case, noise, sessions, rng)
        shown = grid_track(fixes, cells)
        points = {cell for cell, at in zip(shown, is_home, strict=True) if at}
        yield attack_grid(shown, is_home, cells, noise), len(points)


def _attack_cells(case: Case, member_id: str, rows: Rows, rng: np.random.Generator) -> Found:
    home = _somewhere(rng)
    if case.home == "edge":
        home = _on_edge(home, member_id)
    plane = Plane(home)
    reach = 400 if case.others in ("never", "far") else NEARBY_METRES + 200
    accounts = [
        Cells(plane, reach, member_id=f"{member_id}/{account}", secret=SECRET) for account in range(case.accounts)
    ]
    for noise, sessions in rows:
        points: list[Array] = []
        times: list[int] = []
        for cells in accounts:
            fixes, is_home, days = _visits(case, noise, sessions, rng)
            track = cells.track(fixes, days, PLACE_DAYS)
            shown = Counter(point for point, at in zip(track.shown, is_home, strict=True) if at)
            points += [cells.points[point] for point in shown]
            times += shown.values()
        if case.knows:
            yield {"cell": _locate(case, cells, track, max(shown, key=lambda point: shown[point]))}, len(points)
        else:
            yield attack_points(np.array(points), times, noise), len(points)


def _locate(case: Case, cells: Cells, track: Track, usual: int) -> Array:
    """Return where home is to him who knows the cells: the one that has the usual point, or those that remember it."""
    if case.knows == "cells":
        centre: Array = cells.centres[usual]
        return centre
    remembering = {cell: visits for cell, (point, visits, _) in track.memory.items() if point == usual}
    return np.average(cells.centres[list(remembering)], axis=0, weights=list(remembering.values()))


def _visits(
    case: Case, noise: float, sessions: int, rng: np.random.Generator
) -> tuple[Array, list[bool], Sequence[float]]:
    """Return where a member goes live, whether that is home, and on which day: `sessions` times at home."""
    home: Array = np.zeros((sessions, 2))
    others = in_disc(rng, sessions, NEARBY_METRES)
    if case.others == "one":
        others = np.repeat(others[:1], sessions, axis=0)
    days = np.arange(sessions) * case.every_days
    if case.others in ("never", "far"):  # cells so far away have no part in home's
        places, is_home, when = home, np.ones(sessions, dtype=bool), days
    elif case.others in ("between", "one"):
        places = np.stack([others, home], axis=1).reshape(-1, 2)
        is_home, when = np.tile([False, True], sessions), np.repeat(days, 2)
    elif case.others == "before":
        places = np.concatenate([others, home])
        is_home, when = np.repeat([False, True], sessions), np.arange(2.0 * sessions)
    else:
        first = (sessions + 1) // 2
        places = np.concatenate([home[:first], others, home[first:]])
        is_home = np.repeat([True, False, True], [first, sessions, sessions - first])
        when = np.concatenate([days[:first], np.full(sessions, days[first - 1]), days[first:]])
    return places + rng.normal(0, noise, places.shape), is_home.tolist(), when.tolist()


def _somewhere(rng: np.random.Generator) -> Point:
    return Plane(CITY).points(in_disc(rng, 1, CITY_RADIUS_METRES))[0]


def _at(distance: float, bearing: float) -> Array:
    return distance * np.array([math.sin(bearing), math.cos(bearing)])


def _on_edge(near: Point, member_id: str) -> Point:
    """Return the middle between the first account's cell around `near` and a neighbour's centre."""
    plane = Plane(near)
    centres = Cells(plane, 200, member_id=f"{member_id}/0", secret=SECRET).centres
    own = centres[np.hypot(*centres.T).argmin()]
    neighbour = centres[np.hypot(*(centres - own).T).argsort()[1]]
    return plane.points((own + neighbour)[None] / 2)[0]


def trilaterate(source: str, members: int) -> tuple[list[float], list[float]]:
    """An adversary who walks along three lines and searches each for a place where the distance shown takes a step.

    He may put his own *blurred* point where he likes, to the centimetre. Returns how far his fixes are from the points
    that the distances were taken from, and from the homes.
    """
    misses, errors = [], []
    for member in range(members):
        rng = np.random.default_rng([len(CASES), member])
        plane = Plane(_somewhere(rng))
        shown = plane.home
        if source == FUZZED_POINT:
            shown = plane.points(fuzz(np.zeros((1, 2)), plane, rng))[0]
        if source == BLURRED_POINT:
            shown = blur(plane.home, look_around(plane.home, member_id=f"member-{member}", secret=SECRET))
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

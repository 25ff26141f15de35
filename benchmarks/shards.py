"""What a cut by place loses at its border, and what starts, looks and rounds of matching cost on both sides.

    python -m benchmarks.shards

Two cities, 120 km apart, and the country around them are live in one database; and again in two, cut along a meridian:
each has the host's tables in full, and the sessions of its side. The service's own functions run on all of them, by
turns, on one PostgreSQL. CPU is in ms, of this process and of PostgreSQL's; no HTTP, no photos. Takes a minute.
"""

import itertools
import math
import os
import random
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from datetime import timedelta
from functools import partial
from pathlib import Path
from statistics import fmean, median
from typing import Any, NamedTuple

import psycopg2
from flask import Flask
from flask_migrate import upgrade

from afterhours_service import create_app
from afterhours_service.discovery.queries import asker, page
from afterhours_service.discovery.service import nearby
from afterhours_service.live.queries import present
from afterhours_service.matching import queries
from afterhours_service.matching.rounds import look, match_due
from afterhours_service.places.blur import Point
from afterhours_service.sessions.queries import census
from afterhours_service.sessions.service import start
from afterhours_service.stores.connection import cursor, release_connection
from afterhours_service.stores.database import db
from benchmarks.discovery import LEAD, SECRET, backend_cpu, fill
from dev.embedded import home, postgres, stop_on_signals, valkey

MEMBERS, PAGE, ASKERS = 20_000, 20, 400  # ASKERS: whose lists are compared
TURNS, TURN = 8, 25  # of starts and of looks, in each cut
LONGITUDE, KM = 13.405, 67.66  # the first city's centre, in degrees; kilometres of a degree there
# Where the border is, in km east of the first city's centre: half way to the second, at its edge, through its middle.
WHOLE = "one database"
BORDERS = {WHOLE: math.inf, "border in the country": 60, "border at a city's edge": 20, "border through a city": 0}
# Nothing but the service's work: no vacuum in between, and no images of whole pages in the log.
SERVER = ["shared_buffers=1GB", "max_wal_size=4GB", "random_page_cost=1.1", "full_page_writes=off", "autovacuum=off"]
# Half of the city of benchmarks/discovery.py moves to the second city, then a tenth of all to the country around both.
MOVE = """
    UPDATE after_hours_sessions SET fuzzed_longitude = fuzzed_longitude + 120 / 67.66 WHERE hashtext(user_id) > 0;
    UPDATE after_hours_sessions SET fuzzed_longitude = 13.405 + (240 * random() - 60) / 67.66,
        fuzzed_latitude = 52.52 + (120 * random() - 60) / 111.2 WHERE hashtext(user_id) % 10 = 0
"""
CUT = """
    DELETE FROM after_hours_sessions WHERE (fuzzed_longitude < %(degrees)s) <> %(west)s;
    DELETE FROM after_hours_search WHERE session_id NOT IN (SELECT id FROM after_hours_sessions)
"""
LIVE = "SELECT user_id, fuzzed_latitude::float8, fuzzed_longitude::float8 FROM after_hours_sessions"
WRITTEN = "SELECT pg_current_wal_insert_lsn() - '0/0'"
HEAD = """
|  | live within 10 km | pairs lost | of the nearest 20 | left alone | matched | a start | a look | a round, each |
| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: |"""

Work = Callable[[str, Point], Callable[[], object]]  # prepares what is then measured


class Cut(NamedTuple):
    """The world in one database, or in two. border: its longitude."""

    border: float
    apps: list[Flask]

    def at(self, place: Point) -> Flask:
        """Return the app of the region of a place."""
        return self.apps[0 if place.longitude < self.border else 1]


def main(size: int = MEMBERS) -> None:
    """Measure, and print. size: how many members are live, at most 100,000."""
    stop_on_signals()
    with (
        tempfile.TemporaryDirectory(prefix="after-hours-") as folder,
        home(Path(folder)) as place,
        postgres(place, options=[each for option in SERVER for each in ("-c", option)]) as url,
        valkey(place) as (redis_url, _),
    ):
        os.environ |= {"DATABASE_URL": url, "REDIS_URL": redis_url, "LOG_LEVEL": "ERROR"}
        os.environ |= {"JWT_SECRET": SECRET, "LOCATION_SECRET": SECRET[::-1]}
        with create_app().app_context():
            upgrade()
            fill(url, size)
            _execute(url, MOVE)
            all(iter(lambda: queries.insert_missing(1000, timedelta()), 0))
            release_connection()
            db.engine.dispose()
        live = {member: Point(*place) for member, *place in _execute(url, LIVE)}
        cuts = {name: _cut(url, LONGITUDE + east / KM) for name, east in BORDERS.items()}
        print(HEAD, *_lines(cuts, live), "", *_everybody(cuts[WHOLE].apps[0], live), sep="\n")


def _cut(url: str, border: float) -> Cut:
    """Copy the world into one database, or into two, each with the sessions of its side. border: its longitude."""
    apps = []
    for west in (True,) if math.isinf(border) else (True, False):
        name = f"{'west' if west else 'east'}{border:.3f}"
        _execute(url.replace("/app?", "/postgres?"), f'CREATE DATABASE "{name}" TEMPLATE app')
        os.environ["DATABASE_URL"] = copy = url.replace("/app?", f"/{name}?")
        _execute(copy, CUT, degrees=border, west=west)
        _execute(copy, "VACUUM (FULL, ANALYZE)")
        apps.append(create_app())
    return Cut(border, apps)


def _lines(cuts: dict[str, Cut], live: dict[str, Point]) -> Iterator[str]:
    """Yield a line of the table for each cut."""
    askers = random.Random(0).sample(list(live.items()), ASKERS)
    lists = {name: [_shown(cut, *each, len(live)) for each in askers] for name, cut in cuts.items()}
    cpu = [_by_turns(cuts, live, work) for work in (_start, lambda member, _: partial(nearby, member, PAGE, None))]
    for name, cut in cuts.items():
        both = list(zip(lists[WHOLE], map(set, lists[name]), strict=True))
        assert all(here <= set(everybody) for everybody, here in both)
        lost = [[each not in here for each in everybody] for everybody, here in both]
        rounds_cpu, matched = map(sum, zip(*map(_matched, cut.apps), strict=True))
        cells = [
            f"{fmean(abs(place.longitude - cut.border) * KM < 10 for place in live.values()):.0%}",
            f"{fmean(itertools.chain(*lost)):.1%}",
            f"{fmean(itertools.chain(*(each[:PAGE] for each in lost))):.1%}",
            f"{sum(bool(each) and all(each) for each in lost) / ASKERS:.1%}",
            f"{matched / len(live):.1%}",
            *(" + ".join(f"{median(part):.2f}" for part in zip(*work[name], strict=True)) for work in cpu),
            f"{rounds_cpu / len(live):.2f}",
        ]
        yield f"| {name} | {' | '.join(cells)} |"


def _shown(cut: Cut, member: str, place: Point, limit: int) -> list[str]:
    """Return everybody whom a member is shown, the nearest first."""
    with cut.at(place).app_context():
        return [found.user_id for found in page(me, limit, LEAD)] if (me := asker(member)) else []


def _by_turns(cuts: dict[str, Cut], live: dict[str, Point], work: Work) -> dict[str, list[tuple[float, float]]]:
    """Return the CPU that the same members' work takes in each cut."""
    dice, cpu = random.Random(1), {name: list[tuple[float, float]]() for name in cuts}
    for _ in range(TURNS):
        members = dice.sample(list(live.items()), TURN)
        for name, (member, place) in itertools.product(dice.sample(list(cuts), len(cuts)), members):
            with cuts[name].at(place).app_context():
                cpu[name].append(_taken(work(member, place)))
    return cpu


def _start(member: str, place: Point) -> Callable[[], object]:
    _ask("DELETE FROM after_hours_sessions WHERE user_id = %s RETURNING 1", member)
    return partial(start, member, 60, place, None)


def _taken(work: Callable[[], object]) -> tuple[float, float]:
    server, ours = backend_cpu(), time.process_time()
    work()
    return (time.process_time() - ours) * 1000, backend_cpu() - server


def _matched(app: Flask) -> tuple[float, int]:
    """Match everybody; return the CPU, and how many are matched."""
    with app.app_context():
        taken = sum(_taken(lambda: all(iter(lambda: match_due().claimed, 0))))
        return taken, _ask("SELECT count(match_id) FROM after_hours_search")


def _everybody(app: Flask, live: dict[str, Point]) -> Iterator[str]:
    """Yield what docs/growing.md counts with besides: questions about everybody, and what a start writes."""
    questions = {"gateway": lambda: present(list(live)), "census": census, "of matching": queries.census, "look": look}
    with app.app_context():
        taken = {name: _taken(ask)[1] / len(live) * 1000 for name, ask in questions.items()}
        yield f"PostgreSQL's CPU for 1,000 members, ms: {', '.join(f'{name} {ms:.1f}' for name, ms in taken.items())}."
        starts, before = [_start(*each) for each in itertools.islice(live.items(), 100)], _ask(WRITTEN)
        for each in starts:
            each()
        yield f"A start writes {(_ask(WRITTEN) - before) / len(starts) / 1000:.1f} KB to the log."


def _ask(statement: str, *parameters: str) -> Any:
    """Return the one value that a statement returns."""
    with cursor() as opened:
        opened.execute(statement, parameters or None)
        return next(opened)[0]


def _execute(url: str, statement: str, **parameters: Any) -> list[Any]:
    with closing(psycopg2.connect(url)) as connection, connection.cursor() as opened:
        connection.autocommit = True
        opened.execute(statement, parameters or None)
        return list(opened) if opened.description else []


if __name__ == "__main__":
    main()

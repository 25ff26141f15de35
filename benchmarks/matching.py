"""How long matching takes: rounds, single arrivals, what it costs a start, and how near it comes to the optimum.

    python -m benchmarks.matching [--sizes 1000 10000 100000] [--write]

The city is that of benchmarks/discovery.py, on a PostgreSQL and a Valkey of its own. A round is timed from all due to
all matches committed, and with both events of each published; an arrival from due to published. The optimum, of worlds
of 1,000, needs rustworkx (`pip install rustworkx`, not among the project's dependencies) and is left out without it.
"""

import argparse
import contextlib
import dataclasses
import importlib
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any

import psycopg2
from flask import Flask
from flask_migrate import upgrade

from afterhours_service import create_app
from afterhours_service.matching import queries, rounds
from afterhours_service.stores.connection import cursor, take_begin, transaction
from afterhours_service.stores.database import db
from benchmarks import discovery
from dev.embedded import home, postgres, stop_on_signals, valkey

GOALS = {1_000: 0.1, 10_000: 0.75, 100_000: 9.0}  # seconds
RUNS = {1_000: 5, 10_000: 3}  # of larger worlds one
STARTS, TURN = 600, 50  # of each way, in turns
COLUMNS = (
    "a round, committed, s",
    "and published, s",
    "matched",
    "an arrival, p50, ms",
    "p95, ms",
    "the Node service's query, ms",
    "for all, s",
)
WRITTEN = Path(__file__).parent.parent / "docs/measurements/matching.md"

# Whom the Node service's matcher finds for one member, by the conditions of its query: the nearest only, one-sided ages
# and distance. Its distance is computed for every live member.
ORIGINAL = """
    SELECT o.user_id FROM after_hours_sessions AS m
    JOIN profiles AS mp ON mp.user_id = m.user_id JOIN after_hours_preferences AS mw ON mw.user_id = m.user_id
    CROSS JOIN after_hours_sessions AS o
    JOIN profiles AS op ON op.user_id = o.user_id JOIN after_hours_preferences AS ow ON ow.user_id = o.user_id
    JOIN after_hours_profiles AS oa ON oa.user_id = o.user_id
    WHERE m.user_id = %(member)s AND m.ended_at IS NULL AND o.ended_at IS NULL AND o.user_id <> m.user_id
        AND o.expires_at > now() + interval '2 minutes'
        AND (mw.seeking_gender = 'Any' OR op.gender = mw.seeking_gender)
        AND (ow.seeking_gender = 'Any' OR coalesce(mp.gender, 'Other') = ow.seeking_gender)
        AND op.age BETWEEN mw.min_age AND mw.max_age
        AND 6371 * acos(least(1, cosd(m.fuzzed_latitude) * cosd(o.fuzzed_latitude)
            * cosd(o.fuzzed_longitude - m.fuzzed_longitude) + sind(m.fuzzed_latitude) * sind(o.fuzzed_latitude)))
            <= mw.max_distance_km
        AND NOT EXISTS (SELECT FROM blocks WHERE (user_id, blocked_user_id) IN
            ((m.user_id, o.user_id), (o.user_id, m.user_id)))
        AND NOT EXISTS (SELECT FROM after_hours_matches WHERE session_id = m.id AND declined_by IS NULL
            AND o.user_id IN (user_id_1, user_id_2))
        AND NOT EXISTS (SELECT FROM after_hours_declines WHERE user_id = m.user_id AND declined_user_id = o.user_id
            AND decline_count < 3)
    ORDER BY 6371 * acos(least(1, cosd(m.fuzzed_latitude) * cosd(o.fuzzed_latitude)
        * cosd(o.fuzzed_longitude - m.fuzzed_longitude) + sind(m.fuzzed_latitude) * sind(o.fuzzed_latitude)))
    LIMIT 1
"""


def main() -> None:
    """Measure, and print."""
    arguments = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    arguments.add_argument("--sizes", type=int, nargs="+", default=list(GOALS))
    arguments.add_argument("--write", action="store_true", help=f"write {WRITTEN.name}")
    options = arguments.parse_args()
    stop_on_signals()
    with (
        tempfile.TemporaryDirectory(prefix="after-hours-") as folder,
        home(Path(folder)) as place,
        postgres(place, options=discovery.SERVER) as url,
        valkey(place) as (redis_url, _),
    ):
        os.environ |= {"DATABASE_URL": url, "REDIS_URL": redis_url, "LOG_LEVEL": "ERROR"}
        os.environ |= {"JWT_SECRET": discovery.SECRET, "LOCATION_SECRET": discovery.SECRET[::-1]}
        app = create_app()
        with app.app_context():
            upgrade()
            starts = _starts(app)
            rows = [_measure(url, size) for size in options.sizes]
            text = _table(rows, _optimum(url), starts)
            db.engine.dispose()
    print(text)
    if options.write:
        WRITTEN.write_text(text)


def _fill(url: str, size: int) -> None:
    """Make a city in which everybody is live, and due."""
    discovery.fill(url, size)
    with contextlib.closing(psycopg2.connect(url)) as connection, connection.cursor() as cursor:
        connection.autocommit = True
        cursor.execute("TRUNCATE after_hours_search, after_hours_matches")
        rounds._repeat(lambda batch: queries.insert_missing(batch, timedelta()))  # noqa: SLF001
        cursor.execute("UPDATE after_hours_search SET look_at = now()")
        cursor.execute("VACUUM ANALYZE after_hours_search")
        cursor.execute("CHECKPOINT")


@contextlib.contextmanager
def _publishing() -> Iterator[list[float]]:
    """Yield the seconds that publishing takes."""
    taken: list[float] = [0.0]
    publish, announce = rounds.publish, rounds._announcements  # noqa: SLF001

    def timed(function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any) -> Any:
            begin = time.perf_counter()
            try:
                return function(*arguments)
            finally:
                taken[0] += time.perf_counter() - begin

        return call

    rounds.publish, rounds._announcements = timed(publish), timed(announce)  # noqa: SLF001
    try:
        yield taken
    finally:
        rounds.publish, rounds._announcements = publish, announce  # noqa: SLF001


def _measure(url: str, size: int) -> list[str]:
    """Return a line of the table."""
    published, committed = [], []
    for _ in range(RUNS.get(size, 1)):
        _fill(url, size)
        with _publishing() as publishing:
            begin = time.perf_counter()
            while rounds.match_due().claimed:
                pass
            published.append(time.perf_counter() - begin)
        committed.append(published[-1] - publishing[0])
    [(matched,)] = _ask("SELECT avg((match_id IS NOT NULL)::integer)::float8 FROM after_hours_search")
    arrivals = sorted(map(_arrival, _arriving()))
    original = []
    for (member,) in _ask("SELECT user_id FROM after_hours_search ORDER BY user_id LIMIT 20"):
        begin = time.perf_counter()
        _ask(ORIGINAL, member=member)
        original.append((time.perf_counter() - begin) * 1000)
    return [
        f"{size:,}",
        f"{statistics.median(committed):.2f} (goal {GOALS[size]})",
        f"{statistics.median(published):.2f}",
        f"{matched:.1%}",
        f"{statistics.median(arrivals):.1f}",
        f"{arrivals[int(len(arrivals) * 0.95)]:.1f}",
        f"{statistics.median(original):.1f}",
        f"{statistics.median(original) * size / 1000:,.1f}",
    ]


def _arriving() -> list[str]:
    """Return members who are not matched: some of those who were left over, and some whose match has just ended."""
    left = _ask("SELECT user_id FROM after_hours_search WHERE match_id IS NULL ORDER BY user_id LIMIT 50")
    freed = _ask(
        "UPDATE after_hours_matches SET declined_by = user_id_1"
        " WHERE id IN (SELECT id FROM after_hours_matches LIMIT 50) RETURNING user_id_2"
    )
    _ask("UPDATE after_hours_search SET look_at = NULL RETURNING 1")
    return [member for (member,) in (*left, *freed)]


def _arrival(member: str) -> float:
    """Let a member be due, and return the milliseconds until they are matched and told, or wait."""
    _ask("UPDATE after_hours_search SET look_at = now(), looked_at = NULL WHERE user_id = %(m)s RETURNING 1", m=member)
    begin = time.perf_counter()
    rounds.match_due()
    return (time.perf_counter() - begin) * 1000


def _optimum(url: str) -> list[float]:
    """Return the share of the optimum's pairs that a round makes, in three worlds of 1,000."""
    try:
        rustworkx = importlib.import_module("rustworkx")
    except ImportError:
        return []
    shares = []
    for world in range(3):
        _fill(url, 1_250)
        _ask("DELETE FROM after_hours_search WHERE hashtext(user_id) %% 5 = %(world)s RETURNING 1", world=world)
        ids = [searcher.user_id for searcher in queries.claim(rounds.BATCH, rounds.CLAIM_LEASE)]
        queries.enter_pool(ids)
        graph = rustworkx.PyGraph(multigraph=False)
        numbers = dict(zip(ids, graph.add_nodes_from(ids), strict=True))
        for edge in queries.edges(ids, len(ids), timedelta(minutes=2)):
            graph.add_edge(numbers[edge.one], numbers[edge.other], 1)
        best = len(rustworkx.max_weight_matching(graph, max_cardinality=True))
        _ask("UPDATE after_hours_search SET look_at = now(), looked_at = NULL RETURNING 1")
        rounds.match_due()
        [(made,)] = _ask("SELECT count(*) FROM after_hours_matches")
        shares.append(made / best)
    return shares


def _starts(app: Flask) -> float:
    """Return how many times the CPU of a start is what it is with matching off; by turns."""
    settings = app.extensions["after_hours_settings"]
    cpu: dict[bool, list[float]] = {False: [], True: []}
    _ask(discovery.STARTERS + "; SELECT 1", starts=TURN)
    for _ in range(STARTS // TURN):
        for enabled in cpu:
            app.extensions["after_hours_settings"] = dataclasses.replace(settings, matching_enabled=enabled)
            cpu[enabled] += [discovery.start(f"starter-{number}")[1] for number in range(TURN)]
            _ask("DELETE FROM after_hours_search WHERE user_id LIKE 'starter-%%' RETURNING 1")
            _ask("DELETE FROM after_hours_sessions WHERE user_id LIKE 'starter-%%' RETURNING 1")
    app.extensions["after_hours_settings"] = settings
    return statistics.median(cpu[True]) / statistics.median(cpu[False])


def _ask(statement: str, **parameters: Any) -> list[Any]:
    with transaction(), cursor() as opened:
        opened.execute(f"{take_begin()} {statement}", parameters or {"": None})
        return list(opened)


def _table(rows: Sequence[Sequence[str]], optimum: Sequence[float], starts: float) -> str:
    shares = ", ".join(f"{share:.1%}" for share in optimum) or "not measured: rustworkx is not installed"
    return (
        f"""# Matching, measured

By `python -m benchmarks.matching --write`, one run; medians. The city of discovery.md; everybody is due at once. The
Node service's query is that of one member; it asks for one member after the other.

| unmatched in a city | {" | ".join(COLUMNS)} |
| ---: {"| ---: " * len(COLUMNS)}|
"""
        + "".join(f"| {' | '.join(row)} |\n" for row in rows)
        + f"""
- Pairs made, of those of the exact optimum, in three worlds of 1,000: {shares}. Goal 85 %.
- CPU of a start with matching on, to one with matching off: {starts:.2f}. Goal 1.15.
- Goals of an arrival into 100,000: p50 25 ms, p95 50 ms.
"""
    )


if __name__ == "__main__":
    main()

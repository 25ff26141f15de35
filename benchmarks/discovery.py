"""How long discovery takes: SQL time of GET /nearby and GET /nearby/count, and what the index costs a start.

    python -m benchmarks.discovery [--sizes 1000 100000 1000000] [--explain]

SQL time is PostgreSQL's own (log_duration: to parse, plan, execute and send), of all the statements of a question; the
asker waits for two round trips more, and the processor's part is what is left on an otherwise idle machine.

Makes a city of 30 km around a centre, denser in the middle, and beyond 100,000 members a world of 1,000 such cities
around it, on a PostgreSQL of its own; TMPDIR says on which disk.
"""

import argparse
import contextlib
import os
import random
import re
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from copy import copy
from datetime import timedelta
from pathlib import Path
from typing import Any, TextIO

import psycopg2
from flask_migrate import upgrade
from sqlalchemy.dialects import postgresql
from sqlalchemy.schema import CreateIndex

from afterhours_service import create_app
from afterhours_service.discovery import queries, rules
from afterhours_service.places.blur import Point
from afterhours_service.sessions import service as sessions
from afterhours_service.sessions.models import AfterHoursSession
from afterhours_service.stores.connection import cursor, take_begin, transaction
from afterhours_service.stores.database import db
from dev.embedded import home, postgres, stop_on_signals, valkey

CITY = 100_000  # at most so many of a size are in the city that is asked from
CITIES = 1000
PAGE = 21  # what a first page of 20 reads
EVENING = 1000  # members who asked before
TURN = 50  # starts in a row of one way
LEAD = timedelta(minutes=2)
INDEX = "idx_after_hours_sessions_nearest"
[CREATE_INDEX] = [
    str(CreateIndex(index).compile(dialect=postgresql.dialect()))  # type: ignore[no-untyped-call]
    for index in db.metadata.tables[AfterHoursSession.__tablename__].indexes
    if index.name == INDEX
]
SECRET = "of the benchmark alone: 32 bytes or more"  # noqa: S105
SERVER = ("-c", "log_duration=on", "-c", "shared_buffers=2GB", "-c", "max_wal_size=4GB", "-c", "random_page_cost=1.1")

# Ages 18 to 68, the young more often; 2 % non-binary, 2 % unknown; three of ten leave all ages, half leave 10 km.
WORLD = """
    SELECT setseed(0.6);
    CREATE TABLE bench AS
    WITH cities AS (
        SELECT i, CASE i WHEN 0 THEN 52.52 ELSE degrees(asin(1.8 * random() - 0.9)) END AS latitude,
            CASE i WHEN 0 THEN 13.405 ELSE 360 * random() - 180 END AS longitude
        FROM generate_series(0, %(cities)s) AS i
    ), dice AS (
        SELECT 'member-' || n AS id, CASE WHEN n <= %(city)s THEN 0 ELSE 1 + n %% %(cities)s END AS i,
            12 * sqrt(-2 * ln(1 - 0.956 * random())) / 6371.0088 AS angle, 2 * pi() * random() AS bearing,
            random() AS g, random() AS s, random() AS a, random() AS w, random() AS d, random() AS r
        FROM generate_series(1, %(size)s) AS n
    )
    SELECT id, CASE WHEN g < 0.55 THEN 'Male' WHEN g < 0.96 THEN 'Female' WHEN g < 0.98 THEN 'Non-binary' END AS gender,
        18 + floor(50 * a * a)::integer AS age,
        CASE WHEN s < 0.12 THEN 'Any' WHEN s < 0.15 THEN 'Non-binary' WHEN (g < 0.55) = (s < 0.22) THEN 'Male'
            ELSE 'Female' END AS seeking,
        CASE WHEN w < 0.3 THEN 18 ELSE greatest(18, 16 + floor(50 * a * a)::integer - floor(10 * r)::integer) END
            AS min_age,
        CASE WHEN w < 0.3 THEN 99 ELSE 20 + floor(50 * a * a)::integer + floor(10 * r)::integer END AS max_age,
        CASE WHEN d < 0.5 THEN 10 WHEN d < 0.7 THEN 5 WHEN d < 0.85 THEN 25 WHEN d < 0.95 THEN 50 ELSE 200 END AS km,
        latitude + degrees(angle * cos(bearing)) AS latitude,
        longitude + degrees(angle * sin(bearing) / cosd(latitude)) AS longitude
    FROM dice JOIN cities USING (i) ORDER BY random();
    ALTER TABLE bench ADD PRIMARY KEY (id); -- to read it from end to end between questions would empty the caches
    INSERT INTO users (id, provider, id_verified, after_hours_consent) SELECT id, 'bench', true, true FROM bench;
    INSERT INTO profiles (user_id, name, age, gender) SELECT id, 'Robin', age, gender FROM bench;
    INSERT INTO user_subscriptions (user_id, is_active) SELECT id, true FROM bench;
    INSERT INTO after_hours_profiles (user_id, description) SELECT id, 'Out tonight' FROM bench;
    INSERT INTO after_hours_preferences (user_id, seeking_gender, max_distance_km, min_age, max_age)
        SELECT id, seeking, km, min_age, max_age FROM bench;
    INSERT INTO blocks (user_id, blocked_user_id)
        SELECT 'member-' || n, 'member-' || 1 + n * 7 %% %(size)s FROM generate_series(1, %(size)s / 5) AS n;
    INSERT INTO after_hours_sessions (user_id, expires_at, latitude, longitude, fuzzed_latitude, fuzzed_longitude)
        SELECT id, now() + interval '1 day', 0, 0,
            greatest(-90, least(90, latitude)), (longitude + 540)::numeric %% 360 - 180
        FROM bench;
    INSERT INTO after_hours_declines (session_id, user_id, declined_user_id)
        SELECT s.id, s.user_id, 'member-' || 1 + n * 13 %% %(size)s
        FROM generate_series(1, %(size)s) AS n JOIN after_hours_sessions AS s ON s.user_id = 'member-' || 1 + n %% 5000
        ON CONFLICT DO NOTHING;
"""

STARTERS = """
    INSERT INTO users (id, provider, id_verified, after_hours_consent)
        SELECT 'starter-' || n, 'bench', true, true FROM generate_series(0, %(starts)s) AS n ON CONFLICT DO NOTHING;
    INSERT INTO user_subscriptions (user_id, is_active)
        SELECT id, true FROM users WHERE provider = 'bench' AND id LIKE 'starter-%%';
    INSERT INTO after_hours_profiles (user_id) SELECT id FROM users WHERE provider = 'bench' AND id LIKE 'starter-%%'
        ON CONFLICT DO NOTHING;
"""

# Askers in the city, and what they would like for this one question; "" leaves it as it is.
ASKERS = {
    "a random member": "",
    "one who sets nothing": "'Any', 18, 99, 10",
    "nobody fits: non-binary, 80 to 99, 10 km": "'Non-binary', 80, 99, 10",
    "nobody fits: any, 80 to 99, 200 km": "'Any', 80, 99, 200",
    "few fit: non-binary, 40 to 45, 200 km": "'Non-binary', 40, 45, 200",
    "few fit: any, 64 to 67, 200 km": "'Any', 64, 67, 200",
}
CHANGE = """
    UPDATE after_hours_preferences SET (seeking_gender, min_age, max_age, max_distance_km) = ({}) WHERE user_id = %(id)s
"""
AS_IT_WAS = "SELECT seeking, min_age, max_age, km FROM bench WHERE id = %(id)s"


def main() -> None:
    """Measure, and print."""
    arguments = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    arguments.add_argument("--sizes", type=int, nargs="+", default=[1000, 100_000, 1_000_000])
    arguments.add_argument("--askers", type=int, default=100)
    arguments.add_argument("--starts", type=int, default=1500, help=f"starts of each way, in turns of {TURN}")
    arguments.add_argument("--explain", action="store_true", help="show PostgreSQL's plans instead")
    options = arguments.parse_args()
    stop_on_signals()
    with (
        tempfile.TemporaryDirectory(prefix="after-hours-") as folder,
        home(Path(folder)) as place,
        postgres(place, options=SERVER) as url,
        valkey(place) as (redis_url, _),
    ):
        os.environ |= {"DATABASE_URL": url, "REDIS_URL": redis_url, "LOG_LEVEL": "ERROR"}
        os.environ |= {"JWT_SECRET": SECRET, "LOCATION_SECRET": SECRET[::-1]}
        app = create_app()
        with app.app_context():
            upgrade()
            for size in options.sizes:
                build = fill(url, size)
                members = _members(size, options.askers)
                print(f"\n{size:,} live sessions, {min(size, CITY):,} in the city; index built in {build:.1f} s")
                if options.explain:
                    _explain(members[0])
                    continue
                _measure(members, _members(size, EVENING), Path(place.log.name))
                if size <= CITY:
                    _measure_starts(options.starts)
            db.engine.dispose()


def fill(url: str, size: int) -> float:
    """Make the world; return the seconds that the index took to build."""
    with contextlib.closing(psycopg2.connect(url)) as connection, connection.cursor() as cursor:
        connection.autocommit = True
        cursor.execute(f"DROP TABLE IF EXISTS bench; TRUNCATE users, blocks CASCADE; DROP INDEX {INDEX}")
        cursor.execute(WORLD, {"size": size, "city": min(size, CITY), "cities": CITIES})
        started = time.perf_counter()
        cursor.execute(CREATE_INDEX)
        seconds = time.perf_counter() - started
        cursor.execute("VACUUM ANALYZE")
        cursor.execute("CHECKPOINT")  # or the disk would be at it beside the questions
    return seconds


def _members(size: int, askers: int) -> list[str]:
    statement = "SELECT 'member-' || ceil(random() * %(city)s) FROM generate_series(1, %(askers)s)"
    with cursor() as opened:
        opened.execute(statement, {"city": min(size, CITY), "askers": askers})
        return [member for (member,) in opened]


def _measure(members: list[str], others: list[str], path: Path) -> None:
    asks = {"page": _page, "count": _count}
    with path.open() as log:
        for other in others:  # who asks at midnight is not the evening's first: the caches know the city
            for ask in asks.values():
                _ask(other, "", ask, log)
        for name, wish in ASKERS.items():
            for what, ask in asks.items():
                answers = [_ask(member, wish, ask, log) for member in members]
                sql, clock, cpu, found = zip(*answers, strict=True)
                print(
                    f"{name:42} {what:5}  SQL time {_spread(sql)}  asker {_spread(clock)}  processor {_spread(cpu)} ms  "
                    f"found {statistics.median(found):4.0f}",
                    flush=True,
                )


def _ask(member: str, wish: str, ask: Callable[[queries.Asker], int], log: TextIO) -> tuple[float, float, float, int]:
    """Return the milliseconds of the server, the asker and the server's processor, and the answer.

    log: that of the server. Nothing stays changed.
    """
    if wish:
        _execute(CHANGE.format(wish), id=member)
    log.seek(0, os.SEEK_END)
    cpu, started = backend_cpu(), time.perf_counter()
    me = queries.asker(member)
    assert me
    answer = ask(me)
    clock = (time.perf_counter() - started) * 1000
    cpu = backend_cpu() - cpu
    sql = sum(map(float, re.findall(r"duration: ([\d.]+) ms", log.read())))
    if wish:
        _execute(CHANGE.format(AS_IT_WAS), id=member)
    return sql, clock, cpu, answer


def _page(me: queries.Asker) -> int:
    return len(queries.page(me, PAGE, LEAD))


def _count(me: queries.Asker) -> int:
    return queries.count(me, rules.COUNT_TO, LEAD)


def _explain(member: str) -> None:
    """Print the plan of a page, for a random member and for one whom nobody fits."""
    for wish in (ASKERS["a random member"], ASKERS["nobody fits: any, 80 to 99, 200 km"]):
        if wish:
            _execute(CHANGE.format(wish), id=member)
        me = queries.asker(member)
        assert me
        queries.page(me, PAGE, LEAD)  # prepares it
        page: Any = copy(queries._PAGE)  # noqa: SLF001
        page._before += " EXPLAIN (ANALYZE, BUFFERS)"  # noqa: SLF001
        page._make = tuple
        for _ in range(2):  # the first time also plans
            plan, _ = page.run(**queries._parameters(me, LEAD), limit=PAGE)  # noqa: SLF001
        print(*(line for (line,) in plan), sep="\n")
    _execute(CHANGE.format(AS_IT_WAS), id=member)


def _execute(*statements: str, **parameters: Any) -> None:
    """Execute statements in one transaction."""
    with transaction(), cursor() as opened:
        opened.execute(f"{take_begin()} {'; '.join(statements)}", parameters or None)


def _measure_starts(starts: int) -> None:
    """Compare the start of a session, committed and with its timers, with and without the index.

    The ways take turns of a second or less: the machine's pace changes within a minute.
    """
    _execute(STARTERS, starts=TURN)
    ways = {"with the index": True, "without": False}
    times: dict[str, list[tuple[float, float]]] = {what: [] for what in ways}
    for _ in range(starts // TURN):
        for what, indexed in random.sample(list(ways.items()), len(ways)):
            _keep(indexed)
            times[what].extend(start(f"starter-{number}") for number in range(TURN))
            _execute("DELETE FROM after_hours_sessions WHERE user_id LIKE 'starter-%'")
    _keep(indexed=True)
    for what, pairs in times.items():
        clock, cpu = zip(*pairs, strict=True)
        print(f"a start {what:34}  p50 {statistics.median(clock):6.2f}  processor p50 {statistics.median(cpu):6.2f} ms")


def _keep(indexed: bool) -> None:
    """Let starts keep the index up, or not; their rows go with the turn, so the index misses none."""
    _execute(
        "UPDATE pg_index SET indisready = %(indexed)s WHERE indexrelid = CAST(%(index)s AS regclass)",
        indexed=indexed,
        index=INDEX,
    )


def start(member: str) -> tuple[float, float]:
    place = Point(52.52 + random.gauss(0, 0.05), 13.405 + random.gauss(0, 0.08))
    cpu, started = backend_cpu() + time.process_time() * 1000, time.perf_counter()
    sessions.start(member, 60, place, None)
    milliseconds = (time.perf_counter() - started) * 1000
    return milliseconds, backend_cpu() + time.process_time() * 1000 - cpu


def backend_cpu() -> float:
    """Return the processor time, in ms, that our process of the server's has had; 0 where it cannot be seen.

    On a machine that others use as well it says more than the clock.
    """
    with cursor() as opened:
        stat = Path(f"/proc/{opened.connection.info.backend_pid}/schedstat")
    return float(stat.read_text().split()[0]) / 1e6 if stat.exists() else 0.0


def _spread(values: Sequence[float]) -> str:
    return f"p50 {statistics.median(values):6.2f}  p95 {statistics.quantiles(values, n=20)[18]:6.2f}"


if __name__ == "__main__":
    main()

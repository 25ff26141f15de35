"""Let functions and triggers work whatever the search_path of who calls them, and let statements need no `cube` on it.

A hosted database keeps `cube` in a schema of its own, and a restore has no search_path at all. Functions in SQL are
parsed when they are made (RETURN instead of a string), and PL/pgSQL names schemas; all give what they gave, and no row
is touched. New ones stand for the operators of `cube` in the service's statements. They are put in place as the
operators themselves, so that the index is used as before.

What 0001 to 0003 made before they noted what they make is noted, but for names that the host may have used as well.
"""

from afterhours_service.stores import migrating
from alembic import op

revision = "0010"
down_revision = "0009"
branch_labels = None
depends_on = None

FRACTION = "('x' || left(id::text, 4))::bit(16)::integer / 65536.0::float8"
SAME_AS_BEFORE = {
    "after_hours_gender(text) RETURNS integer": """
        CASE lower($1) WHEN 'male' THEN 1 WHEN 'female' THEN 2 WHEN 'non-binary' THEN 3 ELSE 0 END""",
    "after_hours_seeking(text) RETURNS integer": """
        CASE lower($1) WHEN 'non-binary' THEN 0 WHEN 'male' THEN 1 WHEN 'female' THEN 3 ELSE 2 END""",
    "after_hours_self(gender text, age integer) RETURNS cube": """
        cube(ARRAY[after_hours_gender(gender), coalesce(age, 18)],
             ARRAY[after_hours_gender(gender), coalesce(age, 99)])""",
    "after_hours_wish(seeking text, min_age integer, max_age integer, max_km integer) RETURNS cube": """
        cube(
            ARRAY[CASE WHEN coalesce(lower(seeking), 'any') = 'any' THEN 0 ELSE after_hours_gender(seeking) END,
                coalesce(min_age, 18), 0],
            ARRAY[CASE WHEN coalesce(lower(seeking), 'any') = 'any' THEN 3 ELSE after_hours_gender(seeking) END,
                coalesce(max_age, 99), 2 * 6371008.8 * sin(coalesce(max_km, 10) * 1000 / (2 * 6371008.8))])""",
    "after_hours_key(id uuid, latitude float8, longitude float8, gender text, age integer, seeking text)"
    " RETURNS cube": f"""
        cube(
            cube(ARRAY[
                6371008.8 * cosd(latitude) * cosd(longitude),
                6371008.8 * cosd(latitude) * sind(longitude),
                6371008.8 * sind(latitude),
                4 * after_hours_gender(gender) + after_hours_seeking(seeking) + {FRACTION}]),
            coalesce(age, 18) + {FRACTION},
            coalesce(age, 99) + {FRACTION})""",
}
NEW = {
    "after_hours_metres(a cube, b cube) RETURNS float8": "a <-> b",
    "after_hours_holds(outside cube, inside cube) RETURNS boolean": "outside @> inside",
    "after_hours_reach(wish cube) RETURNS float8": "cube_ur_coord(wish, 3)",
    # The keys of those who may fit, within so many metres along each axis. Who seeks me, and whom I seek, is one
    # interval: too wide for some, which the wish makes good.
    "after_hours_box(key cube, me cube, wish cube, metres float8) RETURNS cube": """
        cube(
            ARRAY[cube_ll_coord(key, 1) - metres, cube_ll_coord(key, 2) - metres, cube_ll_coord(key, 3) - metres,
                4 * cube_ll_coord(wish, 1) + (ARRAY[2, 1, 2, 0])[1 + cube_ll_coord(me, 1)::integer],
                cube_ll_coord(wish, 2)],
            ARRAY[cube_ll_coord(key, 1) + metres, cube_ll_coord(key, 2) + metres, cube_ll_coord(key, 3) + metres,
                4 * cube_ur_coord(wish, 1) + (ARRAY[2, 2, 3, 2])[1 + cube_ll_coord(me, 1)::integer] + 0.99999,
                cube_ur_coord(wish, 2) + 0.99999])""",
}
# A session that comes with its key comes from a backup, and the member's profile may come later: the key stays, also
# when their preferences come. They say no more than the wish does, and so nothing new while that is the same.
TRIGGERS = """
    CREATE OR REPLACE FUNCTION after_hours_set_key() RETURNS trigger LANGUAGE plpgsql AS $$
    DECLARE
        main record;
        wish record;
    BEGIN
        IF TG_OP = 'INSERT' AND NEW.discovery_key IS NOT NULL AND NEW.discovery_wish IS NOT NULL THEN
            RETURN NEW;
        END IF;
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
            WHERE ended_at IS NULL AND user_id = coalesce(NEW.user_id, OLD.user_id)
                AND (discovery_key IS NULL OR discovery_wish::text IS DISTINCT FROM {here}.after_hours_wish(
                    NEW.seeking_gender, NEW.min_age, NEW.max_age, NEW.max_distance_km)::text);
        RETURN NULL;
    END $$;
"""

CHECKS = [
    ("after_hours_sessions", "expires_after_start"),
    ("after_hours_sessions", "location"),
    ("after_hours_sessions", "fuzzed_location"),
    ("after_hours_preferences", "seeking_gender"),
    ("after_hours_preferences", "max_distance_km"),
    ("after_hours_preferences", "ages"),
    ("after_hours_preferences", "sexual_orientation"),
]
INDEXES = {
    "idx_after_hours_sessions_ended": "0001",
    "idx_after_hours_declines_declined": "0001",
    "idx_after_hours_declines_created": "0001",
    "idx_device_fingerprints_session": "0001",
    "idx_after_hours_profiles_photo": "0002",
    "idx_after_hours_sessions_user": "0003",
}
REQUIRED_BEFORE = [
    ("after_hours_profiles", "photo_url"),
    ("after_hours_sessions", "latitude"),
    ("after_hours_sessions", "longitude"),
]


def upgrade() -> None:
    for head, body in {**SAME_AS_BEFORE, **NEW}.items():
        op.execute(f"CREATE OR REPLACE FUNCTION {head} IMMUTABLE PARALLEL SAFE RETURN {body}")
    names = {
        "profiles": migrating.qualified("profiles"),
        "preferences": migrating.qualified("after_hours_preferences"),
        "sessions": migrating.qualified("after_hours_sessions"),
        "here": migrating.here(),
    }
    op.execute(TRIGGERS.format(**names))
    _note_what_was_made()


def downgrade() -> None:
    """Go back; the others stay, as they give the same."""
    for head in NEW:
        op.execute(f"DROP FUNCTION IF EXISTS {head.partition(' RETURNS')[0]}")


def _note_what_was_made() -> None:
    checks = [(table, f"{table}_{name}_check") for table, name in CHECKS]
    if (
        migrating.is_column_made("after_hours_sessions", "warned_at")
        or any(migrating.is_constraint_made(table, name) for table, name in checks)
        or any(migrating.is_made(index) for index in INDEXES)
    ):
        return  # noted when it was made
    migrating.note("COLUMN after_hours_sessions.warned_at", "0001")
    for table, name in checks:
        if migrating.ask(
            "SELECT EXISTS (SELECT FROM pg_constraint WHERE conrelid = to_regclass(:table) AND conname = :name)",
            table=table,
            name=name,
        ):
            migrating.note(f"CONSTRAINT {name} ON {table}", "0001")
    for index, made_by in INDEXES.items():
        if migrating.exists(index):
            migrating.note(f"INDEX {index}", made_by)
    for table, column in REQUIRED_BEFORE:
        if not migrating.is_made(table):
            migrating.note_no_longer_required(table, column)

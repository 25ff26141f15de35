"""Make the tables, or adopt those that are there.

The host's tables are made only where they do not exist, so that the service also runs alone, and are never changed.
The After Hours tables of the Node service are adopted: columns, checks and indexes are added, no row is touched.
What this migration made carries a comment, by which the way back knows it.
"""

import sqlalchemy as sa

from afterhours_service.stores import migrating
from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None

HOST_TABLES = {
    "users": """
        id varchar(255) PRIMARY KEY,
        provider varchar(50) NOT NULL,
        email varchar(255),
        id_verified boolean DEFAULT false,
        after_hours_consent boolean DEFAULT false,
        after_hours_consent_at timestamptz,
        created_at timestamptz DEFAULT current_timestamp""",
    "profiles": """
        user_id varchar(255) PRIMARY KEY REFERENCES users (id) ON DELETE CASCADE,
        name varchar(255),
        age integer,
        gender varchar(50),
        sexual_preference varchar(50)""",
    "user_subscriptions": """
        id uuid PRIMARY KEY DEFAULT gen_random_uuid(),
        user_id varchar(255) NOT NULL REFERENCES users (id) ON DELETE CASCADE,
        is_active boolean NOT NULL DEFAULT false,
        product_id text,
        expires_at timestamptz,
        created_at timestamptz DEFAULT current_timestamp""",
}
OUR_TABLES = {
    "after_hours_profiles": """
        user_id varchar(255) PRIMARY KEY REFERENCES users (id) ON DELETE CASCADE,
        photo_url text,
        description text,
        created_at timestamptz DEFAULT current_timestamp,
        updated_at timestamptz DEFAULT current_timestamp""",
    "after_hours_preferences": """
        user_id varchar(255) PRIMARY KEY REFERENCES users (id) ON DELETE CASCADE,
        seeking_gender varchar(50) NOT NULL DEFAULT 'Any',
        max_distance_km integer DEFAULT 10,
        min_age integer DEFAULT 18,
        max_age integer DEFAULT 99,
        sexual_orientation varchar(50),
        created_at timestamptz DEFAULT current_timestamp,
        updated_at timestamptz DEFAULT current_timestamp""",
    "after_hours_sessions": """
        id uuid PRIMARY KEY DEFAULT gen_random_uuid(),
        user_id varchar(255) NOT NULL REFERENCES users (id) ON DELETE CASCADE,
        started_at timestamptz DEFAULT current_timestamp,
        expires_at timestamptz NOT NULL,
        ended_at timestamptz,
        latitude numeric(10, 8) NOT NULL,
        longitude numeric(11, 8) NOT NULL,
        fuzzed_latitude numeric(10, 8) NOT NULL,
        fuzzed_longitude numeric(11, 8) NOT NULL,
        created_at timestamptz DEFAULT current_timestamp""",
    "after_hours_declines": """
        id uuid PRIMARY KEY DEFAULT gen_random_uuid(),
        session_id uuid NOT NULL REFERENCES after_hours_sessions (id) ON DELETE CASCADE,
        user_id varchar(255) NOT NULL REFERENCES users (id) ON DELETE CASCADE,
        declined_user_id varchar(255) NOT NULL REFERENCES users (id) ON DELETE CASCADE,
        created_at timestamptz DEFAULT current_timestamp,
        decline_count integer DEFAULT 1,
        first_declined_at timestamptz DEFAULT current_timestamp,
        last_session_id uuid,
        CONSTRAINT after_hours_declines_user_pair_unique UNIQUE (user_id, declined_user_id)""",
    "device_fingerprints": """
        id uuid PRIMARY KEY DEFAULT gen_random_uuid(),
        user_id varchar(255) NOT NULL REFERENCES users (id) ON DELETE CASCADE,
        session_id uuid REFERENCES after_hours_sessions (id) ON DELETE SET NULL,
        device_id varchar(255),
        device_model varchar(100),
        platform varchar(20),
        created_at timestamptz DEFAULT now()""",
}
COLUMNS = [
    ("after_hours_sessions", "warned_at", "timestamptz"),
    ("after_hours_declines", "decline_count", "integer DEFAULT 1"),
    ("after_hours_declines", "first_declined_at", "timestamptz DEFAULT current_timestamp"),
    ("after_hours_declines", "last_session_id", "uuid"),
]
CHECKS = [
    ("after_hours_sessions", "expires_after_start", "expires_at > started_at"),
    ("after_hours_sessions", "location", "latitude BETWEEN -90 AND 90 AND longitude BETWEEN -180 AND 180"),
    (
        "after_hours_sessions",
        "fuzzed_location",
        "fuzzed_latitude BETWEEN -90 AND 90 AND fuzzed_longitude BETWEEN -180 AND 180",
    ),
    (
        "after_hours_preferences",
        "seeking_gender",
        "seeking_gender IN ('Any', 'Male', 'Female', 'Non-binary')",
    ),
    ("after_hours_preferences", "max_distance_km", "max_distance_km BETWEEN 1 AND 200"),
    (
        "after_hours_preferences",
        "ages",
        "min_age BETWEEN 18 AND 99 AND max_age BETWEEN 18 AND 99 AND min_age <= max_age",
    ),
    (
        "after_hours_preferences",
        "sexual_orientation",
        "sexual_orientation IN ('Straight', 'Gay', 'Bisexual', 'Pansexual', 'Queer', 'Other')",
    ),
]
# Made one by one and without blocking writers: the adopted tables may be large, and in use.
INDEXES = [
    ("user_subscriptions", "ix_user_subscriptions_user_id", "(user_id)", False),
    ("after_hours_sessions", "idx_after_hours_sessions_active_user", "(user_id) WHERE ended_at IS NULL", True),
    ("after_hours_sessions", "idx_after_hours_sessions_expires", "(expires_at) WHERE ended_at IS NULL", False),
    ("after_hours_sessions", "idx_after_hours_sessions_ended", "(ended_at) WHERE ended_at IS NOT NULL", False),
    ("after_hours_declines", "idx_after_hours_declines_session", "(session_id)", False),
    ("after_hours_declines", "idx_after_hours_declines_declined", "(declined_user_id)", False),
    ("after_hours_declines", "idx_after_hours_declines_created", "(created_at)", False),
    ("device_fingerprints", "idx_device_fingerprints_session", "(session_id)", False),
    ("device_fingerprints", "idx_device_fingerprints_user", "(user_id)", False),
]


ROLE = "after_hours"  # deploy/grants.sql's
GRANTED_ELSEWHERE = ("blocks", "banned_photo_hashes", "after_hours_matches", "after_hours_messages")
GRANTED_ON_TABLE = """
    SELECT EXISTS (
        SELECT FROM (
            SELECT relacl FROM pg_class WHERE oid = to_regclass(:name)
            UNION ALL SELECT attacl FROM pg_attribute WHERE attrelid = to_regclass(:name)) AS acls (acl),
            aclexplode(acl) WHERE grantee = to_regrole(:role) AND grantee <> grantor)
"""
GRANTED_ON_SCHEMA = """
    SELECT EXISTS (
        SELECT FROM pg_namespace, aclexplode(nspacl)
        WHERE pg_namespace.oid = to_regnamespace(:name) AND grantee = to_regrole(:role) AND grantee <> grantor)
"""


def upgrade() -> None:
    for table, columns in {**HOST_TABLES, **OUR_TABLES}.items():
        if not migrating.exists(table):
            op.execute(f"CREATE TABLE {table} ({columns})")
            migrating.note(f"TABLE {table}", revision)
            if table in HOST_TABLES:
                _warn_of_others(table)
    for table, column, definition in COLUMNS:
        if not _has_column(table, column):
            op.execute(f"ALTER TABLE {table} ADD COLUMN {column} {definition}")
            migrating.note(f"COLUMN {table}.{column}", revision)
    # An adopted member without a photo is as good as any; the Node service always wrote one.
    migrating.let_be_null("after_hours_profiles", "photo_url")
    for table, name, rule in CHECKS:
        _add_check(table, f"{table}_{name}_check", rule)
    with op.get_context().autocommit_block():
        for table, name, definition, unique in INDEXES:
            if table in HOST_TABLES and not migrating.is_made(table):
                continue  # the host's tables stay as they are
            migrating.make_index(name, f"{table} {definition}", revision, unique)


def downgrade() -> None:
    tables = [*HOST_TABLES, *OUR_TABLES]
    schemas = {migrating.qualified(table).rpartition(".")[0] for table in tables}
    for table in reversed(tables):
        if migrating.is_made(table):
            op.execute(f"DROP TABLE {table}")
    for _, name, _, _ in INDEXES:
        migrating.drop_index(name)
    for table, name, _ in CHECKS:
        if migrating.is_constraint_made(table, f"{table}_{name}_check"):
            op.execute(f"ALTER TABLE {table} DROP CONSTRAINT {table}_{name}_check")
    for table, column, _ in COLUMNS:
        if migrating.is_column_made(table, column):
            op.execute(f"ALTER TABLE {table} DROP COLUMN {column}")
    migrating.require_again("after_hours_profiles", "photo_url")
    for table in filter(migrating.exists, [*tables, *GRANTED_ELSEWHERE]):
        _revoke(migrating.qualified(table), GRANTED_ON_TABLE)
    for schema in schemas:
        _revoke(f"SCHEMA {schema}", GRANTED_ON_SCHEMA)


def _warn_of_others(table: str) -> None:
    """Warn of tables in other schemas with the name of one created here: the search_path may leave out the host's."""
    others = migrating.ask(
        """
        SELECT string_agg(relnamespace::regnamespace::text, ', ') FROM pg_class
        WHERE relname = :table AND relkind IN ('r', 'p', 'v', 'm', 'f') AND oid <> to_regclass(:table)
        """,
        table=table,
    )
    if others:
        migrating.logger.warning(
            "%s made, as the search_path has none; is the host's in %s?", migrating.qualified(table), others
        )


def _has_column(table: str, column: str) -> bool:
    return _exists(f"pg_attribute WHERE attrelid = '{table}'::regclass AND attname = '{column}' AND attnum > 0")


def _add_check(table: str, name: str, rule: str) -> None:
    """Add a CHECK, unless an adopted row breaks it: that row must still be ended and deleted by its ordinary way."""
    if _exists(f"pg_constraint WHERE conrelid = '{table}'::regclass AND conname = '{name}'"):
        return  # by an earlier, interrupted run, or the host's own
    if _exists(f"{table} WHERE NOT ({rule})"):
        migrating.logger.warning("%s left off: %s has rows that break it", name, table)
        return
    op.execute(f"ALTER TABLE {table} ADD CONSTRAINT {name} CHECK ({rule}) NOT VALID")
    op.execute(f"ALTER TABLE {table} VALIDATE CONSTRAINT {name}")
    migrating.note(f"CONSTRAINT {name} ON {table}", revision)


def _exists(rows: str) -> bool:
    return bool(migrating.ask(f"SELECT EXISTS (SELECT FROM {rows})"))


def _revoke(what: str, granted: str) -> None:
    """Take back what deploy/grants.sql gave on a table that stays, or on a schema."""
    parameters = {"name": what.removeprefix("SCHEMA "), "role": ROLE}
    if not migrating.ask(granted, **parameters):
        return
    try:
        with op.get_bind().begin_nested():
            op.execute(f"REVOKE ALL ON {what} FROM {ROLE}")
    except sa.exc.ProgrammingError:  # another owns it; of which PostgreSQL may only warn: look again
        pass
    if migrating.ask(granted, **parameters):
        migrating.remains(f"grants: let the owner run REVOKE ALL ON {what} FROM {ROLE}")

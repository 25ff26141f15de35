"""Make the tables, or adopt those that are there.

The host's tables are made only where they do not exist, so that the service also runs alone, and are never changed.
The After Hours tables of the Node service are adopted: columns, checks and indexes are added, no row is touched.
A table that this migration made carries a comment, by which the way back knows it.
"""

import logging

import sqlalchemy as sa

from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None

logger = logging.getLogger("alembic.after_hours")

MADE_HERE = "made by After Hours 0001"

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


def upgrade() -> None:
    for table, columns in {**HOST_TABLES, **OUR_TABLES}.items():
        if table not in _tables():
            op.execute(f"CREATE TABLE {table} ({columns})")
            op.execute(f"COMMENT ON TABLE {table} IS '{MADE_HERE}'")
    for table, column, definition in COLUMNS:
        op.execute(f"ALTER TABLE {table} ADD COLUMN IF NOT EXISTS {column} {definition}")
    # An adopted member without a photo is as good as any; the Node service always wrote one.
    op.execute("ALTER TABLE after_hours_profiles ALTER COLUMN photo_url DROP NOT NULL")
    for table, name, rule in CHECKS:
        _add_check(table, f"{table}_{name}_check", rule)
    made_here = _made_here()
    with op.get_context().autocommit_block():
        for table, name, definition, unique in INDEXES:
            if table in HOST_TABLES and table not in made_here:
                continue  # the host's tables stay as they are
            if _is_invalid(name):
                op.execute(f"DROP INDEX CONCURRENTLY {name}")
            op.execute(
                f"CREATE {'UNIQUE' if unique else ''} INDEX CONCURRENTLY IF NOT EXISTS {name} ON {table} {definition}"
            )


def downgrade() -> None:
    made_here = _made_here()
    for table, name, _, _ in INDEXES:
        if table not in made_here and name not in THE_NODE_SERVICES:
            op.execute(f"DROP INDEX IF EXISTS {name}")
    for table, name, _ in CHECKS:
        op.execute(f"ALTER TABLE {table} DROP CONSTRAINT IF EXISTS {table}_{name}_check")
    if "after_hours_sessions" not in made_here:
        op.execute("ALTER TABLE after_hours_sessions DROP COLUMN IF EXISTS warned_at")
    if "after_hours_profiles" not in made_here and not _exists("after_hours_profiles WHERE photo_url IS NULL"):
        op.execute("ALTER TABLE after_hours_profiles ALTER COLUMN photo_url SET NOT NULL")
    for table in reversed([*HOST_TABLES, *OUR_TABLES]):
        if table in made_here:
            op.execute(f"DROP TABLE {table}")


THE_NODE_SERVICES = {"idx_after_hours_sessions_active_user", "idx_after_hours_sessions_expires"}


def _tables() -> set[str]:
    return set(sa.inspect(op.get_bind()).get_table_names())


def _made_here() -> set[str]:
    inspector = sa.inspect(op.get_bind())
    tables = {*HOST_TABLES, *OUR_TABLES} & _tables()
    return {table for table in tables if inspector.get_table_comment(table)["text"] == MADE_HERE}


def _add_check(table: str, name: str, rule: str) -> None:
    """Add a CHECK, unless an adopted row breaks it: that row must still be ended and deleted by its ordinary way."""
    if _exists(f"pg_constraint WHERE conrelid = '{table}'::regclass AND conname = '{name}'"):
        return  # by an earlier, interrupted run
    if _exists(f"{table} WHERE NOT ({rule})"):
        logger.warning("%s left off: %s has rows that break it", name, table)
        return
    op.execute(f"ALTER TABLE {table} ADD CONSTRAINT {name} CHECK ({rule}) NOT VALID")
    op.execute(f"ALTER TABLE {table} VALIDATE CONSTRAINT {name}")


def _exists(rows: str) -> bool:
    return bool(op.get_bind().execute(sa.text(f"SELECT EXISTS (SELECT FROM {rows})")).scalar())


def _is_invalid(index: str) -> bool:
    """Tell whether an earlier, interrupted run left the index half-made."""
    statement = sa.text("SELECT NOT indisvalid FROM pg_index WHERE indexrelid = to_regclass(:index)")
    return bool(op.get_bind().execute(statement, {"index": index}).scalar())

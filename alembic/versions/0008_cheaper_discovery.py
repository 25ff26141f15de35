"""Make discovery cheaper: finer cells in its index, and a key that PostgreSQL computes in place.

Cells of 25 km instead of 50: the nearest read four tenths fewer of the index's pages. The index keeps its name and no
statement names the cell, so whatever runs meanwhile uses one or the other. The function of the key gives what that of
0005 gives, but has no query in it, and so is computed where it is called; both a start and an asker call it.
"""

from alembic import op

revision = "0008"
down_revision = "0007"
branch_labels = None
depends_on = None

INDEX, NEXT = "idx_after_hours_sessions_nearest", "idx_after_hours_sessions_nearest_next"

FRACTION = "('x' || left(id::text, 4))::bit(16)::integer / 65536.0::float8"
KEY = f"""
    CREATE OR REPLACE FUNCTION after_hours_key(
        id uuid, latitude float8, longitude float8, gender text, age integer, seeking text
    ) RETURNS cube IMMUTABLE PARALLEL SAFE RETURN cube(
        cube(ARRAY[
            6371008.8 * cosd(latitude) * cosd(longitude),
            6371008.8 * cosd(latitude) * sind(longitude),
            6371008.8 * sind(latitude),
            4 * after_hours_gender(gender) + after_hours_seeking(seeking) + {FRACTION}]),
        coalesce(age, 18) + {FRACTION},
        coalesce(age, 99) + {FRACTION})
"""


def upgrade() -> None:
    op.execute(KEY)
    _replace(metres=25_000, span=1024)


def downgrade() -> None:
    """Go back; the function stays, as it gives the same."""
    _replace(metres=50_000, span=256)


def _replace(metres: int, span: int) -> None:
    """Put an index in the place of the present one. span: more cells than lie side by side across the Earth."""
    x, y, z = (f"floor(cube_ll_coord(discovery_key, {axis}) / {metres})" for axis in (1, 2, 3))
    with op.get_context().autocommit_block():
        op.execute(f"DROP INDEX CONCURRENTLY IF EXISTS {NEXT}")  # half-made, or not there
        op.execute(f"""
            CREATE INDEX CONCURRENTLY {NEXT} ON after_hours_sessions
            USING gist (cube({span * span} * {z} + {span} * {y} + {x}), discovery_key) WHERE ended_at IS NULL
        """)
        op.execute(f"DROP INDEX CONCURRENTLY IF EXISTS {INDEX}")
        op.execute(f"ALTER INDEX {NEXT} RENAME TO {INDEX}")

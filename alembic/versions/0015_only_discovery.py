"""Keep the index of discovery for discovery: any other statement on un-ended sessions could be planned to use it.

PostgreSQL loses entries of a GiST index that several rounds of one loop read while its first page splits
(docs/decisions/0013). Discovery reads it once in a statement.
"""

from alembic import op

revision = "0015"
down_revision = "0014"
branch_labels = None
depends_on = None

INDEX, NEXT = "idx_after_hours_sessions_nearest", "idx_after_hours_sessions_nearest_next"
X, Y, Z = (f"floor(cube_ll_coord(discovery_key, {axis}) / 25000)" for axis in (1, 2, 3))


def upgrade() -> None:
    _replace("ended_at IS NULL AND discovery_key IS NOT NULL")


def downgrade() -> None:
    _replace("ended_at IS NULL")


def _replace(condition: str) -> None:
    """Put an index of the sessions that meet the condition in the place of the present one."""
    with op.get_context().autocommit_block():
        op.execute(f"DROP INDEX CONCURRENTLY IF EXISTS {NEXT}")  # half-made, or not there
        op.execute(f"""
            CREATE INDEX CONCURRENTLY {NEXT} ON after_hours_sessions
            USING gist (cube(1048576 * {Z} + 1024 * {Y} + {X}), discovery_key) WHERE {condition}
        """)
        op.execute(f"DROP INDEX CONCURRENTLY IF EXISTS {INDEX}")
        op.execute(f"ALTER INDEX {NEXT} RENAME TO {INDEX}")

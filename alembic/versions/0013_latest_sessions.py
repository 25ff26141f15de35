"""Index a member's sessions by when they started: a start reads the latest of them, a decline those since it was made.

The index of 0003 becomes one of two columns and keeps its name. Statements of the release before use either.
"""

import sqlalchemy as sa

from alembic import op

revision = "0013"
down_revision = "0012"
branch_labels = None
depends_on = None

INDEX, NEXT = "idx_after_hours_sessions_user", "idx_after_hours_sessions_user_next"


def upgrade() -> None:
    _replace("user_id, started_at")


def downgrade() -> None:
    _replace("user_id")


def _replace(columns: str) -> None:
    """Put an index in the place of the present one; a comment says whose it is, and stays."""
    comment = sa.text("""
        SELECT quote_literal(coalesce(
            obj_description(to_regclass(:index), 'pg_class'), obj_description(to_regclass(:next), 'pg_class')))
    """)
    whose = op.get_bind().execute(comment, {"index": INDEX, "next": NEXT}).scalar()
    with op.get_context().autocommit_block():
        op.execute(f"DROP INDEX CONCURRENTLY IF EXISTS {NEXT}")  # half-made, or not there
        op.execute(f"CREATE INDEX CONCURRENTLY {NEXT} ON after_hours_sessions ({columns})")
        if whose:
            op.execute(f"COMMENT ON INDEX {NEXT} IS {whose}")
        op.execute(f"DROP INDEX CONCURRENTLY IF EXISTS {INDEX}")
        op.execute(f"ALTER INDEX {NEXT} RENAME TO {INDEX}")

"""Remember which expiries are yet to be published, so that no crash loses one."""

from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.execute("ALTER TABLE after_hours_sessions ADD COLUMN IF NOT EXISTS announce_at timestamptz")
    with op.get_context().autocommit_block():
        # An interrupted run leaves it half-made; it is empty, and made again at once.
        op.execute("DROP INDEX CONCURRENTLY IF EXISTS idx_after_hours_sessions_announce")
        op.execute(
            "CREATE INDEX CONCURRENTLY idx_after_hours_sessions_announce ON after_hours_sessions (announce_at)"
            " WHERE announce_at IS NOT NULL"
        )


def downgrade() -> None:
    op.execute("ALTER TABLE after_hours_sessions DROP COLUMN IF EXISTS announce_at")

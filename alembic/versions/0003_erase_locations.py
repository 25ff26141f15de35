"""Let exact coordinates live no longer than their session.

A trigger erases them in the very statement that ends a session, whether this service runs it, the Node service while
both run, or an operator. Those of past sessions are erased in batches. A downgrade cannot restore them.
"""

import sqlalchemy as sa

from afterhours_service.stores import migrating
from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None

BATCH = 5000  # rows a transaction rewrites
INDEX = "idx_after_hours_sessions_user"


def upgrade() -> None:
    for column in ("latitude", "longitude"):
        migrating.let_be_null("after_hours_sessions", column)
    op.execute("""
        CREATE OR REPLACE FUNCTION after_hours_erase_location() RETURNS trigger LANGUAGE plpgsql AS $$
        BEGIN
            NEW.latitude := NULL;
            NEW.longitude := NULL;
            RETURN NEW;
        END $$
    """)
    op.execute("""
        CREATE OR REPLACE TRIGGER after_hours_erase_location BEFORE INSERT OR UPDATE ON after_hours_sessions
        FOR EACH ROW WHEN (NEW.ended_at IS NOT NULL AND (NEW.latitude IS NOT NULL OR NEW.longitude IS NOT NULL))
        EXECUTE FUNCTION after_hours_erase_location()
    """)
    with op.get_context().autocommit_block():
        migrating.make_index(INDEX, "after_hours_sessions (user_id)", revision)
        _erase_the_past()


def downgrade() -> None:
    migrating.drop_index(INDEX)
    op.execute("DROP TRIGGER IF EXISTS after_hours_erase_location ON after_hours_sessions")
    op.execute("DROP FUNCTION IF EXISTS after_hours_erase_location")
    for column in ("latitude", "longitude"):
        migrating.require_again("after_hours_sessions", column)


def _erase_the_past() -> None:
    """Rewrite the ended sessions that still have a place, in the order of their keys."""
    statement = sa.text("""
        WITH batch AS (
            SELECT id FROM after_hours_sessions WHERE id > :after ORDER BY id LIMIT :batch
        ), erased AS (
            UPDATE after_hours_sessions AS s SET latitude = NULL, longitude = NULL FROM batch
            WHERE s.id = batch.id AND s.ended_at IS NOT NULL AND (s.latitude IS NOT NULL OR s.longitude IS NOT NULL)
        )
        SELECT id FROM batch ORDER BY id DESC LIMIT 1
    """)
    after = "00000000-0000-0000-0000-000000000000"
    while after:
        after = op.get_bind().execute(statement, {"after": after, "batch": BATCH}).scalar()

"""Let discovery's key and wish live no longer than their session: the key holds the blurred place.

The trigger of 0003 erases them in the statement that ends a session; those of past sessions are erased in
batches. A downgrade need not restore them: nothing reads those of an ended session.
"""

import sqlalchemy as sa

from alembic import op

revision = "0011"
down_revision = "0010"
branch_labels = None
depends_on = None

BATCH = 5000  # rows a transaction rewrites


def upgrade() -> None:
    _set_trigger("latitude", "longitude", "discovery_key", "discovery_wish")
    with op.get_context().autocommit_block():
        _erase_the_past()


def downgrade() -> None:
    _set_trigger("latitude", "longitude")


def _set_trigger(*columns: str) -> None:
    erase = " ".join(f"NEW.{column} := NULL;" for column in columns)
    is_there = " OR ".join(f"NEW.{column} IS NOT NULL" for column in columns)
    op.execute(f"""
        CREATE OR REPLACE FUNCTION after_hours_erase_location() RETURNS trigger LANGUAGE plpgsql AS $$
        BEGIN
            {erase}
            RETURN NEW;
        END $$
    """)
    op.execute(f"""
        CREATE OR REPLACE TRIGGER after_hours_erase_location BEFORE INSERT OR UPDATE ON after_hours_sessions
        FOR EACH ROW WHEN (NEW.ended_at IS NOT NULL AND ({is_there}))
        EXECUTE FUNCTION after_hours_erase_location()
    """)


def _erase_the_past() -> None:
    """Rewrite the ended sessions that still have one, in the order of their keys."""
    statement = sa.text("""
        WITH batch AS (
            SELECT id FROM after_hours_sessions WHERE id > :after ORDER BY id LIMIT :batch
        ), erased AS (
            UPDATE after_hours_sessions AS s SET discovery_key = NULL, discovery_wish = NULL FROM batch
            WHERE s.id = batch.id AND s.ended_at IS NOT NULL
                AND (s.discovery_key IS NOT NULL OR s.discovery_wish IS NOT NULL)
        )
        SELECT id FROM batch ORDER BY id DESC LIMIT 1
    """)
    after = "00000000-0000-0000-0000-000000000000"
    while after:
        after = op.get_bind().execute(statement, {"after": after, "batch": BATCH}).scalar()

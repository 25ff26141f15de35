"""Keep the expiries that are yet to be published in a table of their own, a batch a row.

To note them in their sessions, and to take the note back, wrote each session twice, with an entry in each index. The
column of 0004 was in no release, so it goes at once.
"""

from alembic import op

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.execute("LOCK TABLE after_hours_sessions IN ACCESS EXCLUSIVE MODE")  # lest one more be noted in the column
    op.execute("""
        CREATE TABLE IF NOT EXISTS after_hours_untold (
            id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
            tell_at timestamptz NOT NULL,
            session_ids uuid[] NOT NULL
        )
    """)
    op.execute("CREATE INDEX IF NOT EXISTS idx_after_hours_untold_tell ON after_hours_untold (tell_at)")
    op.execute("""
        INSERT INTO after_hours_untold (tell_at, session_ids)
        SELECT announce_at, ARRAY[id] FROM after_hours_sessions WHERE announce_at IS NOT NULL
    """)
    op.execute("ALTER TABLE after_hours_sessions DROP COLUMN IF EXISTS announce_at")


def downgrade() -> None:
    op.execute("LOCK TABLE after_hours_sessions, after_hours_untold IN ACCESS EXCLUSIVE MODE")
    op.execute("ALTER TABLE after_hours_sessions ADD COLUMN announce_at timestamptz")
    op.execute("""
        UPDATE after_hours_sessions AS s SET announce_at = u.tell_at
        FROM after_hours_untold AS u WHERE s.id = ANY (u.session_ids)
    """)
    op.execute("""
        CREATE INDEX idx_after_hours_sessions_announce ON after_hours_sessions (announce_at)
        WHERE announce_at IS NOT NULL
    """)
    op.execute("DROP TABLE after_hours_untold")

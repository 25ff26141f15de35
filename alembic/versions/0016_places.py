"""Remember where a member is shown, cell by cell: after_hours_places. It begins empty.

The points that sessions were shown at before are not looked at: they belong to another blur (docs/decisions/0014).
"""

from alembic import op

revision = "0016"
down_revision = "0015"
branch_labels = None
depends_on = None


def upgrade() -> None:
    # Each day's first visit changes the index of days; other visits leave all indexes alone if there is room.
    op.execute("""
        CREATE TABLE IF NOT EXISTS after_hours_places (
            id uuid PRIMARY KEY,
            user_id varchar(255) NOT NULL REFERENCES users (id) ON DELETE CASCADE,
            fuzzed_latitude numeric(10, 8) NOT NULL,
            fuzzed_longitude numeric(11, 8) NOT NULL,
            visits integer NOT NULL,
            last_seen date NOT NULL)
        WITH (fillfactor = 90)
    """)
    op.execute("CREATE INDEX IF NOT EXISTS idx_after_hours_places_user ON after_hours_places (user_id)")
    op.execute("CREATE INDEX IF NOT EXISTS idx_after_hours_places_seen ON after_hours_places (last_seen, id)")
    op.execute("COMMENT ON TABLE after_hours_places IS 'made by After Hours 0016'")


def downgrade() -> None:
    op.execute("DROP TABLE after_hours_places")

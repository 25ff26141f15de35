"""Keep what a photo looks like: the Node service's table has the column, ours had not."""

import sqlalchemy as sa

from alembic import op

revision = "0012"
down_revision = "0011"
branch_labels = None
depends_on = None

MADE_HERE = "made by After Hours 0012"


def upgrade() -> None:
    columns = {column["name"] for column in sa.inspect(op.get_bind()).get_columns("after_hours_profiles")}
    if "photo_hash" not in columns:
        op.execute("ALTER TABLE after_hours_profiles ADD COLUMN photo_hash varchar(16)")
        op.execute(f"COMMENT ON COLUMN after_hours_profiles.photo_hash IS '{MADE_HERE}'")


def downgrade() -> None:
    """Drop the column, unless it is the Node service's."""
    columns = sa.inspect(op.get_bind()).get_columns("after_hours_profiles")
    if any(column["name"] == "photo_hash" and column["comment"] == MADE_HERE for column in columns):
        op.execute("ALTER TABLE after_hours_profiles DROP COLUMN photo_hash")

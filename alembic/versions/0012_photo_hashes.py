"""Keep what a photo looks like: the Node service's table has the column, ours had not."""

from afterhours_service.stores import migrating
from alembic import op

revision = "0012"
down_revision = "0011"
branch_labels = None
depends_on = None


def upgrade() -> None:
    attribute = "pg_attribute WHERE attrelid = to_regclass('after_hours_profiles') AND attname = 'photo_hash'"
    if not migrating.ask(f"SELECT EXISTS (SELECT FROM {attribute})"):
        op.execute("ALTER TABLE after_hours_profiles ADD COLUMN photo_hash varchar(16)")
        migrating.note("COLUMN after_hours_profiles.photo_hash", revision)


def downgrade() -> None:
    """Drop the column, unless it is the Node service's."""
    if migrating.is_column_made("after_hours_profiles", "photo_hash"):
        op.execute("ALTER TABLE after_hours_profiles DROP COLUMN photo_hash")

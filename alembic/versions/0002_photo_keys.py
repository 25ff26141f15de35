"""Index the photo keys: the nightly search for orphaned photos asks for them by the thousand."""

from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    with op.get_context().autocommit_block():
        op.execute("DROP INDEX CONCURRENTLY IF EXISTS idx_after_hours_profiles_photo")  # half-made, or not there
        op.execute("CREATE INDEX CONCURRENTLY idx_after_hours_profiles_photo ON after_hours_profiles (photo_url)")


def downgrade() -> None:
    op.execute("DROP INDEX IF EXISTS idx_after_hours_profiles_photo")

"""Index the photo keys: the nightly search for orphaned photos asks for them by the thousand."""

from afterhours_service.stores import migrating
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


INDEX = "idx_after_hours_profiles_photo"


def upgrade() -> None:
    with op.get_context().autocommit_block():
        migrating.make_index(INDEX, "after_hours_profiles (photo_url)", revision)


def downgrade() -> None:
    migrating.drop_index(INDEX)

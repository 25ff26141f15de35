"""Index a member's sessions by when they started: a start reads the latest of them, a decline those since it was made.

It takes the place of the index of 0003, unless that is the host's. Statements of the release before use either.
"""

from afterhours_service.stores import migrating
from alembic import op

revision = "0013"
down_revision = "0012"
branch_labels = None
depends_on = None

OLD, NEW = "idx_after_hours_sessions_user", "idx_after_hours_sessions_user_started"


def upgrade() -> None:
    with op.get_context().autocommit_block():
        migrating.make_index(NEW, "after_hours_sessions (user_id, started_at)", revision)
        if migrating.is_made(OLD):
            op.execute(f"DROP INDEX CONCURRENTLY {OLD}")


def downgrade() -> None:
    with op.get_context().autocommit_block():
        migrating.make_index(OLD, "after_hours_sessions (user_id)", "0003")
        migrating.drop_index(NEW)

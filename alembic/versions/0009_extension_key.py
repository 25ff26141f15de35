"""Let a session remember the last Idempotency-Key of an extension, and what it was answered.

Three columns without a default: no row is rewritten, and what runs meanwhile needs to know of none.
"""

from alembic import op

revision = "0009"
down_revision = "0008"
branch_labels = None
depends_on = None

COLUMNS = {
    "extension_key": "varchar(64)",
    "extension_minutes": "integer",
    "extension_expires_at": "timestamptz",
}


def upgrade() -> None:
    for name, kind in COLUMNS.items():
        op.execute(f"ALTER TABLE after_hours_sessions ADD COLUMN IF NOT EXISTS {name} {kind}")


def downgrade() -> None:
    for name in COLUMNS:
        op.execute(f"ALTER TABLE after_hours_sessions DROP COLUMN IF EXISTS {name}")

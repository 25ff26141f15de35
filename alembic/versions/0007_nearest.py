"""Let the index of discovery keep a region's keys together: a first page read pages of half the world.

`cube` decides by volume which keys share a page, and a long, thin box over several cities has hardly any. The index of
0005 becomes one of two columns: a cell of 50 km, as a number on a line, which is the same for all keys in it; and the
key, which decides among those. Statements need not name the cell, so those of processes that run meanwhile use it, too.
"""

from alembic import op

revision = "0007"
down_revision = "0006"
branch_labels = None
depends_on = None

FORMER, INDEX = "idx_after_hours_sessions_discovery", "idx_after_hours_sessions_nearest"
CELL = """cube(65536 * floor(cube_ll_coord(discovery_key, 3) / 50000)
    + 256 * floor(cube_ll_coord(discovery_key, 2) / 50000) + floor(cube_ll_coord(discovery_key, 1) / 50000))"""


def upgrade() -> None:
    _replace(FORMER, INDEX, f"{CELL}, discovery_key")


def downgrade() -> None:
    _replace(INDEX, FORMER, "discovery_key")


def _replace(old: str, new: str, columns: str) -> None:
    with op.get_context().autocommit_block():
        op.execute(f"DROP INDEX CONCURRENTLY IF EXISTS {new}")  # half-made, or not there
        op.execute(f"""
            CREATE INDEX CONCURRENTLY {new} ON after_hours_sessions USING gist ({columns}) WHERE ended_at IS NULL
        """)
        op.execute(f"DROP INDEX CONCURRENTLY IF EXISTS {old}")

"""What the migrations share: finding objects, and marking those that a migration created.

Every table that a migration creates has a comment, and so has what it adds to an existing table. A downgrade removes
only what has this comment. Names are looked up by the search_path, as in the service's statements.
"""

import logging
from typing import Any

import sqlalchemy as sa

from alembic import op

logger = logging.getLogger("alembic.after_hours")

MADE = "made by After Hours"
NO_LONGER_REQUIRED = "no longer NOT NULL since After Hours"


def ask(statement: str, **parameters: Any) -> Any:
    """Return the only value that a query returns; None for no row."""
    return op.get_bind().execute(sa.text(statement), parameters).scalar()


def exists(relation: str) -> bool:
    """Return whether a table, view or index is there."""
    return bool(ask("SELECT to_regclass(:name) IS NOT NULL", name=relation))


def qualified(relation: str) -> str:
    """Return a relation's name with its schema, quoted."""
    statement = """
        SELECT format('%I.%I', nspname, relname) FROM pg_class JOIN pg_namespace AS n ON n.oid = relnamespace
        WHERE pg_class.oid = to_regclass(:name)
    """
    name: str = ask(statement, name=relation)
    return name


def here() -> str:
    """Return the schema in which migrations create objects, quoted."""
    schema: str = ask("SELECT quote_ident(current_schema())")
    return schema


def note(thing: str, revision: str) -> None:
    """Mark a thing as made by a migration: `TABLE x`, `INDEX x`, `COLUMN x.y`, `CONSTRAINT x ON y`, `EXTENSION x`."""
    op.execute(f"COMMENT ON {thing} IS '{MADE} {revision}'")


def is_made(relation: str) -> bool:
    """Return whether a migration made a table or an index."""
    return _is_note(ask("SELECT obj_description(to_regclass(:name), 'pg_class')", name=relation))


def is_column_made(table: str, column: str) -> bool:
    """Return whether a migration made a column."""
    return _is_note(_column_comment(table, column))


def is_constraint_made(table: str, name: str) -> bool:
    """Return whether a migration made a constraint."""
    statement = """
        SELECT obj_description(oid, 'pg_constraint') FROM pg_constraint
        WHERE conrelid = to_regclass(:table) AND conname = :name
    """
    return _is_note(ask(statement, table=table, name=name))


def is_extension_made(name: str) -> bool:
    """Return whether a migration made an extension."""
    return _is_note(ask("SELECT obj_description(oid, 'pg_extension') FROM pg_extension WHERE extname = :n", n=name))


def make_index(name: str, definition: str, revision: str, unique: bool = False) -> None:
    """Make an index without blocking writers, in an autocommit block; an existing one is kept.

    definition: the statement from the table's name on.
    """
    if ask("SELECT NOT indisvalid FROM pg_index WHERE indexrelid = to_regclass(:name)", name=name):
        op.execute(f"DROP INDEX CONCURRENTLY {name}")  # half-made by an interrupted run
    if not exists(name):
        op.execute(f"CREATE {'UNIQUE' if unique else ''} INDEX CONCURRENTLY {name} ON {definition}")
        note(f"INDEX {name}", revision)


def drop_index(name: str) -> None:
    """Drop an index, if a migration made it."""
    if is_made(name):
        op.execute(f"DROP INDEX {name}")
    elif exists(name):
        remains(f"index {name}: it was there before, as far as is noted")


def let_be_null(table: str, column: str) -> None:
    """Make a column nullable, and note that it was not."""
    if ask("SELECT attnotnull FROM pg_attribute WHERE attrelid = to_regclass(:t) AND attname = :c", t=table, c=column):
        op.execute(f"ALTER TABLE {table} ALTER COLUMN {column} DROP NOT NULL")
        note_no_longer_required(table, column)


def note_no_longer_required(table: str, column: str) -> None:
    """Note that a column was NOT NULL before; an existing comment is kept."""
    _set_column_comment(table, column, "\n".join(filter(None, [_column_comment(table, column), NO_LONGER_REQUIRED])))


def require_again(table: str, column: str) -> None:
    """Make a column that `let_be_null` changed NOT NULL again, if every row has a value."""
    comment = _column_comment(table, column) or ""
    if NO_LONGER_REQUIRED not in comment:
        return
    _set_column_comment(table, column, comment.replace(NO_LONGER_REQUIRED, "").rstrip("\n"))
    if ask(f"SELECT EXISTS (SELECT FROM {table} WHERE {column} IS NULL)"):  # noqa: S608
        remains(f"column {table}.{column}: it may be null, as it is in some rows")
    else:
        op.execute(f"ALTER TABLE {table} ALTER COLUMN {column} SET NOT NULL")


def remains(what: str) -> None:
    """Log what a downgrade leaves."""
    logger.warning("remains: %s", what)


def _is_note(comment: str | None) -> bool:
    return (comment or "").startswith(MADE)


def _column_comment(table: str, column: str) -> str | None:
    statement = (
        "SELECT col_description(attrelid, attnum) FROM pg_attribute WHERE attrelid = to_regclass(:t) AND attname = :c"
    )
    comment: str | None = ask(statement, t=table, c=column)
    return comment


def _set_column_comment(table: str, column: str, comment: str) -> None:
    literal = ask("SELECT quote_nullable(nullif(:comment, ''))", comment=comment)
    op.execute(sa.text(f"COMMENT ON COLUMN {table}.{column} IS {literal}".replace(":", r"\:")))

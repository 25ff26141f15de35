"""Text as clients read it, and as PostgreSQL can hold it."""

from datetime import UTC, datetime


def is_storable(text: str) -> bool:
    """Tell whether PostgreSQL can hold the text: no NUL, no lone surrogate."""
    try:
        return b"\0" not in text.encode()
    except UnicodeEncodeError:
        return False


def isoformat(moment: datetime) -> str:
    """Write an aware datetime as clients read it: ISO 8601 in UTC, milliseconds, Z."""
    return moment.astimezone(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")

"""The rules of discovery that are not SQL, as pure functions."""

MEMORY_SESSIONS = 2
"""A decline outlives the session it was made in by so many of its decliner's next sessions."""

COUNT_FROM = 5
"""Fewer are not counted out, so that nobody is singled out."""

COUNT_TO = 50
"""As many as the longest page shows. More are not counted: it would take long, and nobody needs to know."""


def told_count(counted: int) -> tuple[int | None, int | None, bool]:
    """Return what is told of a number of members: the number, below which it is if not told, whether it may be more."""
    if counted < COUNT_FROM:
        return None, COUNT_FROM, False
    return counted, None, counted >= COUNT_TO

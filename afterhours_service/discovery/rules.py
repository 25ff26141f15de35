"""The rules of discovery that are not SQL, as pure functions."""

MEMORY_SESSIONS = 2
"""A decline outlives the session it was made in by so many of its decliner's next sessions."""

COUNT_TO = 50
"""As many as the longest page shows. More are not counted: it would take long, and nobody needs to know."""

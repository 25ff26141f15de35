"""The rules of discovery that are not SQL, as pure functions."""

MEMORY_SESSIONS = 2
"""After the session it was made in, a decline stays in force for this many sessions of the member who made it."""

COUNT_TO = 50
"""The length of the longest page. Counting further would take long, and nobody needs the number."""

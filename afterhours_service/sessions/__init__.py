"""The life of a session: go live, extend, end, and be gone on time."""

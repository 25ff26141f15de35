"""Where data lives: PostgreSQL, Redis, the photo storage, and the tables of the host."""

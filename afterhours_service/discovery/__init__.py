"""Which members are near, and declines."""

"""The nightly cleanup: what has served its time is deleted."""

"""Breaks every part of the service under load, and counts what was promised and not kept."""

"""Matching: who is shown to whom, and for how long."""

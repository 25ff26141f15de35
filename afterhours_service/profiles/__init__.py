"""The After Hours profile, without which nobody goes live."""

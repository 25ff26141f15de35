"""The nightly cleanup: data that is no longer needed is deleted."""

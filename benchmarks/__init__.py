"""Measurements of the service. Not part of it."""

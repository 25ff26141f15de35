"""Figures for the docs: not part of the service, nor of its tests."""

"""Whom a member would like to meet."""

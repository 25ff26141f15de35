"""The After Hours profile, which a member needs to go live."""

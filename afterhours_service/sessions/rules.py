"""The rules of time, as pure functions."""

import math
from datetime import datetime, timedelta

DURATIONS_MINUTES = (15, 30, 60)
WARNING_MINUTES = 2


def length(minutes: int, minute_seconds: int) -> timedelta:
    """Return how long `minutes` of a session last when a minute has `minute_seconds` seconds."""
    return timedelta(seconds=minutes * minute_seconds)


def expiry_second(expires_at: datetime) -> int:
    """Return the whole second, since the epoch, by which a session has expired: rounded up, so never early."""
    return math.ceil(expires_at.timestamp())


def warning_second(expires_at: datetime, minute_seconds: int) -> int:
    """Return the whole second, since the epoch, at which WARNING_MINUTES are left."""
    return expiry_second(expires_at) - WARNING_MINUTES * minute_seconds


def remaining_seconds(expires_at: datetime, now: datetime) -> int:
    """Return the whole seconds that are left, never negative."""
    return max(0, math.floor((expires_at - now).total_seconds()))


def remaining_minutes(expires_at: datetime, now: datetime, minute_seconds: int) -> int:
    """Return the minutes that are left, rounded up, never negative."""
    return max(0, math.ceil((expires_at - now).total_seconds() / minute_seconds))

"""The rules of time, as pure functions."""

import math
from datetime import datetime, timedelta
from fractions import Fraction

DURATIONS_MINUTES = (15, 30, 60)
WARNING_MINUTES = 2
FIRST_LOOK_MINUTES = Fraction(1, 4)
"""How long after a start somebody is looked for: meanwhile others start, who may be nearer."""


def length(minutes: int | Fraction, minute_seconds: int) -> timedelta:
    """Return how long `minutes` last when a minute has `minute_seconds` seconds."""
    return timedelta(seconds=float(minutes * minute_seconds))


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

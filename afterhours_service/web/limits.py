"""Rate limits per member: the library `limits`, on Redis. While Redis is away, nobody is limited."""

import time
from collections.abc import Callable
from functools import cache
from typing import Literal, TypeVar

from flask import Flask, Response, current_app, request
from limits import parse_many
from limits.storage import RedisStorage
from limits.strategies import FixedWindowRateLimiter

from afterhours_service.config import Settings
from afterhours_service.stores.redis import is_redis_away, redis_failed
from afterhours_service.web import errors, gate
from afterhours_service.web.gate import current_member_id

T = TypeVar("T", int, float)


class FailOpenStorage(RedisStorage):
    """Counts in Redis. While Redis is away it returns 0 without asking."""

    STORAGE_SCHEME = ["after-hours"]  # noqa: RUF012 - typed by limits

    def incr(self, key: str, expiry: int, amount: int = 1) -> int:
        """Add `amount` to `key`, which expires `expiry` seconds after its first increment; return the sum."""
        return _or_zero(lambda: super(FailOpenStorage, self).incr(key, expiry, amount))

    def get(self, key: str) -> int:
        """Return the sum of `key`."""
        return _or_zero(lambda: super(FailOpenStorage, self).get(key))

    def get_expiry(self, key: str) -> float:
        """Return when `key` expires, in seconds since the epoch."""
        return _or_zero(lambda: super(FailOpenStorage, self).get_expiry(key))


_parse = cache(parse_many)


def _or_zero(command: Callable[[], T]) -> T | Literal[0]:
    if is_redis_away():
        return 0
    try:
        return command()
    except Exception as error:  # noqa: BLE001 - a request that cannot be counted is allowed
        redis_failed(error)
        return 0


class LimitExceeded(Exception):
    """The member has asked too often; `reset_at` is when they may again, in seconds since the epoch."""

    def __init__(self, reset_at: float) -> None:
        super().__init__("too many requests")
        self.reset_at = reset_at


def count(limit: str, scope: str | None = None) -> None:
    """Count a request of the member's. Raises LimitExceeded, which answers with RateLimited or a failure of the gate.

    limit: such as `10 per hour`, or several of them, separated by semicolons. scope: what shares it; by default, the
    route has it alone.
    """
    limiter: FixedWindowRateLimiter | None = current_app.extensions["after_hours_limits"]
    if limiter is None:
        return
    for item in _parse(limit):
        counted = "after-hours", current_member_id(), scope or str(request.endpoint)
        if not limiter.hit(item, *counted):
            raise LimitExceeded(limiter.get_window_stats(item, *counted).reset_time)


def init_app(app: Flask, settings: Settings) -> None:
    """Set up the limits."""
    storage = FailOpenStorage("after-hours://", connection_pool=app.extensions["after_hours_redis"].connection_pool)
    app.extensions["after_hours_limits"] = FixedWindowRateLimiter(storage) if settings.ratelimit_enabled else None
    app.register_error_handler(LimitExceeded, _render)


def _render(error: LimitExceeded) -> Response:
    try:
        gate.settle()
    except errors.AppError as refusal:  # who is not admitted is told that; a handler must not raise
        return errors.render(refusal)
    seconds = max(1, int(error.reset_at - time.time()))
    return errors.render(errors.RateLimited(), {"Retry-After": str(seconds)})

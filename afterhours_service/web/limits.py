"""Rate limits per member: Flask-Limiter on Redis. While Redis is away, nobody is limited."""

import time
from collections.abc import Callable, Mapping

from flask import Blueprint, Flask, Response, request
from flask_limiter import Limiter, RateLimitExceeded
from flask_limiter.constants import ConfigVars
from limits.storage import RedisStorage

from afterhours_service.config import Settings, current_settings
from afterhours_service.stores.redis import is_redis_away, redis_failed
from afterhours_service.web import errors, gate
from afterhours_service.web.gate import current_member_id


class FailOpenStorage(RedisStorage):
    """Counts in Redis. While Redis is away it returns 0 without asking."""

    STORAGE_SCHEME = ["after-hours"]  # noqa: RUF012 - typed by limits

    def incr(self, key: str, expiry: int, amount: int = 1) -> int:
        """Add `amount` to `key`, which expires `expiry` seconds after its first increment; return the sum."""
        return _or_zero(lambda: super(FailOpenStorage, self).incr(key, expiry, amount))

    def get(self, key: str) -> int:
        """Return the sum of `key`."""
        return _or_zero(lambda: super(FailOpenStorage, self).get(key))


def _or_zero(command: Callable[[], int]) -> int:
    if is_redis_away():
        return 0
    try:
        return command()
    except Exception as error:  # noqa: BLE001 - a request that cannot be counted is allowed
        redis_failed(error)
        return 0


limiter = Limiter(key_func=current_member_id)
photo_limit = limiter.limit(lambda: current_settings().ratelimit_photo, override_defaults=False)
start_limit = limiter.limit(lambda: current_settings().ratelimit_start, override_defaults=False)


def apply_to(blueprint: Blueprint, own: Mapping[str, str]) -> None:
    """Give all routes of the blueprint one shared limit per member, checked before the gate queries the database.

    own: endpoints with a limit of their own instead of the shared one.
    """
    limiter.shared_limit(
        lambda: own.get(request.endpoint or "", current_settings().ratelimit_default),
        scope=lambda endpoint: endpoint if endpoint in own else "member",
    )(blueprint)


def init_app(app: Flask, settings: Settings) -> None:
    """Set up the limits."""
    app.config.update(
        {
            ConfigVars.ENABLED: settings.ratelimit_enabled,
            ConfigVars.STORAGE_URI: "after-hours://",
            ConfigVars.STORAGE_OPTIONS: {"connection_pool": app.extensions["after_hours_redis"].connection_pool},
            ConfigVars.KEY_PREFIX: "after-hours",
        }
    )
    limiter.init_app(app)
    app.register_error_handler(RateLimitExceeded, _render)


def _render(_error: RateLimitExceeded) -> Response:
    try:
        gate.settle()
    except errors.AppError as error:  # who is not admitted is told that; a handler must not raise
        return errors.render(error)
    limit = limiter.current_limit
    seconds = max(1, int(limit.reset_at - time.time())) if limit else 60
    return errors.render(errors.RateLimited(), {"Retry-After": str(seconds)})

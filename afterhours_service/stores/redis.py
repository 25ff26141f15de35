"""Redis: the client, the breaker that spares requests a Redis that is away, and the pipeline after a commit."""

import re
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import cast

from flask import Flask, current_app
from redis import Redis
from redis.backoff import NoBackoff
from redis.client import Pipeline
from redis.exceptions import (
    ClusterDownError,
    ConnectionError,  # noqa: A004 - the names that redis-py gave them
    NoPermissionError,
    ReadOnlyError,
    RedisError,
    ResponseError,
    TimeoutError,  # noqa: A004
)
from redis.retry import Retry
from rq.timeouts import BaseTimeoutException

from afterhours_service.config import Settings
from afterhours_service.telemetry import metrics
from afterhours_service.telemetry.log import get_logger

logger = get_logger(__name__)

Command = tuple[str | int, ...]

HTTP_TIMEOUT_SECONDS = 0.25

WORKER_TIMEOUT_SECONDS = 5.0

RECONNECT_SECONDS = 1.0

# Codes of answers that say "not this server, or not now": a replica, one that loads, one that lost its replicas …
# at the beginning, or behind what a pipeline or the script of an older Redis puts before it.
_NOT_SERVING = re.compile(r"(?:^|caused error: |-)(READONLY|MASTERDOWN|LOADING|CLUSTERDOWN|NOREPLICAS|UNBLOCKED|BUSY) ")

PROBE = "after-hours:probe"  # a key that is never there

WRITE: Command = ("SET", PROBE, "")


def connect(settings: Settings, timeout_seconds: float) -> Redis:
    """Return a client that gives up after `timeout_seconds`, whatever the URL says, without a second try."""
    redis = Redis.from_url(settings.redis_url, retry=Retry(NoBackoff(), 0))
    timeouts = {"socket_timeout": timeout_seconds, "socket_connect_timeout": timeout_seconds}
    redis.connection_pool.connection_kwargs.update(timeouts)
    return redis


def is_away(error: Exception) -> bool:
    """Tell whether Redis does not answer, or says that it does not serve: its name may lead to another by now."""
    known = ConnectionError | TimeoutError | ReadOnlyError | ClusterDownError  # MASTERDOWN is one of the latter
    return isinstance(error, known) or _NOT_SERVING.search(str(error)) is not None


def refusals(redis: Redis, *commands: Command) -> dict[str, str]:
    """Return which commands Redis would refuse, and the code that it gives: NOPERM, OOM …; none of them is executed.

    Raises RedisError when Redis does not answer or does not serve.
    """
    refused: dict[str, str] = {}
    with redis.client() as client:  # type: ignore[no-untyped-call]
        client.response_callbacks.clear()  # the answer to all is "queued"
        try:  # permissions and state are checked when a command is put into a transaction
            client.execute_command("MULTI")
        except NoPermissionError:
            return {"MULTI": "NOPERM"}
        try:
            for command in commands:
                try:
                    client.execute_command(*command)
                except ResponseError as error:
                    if is_away(error):
                        raise
                    refused[str(command[0])] = getattr(error, "status_code", None) or str(error).split()[0]
        finally:
            with suppress(RedisError):
                client.execute_command("DISCARD")
    return refused


class Breaker:
    """Spares requests a Redis that is away: once it has failed, only a thread of our own asks until it can write.

    A request therefore meets an unanswering Redis at most once per process and outage.
    """

    def __init__(self, redis: Redis) -> None:
        self._redis = redis
        self._lock = threading.Lock()
        self.open = False

    def trip(self, error: Exception) -> None:
        """Let nothing through until Redis serves again, over new connections: its name may lead elsewhere by then."""
        self._drop_connections()
        with self._lock:
            if self.open:
                return
            self.open = True
        metrics.BREAKER_OPEN.set(1)
        metrics.BREAKER_TRIPS.inc()
        logger.warning("redis away", error=type(error).__name__)
        threading.Thread(target=self._wait_for_redis, name="redis-breaker", daemon=True).start()

    def _wait_for_redis(self) -> None:
        while self.open:
            time.sleep(RECONNECT_SECONDS)
            try:
                refusals(self._redis, WRITE)
            except Exception:  # noqa: BLE001 - were this thread to end, the breaker would stay open for ever
                self._drop_connections()
                continue
            self.open = False
            metrics.BREAKER_OPEN.set(0)
            logger.info("redis back")

    def _drop_connections(self) -> None:
        # Those in use are left to whoever uses them, and meets the same error.
        with suppress(Exception):
            self._redis.connection_pool.disconnect(inuse_connections=False)


def init_app(app: Flask, settings: Settings) -> None:
    """Give the app its client of Redis, made for requests: short timeouts, no second try, a breaker."""
    _give(app, settings, HTTP_TIMEOUT_SECONDS)


def wait_as_workers_do(app: Flask) -> None:
    """Let what the app does take a Redis that is slow for one that is slow, not away: no member waits for a job."""
    _give(app, app.extensions["after_hours_settings"], WORKER_TIMEOUT_SECONDS)


def _give(app: Flask, settings: Settings, timeout_seconds: float) -> None:
    redis = connect(settings, timeout_seconds)
    app.extensions["after_hours_redis"] = redis
    app.extensions["after_hours_breaker"] = Breaker(redis)


def current_redis() -> Redis:
    """Return the current app's client of Redis."""
    return cast("Redis", current_app.extensions["after_hours_redis"])


def _current_breaker() -> Breaker:
    return cast("Breaker", current_app.extensions["after_hours_breaker"])


def redis_failed(error: Exception) -> None:
    """Take note that Redis refused; or that it did not answer or serve, so that the next request does not ask."""
    if is_away(error):
        _current_breaker().trip(error)
    elif isinstance(error, RedisError):
        logger.warning("redis refused", error=type(error).__name__)
    else:
        logger.error("redis could not be asked", exc_info=error)


def is_redis_away() -> bool:
    """Tell whether Redis did not answer when last asked."""
    return _current_breaker().open


@contextmanager
def only_logged(what: str) -> Iterator[None]:
    """Log whatever fails inside, and go on: for what follows a commit, and must not fail what was committed."""
    try:
        yield
    except BaseTimeoutException:  # a job's time is over
        raise
    except Exception:
        logger.exception(what)


@contextmanager
def after_commit() -> Iterator[Pipeline]:
    """Collect what a use case tells Redis once it has committed, and send it in one trip, command by command.

    Never raises, whatever fails inside or on the way: what is lost is logged, and made good by the reconciliation.
    """
    trip = current_redis().pipeline(transaction=False)
    with only_logged("not all was told"):
        yield trip
    send(trip)


def send(trip: Pipeline) -> bool:
    """Send what was collected, and tell whether Redis took it all; never raises."""
    if is_redis_away():
        return False
    try:
        trip.execute()
    except BaseTimeoutException:
        raise
    except Exception as error:  # noqa: BLE001 - what was committed stays so
        redis_failed(error)
        return False
    return True

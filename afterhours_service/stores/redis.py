"""Redis: the app's client, a circuit breaker, and the pipeline that is sent after a commit."""

import re
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any, cast

from flask import Flask, current_app
from redis import Redis
from redis import asyncio as aioredis
from redis.asyncio.retry import Retry as AsyncRetry
from redis.asyncio.sentinel import Sentinel as AsyncSentinel
from redis.backoff import NoBackoff
from redis.client import Pipeline
from redis.connection import parse_url
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
from redis.sentinel import Sentinel
from rq.timeouts import BaseTimeoutException

from afterhours_service.config import Settings
from afterhours_service.config.urls import SentinelUrl
from afterhours_service.telemetry import metrics
from afterhours_service.telemetry.log import get_logger

logger = get_logger(__name__)

Command = tuple[str | int, ...]

HTTP_TIMEOUT_SECONDS = 0.25

WORKER_TIMEOUT_SECONDS = 3.0

RECONNECT_SECONDS = 1.0

# Error codes of a server that cannot serve now: a replica, one that is loading, one that lost its replicas. They are
# at the start of the message, or after the prefix that a pipeline, or a script in an older Redis, adds.
_NOT_SERVING = re.compile(r"(?:^|caused error: |-)(READONLY|MASTERDOWN|LOADING|CLUSTERDOWN|NOREPLICAS|UNBLOCKED|BUSY) ")

PROBE = "after-hours:probe"  # a key that is never set

WRITE: Command = ("SET", PROBE, "")


def connect(settings: Settings, timeout_seconds: float) -> Redis:
    """Return a client that times out after `timeout_seconds`, whatever the URL says, and does not retry.

    With a URL of sentinels each new connection goes to the server that they call primary at that moment.
    """
    if url := SentinelUrl.parse(settings.redis_url):
        sentinel: Any = Sentinel(url.sentinels, **sentinel_arguments(url, timeout_seconds))  # type: ignore[no-untyped-call]
        redis = cast("Redis", sentinel.master_for(url.service))
        _follow(redis.connection_pool)
        return redis
    redis = Redis.from_url(settings.redis_url)
    redis.connection_pool.connection_kwargs.update(_arguments(timeout_seconds))
    return redis


def subscriber(settings: Settings) -> aioredis.Redis:
    """Return a client for an event loop, to listen with; it times out as a worker's does, and does not retry."""
    retry = AsyncRetry(NoBackoff(), 0)
    client: aioredis.Redis
    if url := SentinelUrl.parse(settings.redis_url):
        arguments = sentinel_arguments(url, WORKER_TIMEOUT_SECONDS, retry)
        sentinel: Any = AsyncSentinel(url.sentinels, **arguments)  # type: ignore[no-untyped-call]
        client = sentinel.master_for(url.service)
    else:
        client = aioredis.Redis.from_url(settings.redis_url)
        client.connection_pool.connection_kwargs.update(_arguments(WORKER_TIMEOUT_SECONDS, retry))
    return client


def sentinel_arguments(
    url: SentinelUrl, timeout_seconds: float, retry: Retry | AsyncRetry | None = None
) -> dict[str, Any]:
    """Return redis-py's arguments for the servers, and among them those for the sentinels; by default, no retry."""
    given: dict[str, Any] = parse_url(url.server)  # type: ignore[no-untyped-call]
    del given["host"]
    if given.pop("connection_class", None):
        given["ssl"] = True
    encryption = {name: value for name, value in given.items() if name.startswith("ssl")}
    account = {"username": url.username, "password": url.password}
    ours = _arguments(timeout_seconds, retry)
    return {**given, **ours, "sentinel_kwargs": {**encryption, **account, **ours}}


def _arguments(timeout_seconds: float, retry: Retry | AsyncRetry | None = None) -> dict[str, Any]:
    return {
        "socket_timeout": timeout_seconds,
        "socket_connect_timeout": timeout_seconds,
        "retry": retry or Retry(NoBackoff(), 0),
    }


def _follow(pool: Any) -> None:
    """Ask the sentinels again and again, so that no idle connection to a former primary is used.

    One that stood still would take what it is told, until the sentinels make it a replica.
    """
    reference = weakref.ref(pool)

    def ask() -> None:
        while known := reference():
            with suppress(Exception):  # the next connection says what is wrong
                known.get_master_address()  # drops connections to any other
            del known
            time.sleep(RECONNECT_SECONDS)

    threading.Thread(target=ask, name="redis-sentinel", daemon=True).start()


def is_away(error: Exception) -> bool:
    """Return whether Redis does not answer, or answers that it cannot serve."""
    known = ConnectionError | TimeoutError | ReadOnlyError | ClusterDownError  # MASTERDOWN is one of the latter
    return isinstance(error, known) or _NOT_SERVING.search(str(error)) is not None


def refusals(redis: Redis, *commands: Command) -> dict[str, str]:
    """Return the commands that Redis would refuse, each with its error code, such as NOPERM or OOM; execute none.

    Raises RedisError when Redis does not answer or cannot serve.
    """
    refused: dict[str, str] = {}
    with redis.client() as client:  # type: ignore[no-untyped-call]
        client.response_callbacks.clear()  # each command is answered by "QUEUED"
        try:  # Redis checks permissions and state when it queues a command of a transaction
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
    """A circuit breaker: after a failure no request uses Redis until a background thread finds that it accepts writes.

    So in an outage only one request per process waits for the timeout. when_back: called once Redis serves again.
    """

    def __init__(self, redis: Redis, when_back: Callable[[Redis], object] = lambda _redis: None) -> None:
        self._redis = redis
        self._when_back = when_back
        self._lock = threading.Lock()
        self.open = False

    def trip(self, error: Exception) -> None:
        """Open the breaker until Redis serves again. Drop its connections, as the host name may change."""
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
            except Exception:  # noqa: BLE001 - if this thread ended, the breaker would stay open forever
                self._drop_connections()
                continue
            self.open = False
            metrics.BREAKER_OPEN.set(0)
            logger.info("redis back")
            with only_logged("reconciliation not asked for"):
                self._when_back(self._redis)

    def _drop_connections(self) -> None:
        # Connections in use stay open: their users get the same error.
        with suppress(Exception):
            self._redis.connection_pool.disconnect(inuse_connections=False)


def init_app(app: Flask, settings: Settings, when_back: Callable[[Redis], object]) -> None:
    """Give the app a client for requests: a short timeout, no retry, a circuit breaker.

    when_back: called after an outage, in a thread of its own.
    """
    app.extensions["after_hours_when_back"] = when_back
    _set_client(app, settings, HTTP_TIMEOUT_SECONDS)


def use_worker_timeout(app: Flask) -> None:
    """Use the worker's longer Redis timeout: no member waits for a job."""
    _set_client(app, app.extensions["after_hours_settings"], WORKER_TIMEOUT_SECONDS)


def _set_client(app: Flask, settings: Settings, timeout_seconds: float) -> None:
    redis = connect(settings, timeout_seconds)
    app.extensions["after_hours_redis"] = redis
    app.extensions["after_hours_breaker"] = Breaker(redis, app.extensions["after_hours_when_back"])


def current_redis() -> Redis:
    """Return the current app's Redis client."""
    return cast("Redis", current_app.extensions["after_hours_redis"])


def _current_breaker() -> Breaker:
    return cast("Breaker", current_app.extensions["after_hours_breaker"])


def redis_failed(error: Exception) -> None:
    """Open the breaker if the error means that Redis is away; log any other."""
    if is_away(error):
        _current_breaker().trip(error)
    elif isinstance(error, RedisError):
        logger.warning("redis refused", error=type(error).__name__)
    else:
        logger.error("redis command failed", exc_info=error)


def is_redis_away() -> bool:
    """Return whether the breaker is open."""
    return _current_breaker().open


@contextmanager
def only_logged(message: str) -> Iterator[None]:
    """Log any exception under `message`, and continue: what follows a commit must not fail the request."""
    try:
        yield
    except BaseTimeoutException:  # the job's time limit
        raise
    except Exception:
        logger.exception(message)


@contextmanager
def after_commit() -> Iterator[Pipeline]:
    """Yield a pipeline for the side effects of a commit, and send it at the end of the block, command by command.

    Raises nothing but a job's timeout. Failures are logged; the reconciliation restores timers.
    """
    pipeline = current_redis().pipeline(transaction=False)
    with only_logged("after-commit step failed"):
        yield pipeline
    send(pipeline)


def send(pipeline: Pipeline) -> bool:
    """Send the pipeline, and return whether every command succeeded. Raises nothing but a job's timeout."""
    if is_redis_away():
        return False
    try:
        pipeline.execute()
    except BaseTimeoutException:
        raise
    except Exception as error:  # noqa: BLE001 - the commit stands
        redis_failed(error)
        return False
    return True

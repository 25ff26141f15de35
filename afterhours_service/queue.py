"""Redis: the one trip after a commit, the queues, and jobs that bring their own application context."""

import functools
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from types import FrameType
from typing import NoReturn, ParamSpec, TypeVar, cast

import structlog
from flask import Flask, current_app, has_app_context
from redis import Redis
from redis.backoff import NoBackoff
from redis.client import Pipeline
from redis.exceptions import RedisError
from redis.retry import Retry
from rq import Queue, SimpleWorker, get_current_job
from rq.exceptions import StopRequested
from werkzeug.utils import import_string

from afterhours_service.config import Settings
from afterhours_service.log import get_logger

logger = get_logger(__name__)

P = ParamSpec("P")
R = TypeVar("R")

TIMERS_QUEUE = "after-hours-timers"
MAINTENANCE_QUEUE = "after-hours-maintenance"
QUEUES = (TIMERS_QUEUE, MAINTENANCE_QUEUE)  # timers first

HTTP_TIMEOUT_SECONDS = 0.25
WORKER_TIMEOUT_SECONDS = 5.0
RECONNECT_SECONDS = 1.0
WORKER_TTL_SECONDS = 20  # a worker asks again, and so notices a silent Redis, within this
MAINTENANCE_SECONDS = 30  # how often a worker looks for the jobs of dead ones
JOB_TIMEOUT_SECONDS = 30
FAILURE_SECONDS = 3600  # how long a failed job can be looked at


def connect(settings: Settings, timeout_seconds: float) -> Redis:
    """Return a client that gives up after `timeout_seconds`, without a second try."""
    return Redis.from_url(
        settings.redis_url,
        socket_timeout=timeout_seconds,
        socket_connect_timeout=timeout_seconds,
        retry=Retry(NoBackoff(), 0),
    )


class Breaker:
    """Spares requests a Redis that is away: once it has failed, only a thread of our own asks until it answers.

    A request therefore meets an unanswering Redis at most once per process and outage.
    """

    def __init__(self, redis: Redis) -> None:
        self._redis = redis
        self._lock = threading.Lock()
        self.open = False

    def trip(self, error: RedisError) -> None:
        """Let nothing through until Redis answers again."""
        with self._lock:
            if self.open:
                return
            self.open = True
        logger.warning("redis away", error=type(error).__name__)
        threading.Thread(target=self._wait_for_redis, name="redis-breaker", daemon=True).start()

    def _wait_for_redis(self) -> None:
        while self.open:
            time.sleep(RECONNECT_SECONDS)
            try:
                self._redis.ping()
            except RedisError:
                continue
            self.open = False
            logger.info("redis back")


def init_app(app: Flask, settings: Settings) -> None:
    """Give the app its client of Redis, made for requests: short timeouts, no second try, a breaker."""
    redis = connect(settings, HTTP_TIMEOUT_SECONDS)
    app.extensions["after_hours_redis"] = redis
    app.extensions["after_hours_breaker"] = Breaker(redis)


def current_redis() -> Redis:
    """Return the current app's client of Redis."""
    return cast("Redis", current_app.extensions["after_hours_redis"])


def _current_breaker() -> Breaker:
    return cast("Breaker", current_app.extensions["after_hours_breaker"])


def is_redis_away() -> bool:
    """Tell whether Redis did not answer when last asked."""
    return _current_breaker().open


@contextmanager
def after_commit() -> Iterator[Pipeline]:
    """Collect what a use case tells Redis once it has committed, and send it in one trip.

    Never raises for Redis: what is lost is logged, and made good by the reconciliation.
    """
    trip = current_redis().pipeline()
    yield trip
    send(trip)


def send(trip: Pipeline) -> bool:
    """Send what was collected, and tell whether Redis took it; never raises for Redis."""
    if is_redis_away():
        return False
    try:
        trip.execute()
    except RedisError as error:
        _current_breaker().trip(error)
        return False
    return True


def enqueue(queue: str, function: str) -> None:
    """Put a job without arguments at the end of a queue.

    function: its dotted path. Raises RedisError when Redis is away.
    """
    Queue(queue, connection=current_redis()).enqueue(
        function, job_timeout=JOB_TIMEOUT_SECONDS, result_ttl=0, failure_ttl=FAILURE_SECONDS
    )


@functools.cache
def _own_app() -> Flask:
    """Make the app of a process that nobody made one for, such as a plain `rq worker`.

    By name, as jobs are: the factory stands on the top floor, and joins this module too.
    """
    app: Flask = import_string("afterhours_service:create_app")()
    return app


def job(function: Callable[P, R]) -> Callable[P, R]:
    """Give a job's function an application context of its own, and the request id of who asked for it."""

    @functools.wraps(function)
    def in_context(*args: P.args, **kwargs: P.kwargs) -> R:
        running = get_current_job()
        request_id = running.meta.get("request_id") if running else None
        app = current_app if has_app_context() else _own_app()
        # A context for each job: with it end its database session and transaction.
        with structlog.contextvars.bound_contextvars(job=function.__name__, request_id=request_id), app.app_context():
            return function(*args, **kwargs)

    return in_context


class Worker(SimpleWorker):
    """RQ's, without the fork, and patient for a second at most when Redis is away."""

    max_connection_wait_time = RECONNECT_SECONDS

    @property
    def shutdown_asked(self) -> bool:
        """Whether a signal asked this worker to stop."""
        return self._shutdown_requested_date is not None


def run_worker(app: Flask, queues: Sequence[str] = QUEUES) -> None:
    """Work until SIGTERM or SIGINT; wait for a Redis that is away, and go on when it is back.

    Runs the jobs in this process: a timer costs no fork. Each job has a time limit, and its statements have theirs.
    """
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, _stop)  # until RQ's own handlers are there
    connection = connect(app.extensions["after_hours_settings"], WORKER_TIMEOUT_SECONDS)
    with suppress(StopRequested):
        while True:
            worker = Worker(
                queues,
                connection=connection,
                maintenance_interval=MAINTENANCE_SECONDS,
                worker_ttl=WORKER_TTL_SECONDS,
                log_job_description=False,
            )
            try:
                with app.app_context():
                    worker.work()
            except RedisError as error:
                logger.warning("redis away", error=type(error).__name__)
            if worker.shutdown_asked:
                return
            time.sleep(RECONNECT_SECONDS)


def _stop(_signal: int, _frame: FrameType | None) -> NoReturn:
    raise StopRequested

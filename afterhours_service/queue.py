"""Redis: the one trip after a commit, the queues, and jobs that bring their own application context."""

import functools
import os
import re
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any, ParamSpec, TypeVar, cast

import structlog
from flask import Flask, current_app, has_app_context
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
from rq import Queue, SimpleWorker, get_current_job
from rq import Retry as RqRetry
from rq.exceptions import StopRequested
from rq.timeouts import BaseTimeoutException
from rq.worker import WorkerStatus
from werkzeug.utils import import_string

from afterhours_service import metrics
from afterhours_service.config import Settings
from afterhours_service.log import get_logger

logger = get_logger(__name__)

P = ParamSpec("P")
R = TypeVar("R")
Command = tuple[str | int, ...]

TIMERS_QUEUE = "after-hours-timers"
MAINTENANCE_QUEUE = "after-hours-maintenance"
QUEUES = (TIMERS_QUEUE, MAINTENANCE_QUEUE)  # timers first

HTTP_TIMEOUT_SECONDS = 0.25
WORKER_TIMEOUT_SECONDS = 5.0
RECONNECT_SECONDS = 1.0
STOP_SECONDS = 8  # how long what is in flight may take when the process is to stop
WORKER_TTL_SECONDS = 17  # RQ blocks for fifteen seconds less, then tells Redis that the worker lives
MAINTENANCE_SECONDS = 30  # how often a worker looks for the jobs of dead ones
JOB_TIMEOUT_SECONDS = 30
FAILURE_SECONDS = 3600  # how long a failed job can be looked at


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


def enqueue(queue: str, function: str, *arguments: str, tries: int = 1) -> None:
    """Put a job at the end of a queue.

    function: its dotted path. tries: how often RQ runs it, should it fail, or its worker die. Raises RedisError when
    Redis is away.
    """
    Queue(queue, connection=current_redis()).enqueue(
        function,
        *arguments,
        job_timeout=JOB_TIMEOUT_SECONDS,
        result_ttl=0,
        failure_ttl=FAILURE_SECONDS,
        retry=RqRetry(max=tries - 1) if tries > 1 else None,
    )


@functools.cache
def _own_app() -> Flask:
    """Make the app of a process that nobody made one for, such as a plain `rq worker`.

    By name, as jobs are: the factory stands on the top floor, and joins this module too.
    """
    app: Flask = import_string("afterhours_service:create_app")()
    wait_as_workers_do(app)
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
            begin, outcome = time.perf_counter(), "failed"
            try:
                result = function(*args, **kwargs)
                outcome = "done"
                return result
            finally:
                metrics.JOBS.labels(function.__name__, outcome).inc()
                metrics.JOB_SECONDS.labels(function.__name__).observe(time.perf_counter() - begin)

    return in_context


class Worker(SimpleWorker):
    """RQ's, without the fork, asking a Redis that is away each second, and told by signals only."""

    max_connection_wait_time = RECONNECT_SECONDS

    @property
    def connection_timeout(self) -> int:
        """How long a Redis that is connected, and silent, is waited for."""
        return int(WORKER_TIMEOUT_SECONDS)

    def subscribe(self) -> None:
        """Take no commands from Redis: their thread and connection would be left behind by an outage."""

    def _install_signal_handlers(self) -> None:
        """Leave in place those of `run_worker`, which outlive this worker."""

    def stop(self) -> None:
        """End the loop: after the job that is running, or at once.

        Raises StopRequested when there is none.
        """
        self._stop_requested = True
        if self.get_state() != WorkerStatus.BUSY:
            raise StopRequested

    def heartbeat(self, *args: Any, **kwargs: Any) -> None:
        """Tell Redis that the worker lives, unless it is to stop and somebody swallowed the exception that said so."""
        if self._stop_requested:
            self.stop()
        super().heartbeat(*args, **kwargs)


def run_worker(
    app: Flask, queues: Sequence[str] = QUEUES, at_start: Callable[[Redis, str], None] = lambda _redis, _url: None
) -> None:
    """Work until SIGTERM or SIGINT; wait for a Redis that is away, and go on when it is back.

    Runs the jobs in this process: a timer costs no fork. Each job has a time limit, and its statements have theirs.
    at_start: called once, with Redis and DATABASE_URL, before the first job.
    """
    worker: Worker | None = None
    stopped = False

    def stop() -> None:
        nonlocal stopped
        stopped = True
        if worker is None:
            raise StopRequested
        worker.stop()

    settings: Settings = app.extensions["after_hours_settings"]
    metrics.serve(settings.metrics_host, settings.metrics_port)
    wait_as_workers_do(app)
    connection = connect(settings, WORKER_TIMEOUT_SECONDS)
    with suppress(StopRequested):
        on_stop_signal(stop)
        at_start(connection, settings.database_url)
        while not stopped:
            try:
                worker = Worker(
                    queues,
                    connection=connection,
                    maintenance_interval=MAINTENANCE_SECONDS,
                    worker_ttl=WORKER_TTL_SECONDS,
                    log_job_description=False,
                )
                with app.app_context():
                    worker.work()
            except StopRequested:
                return
            except RedisError as error:
                logger.warning("redis away", error=type(error).__name__)
            except Exception:
                logger.exception("worker failed")  # and the next one takes over
            worker = None
            connection.connection_pool.disconnect()  # RQ logs errors of its own: whatever it was, begin anew
            time.sleep(0 if stopped else RECONNECT_SECONDS)


def on_stop_signal(stop: Callable[[], None]) -> None:
    """Have `stop` called at SIGTERM and SIGINT; whatever still hangs STOP_SECONDS later is cut short.

    The database rolls back what is cut short, and the reconciliation makes it good.
    """
    signals = (signal.SIGTERM, signal.SIGINT)
    # Python calls a handler when its main thread comes to it; what hangs in C never does. The pipe knows at once.
    arrivals, arrived = os.pipe()
    os.set_blocking(arrived, False)
    signal.set_wakeup_fd(arrived, warn_on_full_buffer=False)

    def watch() -> None:
        while os.read(arrivals, 1)[0] not in signals:
            pass
        time.sleep(STOP_SECONDS)
        os._exit(0)

    threading.Thread(target=watch, name="stop-watch", daemon=True).start()
    for number in signals:
        signal.signal(number, lambda _signal, _frame: stop())

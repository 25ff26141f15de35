"""Jobs: the queues, and functions that bring their own application context."""

import functools
import time
from collections.abc import Callable
from typing import Any, ParamSpec, TypeVar

import structlog
from flask import Flask, current_app, has_app_context
from rq import Queue, get_current_job
from rq import Retry as RqRetry
from werkzeug.utils import import_string

from afterhours_service.stores.redis import current_redis, wait_as_workers_do
from afterhours_service.telemetry import metrics
from afterhours_service.telemetry.log import get_logger

logger = get_logger(__name__)

P = ParamSpec("P")

R = TypeVar("R")

TIMERS_QUEUE = "after-hours-timers"

MAINTENANCE_QUEUE = "after-hours-maintenance"

QUEUES = (TIMERS_QUEUE, MAINTENANCE_QUEUE)  # timers first

JOB_TIMEOUT_SECONDS = 30

FAILURE_SECONDS = 3600  # how long a failed job can be looked at


def enqueue(queue: str, function: Callable[..., Any], *arguments: str, tries: int = 1) -> None:
    """Put a job at the end of a queue.

    tries: how often RQ runs it, should it fail, or its worker die. Raises RedisError when
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

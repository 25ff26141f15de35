"""Jobs: the queues, how to enqueue, and the decorator that gives a job its application context."""

import functools
import time
from collections.abc import Callable
from typing import Any, ParamSpec, TypeVar

import structlog
from flask import Flask, current_app, has_app_context
from rq import Queue, Retry, get_current_job
from werkzeug.utils import import_string

from afterhours_service.stores import watch
from afterhours_service.stores.redis import current_redis, use_worker_timeout
from afterhours_service.telemetry import metrics

P = ParamSpec("P")
R = TypeVar("R")

TIMERS_QUEUE = "after-hours-timers"
MATCHING_QUEUE = "after-hours-matching"
MAINTENANCE_QUEUE = "after-hours-maintenance"
QUEUES = (TIMERS_QUEUE, MATCHING_QUEUE, MAINTENANCE_QUEUE)  # in this order: nothing delays the end of a session

JOB_TIMEOUT_SECONDS = 30

FAILURE_SECONDS = 3600  # how long a failed job is kept


def enqueue(queue: str, function: Callable[..., Any], *arguments: str, retry: Retry | None = None) -> None:
    """Put a job at the end of a queue.

    retry: how often RQ runs it again if it fails or its worker dies. Raises RedisError when Redis is away.
    """
    Queue(queue, connection=current_redis()).enqueue(
        function,
        *arguments,
        job_timeout=JOB_TIMEOUT_SECONDS,
        result_ttl=0,
        failure_ttl=FAILURE_SECONDS,
        retry=retry,
    )


def job(function: Callable[P, R]) -> Callable[P, R]:
    """Run a job in an application context of its own, with the id of the request that led to it in its log lines."""

    @functools.wraps(function)
    def in_context(*args: P.args, **kwargs: P.kwargs) -> R:
        running = get_current_job()
        request_id = running.meta.get("request_id") if running else None
        app = current_app if has_app_context() else _own_app()
        # A new context for each job, so that its database session and transaction end with it.
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


@functools.cache
def _own_app() -> Flask:
    """Make the app of a process that has none, such as a plain `rq worker`.

    The factory is imported by name when needed, as it imports this module.
    """
    app: Flask = import_string("afterhours_service:create_app")()
    use_worker_timeout(app)
    watch.start(app)
    return app

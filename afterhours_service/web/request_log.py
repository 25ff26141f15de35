"""Each request's ID, its line in the log, and its metrics."""

import random
import time

import structlog
from flask import Flask, Response, g, request

from afterhours_service.stores.redis import only_logged
from afterhours_service.telemetry import log, metrics

LOGGER = "afterhours_service"  # not this module's name: operators filter by it


def init_app(app: Flask) -> None:
    """Give each request an ID, its client's if it is well-formed, and record its answer."""

    @app.before_request
    def begin() -> None:
        given = request.headers.get("X-Request-ID", "")
        g.started, g.request_id = time.perf_counter(), given if log.REQUEST_ID.fullmatch(given) else _new_id()
        structlog.contextvars.clear_contextvars()
        structlog.contextvars.bind_contextvars(request_id=g.request_id)

    @app.after_request
    def finish(response: Response) -> Response:
        response.headers["X-Request-ID"] = g.request_id
        with only_logged("request not recorded"):
            _record(response)
        return response


def _new_id() -> str:
    # uuid4 would ask the kernel each time, and then wait for the interpreter among the other threads.
    return f"{random.getrandbits(128):032x}"


def _record(response: Response) -> None:
    """Write the log line and count the request, by route: a path may contain personal data."""
    seconds = time.perf_counter() - g.started
    route = request.url_rule.rule if request.url_rule else None
    code = g.get("error_code")
    log.request_line(
        LOGGER,
        method=request.method,
        route=route,
        status=response.status_code,
        code=code,
        ms=round(seconds * 1000, 1),
    )
    method = request.method if route else "other"  # clients may send any method; each would be a time series
    metrics.REQUESTS.labels(method, route or "none", response.status_code, code or "").inc()
    metrics.REQUEST_SECONDS.labels(method, route or "none").observe(seconds)

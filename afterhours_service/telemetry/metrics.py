"""The metrics of each process, for Prometheus. No label identifies a member.

PROMETHEUS_MULTIPROC_DIR adds the numbers of the API's workers up. Their master sets it before they import this module.
"""

import os
from typing import cast

from prometheus_client import (
    REGISTRY,
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    disable_created_metrics,
    generate_latest,
    start_http_server,
)
from prometheus_client.multiprocess import MultiProcessCollector
from prometheus_client.registry import Collector
from sqlalchemy import Engine, QueuePool, event

from afterhours_service.telemetry.log import get_logger

logger = get_logger(__name__)

disable_created_metrics()  # type: ignore[no-untyped-call]

REQUESTS = Counter(
    "after_hours_http_requests_total",
    "Requests by route, status and error code (empty for a success).",
    ["method", "route", "status", "code"],
)
REQUEST_SECONDS = Histogram(
    "after_hours_http_request_duration_seconds",
    "Time to answer a request, without the HTTP server's own.",
    ["method", "route"],
    buckets=(0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10),
)
SESSIONS_STARTED = Counter("after_hours_sessions_started_total", "Sessions that members started.")
SESSIONS_EXTENDED = Counter("after_hours_sessions_extended_total", "Extensions of sessions.")
SESSIONS_ENDED = Counter("after_hours_sessions_ended_total", "Sessions that ended, by reason.", ["reason"])
EXPIRY_LAG = Histogram(
    "after_hours_expiry_lag_seconds",
    "Time from a session's expiry to its end in the database. The session does not count as active meanwhile.",
    buckets=(0.1, 0.25, 0.5, 1, 2, 5, 10, 30, 60, 300),
)
MATCHES_MADE = Counter("after_hours_matches_made_total", "Matches that were made.")
MATCHES_ENDED = Counter("after_hours_matches_ended_total", "Matches that ended, by reason.", ["reason"])
PAIRS_REFUSED = Counter(
    "after_hours_match_pairs_refused_total", "Proposed pairs that a rule forbade, or of whom one was about to change."
)
ROUND_SECONDS = Histogram(
    "after_hours_match_round_duration_seconds",
    "Time to match the members of a round.",
    buckets=(0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 20),
)
TIMERS = Counter(
    "after_hours_timers_total",
    "Timers armed for a session, released by an early end or an extension, and rearmed because they were missing.",
    ["action"],
)
JOBS = Counter("after_hours_jobs_total", "Jobs that workers ran, by outcome.", ["job", "outcome"])
JOB_SECONDS = Histogram(
    "after_hours_job_duration_seconds", "Duration of a job.", ["job"], buckets=(0.01, 0.05, 0.1, 0.5, 1, 5, 10, 30)
)
LIVE_CONNECTIONS = Gauge(
    "after_hours_live_connections", "Members' connections to the live gateway.", multiprocess_mode="livesum"
)
LIVE_SUBSCRIBED = Gauge(
    "after_hours_live_subscribed", "1 while the live gateway hears events from Redis.", multiprocess_mode="livemin"
)
LIVE_CONNECTS = Counter("after_hours_live_connects_total", "Handshakes by error code (empty for a success).", ["code"])
LIVE_ENDED = Counter("after_hours_live_ended_total", "Connections that the gateway ended, by reason.", ["reason"])
LIVE_CUT_OFF = Counter("after_hours_live_cut_off_total", "Connections of clients that did not read.")
LIVE_DELIVERED = Counter("after_hours_live_delivered_total", "Events and states sent to clients.")
LIVE_STATES = Counter(
    "after_hours_live_states_total", "States sent: at each connect, and to clients that may have missed an event."
)
BREAKER_OPEN = Gauge(
    "after_hours_redis_breaker_open", "1 while Redis is away and requests do not use it.", multiprocess_mode="livemax"
)
BREAKER_TRIPS = Counter(
    "after_hours_redis_breaker_trips_total", "How often the circuit breaker opened because Redis was away."
)
POOL_IN_USE = Gauge("after_hours_database_pool_in_use", "Database connections in use.", multiprocess_mode="livesum")
POOL_LIMIT = Gauge(
    "after_hours_database_pool_limit", "Limit of database connections in use.", multiprocess_mode="livesum"
)
SCHEDULER_ACTIVE = Gauge(
    "after_hours_scheduler_active", "1 if this scheduler is the active one.", multiprocess_mode="livemax"
)
JOBS_ENQUEUED = Counter("after_hours_scheduler_jobs_total", "Due timers and periodic jobs that the scheduler enqueued.")

# Create the series at the start, so that the first event is an increase.
for _reason in ("user", "operator", "timeout"):
    SESSIONS_ENDED.labels(_reason)
for _reason in ("declined", "unanswered", "timeout", "left", "blocked", "barred", "erased"):
    MATCHES_ENDED.labels(_reason)
for _reason in ("token expired", "barred", "too many connections"):
    LIVE_ENDED.labels(_reason)
for _action in ("armed", "released", "rearmed"):
    TIMERS.labels(_action)


def watch_pool(engine: Engine) -> None:
    """Update the gauges of the connection pool."""
    pool = engine.pool
    if not isinstance(pool, QueuePool):
        return

    limit = pool.size() + pool._max_overflow  # noqa: SLF001 - there is no public way
    event.listen(engine, "connect", lambda *_: POOL_LIMIT.set(limit))  # after the fork

    def in_use() -> int:
        return cast("QueuePool", engine.pool).checkedout()  # the engine may have a new pool by then

    event.listen(engine, "checkout", lambda *_: POOL_IN_USE.set(in_use()))
    # This event comes before the connection is back.
    event.listen(engine, "checkin", lambda *_: POOL_IN_USE.set(max(0, in_use() - 1)))


def exposition(*collectors: Collector) -> bytes:
    """Return the metrics of this process, or of all that share its directory, and those of the collectors."""
    registry = REGISTRY
    if "PROMETHEUS_MULTIPROC_DIR" in os.environ:
        registry = CollectorRegistry()
        MultiProcessCollector(registry)  # type: ignore[no-untyped-call]
    more = CollectorRegistry()
    for collector in collectors:
        more.register(collector)
    return generate_latest(registry) + generate_latest(more)


def serve(host: str, port: int | None) -> None:
    """Serve this process's metrics on a port, from a thread; do nothing if `port` is None.

    A port that is in use is logged as an error, and the process continues.
    """
    if port is None:
        return
    try:
        start_http_server(port, host)
    except OSError as error:
        logger.error("metrics are not served", port=port, error=str(error))  # noqa: TRY400 - the reason says it all

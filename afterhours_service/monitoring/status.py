"""The service as a whole: what database and Redis say of it, for operators and for Prometheus."""

import hmac
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from typing import cast

from flask import Blueprint, Response, request
from prometheus_client import CONTENT_TYPE_LATEST
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector
from redis.exceptions import RedisError
from rq import Worker
from sqlalchemy.exc import SQLAlchemyError

from afterhours_service.config import current_settings
from afterhours_service.jobs.jobs import QUEUES
from afterhours_service.jobs.runs import Run, recorded_runs
from afterhours_service.jobs.scheduler import active_scheduler
from afterhours_service.jobs.timers import count_armed
from afterhours_service.monitoring import health
from afterhours_service.sessions import queries as sessions
from afterhours_service.sessions.queries import Census
from afterhours_service.stores.redis import current_redis, is_redis_away
from afterhours_service.telemetry import metrics
from afterhours_service.web import errors

blueprint = Blueprint("monitoring", __name__)


@dataclass
class Status:
    """What is known of the service now; None and empty where the database or Redis is away."""

    database: str
    schema: str
    redis: str
    sessions: Census | None = None
    timers: int | None = None
    queues: dict[str, int] = field(default_factory=dict)
    workers: list[dict[str, str]] = field(default_factory=list)
    scheduler: str | None = None
    runs: dict[str, Run] = field(default_factory=dict)


def look_at_everything() -> Status:
    """Look at everything once. Raises nothing for a database or a Redis that is away."""
    parts = health.parts()
    found = Status(parts["database"], parts["schema"], parts["redis"])
    with suppress(SQLAlchemyError):
        found.sessions = sessions.census()
    if is_redis_away() or found.redis != "ok":
        return found
    redis = current_redis()
    try:
        found.timers = count_armed(redis)
        found.queues = {name: cast("int", redis.llen(f"rq:queue:{name}")) for name in QUEUES}
        found.workers = [
            {"name": worker.name, "state": worker.get_state(), "queues": ",".join(worker.queue_names())}
            for worker in Worker.all(connection=redis)
            if set(worker.queue_names()) & set(QUEUES)
        ]
        found.scheduler = active_scheduler(redis)
        found.runs = recorded_runs(redis)
    except RedisError:
        found.redis = "unavailable"
    return found


@blueprint.get("/metrics")
def get_metrics() -> Response:
    """Tell Prometheus, if it has the token; without METRICS_TOKEN there is nothing here."""
    token = current_settings().metrics_token
    if token is None:
        raise errors.NotFound
    given = request.authorization
    if given is None or given.type != "bearer" or not given.token:
        raise errors.AuthRequired
    if not hmac.compare_digest(given.token.encode(), token.encode()):
        raise errors.TokenInvalid
    return Response(metrics.exposition(StatusCollector()), content_type=CONTENT_TYPE_LATEST)


class StatusCollector(Collector):
    """The status as metrics: the same from every API process, so take the maximum over them."""

    def collect(self) -> Iterator[Metric]:
        """Yield what is known; what is not is left out."""
        now = look_at_everything()
        yield _gauge("database_up", "1 when the database answers.", now.database == "ok")
        yield _gauge("redis_up", "1 when Redis answers.", now.redis == "ok")
        yield _gauge("schema_current", "1 when the schema is not behind the code.", now.schema in {"ok", "newer"})
        if now.sessions:
            yield _gauge("sessions_active", "Active sessions.", now.sessions.active)
            yield _gauge("sessions_overdue", "Sessions that ran out and are not ended yet.", now.sessions.overdue)
            yield _gauge(
                "sessions_overdue_seconds", "How long the oldest of them has been.", now.sessions.overdue_seconds
            )
        if now.redis != "ok":
            return
        yield _gauge("timers_armed", "Timers, and the periodic jobs, that the scheduler holds.", now.timers or 0)
        yield _gauge("workers", "Workers that live.", len(now.workers))
        yield _gauge("schedulers_active", "1 when a scheduler holds the lease.", now.scheduler is not None)
        depth = GaugeMetricFamily("after_hours_queue_jobs", "Jobs that wait in a queue.", labels=["queue"])
        for queue, jobs in now.queues.items():
            depth.add_metric([queue], jobs)
        yield depth
        yield from _runs(now.runs)


def _gauge(name: str, text: str, value: float) -> Metric:
    return GaugeMetricFamily(f"after_hours_{name}", text, value=float(value))


def _runs(runs: dict[str, Run]) -> Iterator[Metric]:
    last = GaugeMetricFamily(
        "after_hours_periodic_finished_timestamp_seconds",
        "When a periodic job last came to its end, since the epoch.",
        labels=["job"],
    )
    finished = CounterMetricFamily("after_hours_periodic_finished", "Runs that came to their end.", labels=["job"])
    seconds = CounterMetricFamily("after_hours_periodic_seconds", "Time that the runs took.", labels=["job"])
    rows = CounterMetricFamily("after_hours_periodic_rows", "What the runs worked off.", labels=["job", "step"])
    for job, run in runs.items():
        if run.finished_at is not None:
            last.add_metric([job], run.finished_at)
        finished.add_metric([job], run.finished)
        seconds.add_metric([job], run.seconds)
        for step, count in run.rows.items():
            rows.add_metric([job, step], count)
    yield from (last, finished, seconds, rows)

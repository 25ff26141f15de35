"""GET /metrics, for Prometheus: what this process counts, and the status of the service as gauges."""

import hmac
from collections.abc import Iterator

from flask import Blueprint, Response, request
from prometheus_client import CONTENT_TYPE_LATEST
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from afterhours_service.config import current_settings
from afterhours_service.jobs.runs import Run
from afterhours_service.monitoring.status import current_status
from afterhours_service.telemetry import metrics
from afterhours_service.web import errors

blueprint = Blueprint("monitoring", __name__)


@blueprint.get("/metrics")
def get_metrics() -> Response:
    """Return the metrics to callers with METRICS_TOKEN; where none is set, answer 404."""
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
    """The status as metrics. Every API process reports the same: take the maximum over them."""

    def collect(self) -> Iterator[Metric]:
        """Yield what is known, and leave out the rest."""
        now = current_status()
        yield _gauge("database_up", "1 if the database accepts writes.", now.health.database == "ok")
        yield _gauge("redis_up", "1 if Redis accepts what the service sends.", now.health.redis == "ok")
        yield _gauge("schema_current", "1 if the schema is not behind the code.", now.health.is_schema_current)
        if now.sessions:
            yield _gauge("sessions_active", "Active sessions.", now.sessions.active)
            yield _gauge("sessions_overdue", "Sessions that have expired and are not ended yet.", now.sessions.overdue)
            yield _gauge(
                "sessions_overdue_seconds",
                "Seconds since the oldest overdue session expired.",
                now.sessions.overdue_seconds,
            )
        if now.search:
            yield _gauge("match_searching", "Live members with a search, matched or not.", now.search.searching)
            yield _gauge("match_waiting", "Live members without a match.", now.search.waiting)
            yield _gauge(
                "match_waiting_seconds_max", "How long the longest of them has waited.", now.search.longest_seconds
            )
            yield _gauge("matches_live", "Live matches.", now.search.matches)
            yield _gauge("match_late", "Matches and members overdue for a worker by half a minute.", now.search.late)
        if now.health.redis != "ok":
            return
        yield _gauge("timers_armed", "Scheduled timers and periodic jobs.", now.timers or 0)
        yield _gauge("workers", "Live workers.", len(now.workers))
        yield _gauge("schedulers_active", "1 if a scheduler holds the lease.", now.scheduler is not None)
        depth = GaugeMetricFamily("after_hours_queue_jobs", "Jobs waiting in a queue.", labels=["queue"])
        for queue, jobs in now.queues.items():
            depth.add_metric([queue], jobs)
        yield depth
        yield from _runs(now.runs)


def _gauge(name: str, text: str, value: float) -> Metric:
    return GaugeMetricFamily(f"after_hours_{name}", text, value=float(value))


def _runs(runs: dict[str, Run]) -> Iterator[Metric]:
    last = GaugeMetricFamily(
        "after_hours_periodic_finished_timestamp_seconds",
        "When a periodic job last finished, in seconds since the epoch.",
        labels=["job"],
    )
    finished = CounterMetricFamily("after_hours_periodic_finished", "Finished runs of a periodic job.", labels=["job"])
    seconds = CounterMetricFamily(
        "after_hours_periodic_seconds", "Total duration of the runs of a periodic job.", labels=["job"]
    )
    rows = CounterMetricFamily(
        "after_hours_periodic_rows", "Rows that the runs of a periodic job processed.", labels=["job", "step"]
    )
    for job, run in runs.items():
        if run.finished_at is not None:
            last.add_metric([job], run.finished_at)
        finished.add_metric([job], run.finished)
        seconds.add_metric([job], run.seconds)
        for step, count in run.rows.items():
            rows.add_metric([job, step], count)
    yield from (last, finished, seconds, rows)

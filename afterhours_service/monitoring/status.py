"""The state of the service as a whole, from database and Redis: for operators, and for Prometheus."""

from contextlib import suppress
from dataclasses import asdict, dataclass, field
from typing import Any, cast

from redis.exceptions import RedisError
from rq import Worker
from sqlalchemy.exc import SQLAlchemyError

from afterhours_service.config import current_settings
from afterhours_service.jobs.jobs import QUEUES
from afterhours_service.jobs.runs import Run, recorded_runs
from afterhours_service.jobs.scheduler import active_scheduler
from afterhours_service.jobs.timers import count_armed
from afterhours_service.matching import queries as matching
from afterhours_service.monitoring import health
from afterhours_service.monitoring.health import Health
from afterhours_service.sessions import queries as sessions
from afterhours_service.sessions.queries import Census
from afterhours_service.stores.redis import current_redis, is_redis_away


@dataclass
class Status:
    """What is known of the service now; None and empty where the database or Redis is unavailable.

    search: None as well while matching is switched off.
    """

    health: Health
    sessions: Census | None = None
    search: matching.Census | None = None
    timers: int | None = None
    queues: dict[str, int] = field(default_factory=dict)
    workers: list[dict[str, str]] = field(default_factory=list)
    scheduler: str | None = None
    runs: dict[str, Run] = field(default_factory=dict)

    def as_dict(self) -> dict[str, Any]:
        """Return it for JSON, with health's parts beside the others."""
        others = {name: value for name, value in asdict(self).items() if name != "health"}
        counted = {"sessions": self.sessions, "search": self.search}
        return {**self.health._asdict(), **others, **{name: each and each._asdict() for name, each in counted.items()}}


def current_status() -> Status:
    """Look at everything once. Raises nothing when the database or Redis is unavailable."""
    status = Status(health.check())
    with suppress(SQLAlchemyError):
        status.sessions = sessions.census()
        if current_settings().matching_enabled:
            status.search = matching.census()
    if is_redis_away() or status.health.redis != "ok":
        return status
    redis = current_redis()
    try:
        status.timers = count_armed(redis)
        status.queues = {name: cast("int", redis.llen(f"rq:queue:{name}")) for name in QUEUES}
        status.workers = [
            {"name": worker.name, "state": worker.get_state(), "queues": ",".join(worker.queue_names())}
            for worker in Worker.all(connection=redis)
            if set(worker.queue_names()) & set(QUEUES)
        ]
        status.scheduler = active_scheduler(redis)
        status.runs = recorded_runs(redis)
    except RedisError:
        status.health = status.health._replace(redis="unavailable")
    return status

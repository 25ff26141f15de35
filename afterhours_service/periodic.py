"""The list of the periodic jobs, and the scheduler that keeps it."""

from afterhours_service import log, metrics
from afterhours_service.config import Settings
from afterhours_service.queue import WORKER_TIMEOUT_SECONDS, connect
from afterhours_service.timers import Periodic, Scheduler

RECONCILE_SECONDS = 60


def periodic_jobs(settings: Settings) -> tuple[Periodic, ...]:
    """Return the jobs that come again, with fixed ids."""
    return (
        Periodic("after-hours-reconcile", "afterhours_service.sessions.jobs.reconcile", seconds=RECONCILE_SECONDS),
        Periodic("after-hours-cleanup", "afterhours_service.cleanup.jobs.cleanup", cron=settings.cleanup_cron),
    )


def run_scheduler(settings: Settings) -> None:
    """Hand timers over until SIGTERM or SIGINT."""
    log.configure(settings.log_level)
    metrics.serve(settings.metrics_host, settings.metrics_port)
    Scheduler(connect(settings, WORKER_TIMEOUT_SECONDS), periodic_jobs(settings)).run()

"""The processes beside the API: `after-hours-worker [QUEUE…]`, `after-hours-scheduler`, and its periodic jobs."""

import argparse

from afterhours_service import create_app
from afterhours_service.cleanup import jobs as cleanup
from afterhours_service.config import Settings
from afterhours_service.jobs.jobs import QUEUES
from afterhours_service.jobs.scheduler import Periodic, run_scheduler, warn_of_neighbours
from afterhours_service.jobs.worker import run_worker
from afterhours_service.sessions import jobs as sessions

RECONCILE_SECONDS = 60
RESUME_SECONDS = 30


def periodic_jobs(settings: Settings) -> tuple[Periodic, ...]:
    """Return the jobs that come again, with fixed ids."""
    return (
        Periodic("after-hours-reconcile", sessions.reconcile, seconds=RECONCILE_SECONDS),
        Periodic("after-hours-cleanup", cleanup.cleanup, cron=settings.cleanup_cron),
        Periodic("after-hours-cleanup-resume", cleanup.resume, seconds=RESUME_SECONDS),
    )


def worker() -> None:
    """Run a worker until SIGTERM or SIGINT. Raises SettingsError."""
    parser = argparse.ArgumentParser(description="Run timers and maintenance jobs.")
    parser.add_argument("queues", nargs="*", metavar="QUEUE", help=f"by default {' '.join(QUEUES)}")
    queues = parser.parse_args().queues or QUEUES
    run_worker(create_app(), queues, at_start=warn_of_neighbours)


def scheduler() -> None:
    """Run a scheduler until SIGTERM or SIGINT. Raises SettingsError."""
    argparse.ArgumentParser(
        description="Enqueue timers when they are due. Several may run; one is active."
    ).parse_args()
    settings = Settings.from_environ()
    run_scheduler(settings, periodic_jobs(settings))

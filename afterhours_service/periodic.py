"""The periodic jobs: all that runs by the clock, and not because of a member."""

from afterhours_service.cleanup import jobs as cleanup
from afterhours_service.config import Settings
from afterhours_service.jobs.scheduler import Periodic
from afterhours_service.sessions import jobs as sessions


def periodic_jobs(settings: Settings) -> tuple[Periodic, ...]:
    """Return the periodic jobs. Their ids are fixed: the scheduler finds them in Redis by id."""
    return (
        Periodic("after-hours-reconcile", sessions.reconcile, seconds=60),
        Periodic("after-hours-cleanup", cleanup.cleanup, cron=settings.cleanup_cron),
        Periodic("after-hours-cleanup-resume", cleanup.resume, seconds=30),
    )

"""The processes, `after-hours-api`, `-worker [QUEUE…]`, `-scheduler` and `-live`, and the periodic jobs."""

import argparse

from afterhours_service import create_app
from afterhours_service.cleanup import jobs as cleanup
from afterhours_service.config import Settings
from afterhours_service.jobs.jobs import MATCHING_QUEUE, QUEUES
from afterhours_service.jobs.scheduler import Periodic, run_scheduler
from afterhours_service.jobs.timers import MATCHING, RECONCILIATION
from afterhours_service.jobs.worker import run_worker
from afterhours_service.matching import jobs as matching
from afterhours_service.server.master import run_api
from afterhours_service.sessions import jobs as sessions


def periodic_jobs(settings: Settings) -> tuple[Periodic, ...]:
    """Return the periodic jobs. Their ids are fixed: the scheduler finds them in Redis by id."""
    looks = (Periodic(MATCHING, matching.look, seconds=30, queue=MATCHING_QUEUE),) if settings.matching_enabled else ()
    return (
        *looks,
        Periodic(RECONCILIATION, sessions.reconcile, seconds=60),
        Periodic("after-hours-cleanup", cleanup.cleanup, cron=settings.cleanup_cron),
        Periodic("after-hours-cleanup-resume", cleanup.resume, seconds=30),
    )


def api() -> None:
    """Run the API until SIGTERM or SIGINT. Raises SettingsError."""
    parser = argparse.ArgumentParser(description="Serve the HTTP API. Any number may run.")
    parser.parse_args()
    run_api(Settings.from_environ(), create_app)


def worker() -> None:
    """Run a worker until SIGTERM or SIGINT. Raises SettingsError."""
    parser = argparse.ArgumentParser(description="Run timers and maintenance jobs.")
    parser.add_argument("queues", nargs="*", metavar="QUEUE", help=f"by default {' '.join(QUEUES)}")
    queues = parser.parse_args().queues or QUEUES
    run_worker(create_app(), queues)


def scheduler() -> None:
    """Run a scheduler until SIGTERM or SIGINT. Raises SettingsError."""
    parser = argparse.ArgumentParser(description="Enqueue timers when they are due. Several may run; one is active.")
    parser.parse_args()
    settings = Settings.from_environ()
    run_scheduler(create_app(settings), periodic_jobs(settings))


def live() -> None:
    """Run a live gateway until SIGTERM or SIGINT. Raises SettingsError."""
    parser = argparse.ArgumentParser(description="Deliver events to members' phones. Any number may run.")
    parser.parse_args()
    # Imported here: Socket.IO and its server take 0.1 s and 10 MB that no other process needs.
    from afterhours_service.live.server import run_gateway  # noqa: PLC0415

    run_gateway(create_app())

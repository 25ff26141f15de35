"""The processes beside the API, as commands: `after-hours-worker [QUEUE…]` and `after-hours-scheduler`."""

import argparse

from afterhours_service import create_app
from afterhours_service.config import Settings
from afterhours_service.jobs.jobs import QUEUES
from afterhours_service.jobs.scheduler import run_scheduler
from afterhours_service.jobs.worker import run_worker
from afterhours_service.periodic import periodic_jobs


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

"""The processes beside the API, as commands: `after-hours-worker [QUEUE…]` and `after-hours-scheduler`."""

import argparse

from afterhours_service import create_app
from afterhours_service.config import Settings
from afterhours_service.periodic import run_scheduler
from afterhours_service.queue import QUEUES, run_worker
from afterhours_service.timers import warn_of_neighbours


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
    run_scheduler(Settings.from_environ())

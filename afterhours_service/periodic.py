"""The list of the periodic jobs, and the scheduler that keeps it."""

import time

from sqlalchemy import Engine, NullPool, create_engine, text
from sqlalchemy.exc import SQLAlchemyError

from afterhours_service import log, metrics
from afterhours_service.config import Settings
from afterhours_service.extensions import connect_args
from afterhours_service.queue import WORKER_TIMEOUT_SECONDS, connect
from afterhours_service.timers import Periodic, Scheduler, warn_of_neighbours

logger = log.get_logger(__name__)

RECONCILE_SECONDS = 60
RESUME_SECONDS = 30


def periodic_jobs(settings: Settings) -> tuple[Periodic, ...]:
    """Return the jobs that come again, with fixed ids."""
    return (
        Periodic("after-hours-reconcile", "afterhours_service.sessions.jobs.reconcile", seconds=RECONCILE_SECONDS),
        Periodic("after-hours-cleanup", "afterhours_service.cleanup.jobs.cleanup", cron=settings.cleanup_cron),
        Periodic("after-hours-cleanup-resume", "afterhours_service.cleanup.jobs.resume", seconds=RESUME_SECONDS),
    )


def run_scheduler(settings: Settings) -> None:
    """Hand timers over until SIGTERM or SIGINT."""
    log.configure(settings.log_level)
    metrics.serve(settings.metrics_host, settings.metrics_port)
    engine = create_engine(
        settings.database_url,
        poolclass=NullPool,
        connect_args=connect_args(settings.database_url, "statement_timeout=1s", connect_timeout=2),  # within the lease
    )
    connection = connect(settings, WORKER_TIMEOUT_SECONDS)
    warn_of_neighbours(connection, settings.database_url)
    Scheduler(connection, periodic_jobs(settings), lambda: seconds_behind(engine)).run()


def seconds_behind(engine: Engine) -> float | None:
    """Return how far this machine's clock is behind the database's, rounded down; None when that is away.

    Measured after the answer, so that no timer comes too soon.
    """
    try:
        with engine.connect() as connection:
            theirs: float = connection.execute(text("SELECT extract(epoch FROM clock_timestamp())::float")).scalar_one()
            return theirs - time.time()
    except SQLAlchemyError as error:
        logger.warning("database away", error=type(error).__name__)
        return None

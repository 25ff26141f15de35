"""The cleanup as a job."""

from afterhours_service.cleanup import service
from afterhours_service.log import get_logger
from afterhours_service.queue import MAINTENANCE_QUEUE, enqueue, job

logger = get_logger(__name__)

SLICE_SECONDS = 0.2  # a timer that falls due meanwhile waits no longer


@job
def cleanup() -> None:
    """Clean up for a moment; come back behind the waiting timers when something is left."""
    counts, done = service.run(seconds=SLICE_SECONDS)
    logger.info("cleaned up", done=done, **counts)
    if not done:
        enqueue(MAINTENANCE_QUEUE, "afterhours_service.cleanup.jobs.cleanup")

"""The cleanup as a job."""

from afterhours_service.cleanup import service
from afterhours_service.log import get_logger
from afterhours_service.queue import MAINTENANCE_QUEUE, enqueue, job
from afterhours_service.runs import recorded

logger = get_logger(__name__)

SLICE_SECONDS = 0.2  # a timer that falls due meanwhile waits no longer


@job
def cleanup() -> None:
    """Clean up for a moment; come back behind the waiting timers when something is left, then turn to the photos."""
    with recorded("cleanup") as run:
        counts, done = service.run(seconds=SLICE_SECONDS)
        run.update(counts, done=done)
    logger.info("cleaned up", done=done, **counts)
    enqueue(MAINTENANCE_QUEUE, f"{__name__}.{'cleanup_photos' if done else 'cleanup'}")


@job
def cleanup_photos(after: str = "") -> None:
    """Delete the photos that no profile names, from the key `after` on, for a moment."""
    with recorded("cleanup_photos") as run:
        deleted, last = service.delete_orphaned_photos(after, SLICE_SECONDS)
        run.update(photos=deleted, done=last is None)
    logger.info("photos cleaned up", done=last is None, photos=deleted)
    if last:
        enqueue(MAINTENANCE_QUEUE, f"{__name__}.cleanup_photos", last)

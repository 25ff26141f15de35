"""The nightly cleanup: batches, each its own short transaction, in slices that let timers pass."""

import time
from collections.abc import Callable
from datetime import timedelta

from afterhours_service.cleanup import queries
from afterhours_service.extensions import current_settings, db
from afterhours_service.log import get_logger
from afterhours_service.profiles import photo
from afterhours_service.sessions import service as sessions
from afterhours_service.storage import StorageUnavailable

logger = get_logger(__name__)

BATCH = 200  # rows a transaction deletes: on a slow disk its log is flushed in front of everybody else's
Progress = Callable[[str, int], None]

# Sessions last of what refers to them: their deletion orphans fingerprints, so those come after.
STEPS: dict[str, Callable[[int, timedelta], int]] = {
    "declines": queries.delete_old_declines,
    "sessions": queries.delete_old_sessions,
    "fingerprints": queries.delete_orphaned_fingerprints,
    "profiles": queries.delete_orphaned_profiles,
    "preferences": queries.delete_orphaned_preferences,
}


def pending() -> dict[str, int]:
    """Return how many rows and photos each step would work off now; changes nothing.

    Raises StorageUnavailable.
    """
    counts = queries.count(_retention())
    db.session.rollback()
    counts["photos"] = photo.count_orphans()
    return counts


def run(progress: Progress = lambda _step, _rows: None, seconds: float | None = None) -> tuple[dict[str, int], bool]:
    """Work off what is due, and return the rows per step, and whether nothing is left.

    seconds: stop after about so long, for another run to go on. Stops at once when another cleanup is at work, which
    goes on by itself. Safe to run twice, late or never: a run does what is due when it runs.
    """
    end = time.monotonic() + seconds if seconds is not None else None
    counts = {"overdue_sessions": sessions.do_what_is_due().ended}
    progress("overdue_sessions", counts["overdue_sessions"])
    for step, delete in STEPS.items():
        counts[step] = 0
        while True:
            if not queries.try_lock():
                db.session.rollback()
                logger.info("another cleanup is at work")
                return counts, True
            deleted = delete(BATCH, _retention())
            db.session.commit()
            counts[step] += deleted
            progress(step, deleted)
            if deleted < BATCH:
                break
            if end is not None and time.monotonic() > end:
                return counts, False
    return counts, True


def delete_orphaned_photos(after: str = "", seconds: float | None = None) -> tuple[int, str | None]:
    """Delete the photos that no profile names; return how many, and the key to go on from, None at the end.

    seconds: stop after about so long. A storage that is away is logged, and tried again the next night.
    """
    end = time.monotonic() + seconds if seconds is not None else None
    total = 0
    try:
        for deleted, last in photo.delete_orphans(after):
            total += deleted
            if end is not None and time.monotonic() > end:
                return total, last
    except StorageUnavailable as error:
        logger.warning("storage unavailable", error=str(error))
    return total, None


def _retention() -> timedelta:
    return timedelta(days=current_settings().retention_days)

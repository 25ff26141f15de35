"""The nightly cleanup: batches, each its own short transaction, in slices between which timers run."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import timedelta

from sqlalchemy.exc import DBAPIError

from afterhours_service.cleanup import queries
from afterhours_service.cleanup.queries import Place
from afterhours_service.config import current_settings
from afterhours_service.profiles import photo
from afterhours_service.sessions import service as sessions
from afterhours_service.stores.connection import transaction
from afterhours_service.telemetry.log import get_logger

logger = get_logger(__name__)

BATCH = 200  # rows a transaction deletes: few, as on a slow disk other commits wait while its log is flushed
STEPS = ("overdue_sessions", *queries.STEPS, "photos")
# SQLSTATE classes of failures that a row causes: by what refers to it, by its lock, or by a trigger of the host's.
_ROW_FAILURES = {"23", "40", "55", "57", "P0"}

Progress = Callable[[str, int], None]


class Busy(Exception):
    """Another cleanup is running."""


@dataclass
class Round:
    """The progress of a cleanup that goes once through all steps.

    step: the current one; None at the end. after: the last row that it looked at, or the last photo's key.
    counts: rows ended or deleted, by step. left: rows that should have been and were not, and steps that failed.
    """

    step: str | None = STEPS[0]
    after: Place | None = None
    counts: dict[str, int] = field(default_factory=lambda: dict.fromkeys(STEPS, 0))
    left: int = 0


def pending() -> dict[str, int]:
    """Return how many rows and photos each step would end or delete now; changes nothing.

    Raises StorageUnavailable.
    """
    return {**queries.count(_kept()), "photos": photo.count_orphans()}


def run(
    round_: Round | None = None, seconds: float | None = None, progress: Progress = lambda _step, _rows: None
) -> Round:
    """Continue a round, or begin one, until its end, and return it. Safe to run twice, late or never.

    The round is updated along the way. A step that fails does not stop the other steps, nor does a row stop the other
    rows of its batch. seconds: stop after about so long. Raises Busy when another cleanup is running.
    """
    round_ = round_ or Round()
    end = time.monotonic() + seconds if seconds is not None else None
    while round_.step:
        step = round_.step
        try:
            rows, done = _work(round_, end)
        except Busy:
            raise
        except Exception as error:
            logger.exception("cleanup step failed", step=step, error=type(error).__name__)
            round_.left += 1
            rows, done = 0, True
        round_.counts[step] += rows
        progress(step, rows)
        if done:
            round_.step, round_.after = next(iter(STEPS[STEPS.index(step) + 1 :]), None), None
        if _is_over(end):
            break
    return round_


def _work(round_: Round, end: float | None) -> tuple[int, bool]:
    """Do a batch of the step; return the rows, and whether the step is done."""
    if round_.step == "overdue_sessions":
        return sessions.do_what_is_due().ended, True
    if round_.step == "photos":
        return _delete_photos(round_, end)
    return _delete_rows(round_, end)


def _delete_rows(round_: Round, end: float | None) -> tuple[int, bool]:
    step, kept = str(round_.step), _kept()
    found: list[Place] = []
    try:
        with _exclusive_transaction():
            found = queries.find(step, BATCH, kept, round_.after)
            deleted = queries.delete_rows(step, found, kept) if found else 0
    except DBAPIError as error:
        if not found:
            raise
        _log_failed_rows(step, error)
        return _delete_one_by_one(round_, found, end)
    round_.left += len(found) - deleted
    round_.after = found[-1] if found else None
    return deleted, len(found) < BATCH


def _delete_one_by_one(round_: Round, found: list[Place], end: float | None) -> tuple[int, bool]:
    """Delete the rows of a batch except those that make it fail, as many as there is time for."""
    step, total = str(round_.step), 0
    for place in found:
        try:
            with _exclusive_transaction():
                deleted = queries.delete_rows(step, [place], _kept())
        except DBAPIError as error:
            _log_failed_rows(step, error)
            deleted = 0
        total += deleted
        round_.left += 1 - deleted
        round_.after = place
        if _is_over(end):
            return total, False
    return total, len(found) < BATCH


def _log_failed_rows(step: str, error: DBAPIError) -> None:
    """Log that rows are not deleted. Raises the error when it is not a row that caused it."""
    code = str(getattr(error.orig, "pgcode", "") or "")
    if error.connection_invalidated or code[:2] not in _ROW_FAILURES:
        raise error
    constraint = getattr(getattr(error.orig, "diag", None), "constraint_name", None)
    logger.warning("rows are not deleted", step=step, error=type(error.orig).__name__, constraint=constraint)


def _delete_photos(round_: Round, end: float | None) -> tuple[int, bool]:
    """Delete the photos that no profile refers to, beyond the round's key."""
    total = 0
    for deleted, last in photo.delete_orphans(round_.after[0] if round_.after else ""):
        total += deleted
        round_.after = [last] if last else None
        if _is_over(end):
            return total, round_.after is None
    return total, True


@contextmanager
def _exclusive_transaction() -> Iterator[None]:
    """Run a transaction of which there is one at a time. Raises Busy when another cleanup has one."""
    with transaction():
        if not queries.try_lock():
            raise Busy
        yield


def _is_over(end: float | None) -> bool:
    return end is not None and time.monotonic() > end


def _kept() -> queries.Kept:
    settings = current_settings()
    return queries.Kept(timedelta(days=settings.retention_days), timedelta(days=settings.place_days))

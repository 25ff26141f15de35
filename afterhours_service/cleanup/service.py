"""The nightly cleanup: batches, each its own short transaction, in slices that let timers pass."""

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import timedelta

from sqlalchemy.exc import DBAPIError

from afterhours_service.cleanup import queries
from afterhours_service.cleanup.queries import Place
from afterhours_service.config import current_settings
from afterhours_service.profiles import photo
from afterhours_service.sessions import service as sessions
from afterhours_service.stores.database import db
from afterhours_service.telemetry.log import get_logger

logger = get_logger(__name__)

BATCH = 200  # rows a transaction deletes: on a slow disk its log is flushed in front of everybody else's
STEPS = ("overdue_sessions", *queries.STEPS, "photos")
# SQLSTATE classes: what a row is to blame for, by what refers to it, who locks it, or a trigger of the host's.
_OF_A_ROW = {"23", "40", "55", "57", "P0"}

Progress = Callable[[str, int], None]


class Busy(Exception):
    """Another cleanup is at work."""


@dataclass
class Round:
    """How far a cleanup has come that goes once through all steps.

    step: the one that it is at; None at the end. after: the last row there that was looked at, or photo's key.
    counts: the rows that were worked off, by step. left: those that should have been and were not, and steps that
    failed.
    """

    step: str | None = STEPS[0]
    after: Place | None = None
    counts: dict[str, int] = field(default_factory=lambda: dict.fromkeys(STEPS, 0))
    left: int = 0


def pending() -> dict[str, int]:
    """Return how many rows and photos each step would work off now; changes nothing.

    Raises StorageUnavailable.
    """
    counts = queries.count(_retention())
    db.session.rollback()
    counts["photos"] = photo.count_orphans()
    return counts


def run(
    round_: Round | None = None, seconds: float | None = None, progress: Progress = lambda _step, _rows: None
) -> Round:
    """Go on with a round, or with a new one, until its end, and return it. Safe to run twice, late or never.

    How far it came is noted in the round while it does. A step that fails does not keep the others from being done, nor
    a row the others of its batch. seconds: stop after about so long. Raises Busy when another cleanup is at work.
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
            db.session.rollback()
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
    step, retention = str(round_.step), _retention()
    _lock()
    found = queries.find(step, BATCH, retention, round_.after)
    try:
        deleted = queries.delete(step, found, retention) if found else 0
        db.session.commit()
    except DBAPIError as error:
        _pass_over(step, error)
        return _delete_one_by_one(round_, found, end)
    round_.left += len(found) - deleted
    round_.after = found[-1] if found else None
    return deleted, len(found) < BATCH


def _delete_one_by_one(round_: Round, found: list[Place], end: float | None) -> tuple[int, bool]:
    """Delete a batch's rows but for those that are to blame for its failure, as many as there is time for."""
    step, total = str(round_.step), 0
    for place in found:
        try:
            _lock()
            deleted = queries.delete(step, [place], _retention())
            db.session.commit()
        except DBAPIError as error:
            _pass_over(step, error)
            deleted = 0
        total += deleted
        round_.left += 1 - deleted
        round_.after = place
        if _is_over(end):
            return total, False
    return total, len(found) < BATCH


def _pass_over(step: str, error: DBAPIError) -> None:
    db.session.rollback()
    code = str(getattr(error.orig, "pgcode", "") or "")
    if error.connection_invalidated or code[:2] not in _OF_A_ROW:
        raise error
    constraint = getattr(getattr(error.orig, "diag", None), "constraint_name", None)
    logger.warning("rows are not deleted", step=step, error=type(error.orig).__name__, constraint=constraint)


def _delete_photos(round_: Round, end: float | None) -> tuple[int, bool]:
    """Delete the photos that no profile names, from a key on."""
    total = 0
    for deleted, last in photo.delete_orphans(round_.after[0] if round_.after else ""):
        total += deleted
        round_.after = [last] if last else None
        if _is_over(end):
            return total, round_.after is None
    return total, True


def _lock() -> None:
    if not queries.try_lock():
        db.session.rollback()
        raise Busy


def _is_over(end: float | None) -> bool:
    return end is not None and time.monotonic() > end


def _retention() -> timedelta:
    return timedelta(days=current_settings().retention_days)

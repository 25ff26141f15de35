"""The nightly cleanup as a chain of jobs, each a slice of it.

Redis keeps how far the night has come, and the one slice that may go on with it. So a chain that broke off, because its
worker was killed or Redis lost the next job, is taken up where it was; and of two that go on, one stops.
"""

import json
import time
import uuid
from dataclasses import asdict, dataclass, field
from typing import cast

from afterhours_service.cleanup import service
from afterhours_service.cleanup.service import Busy, Round
from afterhours_service.jobs.jobs import MAINTENANCE_QUEUE, enqueue, job
from afterhours_service.jobs.runs import recorded
from afterhours_service.stores.redis import current_redis
from afterhours_service.telemetry.log import get_logger

logger = get_logger(__name__)

KEY = "after-hours:cleanup"
SEEN = "after-hours:cleanup-seen"
SLICE_SECONDS = 0.2  # a timer that falls due meanwhile waits no longer
TRIES = 10  # to take a night up, or to work off what was left: half a minute to a minute apart
SLICE_TRIES = 3


@dataclass
class Night:
    """A cleanup that is not finished yet: its present round, and which slice may go on with it.

    left: by the round before.
    """

    round: Round = field(default_factory=Round)
    left: int = 0
    tries: int = 0
    began_at: float = field(default_factory=time.time)
    slice: str = ""


@job
def cleanup() -> None:
    """Begin the night."""
    _go_on(Night())


@job
def cleanup_slice(slice_: str) -> None:
    """Clean up for a moment, then come back behind the waiting timers.

    What was left at the end of a round gets another one.
    """
    night = _unfinished()
    if night is None or night.slice != slice_:
        return
    round_, before = night.round, dict(night.round.counts)
    with recorded("cleanup") as run:
        try:
            service.run(round_, SLICE_SECONDS)
        except Busy:
            logger.info("another cleanup is at work")
            return
        finally:
            finished = round_.step is None and not round_.left
            run.update({step: rows - before[step] for step, rows in round_.counts.items()})
            run["done"] = finished
    if round_.step:
        _go_on(night)
    elif round_.left:
        logger.warning("cleanup left rows", left=round_.left, **round_.counts)
        night.round, night.left = Round(counts=round_.counts), round_.left
        _save(night)  # `resume` takes it up
    else:
        current_redis().delete(KEY)
        logger.info("cleanup finished", seconds=round(time.time() - night.began_at, 1), **round_.counts)


@job
def resume() -> None:
    """Take up a night that has stood still since this was last called."""
    redis = current_redis()
    night = _unfinished()
    if night is None:
        return
    if redis.getset(SEEN, night.slice) != night.slice.encode():
        return
    night.tries += 1
    if night.tries > TRIES:
        redis.delete(KEY)
        logger.error("cleanup did not finish", step=night.round.step, left=night.left, **night.round.counts)
        return
    logger.info("cleanup taken up", step=night.round.step, tries=night.tries)
    _go_on(night)


def _go_on(night: Night) -> None:
    _save(night)
    enqueue(MAINTENANCE_QUEUE, cleanup_slice, night.slice, tries=SLICE_TRIES)


def _save(night: Night) -> None:
    night.slice = uuid.uuid4().hex
    current_redis().set(KEY, json.dumps(asdict(night)))


def _unfinished() -> Night | None:
    saved = cast("bytes | None", current_redis().get(KEY))
    if saved is None:
        return None
    fields = json.loads(saved)
    return Night(**{**fields, "round": Round(**fields["round"])})

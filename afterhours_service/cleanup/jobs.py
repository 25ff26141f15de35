"""The nightly cleanup as a chain of jobs, each of which does a slice and enqueues the next.

Redis keeps the progress and the id of the one slice that may continue. So a chain that broke, because its worker was
killed or Redis lost the next job, is resumed where it stopped; and if there are two chains, one of them stops.
"""

import json
import time
import uuid
from dataclasses import asdict, dataclass, field
from typing import cast

from rq import Retry

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
TRIES = 10  # to resume a cleanup, or to retry the rows it left: half a minute to a minute apart
SLICE_RETRIES = 2


@dataclass
class Night:
    """A cleanup that is not finished yet.

    round: the current one. left: how many rows the previous round failed to delete. began_at: seconds since the epoch.
    slice: the id of the one that may continue.
    """

    round: Round = field(default_factory=Round)
    left: int = 0
    tries: int = 0
    began_at: float = field(default_factory=time.time)
    slice: str = ""


@job
def cleanup() -> None:
    """Begin a cleanup."""
    _continue(Night())


@job
def cleanup_slice(slice_: str) -> None:
    """Clean up for SLICE_SECONDS, then enqueue the next slice behind the waiting timers.

    Rows that a round failed to delete get another round.
    """
    night = _unfinished()
    if night is None or night.slice != slice_:
        return
    round_, before = night.round, dict(night.round.counts)
    with recorded("cleanup") as run:
        try:
            service.run(round_, SLICE_SECONDS)
        except Busy:
            logger.info("another cleanup is running")
            return
        finally:
            finished = round_.step is None and not round_.left
            run.update({step: rows - before[step] for step, rows in round_.counts.items()})
            run["done"] = finished
    if round_.step:
        _continue(night)
    elif round_.left:
        logger.warning("cleanup left rows", left=round_.left, **round_.counts)
        night.round, night.left = Round(counts=round_.counts), round_.left
        _save(night)  # `resume` continues
    else:
        current_redis().delete(KEY)
        logger.info("cleanup finished", seconds=round(time.time() - night.began_at, 1), **round_.counts)


@job
def resume() -> None:
    """Resume a cleanup that has made no progress since this last ran.

    RQ's Retry cannot do it: it does not wait between tries, and loses them when Redis loses the job.
    """
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
    logger.info("cleanup resumed", step=night.round.step, tries=night.tries)
    _continue(night)


def _continue(night: Night) -> None:
    _save(night)
    enqueue(MAINTENANCE_QUEUE, cleanup_slice, night.slice, retry=Retry(max=SLICE_RETRIES))


def _save(night: Night) -> None:
    night.slice = uuid.uuid4().hex
    current_redis().set(KEY, json.dumps(asdict(night)))


def _unfinished() -> Night | None:
    saved = cast("bytes | None", current_redis().get(KEY))
    if saved is None:
        return None
    fields = json.loads(saved)
    return Night(**{**fields, "round": Round(**fields["round"])})

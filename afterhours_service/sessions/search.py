"""The timers of matching: at their second, matching looks at what is due. A start arms one, an early end disarms it.

matching/jobs.py defines their job. They are hints, as those of sessions are: what is due is in the database.
"""

import math
from datetime import datetime

from redis.client import Pipeline

from afterhours_service.config import current_settings
from afterhours_service.jobs.jobs import MATCHING_QUEUE
from afterhours_service.jobs.timers import Timers, arm_timer, disarm_timer
from afterhours_service.sessions import queries
from afterhours_service.stores.redis import after_commit, is_redis_away, only_logged

TIMERS = Timers("match-timer-", MATCHING_QUEUE)


def arm(pipeline: Pipeline, *moments: datetime) -> None:
    """Add the timers of these moments to the pipeline, rounded up to seconds; none if matching is switched off."""
    if current_settings().matching_enabled:
        for second in sorted(set(map(_second, moments))):
            arm_timer(pipeline, TIMERS.at(second))


def disarm(pipeline: Pipeline, moment: datetime) -> None:
    """Add the removal of a moment's timer to the pipeline; `rearm` it if others need it."""
    disarm_timer(pipeline, TIMERS.at(_second(moment)).id)


@only_logged("a disarmed timer was not checked")
def rearm(moment: datetime) -> None:
    """Arm the timer of a moment again if something falls due in its second."""
    if not is_redis_away() and queries.is_look_due(_second(moment)):
        with after_commit() as pipeline:
            arm(pipeline, moment)


def _second(moment: datetime) -> int:
    return math.ceil(moment.timestamp())

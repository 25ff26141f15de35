"""The timers of matching: at their second, matching looks at what is due. A start and an end arm them.

matching/jobs.py defines their job.
"""

import math
from datetime import datetime

from redis.client import Pipeline

from afterhours_service.config import current_settings
from afterhours_service.jobs.jobs import MATCHING_QUEUE
from afterhours_service.jobs.timers import Timers, arm_timer

TIMERS = Timers("match-timer-", MATCHING_QUEUE)


def arm(pipeline: Pipeline, *moments: datetime) -> None:
    """Add the timers of these moments to the pipeline, rounded up to seconds; none if matching is switched off."""
    if current_settings().matching_enabled:
        for second in sorted({math.ceil(moment.timestamp()) for moment in moments}):
            arm_timer(pipeline, TIMERS.at(second))

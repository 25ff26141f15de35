"""The jobs of matching: the one that its timers run, the rest of its work, and the look that no timer needs.

While matching is switched off they do nothing: Redis may hold some from before.
"""

from afterhours_service.config import current_settings
from afterhours_service.jobs.jobs import MATCHING_QUEUE, enqueue, job
from afterhours_service.matching import rounds
from afterhours_service.sessions import deadlines, search


@search.TIMERS.job
def match_timer(second: int) -> None:
    """Do what is due at `second` (since the epoch); try again if the database's clock has not reached it yet."""
    if current_settings().matching_enabled:
        _work()
        deadlines.arm_again_if_early(second, search.TIMERS)


@job
def go_on() -> None:
    """Do the rest of what is due, after other jobs had their turn."""
    if current_settings().matching_enabled:
        _work()


@job
def look() -> None:
    """Find what no timer tells of, and do what is due."""
    if current_settings().matching_enabled:
        rounds.look()
        _work()


def _work() -> None:
    if rounds.do_what_is_due():
        enqueue(MATCHING_QUEUE, go_on)

"""The jobs of matching: the one that its timers run, the rest of its work, and the look that no timer needs."""

from afterhours_service.jobs.jobs import MATCHING_QUEUE, enqueue, job
from afterhours_service.matching import rounds
from afterhours_service.sessions import deadlines, search


@search.TIMERS.job
def match_timer(second: int) -> None:
    """Do what is due at `second` (since the epoch); try again if the database's clock has not reached it yet."""
    _work()
    deadlines.arm_again_if_early(second, search.TIMERS)


@job
def go_on() -> None:
    """Do the rest of what is due, after other jobs had their turn."""
    _work()


@job
def look() -> None:
    """Find what no timer tells of, and do what is due."""
    rounds.look()
    _work()


def _work() -> None:
    if rounds.do_what_is_due():
        enqueue(MATCHING_QUEUE, go_on)

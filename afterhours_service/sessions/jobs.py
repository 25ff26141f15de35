"""The jobs of sessions: the one that their timers run, and the reconciliation."""

from afterhours_service.jobs.jobs import job
from afterhours_service.sessions import deadlines, service


@deadlines.TIMERS.job
def session_timer(second: int) -> None:
    """Do what is due at `second` (since the epoch); try again if the database's clock has not reached it yet."""
    service.do_what_is_due()
    deadlines.arm_again_if_early(second)


@job
def reconcile() -> None:
    """Make Redis agree with the database."""
    service.reconcile()

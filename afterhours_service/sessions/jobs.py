"""What timers and periodic jobs do."""

from afterhours_service.jobs.jobs import job
from afterhours_service.sessions import deadlines, service


@job
def session_timer(second: int) -> None:
    """Do what is due at `second` (since the epoch); come back if the database says it is not that late yet."""
    service.do_what_is_due()
    deadlines.arm_again_if_early(second)


@job
def reconcile() -> None:
    """Make Redis agree with the database."""
    service.reconcile()

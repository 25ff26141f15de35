"""Which seconds a session needs a timer for, and how the timers follow the sessions.

A timer belongs to a whole second of the clock, not to a session: it means "do what is due by now". Sessions that share
a second share its timer, arming twice changes nothing, and no timer can end a session early. The idea is the timing
wheel's (Varghese and Lauck, SOSP 1987).
"""

import math
from collections.abc import Collection, Iterable, Sequence
from datetime import datetime, timedelta
from typing import NamedTuple

from redis.client import Pipeline
from redis.exceptions import RedisError
from sqlalchemy.exc import SQLAlchemyError

from afterhours_service.config import current_settings
from afterhours_service.jobs.timers import PREFIX, Timer, arm_timer, armed_timers, disarm_timer
from afterhours_service.sessions import queries, rules
from afterhours_service.stores.redis import after_commit, current_redis, is_redis_away, only_logged, send
from afterhours_service.telemetry import metrics
from afterhours_service.telemetry.log import get_logger

logger = get_logger(__name__)

CHUNK = 500  # timers a trip to Redis arms: few enough to be there within its timeout


class Comparison(NamedTuple):
    """How many timers are armed, how many needed; the seconds since the epoch that lack one; how many are too many."""

    armed: int
    expected: int
    missing: list[int]
    surplus: int


def arm(trip: Pipeline, expires_at: datetime) -> None:
    """Arm the timers of the expiry and of the warning before it."""
    for second in _seconds(expires_at):
        arm_timer(trip, _timer(second))
        metrics.TIMERS.labels("armed").inc()


def cancel(pipeline: Pipeline, expires_at: datetime, needed: Collection[int]) -> list[int]:
    """Cancel the timers of an expiry that no longer stands, but for the seconds that other sessions need.

    Returns the seconds of the cancelled timers, for `rearm` once the pipeline was sent. Sessions that leave a second at
    the same moment may find each other there, and leave its timer behind: one too many does no harm.
    """
    if is_redis_away():
        return []
    cancelled = [second for second in _seconds(expires_at) if second not in needed]
    for second in cancelled:
        disarm_timer(pipeline, _timer(second).id)
        metrics.TIMERS.labels("released").inc()
    return cancelled


@only_logged("cancelled timers were not checked")
def rearm(cancelled: Sequence[int]) -> None:
    """Arm those cancelled timers again that a session needs by now.

    First cancelled, then asked: in this order no interleaving with a start loses a timer. What Redis refuses is left to
    the reconciliation.
    """
    if cancelled and not is_redis_away():
        _arm_all(_needed(cancelled))


def reconcile() -> int:
    """Arm the timers of active sessions that Redis lacks, and return how many those were.

    And, uncounted, a look for each moment at which whoever is to tell of an expiry by then is taken for dead. Raises
    RedisError when Redis is away, or refuses a timer.
    """
    missing = compare().missing
    if not _arm_all({*missing, *queries.publish_seconds()}):
        raise RedisError("timers are missing")
    return len(missing)


def compare() -> Comparison:
    """Compare the armed timers with those that the active sessions need.

    Raises RedisError when Redis is away.
    """
    expected = {_timer(second).id: second for second in _expected_seconds()}
    armed = armed_timers(current_redis(), PREFIX)
    missing = sorted(second for timer_id, second in expected.items() if timer_id not in armed)
    return Comparison(len(armed), len(expected), missing, len(armed - expected.keys()))


def arm_again_if_early(second: int) -> None:
    """Arm a second try when the timer of `second` came before the database's clock did.

    It came by the scheduler's clock, and so does the second try: as much later as the first was early. Under another
    id: the end of the job that is running deletes the hash of its own.
    """
    early = math.ceil(second - queries.now().timestamp())
    if early > 0:
        at = second + early
        with after_commit() as trip:
            arm_timer(trip, Timer(f"{PREFIX}{second}-at-{at}", at, _FUNCTION, (second,)))


def warning_lead() -> timedelta:
    """Return how long before the expiry a member is warned."""
    return rules.length(rules.WARNING_MINUTES, current_settings().minute_seconds)


_FUNCTION = "afterhours_service.sessions.jobs.session_timer"


def _timer(second: int) -> Timer:
    return Timer(f"{PREFIX}{second}", second, _FUNCTION, (second,))


def _seconds(expires_at: datetime) -> tuple[int, int]:
    return rules.warning_second(expires_at, current_settings().minute_seconds), rules.expiry_second(expires_at)


def _expected_seconds() -> set[int]:
    now = queries.now().timestamp()
    expiries = queries.expiry_seconds()
    lead = warning_lead().total_seconds()
    return expiries | {second - int(lead) for second in expiries if second - lead > now}


def _needed(seconds: Sequence[int]) -> set[int]:
    """Return the seconds that a session needs; all, when that cannot be told: one timer too many does no harm."""
    if is_redis_away():
        return set(seconds)
    try:
        return queries.needed_seconds(seconds, warning_lead())
    except SQLAlchemyError as error:
        logger.warning("timers left as they are", error=type(error).__name__)
        return set(seconds)


def _arm_all(seconds: Iterable[int]) -> bool:
    """Arm them, and tell whether Redis took all."""
    seconds = sorted(seconds)  # the next first, should Redis go away
    for begin in range(0, len(seconds), CHUNK):
        chunk = seconds[begin : begin + CHUNK]
        trip = current_redis().pipeline(transaction=False)
        for second in chunk:
            arm_timer(trip, _timer(second))
        if not send(trip):
            return False
        metrics.TIMERS.labels("rearmed").inc(len(chunk))
    return True

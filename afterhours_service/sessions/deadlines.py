"""Which seconds need a timer for a session, and how the timers follow the sessions.

A timer belongs to a whole second of the clock, not to a session: it means "do what is due by now". Sessions that share
a second share its timer, arming twice changes nothing, and no timer can end a session early. This is a timing wheel
(Varghese and Lauck, SOSP 1987).
"""

import math
from collections.abc import Collection, Iterable, Sequence
from datetime import datetime, timedelta
from typing import NamedTuple

from redis.client import Pipeline
from redis.exceptions import RedisError
from sqlalchemy.exc import SQLAlchemyError

from afterhours_service.config import current_settings
from afterhours_service.jobs.timers import Timers, arm_timer, armed_timers, disarm_timer
from afterhours_service.sessions import queries, rules
from afterhours_service.stores.redis import after_commit, current_redis, is_redis_away, only_logged, send
from afterhours_service.telemetry import metrics
from afterhours_service.telemetry.log import get_logger

logger = get_logger(__name__)

TIMERS = Timers("session-timer-")  # sessions/jobs.py defines their job

CHUNK = 500  # timers per pipeline: few enough for the client's timeout


class Comparison(NamedTuple):
    """The armed timers against the expected ones.

    missing: the seconds since the epoch that lack a timer. surplus: how many timers no session needs.
    """

    armed: int
    expected: int
    missing: list[int]
    surplus: int


def arm(pipeline: Pipeline, expires_at: datetime) -> None:
    """Add the timers of an expiry, and of the warning before it, to the pipeline."""
    for second in _seconds(expires_at):
        arm_timer(pipeline, TIMERS.at(second))
        metrics.TIMERS.labels("armed").inc()


def cancel(pipeline: Pipeline, expires_at: datetime, needed: Collection[int]) -> list[int]:
    """Disarm the timers of an expiry that no longer applies, except those that another session needs.

    needed: the seconds that others needed in the transaction that changed the expiry. Returns the seconds of the
    disarmed timers, for `rearm` once the pipeline was sent. If two sessions that share a second end
    concurrently, each may see the other and leave the timer armed: a surplus timer does no harm.
    """
    if is_redis_away():
        return []
    cancelled = [second for second in _seconds(expires_at) if second not in needed]
    for second in cancelled:
        disarm_timer(pipeline, TIMERS.at(second).id)
        metrics.TIMERS.labels("released").inc()
    return cancelled


@only_logged("disarmed timers were not checked")
def rearm(cancelled: Sequence[int]) -> None:
    """Re-arm those disarmed timers that a session has come to need.

    Disarm first, then query: in this order no concurrent start loses its timer. The
    reconciliation arms what Redis refuses.
    """
    if cancelled and not is_redis_away():
        _arm_all(_needed(cancelled))


def reconcile() -> int:
    """Arm the timers of active sessions that are missing, and return how many those were.

    Also arm a timer, not counted, for each second at which a publish lease expires, to retry then. Raises RedisError
    when Redis is away or refuses a timer.
    """
    missing = compare().missing
    if not _arm_all({*missing, *queries.publish_seconds()}):
        raise RedisError("timers are missing")
    return len(missing)


def compare() -> Comparison:
    """Compare the armed timers with those that the active sessions need.

    Raises RedisError when Redis is away.
    """
    expected = {TIMERS.at(second).id: second for second in _expected_seconds()}
    armed = armed_timers(current_redis(), TIMERS.prefix)
    missing = sorted(second for timer_id, second in expected.items() if timer_id not in armed)
    return Comparison(len(armed), len(expected), missing, len(armed - expected.keys()))


def arm_again_if_early(second: int, timers: Timers = TIMERS) -> None:
    """Arm a second try if the timer of `second` ran before the database's clock had reached it.

    The scheduler's clock is then ahead, and the second try goes by that clock too: so it is later by as much as the
    first was early.
    """
    early = math.ceil(second - queries.now().timestamp())
    if early > 0:
        with after_commit() as pipeline:
            arm_timer(pipeline, timers.second_try(second, second + early))


def warning_lead() -> timedelta:
    """Return how long before the expiry a member is warned."""
    return rules.length(rules.WARNING_MINUTES, current_settings().minute_seconds)


def _seconds(expires_at: datetime) -> tuple[int, int]:
    return rules.warning_second(expires_at, current_settings().minute_seconds), rules.expiry_second(expires_at)


def _expected_seconds() -> set[int]:
    now = queries.now().timestamp()
    expiries = queries.expiry_seconds()
    lead = warning_lead().total_seconds()
    return expiries | {second - int(lead) for second in expiries if second - lead > now}


def _needed(seconds: Sequence[int]) -> set[int]:
    """Return those of the seconds that a session needs; all if that is unknown, as a surplus timer does no harm."""
    if is_redis_away():
        return set(seconds)
    try:
        return queries.needed_seconds(seconds, warning_lead())
    except SQLAlchemyError as error:
        logger.warning("timers not released", error=type(error).__name__)
        return set(seconds)


def _arm_all(seconds: Iterable[int]) -> bool:
    """Arm the seconds' timers, and return whether Redis took all."""
    seconds = sorted(seconds)  # the earliest first, in case Redis goes away
    for begin in range(0, len(seconds), CHUNK):
        chunk = seconds[begin : begin + CHUNK]
        pipeline = current_redis().pipeline(transaction=False)
        for second in chunk:
            arm_timer(pipeline, TIMERS.at(second))
        if not send(pipeline):
            return False
        metrics.TIMERS.labels("rearmed").inc(len(chunk))
    return True

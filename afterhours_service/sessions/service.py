"""The use cases of a session. Each is one transaction; timers and events follow its commit."""

from collections.abc import Collection, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextvars import copy_context
from datetime import timedelta
from typing import Any, NamedTuple

from flask import current_app
from flask.ctx import AppContext
from psycopg2.errors import ForeignKeyViolation
from psycopg2.extensions import TransactionRollbackError
from redis.client import Pipeline
from sqlalchemy.exc import DBAPIError, SQLAlchemyError

from afterhours_service import errors, events, metrics
from afterhours_service.extensions import current_settings
from afterhours_service.location import Point, blur
from afterhours_service.log import get_logger
from afterhours_service.queue import after_commit, current_redis, only_logged, send
from afterhours_service.runs import recorded
from afterhours_service.sessions import deadlines, queries, rules
from afterhours_service.sessions.queries import Extension, Session, Untold
from afterhours_service.sessions.schemas import ActiveSchema

logger = get_logger(__name__)

Device = Mapping[str, str | None]

BATCH = 1000  # sessions a transaction ends or warns
LEASE = timedelta(seconds=10)  # who ended a session and hasn't told of it by then is taken for dead
TRIES = 5


class Overdue(NamedTuple):
    """How many sessions a look at the clock ended and warned."""

    ended: int
    warned: int


def status(member_id: str) -> Session | None:
    """Return the member's active session."""
    return queries.active(member_id)


def start(member_id: str, minutes: int, place: Point, device: Device | None) -> Session:
    """Let a member go live at a place, for some minutes.

    Raises VerificationRequired (the member is gone), ConsentRequired (withdrawn since the gate), ProfileRequired or
    SessionAlreadyActive.
    """
    settings = current_settings()
    secret, length = settings.location_secret.encode(), rules.length(minutes, settings.minute_seconds)
    for _ in range(TRIES):
        try:
            ran_out, started = queries.start(
                member_id,
                length,
                place,
                lambda previous: blur(place, member_id=member_id, secret=secret, previous=previous),
                device,
            )
        except DBAPIError as error:
            if isinstance(error.orig, TransactionRollbackError):  # a deadlock, and nothing was changed: again
                continue
            if isinstance(error.orig, ForeignKeyViolation):  # the member was deleted since the gate
                raise errors.VerificationRequired from error
            raise
        if started:
            break
        # Refused: a session that ran out is left to whoever ends and announces it.
        _raise_refusal(member_id)
        # The other one ended between the two statements: look again.
    else:
        raise errors.ServiceUnavailable
    with after_commit() as trip:
        metrics.SESSIONS_STARTED.inc()
        if ran_out:
            _count_ends("timeout", ran_out)
            deadlines.arm_look(trip, ran_out.now)  # a worker tells of it
        deadlines.arm(trip, started.expires_at)
        _publish(trip, "session_started", started, expiresAt=started.expires_at, durationMinutes=minutes)
    return started


def _raise_refusal(member_id: str) -> None:
    """Raise why a start was refused; return when there is no reason any more."""
    prerequisites = queries.prerequisites(member_id)
    if not prerequisites.exists:
        raise errors.VerificationRequired
    if not prerequisites.consents:
        raise errors.ConsentRequired
    if not prerequisites.has_profile:
        raise errors.ProfileRequired
    if other := queries.active(member_id):
        raise errors.SessionAlreadyActive(session=ActiveSchema().dump(other))


def extend(member_id: str, minutes: int, key: str | None = None) -> Extension:
    """Give the member's active session more minutes.

    key: made up by the client for this extension; repeated on the same session it extends once and gets the same
    answer. The session remembers its last one. Raises NoActiveSession.
    """
    length = rules.length(minutes, current_settings().minute_seconds)
    extension = queries.extend(member_id, minutes, length, deadlines.warning_lead(), key)
    if extension is None:
        raise errors.NoActiveSession
    if extension.before is None:
        return extension
    session = extension.session
    with after_commit() as trip:
        metrics.SESSIONS_EXTENDED.inc()
        deadlines.arm(trip, session.expires_at)
        _publish(trip, "session_extended", session, expiresAt=session.expires_at, extendedByMinutes=minutes)
    deadlines.release(extension.before, extension.needed)
    return extension


def end(member_id: str, reason: str = "user") -> Session:
    """End the member's active session now; `reason` is `user` or `operator`.

    Raises NoActiveSession.
    """
    left = queries.end(member_id, deadlines.warning_lead())
    if left is None:
        raise errors.NoActiveSession
    announce_end(left.session, reason, left.needed)
    return left.session


@only_logged("an end was not told in full")
def announce_end(
    session: Session, reason: str, needed: Collection[int] | None = None, untold_id: int | None = None
) -> None:
    """Tell of a session that has just been ended and committed, and give its timers back.

    needed: the seconds of its timers that others need; asked for when it is left out. untold_id: of its untold expiry,
    if it had run out.
    """
    _count_ends(reason if untold_id is None else "timeout", session)
    if untold_id is None:
        with after_commit() as trip:
            _publish(trip, "session_ended", session, endedAt=session.ended_at, reason=reason)
    else:
        _tell(Untold(untold_id, [session]))
    deadlines.release(session.expires_at, needed)


def do_what_is_due() -> Overdue:
    """End every session that has run out, warn every one that is about to; any number of workers may do so at once."""
    _tell_again()
    return Overdue(ended=_end_due(), warned=_warn_due())


def reconcile() -> dict[str, int]:
    """Make Redis agree with the database: do what is overdue, arm what is missing, and return how many those were.

    Raises RedisError when Redis is away.
    """
    with recorded("reconcile") as run:
        overdue = do_what_is_due()
        counts = {"ended": overdue.ended, "warned": overdue.warned, "armed": deadlines.reconcile()}
        run.update(counts)
    logger.info("reconciled", **counts)
    return counts


def list_active(limit: int) -> list[Session]:
    """Return up to `limit` active sessions, the next to expire first."""
    return queries.list_active(limit)


def _publish(trip: Pipeline, kind: str, session: Session, **payload: Any) -> None:
    member_id, payload = _about(session, **payload)
    events.publish(trip, kind, member_id, **payload)


def _about(session: Session, **payload: Any) -> tuple[str, dict[str, Any]]:
    return session.user_id, {"sessionId": str(session.id), **payload}


def _count_ends(reason: str, *ended: Session) -> None:
    metrics.SESSIONS_ENDED.labels(reason).inc(len(ended))
    if reason == "timeout":
        for session in ended:
            metrics.EXPIRY_LAG.observe((session.now - session.expires_at).total_seconds())


def _end_due() -> int:
    """End all that is due, batch by batch: while a full one is told of, the next one is ended."""
    total = 0
    with ThreadPoolExecutor(1) as aside:
        telling: Future[bool] | None = None
        while True:
            untold = queries.end_due(BATCH, LEASE)
            if telling:
                telling.result()
            _count_ends("timeout", *untold.sessions)
            total += len(untold.sessions)
            if len(untold.sessions) < BATCH:
                _tell(untold)
                return total
            telling = aside.submit(copy_context().run, _tell_in, current_app.app_context(), untold)


def _tell_in(context: AppContext, untold: Untold) -> bool:
    with context:
        return _tell(untold)


def _tell(untold: Untold) -> bool:
    """Publish the expiry of sessions, then note that it was; what fails is told again when the lease is over."""
    trip = current_redis().pipeline(transaction=False)
    events.publish_all(trip, "session_expired", [_about(session, reason="timeout") for session in untold.sessions])
    if untold.id is None or not send(trip):
        return False
    try:
        queries.mark_told(untold.id)
    except SQLAlchemyError as error:
        logger.warning("expiries will be told twice", error=type(error).__name__)
        return False
    return True


def _tell_again() -> None:
    """Publish the expiries that nobody has, because a worker died or Redis was away after the commit."""
    while _tell(queries.claim_untold(LEASE)):
        pass


def _warn_due() -> int:
    minute_seconds = current_settings().minute_seconds
    total = 0
    while True:
        warned = queries.warn_due(BATCH, deadlines.warning_lead())
        warnings = []
        for session in warned:
            minutes = rules.remaining_minutes(session.expires_at, session.now, minute_seconds)
            warnings.append(_about(session, expiresAt=session.expires_at, minutesRemaining=minutes))
        with after_commit() as trip:
            events.publish_all(trip, "session_expiring", warnings)
        total += len(warned)
        if len(warned) < BATCH:
            return total

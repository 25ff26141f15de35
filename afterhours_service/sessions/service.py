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
from redis.exceptions import RedisError
from sqlalchemy.exc import DBAPIError, SQLAlchemyError

from afterhours_service.config import current_settings
from afterhours_service.jobs import events
from afterhours_service.jobs.events import Event
from afterhours_service.jobs.runs import recorded
from afterhours_service.places.blur import Point, blur
from afterhours_service.sessions import deadlines, queries, rules
from afterhours_service.sessions.queries import Extension, Session, Started, Untold
from afterhours_service.sessions.schemas import ActiveSchema
from afterhours_service.stores.redis import after_commit, current_redis, only_logged, send
from afterhours_service.telemetry import metrics
from afterhours_service.telemetry.log import get_logger
from afterhours_service.web import errors

logger = get_logger(__name__)

Device = Mapping[str, str | None]

BATCH = 1000  # sessions a transaction ends or warns
LEASE = timedelta(seconds=10)  # who ended a session and hasn't told of it by then is taken for dead
TRIES = 5
REMEMBERED = timedelta(seconds=events.PUBLISHED_SECONDS - 60)  # an end that was published by then is known to be


class Overdue(NamedTuple):
    """How many sessions a look at the clock ended and warned.

    published: false when Redis refused an expiry; it is published when its lease is over.
    """

    ended: int
    warned: int
    published: bool


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
            start = queries.start(
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
        if start.session:
            started = start.session
            break
        # Refused: a session that ran out is left to whoever ends and announces it.
        _raise_refusal(member_id)
        # The other one ended between the two statements: look again.
    else:
        raise errors.ServiceUnavailable
    with after_commit() as trip:
        metrics.SESSIONS_STARTED.inc()
        if start.ran_out:
            _count_ends("timeout", start.ran_out)
        deadlines.arm(trip, started.expires_at)
        payload = {"expiresAt": started.expires_at, "durationMinutes": minutes}
        events.publish(trip, *_end_before(start), _event("session_started", started, **payload))
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
        payload = {"expiresAt": session.expires_at, "extendedByMinutes": minutes}
        events.publish(trip, _event("session_extended", session, **payload))
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
            events.publish(trip, _ended(session, reason))
    else:
        _tell(Untold([untold_id], [session]))
    deadlines.release(session.expires_at, needed)


def do_what_is_due() -> Overdue:
    """End every session that has run out, warn every one that is about to; any number of workers may do so at once.

    Then publish, batch by batch, the expiries that nobody has, because a worker died or Redis was away after the
    commit. However many those are, what falls due meanwhile comes first.
    """
    ended = warned = 0
    published = True
    while True:
        count, was_published = _end_due()
        ended, warned = ended + count, warned + _warn_due()
        published = published and was_published
        late = queries.claim_untold(BATCH, LEASE)
        if not late.ids:
            return Overdue(ended, warned, published)
        if not _tell(late):
            return Overdue(ended, warned, published=False)


def reconcile() -> dict[str, int]:
    """Make Redis agree with the database: do what is overdue, arm what is missing, and return how many those were.

    Raises RedisError when Redis is away, or refused a timer or an expiry.
    """
    with recorded("reconcile") as run:
        overdue = do_what_is_due()
        counts = {"ended": overdue.ended, "warned": overdue.warned, "armed": deadlines.reconcile()}
        if not overdue.published:
            raise RedisError("expiries are not published")
        run.update(counts)
    logger.info("reconciled", **counts)
    return counts


def list_active(limit: int) -> list[Session]:
    """Return up to `limit` active sessions, the next to expire first."""
    return queries.list_active(limit)


def _event(kind: str, session: Session, **payload: Any) -> Event:
    return Event(kind, session.user_id, str(session.id), session.now, payload)


def _expired(session: Session) -> Event:
    return _event("session_expired", session, reason="timeout")


def _ended(session: Session, reason: str) -> Event:
    return _event("session_ended", session, endedAt=session.ended_at, reason=reason)


def _end_before(start: Started) -> list[Event]:
    """Return the end of the session before, which may not be published yet; whoever is late then does not publish it.

    An end by hand is published by the request it came with, or never; an expiry is made good, however late.
    """
    if start.ran_out:
        return [_expired(start.ran_out)]
    if start.before is None:
        return []
    ended_at = start.before.ended_at or start.before.now  # None: at this moment, by another
    if ended_at < start.before.expires_at:
        ended = start.before._replace(ended_at=ended_at)
        return [_ended(ended, "user")] if start.before.now - ended_at < LEASE else []
    return [_expired(start.before)] if start.before.now - start.before.expires_at < REMEMBERED else []


def _count_ends(reason: str, *ended: Session) -> None:
    metrics.SESSIONS_ENDED.labels(reason).inc(len(ended))
    if reason == "timeout":
        for session in ended:
            metrics.EXPIRY_LAG.observe((session.now - session.expires_at).total_seconds())


def _end_due() -> tuple[int, bool]:
    """End all that is due, batch by batch: while a full one is published, the next one is ended.

    Return how many, and whether all were published.
    """
    total = 0
    published = True
    with ThreadPoolExecutor(1) as aside:
        telling: Future[bool] | None = None
        while True:
            untold = queries.end_due(BATCH, LEASE)
            if telling:
                published = telling.result() and published
            _count_ends("timeout", *untold.sessions)
            total += len(untold.sessions)
            if len(untold.sessions) < BATCH:
                return total, _tell(untold) and published
            telling = aside.submit(copy_context().run, _tell_in, current_app.app_context(), untold)


def _tell_in(context: AppContext, untold: Untold) -> bool:
    with context:
        return _tell(untold)


def _tell(untold: Untold) -> bool:
    """Publish the expiry of sessions, then note that it was; what fails is done again when the lease is over.

    Return whether it succeeded.
    """
    if not untold.ids:
        return True
    trip = current_redis().pipeline(transaction=False)
    events.publish(trip, *map(_expired, untold.sessions))
    if not send(trip):
        return False
    try:
        queries.mark_told(untold.ids)
    except SQLAlchemyError as error:
        logger.warning("published expiries stay in the outbox", error=type(error).__name__)
        return False
    return True


def _warn_due() -> int:
    minute_seconds = current_settings().minute_seconds
    total = 0
    while True:
        warned = queries.warn_due(BATCH, deadlines.warning_lead())
        warnings = []
        for session in warned:
            minutes = rules.remaining_minutes(session.expires_at, session.now, minute_seconds)
            payload = {"expiresAt": session.expires_at, "minutesRemaining": minutes}
            warnings.append(_event("session_expiring", session, **payload))
        with after_commit() as trip:
            events.publish(trip, *warnings)
        total += len(warned)
        if len(warned) < BATCH:
            return total

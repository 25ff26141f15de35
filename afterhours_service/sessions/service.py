"""The use cases of a session: first the transaction; after the commit, its events and timers in a Redis pipeline."""

from collections.abc import Mapping
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
from afterhours_service.places.blur import Point, blur, surroundings
from afterhours_service.sessions import deadlines, queries, rules, search
from afterhours_service.sessions.queries import Ended, Extension, PendingExpiries, Session, StartRefusedError
from afterhours_service.sessions.schemas import ActiveSchema
from afterhours_service.stores.redis import after_commit, current_redis, only_logged, send
from afterhours_service.telemetry import metrics
from afterhours_service.telemetry.log import get_logger
from afterhours_service.web import errors, gate

logger = get_logger(__name__)

Device = Mapping[str, str | None]

BATCH = 1000  # sessions that one transaction ends or warns
LEASE = timedelta(seconds=10)  # to publish an expiry; after that any worker retries
TRIES = 5  # of a start: deadlocks, and refusals whose reason is gone


class Overdue(NamedTuple):
    """How many sessions were ended and warned.

    published: false when Redis refused an expiry; it is retried when its lease expires.
    """

    ended: int
    warned: int
    published: bool


def status(member_id: str) -> Session | None:
    """Return the member's active session."""
    return queries.active(member_id)


def status_of_admitted(member_id: str) -> Session | None:
    """Return the member's active session, if the gate admits them. Raises the gate's failures."""
    with gate.asked_with_more(member_id):
        standing, session = queries.standing_and_active(member_id)
    gate.require(standing)
    return session


def start(member_id: str, minutes: int, place: Point, device: Device | None) -> Session:
    """Let a member go live at a place, for some minutes, if the gate admits them.

    Raises the gate's failures, also for what has changed since its check, ProfileRequired, SessionAlreadyActive, or
    ServiceUnavailable after TRIES.
    """
    settings = current_settings()
    around = surroundings(place, member_id=member_id, secret=settings.location_secret.encode())
    with gate.asked_with_more(member_id):
        standing, memories = queries.standing_and_memories(member_id, around.places)
    gate.require(standing)
    shown = blur(place, around, memories)
    length = rules.length(minutes, settings.minute_seconds)
    first_look = rules.length(rules.FIRST_LOOK_MINUTES, settings.minute_seconds) if settings.matching_enabled else None
    for _ in range(TRIES):
        try:
            started, overdue, previous, first = queries.start(
                member_id, length, place, shown, around.places[0], device, first_look
            )
            break
        except StartRefusedError:
            _raise_refusal(member_id)  # unless the reason is gone by now
        except DBAPIError as error:
            if isinstance(error.orig, ForeignKeyViolation):  # the member was deleted since the gate's check
                raise errors.VerificationRequired from error
            if not isinstance(error.orig, TransactionRollbackError):  # a deadlock: nothing was changed, so retry
                raise
    else:
        raise errors.ServiceUnavailable
    with after_commit() as pipeline:
        metrics.SESSIONS_STARTED.inc()
        if overdue:
            _count_ends("timeout", overdue)
        deadlines.arm(pipeline, started.expires_at)
        if first:
            search.arm(pipeline, first)
        payload = {"expiresAt": started.expires_at, "durationMinutes": minutes}
        last_end = _expired(overdue) if overdue else _unpublished_end(previous)
        events.publish(pipeline, *([last_end] if last_end else []), _event("session_started", started, **payload))
    return started


def _raise_refusal(member_id: str) -> None:
    """Raise why a start was refused; return if there is no reason any more."""
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
    """Extend the member's active session by some minutes.

    key: the client's idempotency key; a request that repeats it on the same session does not extend again, and gets
    the same answer. A session remembers only its last key. Raises NoActiveSession.
    """
    length = rules.length(minutes, current_settings().minute_seconds)
    extension = queries.extend(member_id, minutes, length, deadlines.warning_lead(), key)
    if extension is None:
        raise errors.NoActiveSession
    if extension.previous_expiry is None:
        return extension
    session, cancelled = extension.session, []
    with after_commit() as pipeline:
        metrics.SESSIONS_EXTENDED.inc()
        deadlines.arm(pipeline, session.expires_at)
        payload = {"expiresAt": session.expires_at, "extendedByMinutes": minutes}
        events.publish(pipeline, _event("session_extended", session, **payload))
        cancelled = deadlines.cancel(pipeline, extension.previous_expiry, extension.needed_seconds)
    deadlines.rearm(cancelled)
    return extension


def end(member_id: str, reason: str = "user") -> Session:
    """End the member's active session now; `reason` is `user` or `operator`.

    Raises NoActiveSession.
    """
    ended = end_in_transaction(member_id)
    if ended is None:
        raise errors.NoActiveSession
    publish_end(ended, reason)
    return ended.session


def end_in_transaction(member_id: str, *, overdue: bool = False) -> Ended | None:
    """End the member's session in the caller's transaction, if there is one; `publish_end` is for after its commit.

    overdue: end one that has expired, too.
    """
    return queries.end(member_id, deadlines.warning_lead(), LEASE, overdue)


@only_logged("an end was not published in full")
def publish_end(ended: Ended, reason: str) -> None:
    """Publish the end of a session that was committed, and cancel its timers.

    reason: `user` or `operator`; ignored if the session had expired: the reason is then `timeout`.
    """
    session, cancelled = ended.session, []
    expired = ended.outbox_id is not None
    _count_ends("timeout" if expired else reason, session)
    with after_commit() as pipeline:
        if not expired:
            events.publish(pipeline, _ended(session, reason))
        if ended.look_at:
            search.disarm(pipeline, ended.look_at)
        if ended.was_matched:
            search.arm(pipeline, session.now)
        cancelled = deadlines.cancel(pipeline, session.expires_at, ended.needed_seconds)
    if ended.outbox_id is not None:
        _publish_pending(PendingExpiries([ended.outbox_id], [session]))
    deadlines.rearm(cancelled)
    if ended.look_at:
        search.rearm(ended.look_at)


def do_what_is_due() -> Overdue:
    """End every overdue session and warn every one that is about to expire; workers may do so concurrently.

    Then publish, batch by batch, the expiries that are still pending because a worker died or Redis was away after the
    commit. Sessions that fall due meanwhile come first, before each batch.
    """
    ended = warned = 0
    published = True
    while True:
        count, was_published = _end_due()
        ended, warned = ended + count, warned + _warn_due()
        published = published and was_published
        pending = queries.claim_pending(BATCH, LEASE)
        if not pending.outbox_ids:
            return Overdue(ended, warned, published)
        if not _publish_pending(pending):
            return Overdue(ended, warned, published=False)


def reconcile() -> dict[str, int]:
    """Make Redis agree with the database: do what is overdue, arm missing timers, and return the counts.

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
    session_id = str(session.id)
    return Event(kind, session.user_id, session_id, session.now, {"sessionId": session_id, **payload})


def _expired(session: Session) -> Event:
    return _event("session_expired", session, reason="timeout")


def _ended(session: Session, reason: str) -> Event:
    return _event("session_ended", session, endedAt=session.ended_at, reason=reason)


def _unpublished_end(previous: Session | None) -> Event | None:
    """Return the end of the previous session if it may not be published yet.

    The process that ended it may still try: Redis then drops the duplicate. An early end is published by its own
    request or never; an expiry that is not in the outbox any more was published.
    """
    if previous is None:
        return None
    ended_at = previous.ended_at or previous.now  # None: another process is ending it
    if ended_at < previous.expires_at:
        ended = previous._replace(ended_at=ended_at)
        return _ended(ended, "user") if previous.now - ended_at < LEASE else None
    return _expired(previous)


def _count_ends(reason: str, *ended: Session) -> None:
    metrics.SESSIONS_ENDED.labels(reason).inc(len(ended))
    if reason == "timeout":
        for session in ended:
            metrics.EXPIRY_LAG.observe((session.now - session.expires_at).total_seconds())


def _end_due() -> tuple[int, bool]:
    """End what is due, batch by batch: while a full batch is published, the next one is ended.

    Return how many, and whether all were published.
    """
    total = 0
    published = True
    with ThreadPoolExecutor(1) as executor:
        publishing: Future[bool] | None = None
        while True:
            pending = queries.end_due(BATCH, LEASE)
            if publishing:
                published = publishing.result() and published
            total += len(pending.sessions)
            if len(pending.sessions) < BATCH:
                return total, _publish_ended(pending) and published
            publishing = executor.submit(copy_context().run, _publish_in, current_app.app_context(), pending)


def _publish_in(context: AppContext, pending: PendingExpiries) -> bool:
    with context:
        return _publish_ended(pending)


def _publish_ended(pending: PendingExpiries) -> bool:
    _count_ends("timeout", *pending.sessions)
    return _publish_pending(pending)


def _publish_pending(pending: PendingExpiries) -> bool:
    """Publish expiries, then remove them from the outbox; what Redis refuses is retried once it is back.

    Return whether it succeeded.
    """
    if not pending.outbox_ids:
        return True
    pipeline = current_redis().pipeline(transaction=False)
    events.publish(pipeline, *map(_expired, pending.sessions))
    published = send(pipeline)
    try:
        (queries.mark_published if published else queries.give_back)(pending.outbox_ids)
    except SQLAlchemyError as error:
        logger.warning("expiries stay in the outbox until their lease expires", error=type(error).__name__)
        return False
    return published


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
        with after_commit() as pipeline:
            events.publish(pipeline, *warnings)
        total += len(warned)
        if len(warned) < BATCH:
            return total

"""The use cases of a match: one transaction each; events and timers follow the commit."""

from typing import NamedTuple
from uuid import UUID

from afterhours_service.config import current_settings
from afterhours_service.discovery import queries as discovery
from afterhours_service.jobs import events
from afterhours_service.jobs.events import Event
from afterhours_service.matching import queries, rounds, rules
from afterhours_service.matching.cards import Card, card
from afterhours_service.matching.queries import Held
from afterhours_service.sessions import service as sessions
from afterhours_service.sessions.queries import Session
from afterhours_service.sessions.rules import length
from afterhours_service.stores.connection import transaction
from afterhours_service.stores.host import lock_pair
from afterhours_service.stores.redis import after_commit
from afterhours_service.telemetry import metrics
from afterhours_service.web import errors


class Current(NamedTuple):
    """Where a member stands. status: `no_session`, `searching` or `matched`."""

    active: bool
    status: str
    match: Card | None


def current(member_id: str) -> Current:
    """Return the member's match, or that they are searching, or not live."""
    side = queries.side(member_id)
    if side:
        return Current(active=True, status="matched", match=card(side))
    active = sessions.status(member_id) is not None
    return Current(active=active, status="searching" if active else "no_session", match=None)


def accept(member_id: str, match_id: UUID) -> Card:
    """Accept the member's match, which then is not over for want of an answer; repeating it changes nothing.

    Raises SessionRequired, or MatchNotFound for a match that is unknown, not the member's, or over.
    """
    _require_session(member_id)
    with transaction():
        match = _hold(member_id, match_id)
        if not match.is_shown:
            raise errors.MatchNotFound
        if not match.has_accepted:
            queries.accept(member_id, match_id)
        side = queries.side(member_id)
        if not side:  # one of the two has blocked the other
            raise errors.MatchNotFound
    if not match.has_accepted:
        with after_commit() as pipeline:
            events.publish(pipeline, _event_for_other("match_accepted", match))
    return card(side)


def decline(member_id: str, match_id: UUID) -> None:
    """End the member's match, and hide the two from each other as a decline of discovery does.

    A decline at the moment the match is over for want of an answer comes from the client's clock, and is not
    remembered. Repeating it changes nothing. Raises as `accept` does.
    """
    mine = _require_session(member_id)
    with transaction():
        match = queries.find(member_id, match_id)
        if match is None:
            raise errors.MatchNotFound
        lock_pair(member_id, match.other_id)
        match = _hold(member_id, match_id)
        if match.declined_by == member_id:
            return
        if not match.is_shown:
            raise errors.MatchNotFound
        if rules.counts_as_decline(match.now, match.respond_by):
            reason, leased_until = "declined", queries.decline(member_id, match_id, rules.PUBLISH_LEASE)
            discovery.decline(mine.id, member_id, match.other_id)
        else:
            reason, leased_until = "unanswered", queries.end_unanswered(member_id, match_id, rules.PUBLISH_LEASE)
    metrics.MATCHES_ENDED.labels(reason).inc()
    cooldown = length(rules.COOLDOWN_MINUTES, current_settings().minute_seconds)
    told = _event_for_other("match_expired", match, reason="ended")
    rounds.publish([match_id], leased_until, [told], [match.now, match.now + cooldown])


def _require_session(member_id: str) -> Session:
    session = sessions.status(member_id)
    if session is None:
        raise errors.SessionRequired
    return session


def _hold(member_id: str, match_id: UUID) -> Held:
    match = queries.hold(member_id, match_id)
    if match is None:
        raise errors.MatchNotFound
    return match


def _event_for_other(kind: str, match: Held, **payload: str) -> Event:
    match_id = str(match.id)
    session_id = str(match.other_session_id or "")
    return Event(kind, match.other_id, session_id, match.now, {"matchId": match_id, **payload}, match_id)

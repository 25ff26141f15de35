"""The use cases of matching: whom a member is shown, and their answer."""

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
from afterhours_service.sessions.rules import length
from afterhours_service.stores.connection import retried, transaction
from afterhours_service.stores.host import lock_pair
from afterhours_service.stores.redis import after_commit
from afterhours_service.web import errors


class Current(NamedTuple):
    """What a member is shown now. status: `no_session`, `searching` or `matched`."""

    active: bool
    status: str
    match: Card | None


def current(member_id: str) -> Current:
    """Return the member's live match, or whether somebody is being looked for."""
    if side := queries.side(member_id):
        return Current(active=True, status="matched", match=card(side))
    active = sessions.status(member_id) is not None
    return Current(active, "searching" if active else "no_session", None)


@retried
def accept(member_id: str, match_id: UUID) -> Card:
    """Accept a match, which then is not over for want of an answer; repeating it changes nothing.

    Raises SessionRequired, or MatchNotFound for one that is unknown, not the member's, or over.
    """
    _session_id(member_id)
    with transaction():
        held = queries.hold(member_id, match_id)
        if held is None or not held.is_shown:
            raise errors.MatchNotFound
        if not held.has_accepted:
            queries.accept(member_id, match_id)
        side = queries.side(member_id)
        if side is None or side.id != match_id:  # one has blocked the other
            raise errors.MatchNotFound
    if not held.has_accepted:
        with after_commit() as pipeline:
            events.publish(pipeline, _accepted(held))
    return card(side)


@retried
def decline(member_id: str, match_id: UUID) -> None:
    """End a match, and hide the two from each other as a decline of discovery does; repeating it changes nothing.

    One that comes when the time to answer is up is not remembered: the client's card declines by itself then. Raises
    SessionRequired, or MatchNotFound for a match that is unknown, not the member's, or over.
    """
    session_id = _session_id(member_id)
    with transaction():
        other_id = queries.other(member_id, match_id)
        if other_id is None:
            raise errors.MatchNotFound
        lock_pair(member_id, other_id)
        held = queries.hold(member_id, match_id)
        if held and held.declined_by == member_id:
            return
        if held is None or not held.is_shown:
            raise errors.MatchNotFound
        is_decline = rules.counts_as_decline(held.now, held.respond_by)
        if is_decline:
            leased_until, ended_at = queries.decline(member_id, match_id, rules.PUBLISH_LEASE)
            discovery.decline(session_id, member_id, other_id)
        else:
            leased_until, ended_at = queries.end_unanswered(match_id, rules.PUBLISH_LEASE)
    told = [rounds.end_event(match_id, other_id, held.other_session_id, ended_at)]
    searches = [ended_at]
    if is_decline:
        searches.append(ended_at + length(rules.COOLDOWN_MINUTES, current_settings().minute_seconds))
    else:  # neither of the two has ended it
        told.append(rounds.end_event(match_id, member_id, session_id, ended_at))
    rounds.publish([match_id], leased_until, told, searches, ["declined" if is_decline else "unanswered"])


def _session_id(member_id: str) -> UUID:
    session = sessions.status(member_id)
    if session is None:
        raise errors.SessionRequired
    return session.id


def _accepted(held: Held) -> Event:
    match_id = str(held.id)
    session_id = str(held.other_session_id or "")
    return Event("match_accepted", held.other_id, session_id, held.now, {"matchId": match_id}, match_id)

"""What workers do for matching: end what is over, match whom somebody must be found for, and tell whom it concerns.

Several workers may do it at once, and all of it may be repeated: rows are claimed by lease, so that what a dead worker
leaves is due again.
"""

import itertools
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from datetime import UTC, datetime, timedelta
from typing import NamedTuple
from uuid import UUID

from redis.exceptions import RedisError
from sqlalchemy.exc import IntegrityError

from afterhours_service.config import current_settings
from afterhours_service.discovery import service as discovery
from afterhours_service.jobs import events
from afterhours_service.jobs.events import Event
from afterhours_service.jobs.runs import recorded
from afterhours_service.jobs.timers import armed_timers
from afterhours_service.matching import curve, queries, rules
from afterhours_service.matching.cards import card
from afterhours_service.matching.queries import Due, Made
from afterhours_service.matching.schemas import MatchedMemberSchema
from afterhours_service.sessions import search
from afterhours_service.sessions.rules import FIRST_LOOK_MINUTES, WARNING_MINUTES, length
from afterhours_service.stores.redis import after_commit, current_redis, only_logged, send
from afterhours_service.telemetry import metrics
from afterhours_service.web import errors

CLAIM_LEASE = timedelta(seconds=30)  # to look for somebody; after that any worker does
SLICE_SECONDS = 1.0  # of work before other jobs have their turn
BATCH = 10_000  # members claimed at once
MATCH_BATCH = 500  # matches that one transaction makes or ends: a member's own end waits for no longer one
CROWD = 300  # so many are matched along a curve first; fewer ask the index at once
NEAREST = 3  # whom each asks the index for
TOLD_BATCH = 50
CHUNK = 1000  # rows of other statements
WAITED_LONG_MINUTES = 5  # then somebody is looked for again, in case a change went unnoticed
LOOKED_AGAIN = 100  # members, at most

_PROFILE = MatchedMemberSchema()


class Round(NamedTuple):
    """How many members were claimed, how many pairs were proposed, and how many of the members were matched."""

    claimed: int
    proposed: int
    matched: int


def do_what_is_due() -> bool:
    """End, match and tell for about SLICE_SECONDS, in this order; return whether more may be left to do."""
    end = time.monotonic() + SLICE_SECONDS
    while finish_due() or match_due().claimed or tell_waiting():
        if time.monotonic() > end:
            return True
    return False


def finish_due() -> int:
    """End matches whose time is over, and publish what is not published yet; return how many were looked at."""
    due = queries.claim_due(MATCH_BATCH, rules.PUBLISH_LEASE)
    if due:
        unannounced = [match.id for match in due if not match.ended_at and not match.is_announced]
        publish(
            [match.id for match in due],
            due[0].leased_until,
            [*_announcements(unannounced), *itertools.chain.from_iterable(map(end_events, due))],
            [match.next_due for match in due if not match.ended_at],
            [match.end_reason for match in due if match.end_reason],
        )
    return len(due)


def match_due() -> Round:
    """Claim members for whom somebody has to be found; match them with each other, and with those who wait.

    Who fits nobody waits to be found: fit is mutual, so whoever comes later finds them.
    """
    searchers = queries.claim(BATCH, CLAIM_LEASE)
    if not searchers:
        return Round(0, 0, 0)
    with recorded("round") as run, metrics.ROUND_SECONDS.time():
        left = {searcher.user_id for searcher in searchers}
        proposed = 0
        if len(searchers) > CROWD:
            pairs = curve.propose(searchers, current_settings().minute_seconds)
            proposed += len(pairs)
            left -= _judge(pairs)
        for chunk in _chunks(sorted(left)):
            queries.enter_pool(chunk)
        asking, refused, is_fresh = set(left), set[str](), False
        while asking:
            pairs, fitting = _ask_pool(sorted(asking))
            proposed += len(pairs)
            matched = _judge(pairs)
            left -= matched
            if matched:  # who fits somebody that another has got asks again
                asking = fitting & left
            elif pairs and not is_fresh:  # copies of them may be out of date
                queries.refresh(list(itertools.chain.from_iterable(pairs)))
                is_fresh = True
            else:  # others have locked them: their claim is not ended, and they are due again when it expires
                asking, refused = set(), fitting
        for chunk in _chunks(sorted(left - refused)):
            queries.leave_to_be_found(chunk)
        run.update(claimed=len(searchers), matched=len(searchers) - len(left))
    return Round(len(searchers), proposed, len(searchers) - len(left))


def tell_waiting() -> int:
    """Tell members who wait that there is nobody, once for each search; return how many."""
    waiting = queries.claim_untold(TOLD_BATCH)
    told = []
    for member in waiting:
        try:
            count = discovery.count(member.user_id)
        except errors.SessionRequired:  # it has ended since
            continue
        payload = {"count": count.counted, "orMore": count.or_more}
        told.append(Event("no_matches", member.user_id, str(member.session_id), member.now, payload))
    with after_commit() as pipeline:
        events.publish(pipeline, *told)
    return len(waiting)


def look() -> dict[str, int]:
    """Find what no timer tells of, do what is due, and arm missing timers; return the counts.

    Raises RedisError when Redis is away, or refuses a timer.
    """
    settings = current_settings()
    first_look = length(FIRST_LOOK_MINUTES, settings.minute_seconds)
    with recorded("matching") as run:
        counts = {
            "left": _repeat(queries.delete_left),
            "missing": _repeat(lambda batch: queries.insert_missing(batch, first_look)),
            "forbidden": queries.end_forbidden(CHUNK),
            "released": _repeat(queries.release),
            "again": queries.look_again(LOOKED_AGAIN, length(WAITED_LONG_MINUTES, settings.minute_seconds)),
        }
        counts["armed"] = _arm_missing()
        run.update(counts)
    return counts


def end_events(match: Due) -> list[Event]:
    """Return the events of a match that is over: to whoever did not end it."""
    sides = ((match.user_id_1, match.session_id), (match.user_id_2, match.session_id_2))
    return [
        end_event(match.id, member_id, session_id, match.now)
        for member_id, session_id in sides
        if match.ended_at and member_id != match.ended_by
    ]


def end_event(match_id: UUID, member_id: str, session_id: UUID | None, at: datetime) -> Event:
    """Return the event of a match that is over, for one of its members. Why it is over is nobody's business."""
    payload = {"matchId": str(match_id), "reason": "ended"}
    return Event("match_expired", member_id, str(session_id or ""), at, payload, str(match_id))


@only_logged("matches were not published")
def publish(
    ids: Collection[UUID],
    leased_until: datetime,
    told: Iterable[Event],
    moments: Iterable[datetime],
    end_reasons: Iterable[str] = (),
) -> None:
    """Publish events of matches, arm the timers of when to look at them next, and end their lease.

    end_reasons: of those that are over; they are counted here, as an end that is not published is due again.
    """
    pipeline = current_redis().pipeline(transaction=False)
    events.publish(pipeline, *told)
    search.arm(pipeline, *moments)
    if send(pipeline):
        queries.mark_published(ids, leased_until)
        for reason in end_reasons:
            metrics.MATCHES_ENDED.labels(reason).inc()


def _judge(pairs: Sequence[tuple[str, str]]) -> set[str]:
    """Match the pairs that no rule forbids, tell them, and return the members who are matched now."""
    matched: set[str] = set()
    for begin in range(0, len(pairs), MATCH_BATCH):
        chunk = pairs[begin : begin + MATCH_BATCH]
        made = _make(chunk)
        metrics.MATCHES_MADE.inc(len(made))
        metrics.PAIRS_REFUSED.inc(len(chunk) - len(made))
        if made:
            matched.update(itertools.chain.from_iterable((match.user_id_1, match.user_id_2) for match in made))
            ids = [match.id for match in made]
            publish(ids, made[0].leased_until, _announcements(ids), [match.respond_by for match in made])
    return matched


def _make(pairs: Sequence[tuple[str, str]]) -> list[Made]:
    minute_seconds = current_settings().minute_seconds
    lasting, answer = length(rules.LENGTH_MINUTES, minute_seconds), length(rules.ANSWER_MINUTES, minute_seconds)
    try:
        return queries.judge(pairs, lasting, answer, _lead(), rules.PUBLISH_LEASE)
    except IntegrityError:  # another service has matched a member whose session was just over, and who is back
        queries.note_matched([member for pair in pairs for member in pair])
        return queries.judge(pairs, lasting, answer, _lead(), rules.PUBLISH_LEASE)


def _ask_pool(members: Sequence[str]) -> tuple[list[tuple[str, str]], set[str]]:
    """Return pairs of members with those who wait, and all members who fit somebody."""
    minute_seconds = current_settings().minute_seconds
    edges = [edge for chunk in _chunks(members) for edge in queries.edges(chunk, NEAREST, _lead())]
    pairs = rules.greedy(
        (rules.cost(edge.metres, edge.waited, minute_seconds), min(edge.one, edge.other), max(edge.one, edge.other))
        for edge in edges
    )
    return pairs, {edge.one for edge in edges}


def _announcements(ids: Collection[UUID]) -> list[Event]:
    """Return the events of live matches: each member is shown the other's card."""
    if not ids:
        return []
    announced = []
    for side in queries.sides(ids):
        shown = card(side)
        payload = {
            "matchId": shown.id,
            "expiresAt": shown.expires_at,
            "autoDeclineAt": shown.auto_decline_at,
            "profile": _PROFILE.dump(shown.profile),
        }
        announced.append(Event("match", side.member_id, str(side.session_id), side.now, payload, shown.id))
    return announced


def _arm_missing() -> int:
    expected = {search.TIMERS.at(second).id: second for second in queries.due_seconds()}
    missing = expected.keys() - armed_timers(current_redis(), search.TIMERS.prefix)
    pipeline = current_redis().pipeline(transaction=False)
    search.arm(pipeline, *(datetime.fromtimestamp(expected[timer], UTC) for timer in missing))
    if not send(pipeline):
        raise RedisError("timers are missing")
    return len(missing)


def _repeat(step: Callable[[int], int]) -> int:
    """Repeat a step on batches of rows until none is left, and return how many rows there were."""
    total = 0
    while (rows := step(CHUNK)) == CHUNK:
        total += rows
    return total + rows


def _chunks(members: Sequence[str]) -> Iterator[Sequence[str]]:
    for begin in range(0, len(members), CHUNK):
        yield members[begin : begin + CHUNK]


def _lead() -> timedelta:
    """Return what the sessions of both must have left."""
    return length(WARNING_MINUTES, current_settings().minute_seconds)

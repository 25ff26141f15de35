"""The nightly deletions, a batch at a time.

SKIP LOCKED: a row that another transaction holds is left for the next round.
"""

from collections.abc import Mapping, Sequence
from datetime import timedelta
from typing import Any, NamedTuple

from sqlalchemy import (
    ARRAY,
    ColumnElement,
    CompoundSelect,
    Date,
    Interval,
    Select,
    Text,
    and_,
    any_,
    bindparam,
    cast,
    delete,
    exists,
    func,
    literal_column,
    or_,
    select,
    tuple_,
    union_all,
    update,
)
from sqlalchemy.orm import InstrumentedAttribute, aliased

from afterhours_service.discovery.models import AfterHoursDecline
from afterhours_service.preferences.models import AfterHoursPreferences
from afterhours_service.profiles.models import AfterHoursProfile
from afterhours_service.sessions.models import STATEMENT_NOW, AfterHoursSession, DeviceFingerprint, RememberedPlace
from afterhours_service.stores.host import Match, User, has_messages, is_matched
from afterhours_service.stores.statements import Statement

_LOCK_KEY = 0x0AF7E12  # any number that no other application uses
_BEFORE = "SET LOCAL plan_cache_mode = force_custom_plan;"  # one made while the tables were empty would not do


class Kept(NamedTuple):
    """How long rows are kept: those of sessions after their end, what the blur remembers after the last visit."""

    retention: timedelta
    places: timedelta


_cutoff: ColumnElement[Any] = STATEMENT_NOW - cast(bindparam("retention"), Interval)
_forgotten: ColumnElement[Any] = cast(
    func.timezone(literal_column("'UTC'"), STATEMENT_NOW - cast(bindparam("places"), Interval)), Date
)


class Step(NamedTuple):
    """Rows of a table that are no longer needed.

    order: the columns in whose order the rows are visited; an index has them, and the last is the primary key.
    values: what columns of the rows are set to, where the rows themselves are kept.
    """

    condition: ColumnElement[bool]
    order: tuple[InstrumentedAttribute[Any], ...]
    values: Mapping[Any, Any] | None = None


def _was_renewed() -> ColumnElement[bool]:
    """Match declines that were made again in a session within the retention.

    The Node service then updates only last_session_id: the start of that session counts, and the first session, with
    which the decline would be deleted, stays as long.
    """
    last = aliased(AfterHoursSession)
    return (
        exists()
        .where(
            last.id == AfterHoursDecline.last_session_id,
            last.id != AfterHoursDecline.session_id,
            last.started_at >= _cutoff,
        )
        .correlate(AfterHoursDecline)
    )


_old = AfterHoursSession.ended_at < _cutoff
_needed_by_no_decline = ~exists(AfterHoursDecline.id).where(
    AfterHoursDecline.session_id == AfterHoursSession.id, _was_renewed()
)
# A match and its messages would be deleted with their session.
_needed_by_no_match = ~is_matched(AfterHoursSession.id)
_zero: ColumnElement[Any] = literal_column("0")
_has_place = or_(AfterHoursSession.fuzzed_latitude != _zero, AfterHoursSession.fuzzed_longitude != _zero)


def _is_old_match(*, with_messages: bool) -> ColumnElement[bool]:
    return and_(Match.expires_at < _cutoff, ~Match.is_kept(with_messages=with_messages))


_MATCHES_IN_ORDER = (Match.expires_at, Match.id)
# Deleting a session deletes its declines, and leaves its fingerprints without a session. One that is kept for a match
# loses its place.
STEPS = {
    "matches": Step(_is_old_match(with_messages=False), _MATCHES_IN_ORDER),  # where there are no messages
    "declines": Step(
        and_(AfterHoursDecline.created_at < _cutoff, ~_was_renewed()),
        (AfterHoursDecline.created_at, AfterHoursDecline.id),
    ),
    "sessions": Step(
        and_(_old, _needed_by_no_decline, _needed_by_no_match), (AfterHoursSession.ended_at, AfterHoursSession.id)
    ),
    "places": Step(
        and_(_old, ~_needed_by_no_match, _has_place),
        (AfterHoursSession.ended_at, AfterHoursSession.id),
        {AfterHoursSession.fuzzed_latitude: _zero, AfterHoursSession.fuzzed_longitude: _zero},
    ),
    "remembered_places": Step(RememberedPlace.last_seen < _forgotten, (RememberedPlace.last_seen, RememberedPlace.id)),
    "fingerprints": Step(DeviceFingerprint.session_id.is_(None), (DeviceFingerprint.id,)),
    "profiles": Step(~exists(User.id).where(User.id == AfterHoursProfile.user_id), (AfterHoursProfile.user_id,)),
    "preferences": Step(
        ~exists(User.id).where(User.id == AfterHoursPreferences.user_id), (AfterHoursPreferences.user_id,)
    ),
}
Place = Sequence[str]  # of a row in the order of its step: the values of its columns, as text


class _Statements:
    """What a step executes."""

    def __init__(self, step: Step) -> None:
        key = step.order[-1]
        rows = select(*(cast(each, Text) for each in step.order)).where(step.condition)
        page = rows.order_by(*step.order).limit(bindparam("batch"))
        after = tuple_(*(bindparam(f"after{number}") for number, _ in enumerate(step.order)))
        given = key == any_(bindparam("keys", type_=ARRAY(key.type)))
        unlocked = select(key).where(step.condition, given).with_for_update(skip_locked=True).scalar_subquery()
        self.find: Statement[Any] = Statement(page, before=_BEFORE)
        self.find_after: Statement[Any] = Statement(page.where(tuple_(*step.order) > after), before=_BEFORE)
        change = update(key.class_).values(step.values) if step.values else delete(key.class_)
        self.delete: Statement[Any] = Statement(change.where(key == any_(func.array(unlocked))), before=_BEFORE)


def _count(rows: Select[Any] | CompoundSelect[Any]) -> Statement[Any]:
    return Statement(select(func.count()).select_from(rows.subquery("found")), before=_BEFORE)


def _counts(*, with_messages: bool) -> dict[str, Statement[Any]]:
    """Return what counts the rows of each step, as seen before a run: the steps before it were not done yet."""
    is_old_match = _is_old_match(with_messages=with_messages)
    is_kept = exists(Match.id).where(Match.session_id == AfterHoursSession.id, ~is_old_match)
    is_old = or_(_old, AfterHoursSession.overdue(_cutoff))
    sessions = select(AfterHoursSession.id).where(is_old, _needed_by_no_decline, ~is_kept)
    places = select(AfterHoursSession.id).where(is_old, is_kept, _has_place)
    fingerprints = select(DeviceFingerprint.id)
    counted = {step: select(STEPS[step].order[-1]).where(STEPS[step].condition) for step in STEPS}
    return {
        "overdue_sessions": _count(select(AfterHoursSession.id).where(AfterHoursSession.overdue(STATEMENT_NOW))),
        **{step: _count(rows) for step, rows in counted.items()},
        "matches": _count(select(Match.id).where(is_old_match)),
        "sessions": _count(sessions),
        "places": _count(places),
        "fingerprints": _count(
            union_all(counted["fingerprints"], fingerprints.where(DeviceFingerprint.session_id.in_(sessions)))
        ),
    }


_LOCK: Statement[Any] = Statement(
    select(func.pg_try_advisory_xact_lock(_LOCK_KEY)), before="SET LOCAL lock_timeout = '200ms';"
)
_STATEMENTS = {step: _Statements(found) for step, found in STEPS.items()}
_COUNTS = _counts(with_messages=False)
# Where the chat service has its table of messages.
_MATCHES_WITHOUT_MESSAGES = _Statements(Step(_is_old_match(with_messages=True), _MATCHES_IN_ORDER))
_COUNTS_WITH_MESSAGES = _counts(with_messages=True)


def try_lock() -> bool:
    """Take the cleanup's lock until the transaction ends; false when another cleanup is running.

    For the rest of the transaction no statement waits long for a row lock: one that a deletion cascades to.
    """
    [(taken,)] = _LOCK.all()
    return bool(taken)


def find(step: str, batch: int, kept: Kept, after: Place | None) -> list[Place]:
    """Return the places of up to `batch` rows that are to be deleted, those beyond the place `after`."""
    statements = _statements(step)
    if after is None:
        return [list(row) for row in statements.find.all(batch=batch, **kept._asdict())]
    beyond = {f"after{number}": value for number, value in enumerate(after)}
    return [list(row) for row in statements.find_after.all(batch=batch, **kept._asdict(), **beyond)]


def delete_rows(step: str, places: Sequence[Place], kept: Kept) -> int:
    """Delete the rows at these places, except those that are locked, or needed again; return how many."""
    as_key = STEPS[step].order[-1].type.python_type
    keys = [as_key(place[-1]) for place in places]
    _, deleted = _statements(step).delete.run(keys=keys, **kept._asdict())
    return deleted


def count(kept: Kept) -> dict[str, int]:
    """Return how many rows each step of a run would end or delete now."""
    counts = _COUNTS_WITH_MESSAGES if has_messages() else _COUNTS
    return {step: rows for step, statement in counts.items() for (rows,) in statement.all(**kept._asdict())}


def _statements(step: str) -> _Statements:
    return _MATCHES_WITHOUT_MESSAGES if step == "matches" and has_messages() else _STATEMENTS[step]

"""Every statement about sessions. Each is a transaction of its own, or joins the caller's.

The time is the database's; sessions/models.py says which of its clocks is used for what.
"""

import random
import uuid
from collections import namedtuple
from collections.abc import Iterable, Mapping, Sequence
from contextlib import nullcontext
from datetime import datetime, timedelta
from hashlib import sha256
from operator import attrgetter
from typing import Any, NamedTuple

from sqlalchemy import (
    CTE,
    BigInteger,
    BindParameter,
    Boolean,
    ColumnElement,
    Date,
    Double,
    Integer,
    Interval,
    Numeric,
    SQLColumnExpression,
    Text,
    Uuid,
    and_,
    any_,
    bindparam,
    case,
    cast,
    delete,
    exists,
    extract,
    func,
    literal_column,
    not_,
    null,
    or_,
    select,
    true,
    union_all,
    update,
)
from sqlalchemy.dialects.postgresql import ARRAY, BIT, array, insert
from sqlalchemy.exc import DBAPIError
from sqlalchemy.orm import aliased

from afterhours_service.config import current_settings
from afterhours_service.places.blur import COUNTED_VISITS, Memory, Point
from afterhours_service.profiles.models import AfterHoursProfile
from afterhours_service.sessions import rules
from afterhours_service.sessions.models import (
    CLOCK_NOW,
    STATEMENT_NOW,
    AfterHoursSession,
    DeviceFingerprint,
    ExpiryOutbox,
    RememberedPlace,
    Search,
)
from afterhours_service.stores.connection import connection_info, in_transaction, transaction
from afterhours_service.stores.host import MainProfile, Match, Standing, User, select_standing
from afterhours_service.stores.statements import Statement
from afterhours_service.telemetry.log import get_logger

logger = get_logger(__name__)


class Session(NamedTuple):
    """A session as a use case sees it: when, and never where."""

    id: uuid.UUID
    user_id: str
    started_at: datetime
    expires_at: datetime
    ended_at: datetime | None
    now: datetime  # the database's, when it was read

    @property
    def remaining_seconds(self) -> int:
        """The whole seconds that were left when it was read."""
        return rules.remaining_seconds(self.expires_at, self.now)


class Extension(NamedTuple):
    """An extended session, and how many minutes were added.

    previous_expiry: None when the request repeats one that was answered before. needed_seconds: as in Ended, for the
    previous expiry.
    """

    session: Session
    minutes: int
    previous_expiry: datetime | None
    needed_seconds: set[int]


class Ended(NamedTuple):
    """A session that was just ended.

    needed_seconds: the seconds of its timers, since the epoch, that other sessions need. outbox_id: the id of its row
    in the outbox, if it had expired. was_matched: the member had a match, which may have ended with the session.
    look_at: when somebody was to be looked for.
    """

    session: Session
    needed_seconds: set[int]
    outbox_id: int | None
    was_matched: bool
    look_at: datetime | None


class Prerequisites(NamedTuple):
    """What a start needs, apart from there being no active session."""

    exists: bool
    consents: bool
    has_profile: bool


class PendingExpiries(NamedTuple):
    """Expired sessions whose expiry is to be published, and the ids of their rows in the outbox.

    A session that was deleted since is left out.
    """

    outbox_ids: list[int]
    sessions: list[Session]


class Started(NamedTuple):
    """A session that was just started.

    overdue: the member's expired session that was ended with the start. previous: their latest session, if another
    process ended it; its end may not be published yet. first_look: when somebody is looked for; None if nobody is.
    """

    session: Session
    overdue: Session | None
    previous: Session | None
    first_look: datetime | None


class Census(NamedTuple):
    """How many sessions are active, how many are overdue, and how long ago the oldest of those expired."""

    active: int
    overdue: int
    overdue_seconds: float


class StartRefusedError(Exception):
    """The member may not start, or has an active session."""


_DEGREE = 10**8  # the columns' last decimal
_ABOVE_ZERO = 180 * _DEGREE  # a negative number would show its sign through the mask
_MASK_BITS = 48  # more than the 36 of a coordinate
# SQLSTATE classes of errors that a retry would not cure when a fingerprint is stored: bad data, a constraint, a missing
# table or privilege, an exception raised by a trigger. (It would cure a lock timeout, a deadlock, a cancellation.)
_PERMANENT = {"22", "23", "42", "P0"}

# For statements that read many rows: a plan that a connection cached while the table was empty would be slow.
_PLAN_EACH_TIME = "SET LOCAL plan_cache_mode = force_custom_plan;"

# The session that a statement reads or changes; and any other, which may need the same timers.
_Mine, _Other = AfterHoursSession, aliased(AfterHoursSession, name="other")

_MEMBER: BindParameter[str] = bindparam("member_id")
_LEAD, _LENGTH, _LEASE = (cast(bindparam(name), Interval) for name in ("lead", "length", "lease"))
_PLACES = cast(cast(bindparam("places"), ARRAY(Text)), ARRAY(Uuid))
_FIRST_LOOK = cast(bindparam("first_look"), Interval)  # after the start; null: nobody is looked for
_BATCH: BindParameter[int] = bindparam("batch")


def _session(row: Any = _Mine, **others: SQLColumnExpression[Any]) -> list[ColumnElement[Any]]:
    """Return the columns of a Session from `row`; those named in `others` are replaced."""
    columns = [others.get(name, getattr(row, name)).label(name) for name in Session._fields[:-1]]
    return [*columns, CLOCK_NOW.label("now")]


def _session_and(*more: str) -> Any:
    """Return a row type: the fields of a Session, and more."""
    return namedtuple("Row", (*Session._fields, *more))  # noqa: PYI024 - its fields come from Session


def _session_of(row: Any) -> Session:
    return Session(*_fields_of_session(row))


def _standing_of(row: Any) -> Standing:
    return Standing(row.premium, row.verified, row.consented)


_fields_of_session = attrgetter(*Session._fields)


def _second(moment: SQLColumnExpression[datetime]) -> ColumnElement[int]:
    """Return the whole second since the epoch, rounded up."""
    return cast(func.ceil(extract("epoch", moment)), BigInteger)


def _rounded_up(moment: ColumnElement[datetime]) -> ColumnElement[datetime]:
    """Return the moment, rounded up to a whole second: no session is shorter than its member chose."""
    return func.date_trunc(literal_column("'second'"), moment + literal_column("interval '999999 microseconds'"))


def _needed(seconds: ColumnElement[Any], *others: ColumnElement[bool]) -> Any:
    """Return a query for those of `seconds` at which an un-ended session expires, or has `lead` left."""
    second = func.unnest(seconds, type_=BigInteger).column_valued("second")
    begin, end = func.to_timestamp(second - literal_column("1")), func.to_timestamp(second)

    def expires(after: ColumnElement[datetime], by: ColumnElement[datetime]) -> ColumnElement[bool]:
        expiring = and_(_Other.unended(), _Other.expires_at > after, _Other.expires_at <= by, *others)
        return exists(select(_Other.id).where(expiring).correlate_except(_Other))

    return select(second).where(or_(expires(begin, end), expires(begin + _LEAD, end + _LEAD)))


def _needed_by_others(expiry: SQLColumnExpression[datetime]) -> ColumnElement[Any]:
    """Return an array of the seconds of an expiry, and of its warning, that other sessions need."""
    seconds = array([_second(expiry), _second(expiry - _LEAD)])
    return func.array(_needed(seconds, _Other.id != _Mine.id).correlate(_Mine).scalar_subquery()).label("needed")


_ACTIVE = Statement(select(*_session()).where(_Mine.user_id == _MEMBER, _Mine.active(CLOCK_NOW)), Session)


# For a request that asks for the session only if the gate admits the member.
_standing = select_standing().subquery("standing")
_STANDING_AND_ACTIVE: Statement[Any] = Statement(
    select(*_standing.c, *_session()).select_from(
        _standing.outerjoin(_Mine, and_(_Mine.user_id == _MEMBER, _Mine.active(CLOCK_NOW)))
    ),
    namedtuple("Row", (*Standing._fields, *Session._fields)),  # noqa: PYI024 - its fields come from the two
)


def _preparation() -> Any:
    place = RememberedPlace
    memory = func.json_build_array(
        func.array_position(_PLACES, place.id) - literal_column("1"),
        place.fuzzed_latitude,
        place.fuzzed_longitude,
        place.visits,
    )
    memories = select(func.json_agg(memory)).where(place.id == any_(_PLACES)).scalar_subquery().label("memories")
    return select(*_standing.c, memories)


# A plan that was made while nothing was remembered would read all of it later.
_PREPARATION: Statement[Any] = Statement(
    _preparation(),
    namedtuple("Row", (*Standing._fields, "memories")),  # noqa: PYI024 - its fields come from Standing
    before="SET LOCAL enable_seqscan = off;",
)

# The key is made by the server, so that no statement contains it.
_MAKE_KEY: Statement[Any] = Statement(
    select(
        func.set_config(
            literal_column("'after_hours.key'"), cast(func.gen_random_uuid(), Text), cast(bindparam("local"), Boolean)
        )
    )
)


def _unmasked(name: str, mask: ColumnElement[Any]) -> ColumnElement[Any]:
    number = cast(bindparam(name), BigInteger).op("#", return_type=BigInteger())(mask)
    return (number - literal_column(str(_ABOVE_ZERO), BigInteger)) / literal_column("1e8", Numeric)


def _mask(part: ColumnElement[str]) -> ColumnElement[Any]:
    return cast(cast(literal_column("'x'").concat(part), BIT(_MASK_BITS)), BigInteger)


def _start(*, with_device: bool) -> Any:
    """Return one statement that ends an overdue session, which would block the new one, and inserts the new one.

    The statement may still see a session as unended that another process is ending at this moment; if it has expired,
    its `ended_at` is its expiry.
    """
    # Lock the member's row first (docs/decisions/0011). That waits for a withdrawal or an erasure in progress, and then
    # reads the rows as it left them; the profile's would be read as it was before if it were not locked as well.
    allowed = (
        select(User.id)
        .join(AfterHoursProfile, AfterHoursProfile.user_id == User.id)
        .where(User.id == _MEMBER, User.after_hours_consent.is_(True))
        .with_for_update(read=True, key_share=True)
        .cte("allowed")
        .prefix_with("MATERIALIZED")
    )
    # Each count makes its statement wait for the other one.
    is_allowed = select(func.count()).select_from(allowed).scalar_subquery() > literal_column("0")
    overdue = (
        update(_Mine)
        .where(_Mine.user_id == _MEMBER, _Mine.overdue(CLOCK_NOW), is_allowed)
        .values(ended_at=_Mine.expires_at)
        .returning(*_session())
        .cte("overdue")
    )
    outbox = (
        insert(ExpiryOutbox)
        .from_select([ExpiryOutbox.publish_at, ExpiryOutbox.session_ids], select(overdue.c.now, array([overdue.c.id])))
        .cte("outbox")
    )
    secret = func.current_setting(literal_column("'after_hours.key'")).concat(cast(bindparam("nonce"), Text))
    hashed = func.sha256(func.convert_to(secret, literal_column("'UTF8'")))
    digest = func.encode(hashed, literal_column("'hex'")).alias("digest").column
    digits: ColumnElement[int] = literal_column(str(_MASK_BITS // 4))
    given = select(
        STATEMENT_NOW.label("now"),
        _mask(func.left(digest, digits)).label("latitude_mask"),
        _mask(func.right(digest, digits)).label("longitude_mask"),
    ).subquery("given")
    row = {
        _Mine.user_id: _MEMBER,
        _Mine.started_at: given.c.now,
        _Mine.expires_at: _rounded_up(given.c.now + _LENGTH),
        _Mine.latitude: _unmasked("masked_latitude", given.c.latitude_mask),
        _Mine.longitude: _unmasked("masked_longitude", given.c.longitude_mask),
        _Mine.fuzzed_latitude: bindparam("blurred_latitude"),
        _Mine.fuzzed_longitude: bindparam("blurred_longitude"),
    }
    started = (
        insert(_Mine)
        .from_select(
            list(row),
            select(*row.values()).where(
                is_allowed, select(func.count()).select_from(overdue).scalar_subquery() >= literal_column("0")
            ),
        )
        .on_conflict_do_nothing(index_elements=[_Mine.user_id], index_where=_Mine.unended())
        .returning(*_session(), _Mine.discovery_key, _Mine.discovery_wish)
        .cte("started")
    )
    search = _insert_search(started)
    mine = select(*_session()).where(_Mine.user_id == _MEMBER)
    latest = mine.order_by(_Mine.started_at.desc()).limit(literal_column("1"))
    previous = latest.subquery("latest").c
    ended_at = func.coalesce(previous.ended_at, case((previous.expires_at <= CLOCK_NOW, previous.expires_at)))
    # Another process is ending it at this moment, its member ended it early, or its expiry is still in the outbox.
    may_be_unpublished = or_(
        previous.ended_at.is_(None),
        previous.ended_at < previous.expires_at,
        exists(select(ExpiryOutbox.id).where(previous.id == any_(ExpiryOutbox.session_ids))),
    )
    devices = [_insert_device(started)] if with_device else []
    columns = [started.c[name] for name in Session._fields]
    first_look = select(search.c.look_at).scalar_subquery()
    return union_all(
        select(*columns, literal_column("'session'").label("what"), first_look.label("first_look")),
        select(*overdue.c, literal_column("'overdue'"), null()),
        select(*_session(previous, ended_at=ended_at), literal_column("'previous'"), null()).where(
            exists(select(started.c.id)), not_(exists(select(overdue.c.id))), may_be_unpublished
        ),
    ).add_cte(outbox, _remember(started), *devices)


def _remember(started: CTE) -> CTE:
    """Return the insert of where a started session is shown, in the cell that holds its place."""
    row = {
        RememberedPlace.id: cast(bindparam("place"), Uuid),
        RememberedPlace.user_id: started.c.user_id,
        RememberedPlace.fuzzed_latitude: bindparam("blurred_latitude"),
        RememberedPlace.fuzzed_longitude: bindparam("blurred_longitude"),
        RememberedPlace.visits: literal_column("1"),
        RememberedPlace.last_seen: cast(func.timezone(literal_column("'UTC'"), started.c.started_at), Date),
    }
    new = insert(RememberedPlace).from_select(list(row), select(*row.values()).select_from(started))
    latitude, longitude = RememberedPlace.fuzzed_latitude, RememberedPlace.fuzzed_longitude
    counted = func.least(RememberedPlace.visits + literal_column("1"), literal_column(str(COUNTED_VISITS)))
    is_same = and_(latitude == new.excluded.fuzzed_latitude, longitude == new.excluded.fuzzed_longitude)
    return new.on_conflict_do_update(
        index_elements=[RememberedPlace.id],
        set_={
            latitude: new.excluded.fuzzed_latitude,
            longitude: new.excluded.fuzzed_longitude,
            RememberedPlace.visits: case((is_same, counted), else_=literal_column("1")),
            RememberedPlace.last_seen: new.excluded.last_seen,
        },
    ).cte("remembered")


def _insert_search(started: CTE) -> CTE:
    """Return the insert of a started session's search; it replaces what is left of an expired session's."""
    row = {
        Search.user_id: started.c.user_id,
        Search.session_id: started.c.id,
        Search.key: started.c.discovery_key,
        Search.wish: started.c.discovery_wish,
        Search.me: func.after_hours_self(MainProfile.gender, MainProfile.age),
        Search.since: started.c.started_at,
        Search.look_at: _rounded_up(started.c.started_at + _FIRST_LOOK),
        Search.looked_at: null(),
        Search.told_at: null(),
        Search.match_id: null(),
    }
    searching = (
        select(*row.values())
        .select_from(started.outerjoin(MainProfile, MainProfile.user_id == started.c.user_id))
        .where(_FIRST_LOOK.is_not(None))
    )
    new = insert(Search).from_select(list(row), searching)
    return (
        new.on_conflict_do_update(
            index_elements=[Search.user_id], set_={column: new.excluded[column.name] for column in list(row)[1:]}
        )
        .returning(Search.look_at)
        .cte("search")
    )


def _insert_device(started: CTE) -> CTE:
    """Return the insert of the device that a session is started from."""
    row = {
        DeviceFingerprint.user_id: started.c.user_id,
        DeviceFingerprint.session_id: started.c.id,
        DeviceFingerprint.device_id: cast(bindparam("device"), Text),
        DeviceFingerprint.device_model: cast(bindparam("model"), Text),
        DeviceFingerprint.platform: cast(bindparam("system"), Text),
    }
    return insert(DeviceFingerprint).inline().from_select(list(row), select(*row.values())).cte("device")


_START, _START_WITH_DEVICE = (
    Statement[Any](_start(with_device=with_device), _session_and("what", "first_look")) for with_device in (False, True)
)

_PREREQUISITES = Statement(
    select(
        exists(select(User.id).where(User.id == _MEMBER)).label("exists"),
        exists(select(User.id).where(User.id == _MEMBER, User.after_hours_consent.is_(True))).label("consents"),
        exists(select(AfterHoursProfile.user_id).where(AfterHoursProfile.user_id == _MEMBER)).label("has_profile"),
    ),
    Prerequisites,
)


def _locked_match() -> tuple[CTE, ColumnElement[int]]:
    """Return a CTE that locks the member's match, and the number of its rows, which waits for the lock."""
    mine = select(Search.match_id).where(Search.user_id == _MEMBER).scalar_subquery()
    locked = select(Match.id).where(Match.id == mine).with_for_update(key_share=True)
    match = locked.cte("match").prefix_with("MATERIALIZED")
    return match, select(func.count()).select_from(match).scalar_subquery()


def _end(*, overdue: bool) -> Any:
    """Return a statement that ends the member's active session; an overdue one too, if `overdue` says so.

    A trigger ends the member's match. It is locked here already: matches are locked before sessions.
    """
    match, count = _locked_match()
    update_one = (
        update(_Mine)
        .where(
            _Mine.user_id == _MEMBER,
            _Mine.unended() if overdue else _Mine.active(CLOCK_NOW),
            count >= literal_column("0"),
        )
        .values(ended_at=func.least(_Mine.expires_at, CLOCK_NOW))
        .returning(
            *_session(),
            _needed_by_others(_Mine.expires_at),
            (count > literal_column("0")).label("was_matched"),
            select(Search.look_at).where(Search.user_id == _MEMBER).scalar_subquery().label("look_at"),
        )
        .add_cte(match)
    )
    if not overdue:
        return update_one.returning(cast(null(), BigInteger).label("outbox_id"))
    # An expired session ends at its expiry, which is published from the outbox.
    ended = update_one.cte("ended")
    expired = select(ended.c.now + _LEASE, array([ended.c.id])).where(ended.c.ended_at == ended.c.expires_at)
    outbox = (
        insert(ExpiryOutbox)
        .from_select([ExpiryOutbox.publish_at, ExpiryOutbox.session_ids], expired)
        .returning(ExpiryOutbox.id)
        .cte("outbox")
    )
    return select(*ended.c, select(outbox.c.id).scalar_subquery().label("outbox_id"))


_END, _END_EVEN_OVERDUE = (
    Statement[Any](_end(overdue=overdue), _session_and("needed", "was_matched", "look_at", "outbox_id"))
    for overdue in (False, True)
)


def _extend() -> Any:
    # The session keeps the last key and its answer; an extension without a key changes neither. A repeated key matches
    # no row, even if it waited for the first request's lock.
    key, extended = cast(bindparam("key"), Text), _rounded_up(_Mine.expires_at + _LENGTH)
    keyed = key.is_not(None)
    # A trigger extends the member's match, too.
    match, count = _locked_match()
    return (
        update(_Mine)
        .where(
            _Mine.user_id == _MEMBER,
            _Mine.active(CLOCK_NOW),
            count >= literal_column("0"),
            not_(and_(keyed, _Mine.extension_key.is_not_distinct_from(key))),
        )
        .values(
            expires_at=extended,
            warned_at=null(),
            extension_key=func.coalesce(key, _Mine.extension_key),
            extension_minutes=case((keyed, cast(bindparam("minutes"), Integer)), else_=_Mine.extension_minutes),
            extension_expires_at=case((keyed, extended), else_=_Mine.extension_expires_at),
        )
        .returning(*_session(), _needed_by_others(_Mine.expires_at - _LENGTH))
        .add_cte(match)
    )


_EXTEND: Statement[Any] = Statement(_extend(), _session_and("needed"))
_REPEATED: Statement[Any] = Statement(
    select(*_session(expires_at=_Mine.extension_expires_at), _Mine.extension_minutes).where(
        _Mine.user_id == _MEMBER, _Mine.active(CLOCK_NOW), _Mine.extension_key == bindparam("key")
    ),
    _session_and("extension_minutes"),
)


def _locked(*conditions: ColumnElement[bool]) -> Any:
    """Return the ids of up to `batch` sessions, the next to expire first, locked.

    SKIP LOCKED: concurrent workers share the sessions, and those that their member is ending or extending are skipped.
    NO KEY: rows that only refer to a session, such as declines, do not wait.
    """
    found = select(_Mine.id).where(*conditions).order_by(_Mine.expires_at).limit(_BATCH)
    return func.array(found.with_for_update(skip_locked=True, key_share=True).scalar_subquery())


def _end_due() -> Any:
    ended = (
        update(_Mine)
        .where(_Mine.id == any_(_locked(_Mine.overdue(STATEMENT_NOW))))
        .values(ended_at=_Mine.expires_at)
        .returning(*_session())
        .cte("ended")
    )
    batch = select(STATEMENT_NOW + _LEASE, func.array_agg(ended.c.id)).having(func.count() > literal_column("0"))
    outbox = (
        insert(ExpiryOutbox)
        .from_select([ExpiryOutbox.publish_at, ExpiryOutbox.session_ids], batch)
        .returning(ExpiryOutbox.id)
        .cte("outbox")
    )
    return select(*ended.c, outbox.c.id.label("outbox_id")).select_from(outbox.join(ended, true()))


_END_DUE: Statement[Any] = Statement(_end_due(), _session_and("outbox_id"), before=_PLAN_EACH_TIME)

_WARN_DUE: Statement[Any] = Statement(
    update(_Mine)
    .where(
        _Mine.id
        == any_(
            _locked(_Mine.active(STATEMENT_NOW), _Mine.warned_at.is_(None), _Mine.expires_at <= STATEMENT_NOW + _LEAD)
        )
    )
    .values(warned_at=STATEMENT_NOW)
    .returning(*_session()),
    Session,
    before=_PLAN_EACH_TIME,
)


def _claim_pending() -> Any:
    """Return a statement that claims as many rows of the outbox as hold a batch of sessions."""
    due = (
        select(ExpiryOutbox)
        .where(ExpiryOutbox.publish_at <= STATEMENT_NOW)
        .order_by(ExpiryOutbox.publish_at)
        .limit(_BATCH)
        .with_for_update(skip_locked=True)
        .cte("due")
    )
    size = func.cardinality(due.c.session_ids)
    before = func.sum(size).over(order_by=[due.c.tell_at, due.c.id]) - size
    counted = select(due.c.id, before.label("before")).cte("counted")
    batch = select(counted.c.id).where(counted.c.before < _BATCH)
    claimed = (
        update(ExpiryOutbox)
        .where(ExpiryOutbox.id == any_(func.array(batch.scalar_subquery())))
        .values({ExpiryOutbox.publish_at: STATEMENT_NOW + _LEASE})
        .returning(ExpiryOutbox.id.label("outbox_id"), ExpiryOutbox.session_ids)
        .cte("claimed")
    )
    each = select(claimed.c.outbox_id, func.unnest(claimed.c.session_ids).label("session_id")).subquery("each")
    return select(*_session(), each.c.outbox_id).select_from(each.outerjoin(_Mine, _Mine.id == each.c.session_id))


_CLAIM_PENDING: Statement[Any] = Statement(_claim_pending(), _session_and("outbox_id"), before=_PLAN_EACH_TIME)

_THESE = ExpiryOutbox.id == any_(cast(bindparam("ids"), ARRAY(BigInteger)))
_MARK_PUBLISHED: Statement[Any] = Statement(delete(ExpiryOutbox).where(_THESE))
_GIVE_BACK: Statement[Any] = Statement(
    update(ExpiryOutbox).where(_THESE).values({ExpiryOutbox.publish_at: STATEMENT_NOW})
)

_PUBLISH_SECONDS: Statement[Any] = Statement(
    select(_second(ExpiryOutbox.publish_at)).distinct().where(ExpiryOutbox.publish_at > STATEMENT_NOW)
)
_EXPIRY_SECONDS: Statement[Any] = Statement(
    select(_second(_Mine.expires_at)).distinct().where(_Mine.active(STATEMENT_NOW))
)
_NEEDED_SECONDS: Statement[Any] = Statement(_needed(cast(bindparam("seconds"), ARRAY(BigInteger))))

_SECOND_END = func.to_timestamp(cast(bindparam("second"), BigInteger))
_IS_LOOK_DUE: Statement[Any] = Statement(
    select(
        or_(
            *(
                exists().where(moment > _SECOND_END - literal_column("interval '1 second'"), moment <= _SECOND_END)
                for moment in (Search.look_at, Match.due_at)
            )
        )
    )
)

_LIST_ACTIVE = Statement(
    select(*_session())
    .where(_Mine.active(STATEMENT_NOW))
    .order_by(_Mine.expires_at, _Mine.id)
    .limit(bindparam("limit")),
    Session,
)

_OVERDUE_FOR = extract("epoch", STATEMENT_NOW - func.min(_Mine.expires_at))
_CENSUS = Statement(
    select(
        func.count().filter(_Mine.active(STATEMENT_NOW)).label("active"),
        func.count().filter(_Mine.overdue(STATEMENT_NOW)).label("overdue"),
        cast(func.greatest(literal_column("0"), _OVERDUE_FOR), Double).label("overdue_seconds"),
    ).where(_Mine.unended()),
    Census,
)

_NOW: Statement[Any] = Statement(select(CLOCK_NOW))


def active(member_id: str) -> Session | None:
    """Return the member's active session."""
    return _ACTIVE.first(member_id=member_id)


def standing_and_active(member_id: str) -> tuple[Standing, Session | None]:
    """Return what the gate asks of a member, and their active session."""
    [row] = _STANDING_AND_ACTIVE.all(member_id=member_id)
    return _standing_of(row), _session_of(row) if row.id else None


def standing_and_memories(member_id: str, places: Sequence[str]) -> tuple[Standing, list[Memory]]:
    """Return what the gate asks of a member, and what is remembered of places, each with its number among them."""
    [row] = _PREPARATION.all(member_id=member_id, places=list(places))
    memories = [Memory(number, Point(*shown), visits) for number, *shown, visits in row.memories or []]
    return _standing_of(row), memories


def start(
    member_id: str,
    length: timedelta,
    exact: Point,
    blurred: Point,
    place: str,
    device: Mapping[str, str | None] | None,
    first_look: timedelta | None = None,
) -> Started:
    """Start a session and its member's search, and store its device, in a transaction of its own.

    blurred: the point to show, which is remembered for the cell `place`. first_look: how long after the start somebody
    is looked for; None if nobody is. A fingerprint that cannot be stored is left out; if a retry could store it (a
    lock, a deadlock), the start fails. Raises StartRefusedError and changes nothing: `prerequisites` or an active
    session show why.
    """
    parameters = {
        "member_id": member_id,
        "length": length,
        "first_look": first_look,
        "place": place,
        "blurred_latitude": blurred.latitude,
        "blurred_longitude": blurred.longitude,
    }
    if device and any(device.values()):
        names = {"device": "device_id", "model": "device_model", "system": "platform"}
        fingerprint = {parameter: device.get(name) for parameter, name in names.items()}
        try:
            return _start_at(exact, _START_WITH_DEVICE, **parameters, **fingerprint)
        except DBAPIError as error:
            if (getattr(error.orig, "pgcode", None) or "")[:2] not in _PERMANENT:
                raise
            logger.warning("fingerprint not stored", error=type(error.orig).__name__)
    return _start_at(exact, _START, **parameters)


def _start_at(exact: Point, statement: Statement[Any], **parameters: Any) -> Started:
    """Start a session at the exact place.

    PostgreSQL logs a statement that fails, with its values. So each coordinate is XORed with a mask, which is hashed of
    the connection's key, in no statement, and of this start's nonce.
    """
    with nullcontext() if current_settings().database_prepare else transaction():
        nonce = f"{random.getrandbits(64):x}"
        digest = sha256((_key() + nonce).encode()).digest()
        rows = statement.all(
            nonce=nonce,
            masked_latitude=_masked(exact.latitude, digest[: _MASK_BITS // 8]),
            masked_longitude=_masked(exact.longitude, digest[-_MASK_BITS // 8 :]),
            **parameters,
        )
    found = {row.what: _session_of(row) for row in rows}
    if "session" not in found:
        raise StartRefusedError
    [first] = [row.first_look for row in rows if row.what == "session"]
    return Started(found["session"], found.get("overdue"), found.get("previous"), first)


def _key() -> str:
    """Return the connection's key; in a transaction, one for that: behind a pool the next may be on another."""
    if in_transaction():
        [(key,)] = _MAKE_KEY.all(local=True)
        return str(key)
    known = connection_info()
    if "after_hours_key" not in known:
        [(known["after_hours_key"],)] = _MAKE_KEY.all(local=False)
    return str(known["after_hours_key"])


def prerequisites(member_id: str) -> Prerequisites:
    """Return whether the member may start: they exist, consent, and have an After Hours profile."""
    [row] = _PREREQUISITES.all(member_id=member_id)
    return row


def end(member_id: str, lead: timedelta, lease: timedelta, overdue: bool = False) -> Ended | None:
    """End the member's active session now, or an overdue one at its expiry if `overdue` says so.

    lead: how long before an expiry its warning comes. lease: how long the caller has to publish an expiry.
    """
    statement = _END_EVEN_OVERDUE if overdue else _END
    row = statement.first(member_id=member_id, lead=lead, lease=lease)
    return Ended(_session_of(row), set(row.needed), row.outbox_id, row.was_matched, row.look_at) if row else None


def extend(
    member_id: str, minutes: int, length: timedelta, lead: timedelta, key: str | None = None
) -> Extension | None:
    """Move the expiry of the member's active session by `length`; concurrent extensions add up.

    minutes: `length` as the member gave it. lead: how long before an expiry its warning comes. key: if it is that of
    the session's last extension, the session is not extended again, and the answer is the same.
    """
    row = _EXTEND.first(member_id=member_id, minutes=minutes, length=length, lead=lead, key=key)
    if row:
        return Extension(_session_of(row), minutes, row.expires_at - length, set(row.needed))
    repeated = key and _REPEATED.first(member_id=member_id, key=key)
    return Extension(_session_of(repeated), repeated.extension_minutes, None, set()) if repeated else None


def end_due(batch: int, lease: timedelta) -> PendingExpiries:
    """End up to `batch` overdue sessions, at their expiry. lease: how long the caller has to publish that."""
    return _pending(_END_DUE.all(batch=batch, lease=lease))


def claim_pending(batch: int, lease: timedelta) -> PendingExpiries:
    """Return about `batch` sessions whose expiry was not published in time, leased to the caller."""
    return _pending(_CLAIM_PENDING.all(batch=batch, lease=lease))


def mark_published(outbox_ids: list[int]) -> None:
    """Remove published expiries from the outbox."""
    _MARK_PUBLISHED.run(ids=outbox_ids)


def give_back(outbox_ids: list[int]) -> None:
    """End the leases of expiries that could not be published: whoever comes next may try again."""
    _GIVE_BACK.run(ids=outbox_ids)


def publish_seconds() -> set[int]:
    """Return the seconds since the epoch, rounded up, at which leases of the outbox expire."""
    return {second for (second,) in _PUBLISH_SECONDS.all()}


def warn_due(batch: int, lead: timedelta) -> list[Session]:
    """Mark up to `batch` active sessions that have `lead` left, or less, as warned."""
    return _WARN_DUE.all(batch=batch, lead=lead)


def expiry_seconds() -> set[int]:
    """Return the seconds since the epoch, rounded up, at which active sessions expire."""
    return {second for (second,) in _EXPIRY_SECONDS.all()}


def needed_seconds(seconds: Iterable[int], lead: timedelta) -> set[int]:
    """Return those of `seconds` at which an un-ended session expires, or has `lead` left."""
    return {second for (second,) in _NEEDED_SECONDS.all(seconds=list(seconds), lead=lead)}


def is_look_due(second: int) -> bool:
    """Return whether matching has something to do at a second since the epoch, rounded up."""
    [(is_due,)] = _IS_LOOK_DUE.all(second=second)
    return bool(is_due)


def list_active(limit: int) -> list[Session]:
    """Return up to `limit` active sessions, the next to expire first."""
    return _LIST_ACTIVE.all(limit=limit)


def census() -> Census:
    """Count the sessions that are not ended."""
    [row] = _CENSUS.all()
    return row


def now() -> datetime:
    """Return the database's time."""
    moment: datetime
    [(moment,)] = _NOW.all()
    return moment


def _masked(degrees: float, mask: bytes) -> int:
    return (round(degrees * _DEGREE) + _ABOVE_ZERO) ^ int.from_bytes(mask)


def _pending(rows: list[Any]) -> PendingExpiries:
    return PendingExpiries(list({row.outbox_id for row in rows}), [_session_of(row) for row in rows if row.id])

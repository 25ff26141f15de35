"""Every statement about matches and the search for them. Each is a transaction of its own, or joins the caller's.

Who fits whom is what discovery shows: the same cubes, the same conditions. A match is proposed from copies and an
index, and made by `judge`, which locks both members and asks every rule again.
"""

import uuid
from collections.abc import Collection, Sequence
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any, NamedTuple

from sqlalchemy import (
    ARRAY,
    BigInteger,
    BindParameter,
    ColumnElement,
    DateTime,
    Double,
    Interval,
    Select,
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
    lateral,
    literal_column,
    null,
    or_,
    select,
    true,
    tuple_,
    union,
    union_all,
    update,
)
from sqlalchemy.dialects.postgresql import array, insert
from sqlalchemy.orm import aliased

from afterhours_service.discovery.queries import are_apart
from afterhours_service.matching.curve import Searcher
from afterhours_service.places.blur import Point
from afterhours_service.profiles.models import AfterHoursProfile
from afterhours_service.sessions.models import CLOCK_NOW, STATEMENT_NOW, AfterHoursSession, Search
from afterhours_service.stores.host import Block, MainProfile, Match, Subscription, User, has_messages, messages
from afterhours_service.stores.statements import Statement


class Edge(NamedTuple):
    """Two members who fit. metres: between their blurred points. waited: seconds, of both together."""

    one: str
    other: str
    metres: float
    waited: float


class Made(NamedTuple):
    """A match that was just made."""

    id: uuid.UUID
    user_id_1: str
    user_id_2: str
    respond_by: datetime
    leased_until: datetime


class Due(NamedTuple):
    """A match that a worker has to look at, leased to the caller.

    ended_at, ended_by: whether it is over, and which member ended it. is_announced: both were told of the match.
    next_due: when to look again if it is not over.
    """

    id: uuid.UUID
    user_id_1: str
    user_id_2: str
    session_id: uuid.UUID | None
    session_id_2: uuid.UUID | None
    ended_at: datetime | None
    ended_by: str | None
    end_reason: str | None
    is_announced: bool
    next_due: datetime
    leased_until: datetime
    now: datetime


class Side(NamedTuple):
    """A live match as one of its members sees it: the other's profile, and where both are shown."""

    id: uuid.UUID
    member_id: str
    session_id: uuid.UUID
    created_at: datetime
    expires_at: datetime
    respond_by: datetime | None
    has_accepted: bool
    other_id: str
    name: str | None
    age: int | None
    description: str | None
    photo_key: str | None
    my_latitude: Decimal
    my_longitude: Decimal
    other_latitude: Decimal
    other_longitude: Decimal
    now: datetime

    @property
    def me(self) -> Point:
        """Where others see the member."""
        return Point(float(self.my_latitude), float(self.my_longitude))

    @property
    def other(self) -> Point:
        """Where the other one is seen."""
        return Point(float(self.other_latitude), float(self.other_longitude))

    def __repr__(self) -> str:
        return f"<Side {self.id}>"  # and never where


class Held(NamedTuple):
    """A match of the member's. is_shown: it is live, and was answered or may still be."""

    id: uuid.UUID
    other_id: str
    other_session_id: uuid.UUID | None
    has_accepted: bool
    respond_by: datetime | None
    declined_by: str | None
    is_shown: bool
    now: datetime


class Waiting(NamedTuple):
    """A member who waits, and was not told yet that there is nobody."""

    user_id: str
    session_id: uuid.UUID
    now: datetime


class _Ended(NamedTuple):
    """How many matches a statement ended, and the last that it looked at."""

    ended: int
    due_at: datetime
    id: uuid.UUID


class Census(NamedTuple):
    """How the search goes. searching: live members with a search; waiting: those of them without a match.

    median_seconds, longest_seconds: how long they have waited, 0 if nobody waits. matches: live ones. due: matches and
    members that a worker has to look at now. late: those of them that have been due for half a minute.
    """

    searching: int
    waiting: int
    median_seconds: float
    longest_seconds: float
    matches: int
    due: int
    late: int


_Session = AfterHoursSession
_ONE: ColumnElement[int] = literal_column("1")
_MEMBER: BindParameter[str] = bindparam("member_id")
_BATCH: BindParameter[int] = bindparam("batch")
_LEASE, _LEAD, _LENGTH, _ANSWER = (cast(bindparam(name), Interval) for name in ("lease", "lead", "length", "answer"))
_MEMBERS = cast(bindparam("members"), ARRAY(Text))
_IDS = cast(bindparam("ids"), ARRAY(Uuid))
_MATCH: BindParameter[uuid.UUID] = bindparam("match_id")
_PAIR = (Match.user_id_1, Match.user_id_2)
_FIRST_LOOK = cast(bindparam("first_look"), Interval)

# As for discovery: what is planned shall read the index in its order, and join as it is written.
_PLAN_AS_WRITTEN = (
    "SET LOCAL enable_bitmapscan = off; SET LOCAL enable_seqscan = off; SET LOCAL enable_sort = off;"
    " SET LOCAL enable_hashjoin = off; SET LOCAL enable_mergejoin = off; SET LOCAL join_collapse_limit = 1;"
    " SET LOCAL plan_cache_mode = force_generic_plan;"
)
_PLAN_BY_INDEX = (
    "SET LOCAL enable_seqscan = off; SET LOCAL enable_mergejoin = off; SET LOCAL plan_cache_mode = force_generic_plan;"
)
# Joins of what was given and locked, whose number the planner cannot know: by hash, not each with each.
_PLAN_BY_HASH = f"{_PLAN_BY_INDEX} SET LOCAL enable_nestloop = off;"
_PLAN_EACH_TIME = "SET LOCAL plan_cache_mode = force_custom_plan;"


def _rounded_up(moment: ColumnElement[datetime]) -> ColumnElement[datetime]:
    return func.date_trunc(literal_column("'second'"), moment + literal_column("interval '999999 microseconds'"))


def _waited(since: SQLColumnExpression[datetime]) -> ColumnElement[float]:
    return cast(extract("epoch", STATEMENT_NOW - since), Double)


def _self_of(user_id: SQLColumnExpression[str]) -> ColumnElement[str]:
    """Return the gender and age of a member as a cube, by the host's profile of this moment."""
    known = (
        select(func.after_hours_self(MainProfile.gender, MainProfile.age))
        .where(MainProfile.user_id == user_id)
        .scalar_subquery()
    )
    return func.coalesce(known, func.after_hours_self(null(), null()))


def _is_premium(user_id: SQLColumnExpression[str]) -> ColumnElement[bool]:
    found = select(true()).where(Subscription.user_id == user_id, Subscription.is_current()).limit(_ONE)
    return found.scalar_subquery().is_not(None)


def _have_met(
    one: SQLColumnExpression[str],
    other: SQLColumnExpression[str],
    *sessions: SQLColumnExpression[uuid.UUID],
) -> ColumnElement[bool]:
    """Match two members who were matched in one of these sessions.

    By the sessions' index alone: of two, the planner takes the wrong one while the table is empty, and keeps it.
    """
    pair, matched = (cast(array(each), ARRAY(Text)) for each in ([one, other], [Match.user_id_1, Match.user_id_2]))
    found = [
        select(true()).where(column.in_(sessions), matched.op("<@")(pair)).limit(_ONE)
        for column in (Match.session_id, Match.session_id_2)
    ]
    return or_(*(each.scalar_subquery().is_not(None) for each in found))


def _live_match(user_id: SQLColumnExpression[str]) -> ColumnElement[uuid.UUID | None]:
    """Return the id of the member's live match, null if there is none."""
    found = [select(Match.id).where(column == user_id, Match.live(STATEMENT_NOW)).limit(_ONE) for column in _PAIR]
    return func.coalesce(*(each.scalar_subquery() for each in found))


def _claim() -> Any:
    found = select(Search.user_id).where(Search.look_at <= STATEMENT_NOW).order_by(Search.look_at).limit(_BATCH)
    due = func.array(found.with_for_update(skip_locked=True, key_share=True).scalar_subquery())
    low, high = func.after_hours_low, func.after_hours_high
    columns = (
        Search.user_id,
        *(low(Search.key, axis) for axis in (1, 2, 3)),
        low(Search.me, 1),
        low(Search.me, 2),
        high(Search.me, 2),
        low(Search.wish, 1),
        high(Search.wish, 1),
        low(Search.wish, 2),
        high(Search.wish, 2),
        high(Search.wish, 3),
        _waited(Search.since),
    )
    return (
        update(Search)
        .where(Search.user_id == any_(due))
        .values(look_at=STATEMENT_NOW + _LEASE, me=_self_of(Search.user_id))
        .returning(*(column.label(name) for column, name in zip(columns, Searcher._fields, strict=True)))
    )


def _unmatched() -> ColumnElement[Any]:
    """Return the ids of those of the given members who have no match, and whose rows are not locked by others."""
    found = select(Search.user_id).where(Search.user_id == any_(_MEMBERS), Search.match_id.is_(None))
    locked = found.order_by(Search.user_id).with_for_update(skip_locked=True, key_share=True)
    return func.array(locked.scalar_subquery())


def _select_edges() -> Any:
    """Return a query for those in the pool who fit the given members, the nearest first: up to `limit` for each."""
    asker = (
        select(
            Search.user_id,
            Search.session_id,
            Search.me,
            Search.wish,
            Search.since,
            func.after_hours_box(Search.key, Search.me, Search.wish, literal_column("0")).label("near"),
            func.after_hours_box(Search.key, Search.me, Search.wish, func.after_hours_reach(Search.wish)).label(
                "within"
            ),
        )
        .join(_Session, and_(_Session.id == Search.session_id, _Session.discoverable(STATEMENT_NOW, _LEAD)))
        .join(User, and_(User.id == Search.user_id, User.id_verified.is_(True), User.after_hours_consent.is_(True)))
        .where(Search.user_id == any_(_MEMBERS), Search.match_id.is_(None), _is_premium(Search.user_id))
        .cte("asker")
        .prefix_with("MATERIALIZED")
    ).c
    pool = aliased(Search, name="pool")
    metres = func.after_hours_metres(pool.key, asker.near)
    scan = (
        select(
            asker.user_id.label("asker_id"),
            asker.session_id.label("asker_session_id"),
            pool.user_id,
            pool.session_id,
            pool.since,
            metres.label("metres"),
        )
        .select_from(pool)
        .where(
            pool.looked_at.is_not(None),
            func.after_hours_holds(asker.within, pool.key),
            func.after_hours_holds(pool.wish, asker.me),
            func.after_hours_holds(asker.wish, pool.me),
            metres <= func.least(func.after_hours_reach(asker.wish), func.after_hours_reach(pool.wish)),
            pool.user_id != asker.user_id,
        )
        .order_by(metres)
        .correlate(asker.user_id.table)
        .subquery("scan")
    )
    fitting = (
        select(scan.c.user_id, scan.c.since, scan.c.metres)
        .join_from(
            scan,
            _Session,
            and_(_Session.id == scan.c.session_id, _Session.discoverable(STATEMENT_NOW, _LEAD)),
        )
        .join(User, and_(User.id == scan.c.user_id, User.id_verified.is_(True), User.after_hours_consent.is_(True)))
        .where(
            _is_premium(scan.c.user_id),
            ~are_apart(scan.c.asker_id, scan.c.user_id),
            ~_have_met(scan.c.asker_id, scan.c.user_id, scan.c.asker_session_id, scan.c.session_id),
        )
        .limit(bindparam("limit"))
        .correlate(asker.user_id.table)
    )
    found = lateral(fitting, "found").c
    return select(
        asker.user_id.label("one"),
        found.user_id.label("other"),
        found.metres.label("metres"),
        (_waited(asker.since) + _waited(found.since)).label("waited"),
    ).select_from(asker.user_id.table.join(found.user_id.table, true()))


def _judge() -> Any:
    """Return a statement that makes those matches of the given pairs that no rule forbids.

    Members whose rows others have locked are left out: they are about to change. Users are locked first, as an erasure
    does. Each condition is a scalar subquery, so that no plan is slow.
    """
    given = (
        func.unnest(cast(bindparam("ones"), ARRAY(Text)), cast(bindparam("others"), ARRAY(Text)))
        .table_valued("one", "other", name="given")
        .render_derived()
    )
    pair = select(given.c.one, given.c.other).cte("pair").prefix_with("MATERIALIZED")
    allowed = (
        select(User.id)
        .where(User.id == any_(_MEMBERS), User.id_verified.is_(True), User.after_hours_consent.is_(True))
        .order_by(User.id)
        .with_for_update(skip_locked=True, key_share=True)
        .cte("allowed")
        .prefix_with("MATERIALIZED")
    )
    locked = (
        select(Search.user_id, Search.session_id, Search.key, Search.wish)
        .where(
            Search.user_id == any_(func.array(select(allowed.c.id).scalar_subquery())),
            Search.match_id.is_(None),
        )
        .order_by(Search.user_id)
        .with_for_update(skip_locked=True, key_share=True)
        .cte("locked")
        .prefix_with("MATERIALIZED")
    )
    expires_at = (
        select(_Session.expires_at)
        .where(_Session.id == locked.c.session_id, _Session.discoverable(STATEMENT_NOW, _LEAD))
        .scalar_subquery()
    )
    asked = (
        select(*locked.c, expires_at.label("expires_at"), _self_of(locked.c.user_id).label("me"))
        .offset(literal_column("0"))  # so that each is asked once
        .subquery("asked")
    )
    live = (
        select(*asked.c)
        .where(asked.c.expires_at.is_not(None), _is_premium(asked.c.user_id))
        .cte("live")
        .prefix_with("MATERIALIZED")
    )
    one, other = live.alias("one"), live.alias("other")
    lasts_until = _rounded_up(STATEMENT_NOW + _LENGTH)
    end = func.least(one.c.expires_at, other.c.expires_at, lasts_until)
    row = {
        Match.session_id: one.c.session_id,
        Match.session_id_2: other.c.session_id,
        Match.user_id_1: one.c.user_id,
        Match.user_id_2: other.c.user_id,
        Match.created_at: STATEMENT_NOW,
        Match.expires_at: end,
        Match.lasts_until: lasts_until,
        Match.respond_by: func.least(end, _rounded_up(STATEMENT_NOW + _ANSWER)),
        Match.announced_at: null(),
        Match.due_at: STATEMENT_NOW + _LEASE,
    }
    matched = (
        select(*row.values())
        .select_from(pair.join(one, one.c.user_id == pair.c.one).join(other, other.c.user_id == pair.c.other))
        .where(
            func.after_hours_holds(one.c.wish, other.c.me),
            func.after_hours_holds(other.c.wish, one.c.me),
            func.after_hours_metres(
                other.c.key, func.after_hours_box(one.c.key, one.c.me, one.c.wish, literal_column("0"))
            )
            <= func.least(func.after_hours_reach(one.c.wish), func.after_hours_reach(other.c.wish)),
            ~are_apart(pair.c.one, pair.c.other),
            ~_have_met(pair.c.one, pair.c.other, one.c.session_id, other.c.session_id),
        )
    )
    return (
        insert(Match)
        .from_select(list(row), matched)
        .returning(Match.id, Match.user_id_1, Match.user_id_2, Match.respond_by, Match.due_at.label("leased_until"))
    )


def _is_answered(with_messages: bool) -> ColumnElement[bool]:
    """Match what was answered, in the chat as well: by a message, or by the wish to keep the match."""
    answered = or_(
        Match.respond_by.is_(None),
        Match.user1_save_vote.is_(True),
        Match.user2_save_vote.is_(True),
    )
    if not with_messages:
        return answered
    return or_(answered, exists(messages.c.match_id).where(messages.c.match_id == Match.id))


def _claim_due(*, with_messages: bool) -> Any:
    """Return a statement that claims due matches, and ends those whose time is over.

    `expires_at` is always among the columns that are set: a trigger then notes the end of a match that has run out.
    """
    found = select(Match.id).where(Match.due_at <= STATEMENT_NOW).order_by(Match.due_at).limit(_BATCH)
    due = func.array(found.with_for_update(skip_locked=True, key_share=True).scalar_subquery())
    answered = _is_answered(with_messages)
    unanswered = and_(Match.live(STATEMENT_NOW), Match.respond_by <= STATEMENT_NOW, ~answered)
    search = select(Search.session_id).where(Search.user_id == Match.user_id_2).scalar_subquery()
    return (
        update(Match)
        .where(Match.id == any_(due))
        .values(
            {
                Match.expires_at: case((unanswered, STATEMENT_NOW), else_=Match.expires_at),
                Match.end_reason: case((unanswered, literal_column("'unanswered'")), else_=Match.end_reason),
                Match.respond_by: case((answered, null()), else_=Match.respond_by),
                Match.session_id_2: func.coalesce(Match.session_id_2, search),
                Match.due_at: STATEMENT_NOW + _LEASE,
            }
        )
        .returning(
            Match.id,
            Match.user_id_1,
            Match.user_id_2,
            Match.session_id,
            Match.session_id_2,
            Match.ended_at,
            Match.ended_by,
            Match.end_reason,
            Match.announced_at.is_not(None).label("is_announced"),
            func.least(Match.respond_by, Match.expires_at).label("next_due"),
            Match.due_at.label("leased_until"),
            STATEMENT_NOW.label("now"),
        )
    )


def _sides(*conditions: ColumnElement[bool], of_member: bool = False) -> Any:
    """Return a query for matches that are shown, as each of the two sees them, or as one member does."""
    mine, theirs = aliased(_Session, name="mine"), aliased(_Session, name="theirs")

    def side(me: Any, other: Any, accepted_at: Any) -> Select[Any]:
        columns = {
            "id": Match.id,
            "member_id": me,
            "session_id": mine.id,
            "created_at": Match.created_at,
            "expires_at": Match.expires_at,
            "respond_by": Match.respond_by,
            "has_accepted": accepted_at.is_not(None),
            "other_id": other,
            "name": MainProfile.name,
            "age": MainProfile.age,
            "description": AfterHoursProfile.description,
            "photo_key": AfterHoursProfile.photo_url,
            "my_latitude": mine.fuzzed_latitude,
            "my_longitude": mine.fuzzed_longitude,
            "other_latitude": theirs.fuzzed_latitude,
            "other_longitude": theirs.fuzzed_longitude,
            "now": STATEMENT_NOW,
        }
        selected = (
            select(*(column.label(name) for name, column in columns.items()))
            .join_from(Match, mine, and_(mine.user_id == me, mine.active(STATEMENT_NOW)))
            .join(theirs, and_(theirs.user_id == other, theirs.active(STATEMENT_NOW)))
            .outerjoin(MainProfile, MainProfile.user_id == other)
            .outerjoin(AfterHoursProfile, AfterHoursProfile.user_id == other)
            .where(Match.shown(STATEMENT_NOW), *conditions)
        )
        return selected.where(me == _MEMBER) if of_member else selected

    return union_all(
        side(Match.user_id_1, Match.user_id_2, Match.user1_accepted_at),
        side(Match.user_id_2, Match.user_id_1, Match.user2_accepted_at),
    )


def _select_held() -> Select[Any]:
    """Return a query for a match of the member's, locked until the transaction ends."""
    is_first = Match.user_id_1 == _MEMBER
    return (
        select(
            Match.id,
            case((is_first, Match.user_id_2), else_=Match.user_id_1).label("other_id"),
            case((is_first, Match.session_id_2), else_=Match.session_id).label("other_session_id"),
            case((is_first, Match.user1_accepted_at), else_=Match.user2_accepted_at).is_not(None).label("has_accepted"),
            Match.respond_by,
            Match.declined_by,
            Match.shown(CLOCK_NOW).label("is_shown"),
            CLOCK_NOW.label("now"),
        )
        .where(Match.id == _MATCH, Match.is_of(_MEMBER))
        .with_for_update(key_share=True)
    )


def _accept() -> Any:
    """Return a statement that notes the member's answer; one answer is enough for the match to go on."""
    mine = {Match.user1_accepted_at: Match.user_id_1, Match.user2_accepted_at: Match.user_id_2}
    accepted = {column: case((user_id == _MEMBER, STATEMENT_NOW), else_=column) for column, user_id in mine.items()}
    return update(Match).where(Match.id == _MATCH).values({Match.respond_by: null(), **accepted})


def _select_missing() -> Any:
    """Return an insert of the searches that live members lack, such as those whom another service let go live."""
    match_id = _live_match(_Session.user_id)
    started_at = func.coalesce(_Session.started_at, STATEMENT_NOW)
    look_at = case((match_id.is_(None), func.greatest(STATEMENT_NOW, _rounded_up(started_at + _FIRST_LOOK))))
    row = {
        Search.user_id: _Session.user_id,
        Search.session_id: _Session.id,
        Search.key: _Session.discovery_key,
        Search.wish: _Session.discovery_wish,
        Search.me: _self_of(_Session.user_id),
        Search.since: started_at,
        Search.look_at: look_at,
        Search.match_id: match_id,
    }
    lacking = ~exists(Search.user_id).where(Search.user_id == _Session.user_id)
    found = select(*row.values()).where(_Session.active(STATEMENT_NOW), lacking).limit(_BATCH)
    return insert(Search).from_select(list(row), found).on_conflict_do_nothing()


def _is_blocked() -> ColumnElement[bool]:
    """Match matches of which one member has blocked the other."""
    pair = [Match.user_id_1, Match.user_id_2]
    return exists(Block.user_id).where(Block.user_id.in_(pair), Block.blocked_user_id.in_(pair))


def _free(*conditions: ColumnElement[bool], first: SQLColumnExpression[Any] = Search.user_id) -> ColumnElement[Any]:
    """Return up to `batch` members with a search that meets the conditions, locked; those `first` by a column."""
    found = select(Search.user_id).where(*conditions).order_by(first).limit(_BATCH)
    return func.array(found.with_for_update(skip_locked=True, key_share=True).scalar_subquery())


def _end_forbidden() -> Any:
    """Return a statement that ends the live matches of members who may not be shown to each other any more.

    It looks at `batch` matches, in the order of the index of those that are not over, and returns how many it ended
    and the last that it looked at.
    """

    def may_be_shown(member_id: SQLColumnExpression[str]) -> ColumnElement[bool]:
        allowed = exists(User.id).where(
            User.id == member_id, User.id_verified.is_(True), User.after_hours_consent.is_(True)
        )
        live = exists(_Session.id).where(_Session.user_id == member_id, _Session.active(STATEMENT_NOW))
        return and_(allowed, live, _is_premium(member_id))

    blocked = _is_blocked()
    forbidden = or_(blocked, ~may_be_shown(Match.user_id_1), ~may_be_shown(Match.user_id_2))
    place = tuple_(Match.due_at, Match.id)
    after = tuple_(cast(bindparam("after_due"), DateTime(timezone=True)), cast(bindparam("after_id"), Uuid))
    page = select(Match.due_at, Match.id).where(Match.due_at.is_not(None), place > after).order_by(*place).limit(_BATCH)
    looked_at = page.cte("looked_at").prefix_with("MATERIALIZED")
    found = select(Match.id).where(Match.id.in_(select(looked_at.c.id)), Match.live(STATEMENT_NOW), forbidden)
    ended = (
        update(Match)
        .where(Match.id == any_(func.array(found.with_for_update(skip_locked=True, key_share=True).scalar_subquery())))
        .values(
            {
                Match.expires_at: STATEMENT_NOW,
                Match.end_reason: case((blocked, literal_column("'blocked'")), else_=literal_column("'barred'")),
            }
        )
        .returning(Match.id)
        .cte("ended")
    )
    count = select(func.count()).select_from(ended).scalar_subquery()
    last = select(looked_at).order_by(looked_at.c.due_at.desc(), looked_at.c.id.desc()).limit(_ONE).subquery()
    return select(count.label("ended"), last.c.due_at, last.c.id)


_waits = Search.match_id.is_(None)
_LATE = STATEMENT_NOW - literal_column("interval '30 seconds'")


def _count_due(by: ColumnElement[datetime]) -> ColumnElement[int]:
    """Return how many matches and, of the selected members, searches have been due since `by` or longer."""
    matches = select(func.count()).where(Match.due_at <= by).scalar_subquery()
    return func.count().filter(Search.look_at <= by) + matches


_CENSUS = Statement(
    select(
        func.count().label("searching"),
        func.count().filter(_waits).label("waiting"),
        func.coalesce(
            func.percentile_cont(literal_column("0.5")).within_group(_waited(Search.since)).filter(_waits),
            literal_column("0"),
        ).label("median_seconds"),
        func.coalesce(func.max(_waited(Search.since)).filter(_waits), literal_column("0")).label("longest_seconds"),
        select(func.count())
        .where(Match.due_at.is_not(None), Match.live(STATEMENT_NOW))
        .scalar_subquery()
        .label("matches"),
        _count_due(STATEMENT_NOW).label("due"),
        _count_due(_LATE).label("late"),
    ).where(exists(_Session.id).where(_Session.id == Search.session_id, _Session.active(STATEMENT_NOW))),
    Census,
)
_CLAIM = Statement(_claim(), Searcher, before=_PLAN_EACH_TIME)
_ENTER_POOL: Statement[Any] = Statement(
    update(Search).where(Search.user_id == any_(_unmatched())).values(looked_at=STATEMENT_NOW)
)
# Whoever left the pool meanwhile stays due. As a condition that would be an invitation to read the whole pool's index.
_LEAVE_TO_BE_FOUND: Statement[Any] = Statement(
    update(Search)
    .where(Search.user_id == any_(_unmatched()))
    .values(look_at=case((Search.looked_at.is_(None), Search.look_at)))
)
_NOTE_MATCHED: Statement[Any] = Statement(
    update(Search)
    .where(Search.user_id == any_(_unmatched()), _live_match(Search.user_id).is_not(None))
    .values(match_id=_live_match(Search.user_id), look_at=null(), looked_at=null())
)
_EDGES = Statement(_select_edges(), Edge, before=_PLAN_AS_WRITTEN)
_JUDGE = Statement(_judge(), Made, before=_PLAN_BY_HASH)
_CLAIM_DUE, _CLAIM_DUE_WITH_MESSAGES = (
    Statement(_claim_due(with_messages=each), Due, before=_PLAN_EACH_TIME) for each in (False, True)
)
_PUBLISHED: Statement[Any] = Statement(
    update(Match)
    .where(Match.id == any_(_IDS), Match.due_at == bindparam("leased_until"))
    .values(
        {
            Match.due_at: case((Match.ended_at.is_(None), func.least(Match.respond_by, Match.expires_at))),
            Match.announced_at: func.coalesce(Match.announced_at, STATEMENT_NOW),
        }
    )
)
_DELETE_ERASED: Statement[Any] = Statement(
    delete(Match).where(Match.id == any_(_IDS), Match.end_reason == literal_column("'erased'"), Match.due_at.is_(None))
)
_SIDES = Statement(_sides(Match.id == any_(_IDS)), Side, before=_PLAN_BY_INDEX)
_SIDE = Statement(_sides(~_is_blocked(), of_member=True), Side)
_OTHER: Statement[Any] = Statement(
    select(case((Match.user_id_1 == _MEMBER, Match.user_id_2), else_=Match.user_id_1)).where(
        Match.id == _MATCH, Match.is_of(_MEMBER)
    )
)
_HELD = Statement(_select_held(), Held)
_ACCEPT: Statement[Any] = Statement(_accept())
_DECLINE: Statement[Any] = Statement(
    update(Match)
    .where(Match.id == _MATCH)
    .values(
        {
            Match.declined_by: _MEMBER,
            Match.declined_at: STATEMENT_NOW,
            Match.due_at: STATEMENT_NOW + _LEASE,
        }
    )
    .returning(Match.due_at, Match.ended_at)
)
_END_UNANSWERED: Statement[Any] = Statement(
    update(Match)
    .where(Match.id == _MATCH)
    .values(
        {
            Match.expires_at: STATEMENT_NOW,
            Match.end_reason: literal_column("'unanswered'"),
            Match.due_at: STATEMENT_NOW + _LEASE,
        }
    )
    .returning(Match.due_at, Match.ended_at)
)
_CLAIM_UNTOLD = Statement(
    update(Search)
    .where(
        Search.user_id == any_(_free(Search.looked_at.is_not(None), Search.told_at.is_(None), Search.look_at.is_(None)))
    )
    .values(told_at=STATEMENT_NOW)
    .returning(Search.user_id, Search.session_id, STATEMENT_NOW.label("now")),
    Waiting,
    before=_PLAN_EACH_TIME,
)
_has_live_session = exists(_Session.id).where(_Session.id == Search.session_id, _Session.active(STATEMENT_NOW))
_INSERT_MISSING: Statement[Any] = Statement(_select_missing(), before=_PLAN_EACH_TIME)
_DELETE_LEFT: Statement[Any] = Statement(
    delete(Search).where(Search.user_id == any_(_free(~_has_live_session))), before=_PLAN_EACH_TIME
)
_END_FORBIDDEN: Statement[Any] = Statement(_end_forbidden(), _Ended, before=_PLAN_EACH_TIME)
_is_going_on = exists(Match.id).where(Match.id == Search.match_id, Match.ended_at.is_(None), Match.due_at.is_not(None))
_RELEASE: Statement[Any] = Statement(
    update(Search)
    .where(Search.user_id == any_(_free(Search.match_id.is_not(None), ~_is_going_on)))
    .values(match_id=null(), looked_at=null(), told_at=null(), since=STATEMENT_NOW, look_at=STATEMENT_NOW),
    before=_PLAN_EACH_TIME,
)
_REFRESH: Statement[Any] = Statement(
    update(Search).where(Search.user_id == any_(_unmatched())).values(me=_self_of(Search.user_id))
)
_LOOK_AGAIN: Statement[Any] = Statement(
    update(Search)
    .where(
        Search.user_id
        == any_(
            _free(
                Search.look_at.is_(None),
                Search.looked_at <= STATEMENT_NOW - cast(bindparam("after"), Interval),
                first=Search.looked_at,
            )
        )
    )
    .values(look_at=STATEMENT_NOW),
    before=_PLAN_EACH_TIME,
)


def _seconds_of(moment: SQLColumnExpression[datetime | None]) -> Select[Any]:
    second = cast(func.ceil(extract("epoch", moment)), BigInteger)
    return select(second.label("second")).where(moment > STATEMENT_NOW)


_SECONDS: Statement[Any] = Statement(
    union(_seconds_of(Search.look_at), _seconds_of(Match.due_at)), before=_PLAN_EACH_TIME
)


def census() -> Census:
    """Count those who search, and their matches."""
    [row] = _CENSUS.all()
    return row


def claim(batch: int, lease: timedelta) -> list[Searcher]:
    """Return up to `batch` members for whom somebody has to be looked for; each is due again after `lease`."""
    return _CLAIM.all(batch=batch, lease=lease)


def enter_pool(members: Sequence[str]) -> None:
    """Let the members be found by others from now on, except those who were matched meanwhile."""
    _ENTER_POOL.run(members=list(members))


def leave_to_be_found(members: Sequence[str]) -> None:
    """End the claim of members for whom nobody was found: they wait in the pool."""
    _LEAVE_TO_BE_FOUND.run(members=list(members))


def edges(members: Sequence[str], limit: int, lead: timedelta) -> list[Edge]:
    """Return whom the members fit among those who wait: the nearest `limit` for each."""
    return _EDGES.all(members=list(members), limit=limit, lead=lead)


def judge(
    pairs: Sequence[tuple[str, str]], length: timedelta, answer: timedelta, lead: timedelta, lease: timedelta
) -> list[Made]:
    """Match those of the pairs that no rule forbids, and return the matches; a member is in at most one pair.

    length: how long a match lasts; answer: how long it waits for an answer; lead: what both sessions must have left;
    lease: how long the caller has to publish the matches. Raises IntegrityError if a member has a live match that their
    search does not know.
    """
    ones, others = [one for one, _ in pairs], [other for _, other in pairs]
    return _JUDGE.all(
        ones=ones, others=others, members=ones + others, length=length, answer=answer, lead=lead, lease=lease
    )


def note_matched(members: Sequence[str]) -> None:
    """Let the members stop searching who have a live match that their search does not know."""
    _NOTE_MATCHED.run(members=list(members))


def refresh(members: Sequence[str]) -> None:
    """Copy the members' gender and age anew: the host may have changed them since they were looked at."""
    _REFRESH.run(members=list(members))


def claim_due(batch: int, lease: timedelta) -> list[Due]:
    """Return up to `batch` matches that a worker has to look at, for `lease`; those whose time is over are ended."""
    statement = _CLAIM_DUE_WITH_MESSAGES if has_messages() else _CLAIM_DUE
    return statement.all(batch=batch, lease=lease)


def mark_published(ids: Collection[uuid.UUID], leased_until: datetime) -> None:
    """Note that matches were published as they are; those that changed since they were leased stay due.

    One that an erasure ended is deleted.
    """
    _PUBLISHED.run(ids=list(ids), leased_until=leased_until)
    _DELETE_ERASED.run(ids=list(ids))


def sides(ids: Collection[uuid.UUID]) -> list[Side]:
    """Return both members' sides of those matches that are live."""
    return _SIDES.all(ids=list(ids))


def side(member_id: str) -> Side | None:
    """Return the member's live match as they see it; None if they have none, or one has blocked the other."""
    return _SIDE.first(member_id=member_id)


def other(member_id: str, match_id: uuid.UUID) -> str | None:
    """Return the other member of a match of the member's, whether it is over or not; None if it is not theirs."""
    row = _OTHER.first(member_id=member_id, match_id=match_id)
    return row and row[0]


def hold(member_id: str, match_id: uuid.UUID) -> Held | None:
    """Return a match of the member's, locked until the transaction ends."""
    return _HELD.first(member_id=member_id, match_id=match_id)


def accept(member_id: str, match_id: uuid.UUID) -> None:
    """Note that the member accepts the match that they hold."""
    _ACCEPT.run(member_id=member_id, match_id=match_id)


def decline(member_id: str, match_id: uuid.UUID, lease: timedelta) -> tuple[datetime, datetime]:
    """End the match that the member holds by their decline.

    Return until when the caller has to publish it, and when it ended.
    """
    [(leased_until, ended_at)] = _DECLINE.all(member_id=member_id, match_id=match_id, lease=lease)
    return leased_until, ended_at


def end_unanswered(match_id: uuid.UUID, lease: timedelta) -> tuple[datetime, datetime]:
    """End a match that is held because nobody answered; return as `decline` does."""
    [(leased_until, ended_at)] = _END_UNANSWERED.all(match_id=match_id, lease=lease)
    return leased_until, ended_at


def claim_untold(batch: int) -> list[Waiting]:
    """Return up to `batch` members who wait and were not told that there is nobody; they count as told now."""
    return _CLAIM_UNTOLD.all(batch=batch)


def insert_missing(batch: int, first_look: timedelta) -> int:
    """Let up to `batch` live members search who do not, and return how many."""
    return _INSERT_MISSING.run(batch=batch, first_look=first_look)[1]


def delete_left(batch: int) -> int:
    """Delete up to `batch` searches whose session is over, and return how many."""
    return _DELETE_LEFT.run(batch=batch)[1]


def end_forbidden(batch: int) -> int:
    """End the live matches of members who may not be shown to each other any more, and return how many.

    Each statement looks at up to `batch` matches. One that is answered meanwhile may have to wait for the next time.
    """
    page: _Ended | None = _Ended(0, datetime.min.replace(tzinfo=UTC), uuid.UUID(int=0))
    total = 0
    while page:
        total += page.ended
        page = _END_FORBIDDEN.first(after_due=page.due_at, after_id=page.id, batch=batch)
    return total


def release(batch: int) -> int:
    """Let up to `batch` members search whose match is over, though their search does not say so; return how many."""
    return _RELEASE.run(batch=batch)[1]


def look_again(batch: int, after: timedelta) -> int:
    """Let up to `batch` members who have waited for `after` be looked for again; return how many."""
    return _LOOK_AGAIN.run(batch=batch, after=after)[1]


def due_seconds() -> set[int]:
    """Return the seconds since the epoch, rounded up, at which something falls due."""
    return {second for (second,) in _SECONDS.all()}

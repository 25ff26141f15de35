"""Reads and writes of discovery: who is near and fits, and declines.

A member's session carries two cubes, which triggers maintain: `discovery_key` says where and who they are, and is
indexed; `discovery_wish` says whom they are looking for, and how far away. docs/discovery.md explains both.

The schema of the extension `cube` need not be on the search_path: statements call SQL functions of ours instead of its
functions and operators, and the planner inlines them.
"""

import uuid
from datetime import datetime, timedelta
from decimal import Decimal
from typing import Any, NamedTuple

from sqlalchemy import (
    BindParameter,
    ColumnElement,
    Interval,
    Select,
    SQLColumnExpression,
    Text,
    and_,
    bindparam,
    cast,
    delete,
    exists,
    func,
    literal_column,
    null,
    or_,
    select,
    true,
    tuple_,
    update,
)
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.orm import aliased

from afterhours_service.discovery import rules
from afterhours_service.discovery.models import AfterHoursDecline
from afterhours_service.places.blur import Point
from afterhours_service.preferences.models import AfterHoursPreferences
from afterhours_service.preferences.rules import DEFAULTS
from afterhours_service.profiles.models import AfterHoursProfile
from afterhours_service.sessions.models import STATEMENT_NOW, AfterHoursSession
from afterhours_service.stores.host import Block, MainProfile, Subscription, User
from afterhours_service.stores.statements import Statement


class Asker(NamedTuple):
    """The member who looks around: their session, and who fits them, as cubes in PostgreSQL's notation."""

    session_id: uuid.UUID
    user_id: str
    blurred_latitude: Decimal
    blurred_longitude: Decimal
    max_distance_km: int
    now: datetime  # the database's
    me: str  # (gender, age)
    wish: str  # (gender, age, metres): whom I am looking for
    near: str  # the keys at distance 0 from me
    within: str  # the keys of those who may fit
    is_stale: bool  # the key of my session is behind my profile

    @property
    def blurred(self) -> Point:
        """Where others see me."""
        return Point(float(self.blurred_latitude), float(self.blurred_longitude))

    def __repr__(self) -> str:
        return f"<Asker {self.session_id}>"  # and never where


class Candidate(NamedTuple):
    """A member who is near and fits, as they present themselves."""

    session_id: uuid.UUID
    user_id: str
    name: str | None
    age: int | None
    description: str | None
    photo_key: str | None
    expires_at: datetime
    blurred_latitude: Decimal
    blurred_longitude: Decimal
    metres: float  # the chord; it orders, and is never shown

    @property
    def blurred(self) -> Point:
        """Where others see them."""
        return Point(float(self.blurred_latitude), float(self.blurred_longitude))

    def __repr__(self) -> str:
        return f"<Candidate {self.session_id}>"  # and never where


class Position(NamedTuple):
    """A place in the order of candidates: the next page has those who come after it, and were live at `as_of`."""

    as_of: datetime
    metres: float
    session_id: uuid.UUID


_Session, _Decline = AfterHoursSession, AfterHoursDecline
_MEMBER: BindParameter[str] = bindparam("member_id")
_OTHER: BindParameter[str] = bindparam("other_id")
_ONE: ColumnElement[int] = literal_column("1")  # as a parameter, the planner could not count on it


def _select_asker() -> Select[Any]:
    wished = AfterHoursPreferences
    # Materialized, so that the cubes are made once.
    mine = (
        select(
            _Session.id,
            _Session.user_id,
            _Session.fuzzed_latitude,
            _Session.fuzzed_longitude,
            _Session.discovery_key,
            _Session.discovery_wish,
            STATEMENT_NOW.label("now"),
            func.coalesce(wished.max_distance_km, DEFAULTS["max_distance_km"]).label("max_distance_km"),
            func.after_hours_self(MainProfile.gender, MainProfile.age).label("me"),
            func.after_hours_wish(wished.seeking_gender, wished.min_age, wished.max_age, wished.max_distance_km).label(
                "wish"
            ),
            func.after_hours_key(
                _Session.id,
                _Session.fuzzed_latitude,
                _Session.fuzzed_longitude,
                MainProfile.gender,
                MainProfile.age,
                wished.seeking_gender,
            ).label("key"),
        )
        .outerjoin_from(_Session, MainProfile, MainProfile.user_id == _Session.user_id)
        .outerjoin(wished, wished.user_id == _Session.user_id)
        .where(_Session.user_id == _MEMBER, _Session.active(STATEMENT_NOW))
        .cte("mine")
        .prefix_with("MATERIALIZED")
    ).c
    stored = tuple_(cast(mine.discovery_key, Text), cast(mine.discovery_wish, Text))
    reach = func.after_hours_reach(mine.wish)
    return select(
        mine.id.label("session_id"),
        mine.user_id,
        mine.fuzzed_latitude.label("blurred_latitude"),
        mine.fuzzed_longitude.label("blurred_longitude"),
        mine.max_distance_km,
        mine.now,
        cast(mine.me, Text).label("me"),
        cast(mine.wish, Text).label("wish"),
        cast(func.after_hours_box(mine.key, mine.me, mine.wish, 0), Text).label("near"),
        cast(func.after_hours_box(mine.key, mine.me, mine.wish, reach), Text).label("within"),
        stored.is_distinct_from(tuple_(cast(mine.key, Text), cast(mine.wish, Text))).label("is_stale"),
    )


def _in_force() -> ColumnElement[bool]:
    """Match declines that still hide: their member has started at most two sessions since the one of the decline.

    At most three sessions are read, however many a member has.
    """
    origin, later = aliased(_Session), aliased(_Session)
    since = (
        select(origin.started_at)
        .where(origin.id == func.coalesce(_Decline.last_session_id, _Decline.session_id))
        .correlate(_Decline)
        .scalar_subquery()
    )
    return ~(
        select(true())
        .where(later.user_id == _Decline.user_id, later.started_at > since)
        .order_by(later.started_at)  # makes the planner use the index, however many sessions there are
        .offset(rules.MEMORY_SESSIONS)
        .limit(_ONE)
        .correlate(_Decline)
        .exists()
    )


def are_apart(one: SQLColumnExpression[str], other: SQLColumnExpression[str]) -> ColumnElement[bool]:
    """Match two members who are not shown to each other: one blocked the other, or a decline is in force.

    Scalar subqueries, not joins: one index lookup each for the pair, however many members have blocked one of them.
    """
    pair = [one, other]
    block = select(true()).where(Block.user_id.in_(pair), Block.blocked_user_id.in_(pair)).limit(_ONE)
    decline = (
        select(true()).where(_Decline.user_id.in_(pair), _Decline.declined_user_id.in_(pair), _in_force()).limit(_ONE)
    )
    return or_(block.scalar_subquery().is_not(None), decline.scalar_subquery().is_not(None))


def _select_fitting(*conditions: ColumnElement[bool], nearest_first: bool = False) -> Select[Any]:
    """Select the candidates who fit. conditions: more of them, on the session.

    The scan is a subquery of its own, whose order the joins around it keep: they run for those who fit, the nearest
    first, and only until the page is full.
    """
    me: BindParameter[str] = bindparam("me")
    wish: BindParameter[str] = bindparam("wish")
    metres = func.after_hours_metres(_Session.discovery_key, bindparam("near"))
    scan = select(
        _Session.id,
        _Session.user_id,
        _Session.expires_at,
        _Session.fuzzed_latitude,
        _Session.fuzzed_longitude,
        metres.label("metres"),
    ).where(
        func.after_hours_holds(bindparam("within"), _Session.discovery_key),
        func.after_hours_holds(_Session.discovery_wish, me),
        metres <= func.least(func.after_hours_reach(wish), func.after_hours_reach(_Session.discovery_wish)),
        metres >= bindparam("metres"),
        _Session.discoverable(STATEMENT_NOW, bindparam("lead", type_=Interval)),
        _Session.started_at <= bindparam("as_of"),
        _Session.user_id != _MEMBER,
        *conditions,
    )
    found = (scan.order_by(metres) if nearest_first else scan).subquery("found")
    return (
        select(
            found.c.id.label("session_id"),
            found.c.user_id,
            MainProfile.name,
            MainProfile.age,
            AfterHoursProfile.description,
            AfterHoursProfile.photo_url.label("photo_key"),
            found.c.expires_at,
            found.c.fuzzed_latitude.label("blurred_latitude"),
            found.c.fuzzed_longitude.label("blurred_longitude"),
            found.c.metres,
        )
        .join_from(
            found,
            User,
            and_(User.id == found.c.user_id, User.id_verified.is_(True), User.after_hours_consent.is_(True)),
        )
        .outerjoin(MainProfile, MainProfile.user_id == found.c.user_id)
        .outerjoin(AfterHoursProfile, AfterHoursProfile.user_id == found.c.user_id)
        .where(
            tuple_(found.c.metres, found.c.id) > tuple_(bindparam("metres"), bindparam("after_id")),
            func.after_hours_holds(wish, func.after_hours_self(MainProfile.gender, MainProfile.age)),
            exists(Subscription.user_id).where(
                Subscription.user_id == found.c.user_id,
                Subscription.is_current(),
            ),
            ~are_apart(_MEMBER, found.c.user_id),
        )
    )


def _insert_decline() -> Select[Any]:
    """Insert or renew a decline, and count my sessions: none when mine was deleted.

    The member's row is locked before the session's, which the foreign key would lock first; an erasure is waited for.
    """
    member = (
        select(User.id)
        .where(User.id == _MEMBER)
        .with_for_update(read=True, key_share=True)
        .cte("member")
        .prefix_with("MATERIALIZED")
    )
    is_locked = select(func.count()).select_from(member).scalar_subquery() == _ONE
    mine = (
        select(_Session.id)
        .where(_Session.id == bindparam("session_id"), is_locked)
        .with_for_update(read=True, key_share=True)
        .cte("mine")
        .prefix_with("MATERIALIZED")
    )
    new = insert(_Decline).from_select(
        [_Decline.session_id, _Decline.user_id, _Decline.declined_user_id, _Decline.last_session_id],
        select(mine.c.id, _MEMBER, _OTHER, mine.c.id.label("last_session_id")),
    )
    # A decline that is no longer in force begins again, also for the nightly cleanup: that looks at created_at, and
    # would delete the decline with the session it refers to.
    renewed = new.on_conflict_do_update(
        index_elements=[_Decline.user_id, _Decline.declined_user_id],
        set_={
            _Decline.session_id: new.excluded.session_id,
            _Decline.last_session_id: new.excluded.session_id,
            _Decline.created_at: new.excluded.created_at,
            _Decline.decline_count: func.coalesce(_Decline.decline_count, 1) + 1,
        },
        where=func.coalesce(_Decline.last_session_id, _Decline.session_id) != new.excluded.session_id,
    )
    return select(func.count()).select_from(mine).add_cte(renewed.cte("declined"))


# The planner cannot estimate how many keys a box holds: it shall read them in the index's order, not collect and sort
# them; join in the order written, without looking for a better one; and plan once, as no values make a better plan.
_PLAN_AS_WRITTEN = (
    "SET LOCAL enable_bitmapscan = off; SET LOCAL enable_seqscan = off; SET LOCAL enable_sort = off;"
    " SET LOCAL join_collapse_limit = 1; SET LOCAL plan_cache_mode = force_generic_plan;"
)

_ASKER = Statement(_select_asker(), Asker)
_PAGE = Statement(
    _select_fitting(nearest_first=True).order_by("metres", "session_id").limit(bindparam("limit")),
    Candidate,
    before=_PLAN_AS_WRITTEN,
)
_COUNT: Statement[Any] = Statement(
    select(func.count()).select_from(_select_fitting().limit(bindparam("limit")).subquery("fitting")),
    before=_PLAN_AS_WRITTEN,
)
_CANDIDATE = Statement(_select_fitting(_Session.user_id == _OTHER), Candidate)
_DECLINE_IN_FORCE: Statement[Any] = Statement(
    select(_Decline.id).where(_Decline.user_id == _MEMBER, _Decline.declined_user_id == _OTHER, _in_force())
)
_INSERT_DECLINE: Statement[Any] = Statement(_insert_decline())
_DELETE_DECLINE: Statement[Any] = Statement(
    delete(_Decline).where(_Decline.user_id == _MEMBER, _Decline.declined_user_id == _OTHER)
)
# A trigger replaces a key that is null.
_RENEW_KEY: Statement[Any] = Statement(
    update(_Session).where(_Session.user_id == _MEMBER, _Session.unended()).values(discovery_key=null())
)

_BEFORE_ANYBODY = uuid.UUID(int=0)


def asker(member_id: str) -> Asker | None:
    """Return the member as they look around; None when they have no active session."""
    return _ASKER.first(member_id=member_id)


def renew_key(member_id: str) -> None:
    """Bring the key of the member's session up to date with their profile."""
    _RENEW_KEY.run(member_id=member_id)


def page(me: Asker, limit: int, lead: timedelta, after: Position | None = None) -> list[Candidate]:
    """Return up to `limit` members who fit, the nearest first, and have at least `lead` left."""
    return _PAGE.all(**_parameters(me, lead, after), limit=limit)


def count(me: Asker, limit: int, lead: timedelta) -> int:
    """Return how many members fit and have at least `lead` left; counted up to `limit`."""
    counted: int
    [(counted,)] = _COUNT.all(**_parameters(me, lead), limit=limit)
    return counted


def is_visible(me: Asker, other_id: str, lead: timedelta) -> bool:
    """Return whether a member is among those that `page` would return."""
    return _CANDIDATE.first(**_parameters(me, lead), other_id=other_id) is not None


def has_declined(me: Asker, other_id: str) -> bool:
    """Return whether a decline of mine hides the other member now."""
    return _DECLINE_IN_FORCE.first(member_id=me.user_id, other_id=other_id) is not None


def decline(session_id: uuid.UUID, member_id: str, other_id: str) -> bool:
    """Hide the two from each other from now on; false when the member's session was deleted.

    Raises IntegrityError when the other member is gone.
    """
    [(sessions,)] = _INSERT_DECLINE.all(member_id=member_id, other_id=other_id, session_id=session_id)
    return bool(sessions)


def take_back(me: Asker, other_id: str) -> None:
    """Delete my decline of the other member, if there is one."""
    _DELETE_DECLINE.run(member_id=me.user_id, other_id=other_id)


def _parameters(me: Asker, lead: timedelta, after: Position | None = None) -> dict[str, Any]:
    return {
        "member_id": me.user_id,
        "me": me.me,
        "wish": me.wish,
        "near": me.near,
        "within": me.within,
        "lead": lead,
        "as_of": after.as_of if after else me.now,
        "metres": after.metres if after else 0.0,
        "after_id": after.session_id if after else _BEFORE_ANYBODY,
    }

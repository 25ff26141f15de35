"""Every statement about a member's rights. Each is a transaction of its own, or joins the caller's.

The two columns of consent are the only ones of the host's that are written.
"""

from collections.abc import Iterator, Sequence
from datetime import datetime
from typing import Any, NamedTuple

from sqlalchemy import (
    BindParameter,
    Boolean,
    MappingResult,
    RowMapping,
    Select,
    Text,
    and_,
    any_,
    bindparam,
    case,
    cast,
    delete,
    func,
    literal_column,
    or_,
    select,
    text,
    update,
)

from afterhours_service.discovery.models import AfterHoursDecline
from afterhours_service.preferences.models import AfterHoursPreferences
from afterhours_service.profiles.models import AfterHoursProfile
from afterhours_service.sessions.models import (
    AfterHoursSession,
    DeviceFingerprint,
    ExpiryOutbox,
    RememberedPlace,
    Search,
)
from afterhours_service.stores.database import db
from afterhours_service.stores.host import Match, User, has_messages, is_matched
from afterhours_service.stores.statements import Statement
from afterhours_service.stores.watch import Awaiting


class Consent(NamedTuple):
    """Whether a member consents to After Hours, and since when it is so; None when nobody noted it."""

    granted: bool
    changed_at: datetime | None


_MEMBER: BindParameter[str] = bindparam("member_id")

_CONSENT = (User.after_hours_consent.is_(True).label("granted"), User.after_hours_consent_at.label("changed_at"))
_SELECT_CONSENT = select(*_CONSENT).where(User.id == _MEMBER)
_READ_CONSENT = Statement(_SELECT_CONSENT, Consent)
# Every insert of a session locks its member's row by its foreign key: those in progress are waited for.
_LOCK = Statement(_SELECT_CONSENT.with_for_update(), Consent)
_SET_CONSENT = Statement(
    update(User)
    .where(User.id == _MEMBER)
    .values(after_hours_consent=cast(bindparam("granted"), Boolean), after_hours_consent_at=func.now())
    .returning(*_CONSENT),
    Consent,
)


def _exports() -> dict[str, Select[Any]]:
    """Return what is held on a member: table by table, without the exact place."""
    profile, preferences, decline, device = (
        AfterHoursProfile,
        AfterHoursPreferences,
        AfterHoursDecline,
        DeviceFingerprint,
    )
    session, place = AfterHoursSession, RememberedPlace
    pending = select(
        func.unnest(ExpiryOutbox.session_ids).label("session_id"), ExpiryOutbox.publish_at.label("publish_at")
    ).subquery("pending")
    return {
        "consent": _SELECT_CONSENT,
        "profile": select(*profile.__table__.c).where(profile.user_id == _MEMBER),
        # The service before this one kept more columns in some databases.
        "preferences": select(literal_column("*")).select_from(preferences).where(preferences.user_id == _MEMBER),
        "sessions": select(
            session.id,
            session.created_at,
            session.started_at,
            session.expires_at,
            session.ended_at,
            session.warned_at,
            session.fuzzed_latitude.label("blurred_latitude"),
            session.fuzzed_longitude.label("blurred_longitude"),
            session.extension_key,
            session.extension_minutes,
            session.extension_expires_at,
            cast(session.discovery_key, Text).label("discovery_key"),
            cast(session.discovery_wish, Text).label("discovery_wish"),
        )
        .where(session.user_id == _MEMBER)
        .order_by(session.started_at, session.id),
        "places": select(
            place.id,
            place.fuzzed_latitude.label("blurred_latitude"),
            place.fuzzed_longitude.label("blurred_longitude"),
            place.visits,
            place.last_seen,
        )
        .where(place.user_id == _MEMBER)
        .order_by(place.last_seen, place.id),
        "declines": select(
            decline.id,
            decline.declined_user_id,
            decline.session_id,
            decline.last_session_id,
            decline.created_at,
            decline.first_declined_at,
            decline.decline_count,
        )
        .where(decline.user_id == _MEMBER)
        .order_by(decline.created_at, decline.id),
        "devices": select(
            device.id,
            device.session_id,
            device.device_id,
            device.device_model,
            device.platform,
            device.created_at,
        )
        .where(device.user_id == _MEMBER)
        .order_by(device.created_at, device.id),
        "search": select(
            Search.session_id,
            Search.since,
            Search.look_at,
            Search.looked_at,
            Search.told_at,
            Search.match_id,
            *(cast(cube, Text).label(cube.key) for cube in (Search.key, Search.wish, Search.me)),
        ).where(Search.user_id == _MEMBER),
        "matches": _select_matches(),
        "unpublished_expiries": select(session.id.label("session_id"), pending.c.publish_at)
        .join_from(pending, session, session.id == pending.c.session_id)
        .where(session.user_id == _MEMBER)
        .order_by(pending.c.publish_at, session.id),
    }


def _select_matches() -> Select[Any]:
    """Return a query for the member's matches: of the other one, the id alone."""
    is_first = Match.user_id_1 == _MEMBER

    def mine(first: Any, second: Any) -> Any:
        return case((is_first, first), else_=second)

    return (
        select(
            Match.id,
            mine(Match.session_id, Match.session_id_2).label("session_id"),
            mine(Match.user_id_2, Match.user_id_1).label("other_user_id"),
            Match.created_at,
            Match.expires_at,
            Match.respond_by,
            Match.lasts_until,
            mine(Match.user1_accepted_at, Match.user2_accepted_at).label("accepted_at"),
            mine(Match.user1_save_vote, Match.user2_save_vote).label("save_vote"),
            (Match.declined_by == _MEMBER).label("declined_by_me"),
            Match.declined_at,
            Match.ended_at,
            (Match.ended_by == _MEMBER).label("ended_by_me"),
            Match.end_reason,
            Match.announced_at,
            Match.due_at,
        )
        .where(Match.is_of(_MEMBER))
        .order_by(Match.created_at, Match.id)
    )


_EXPORTS = _exports()
_PAGE = 1000  # rows of an export that are in memory at once

# A member's rows may be many: a statement erases some, lest it take longer than a statement may.
_BATCH = 10_000


def _some(model: Any, *conditions: Any) -> Any:
    is_mine = model.is_of(_MEMBER) if model is Match else model.user_id == _MEMBER
    found = select(model.id).where(is_mine, *conditions).limit(literal_column(str(_BATCH)))
    return model.id == any_(func.array(found.scalar_subquery()))


# A match whose end is not published yet is deleted with that.
_is_pending = and_(Match.ended_at.is_not(None), Match.due_at.is_not(None))
# A match that has run out is over, though nobody has noted that yet: a trigger does.
_NOTE_ENDS: Statement[Any] = Statement(
    update(Match)
    .where(Match.is_of(_MEMBER), Match.due_at.is_not(None), Match.ended_at.is_(None))
    .values(expires_at=Match.expires_at)
)
_MARK_ERASED = tuple(
    Statement[Any](
        update(Match)
        .where(Match.is_of(_MEMBER), _is_pending, ~Match.is_kept(with_messages=each))
        .values(end_reason=literal_column("'erased'"))
    )
    for each in (False, True)
)
_ERASE_MATCHES = tuple(
    Statement[Any](delete(Match).where(_some(Match, ~_is_pending, ~Match.is_kept(with_messages=each))))
    for each in (False, True)
)
_ERASE_SEARCH: Statement[Any] = Statement(delete(Search).where(Search.user_id == _MEMBER))
_ERASE = tuple(
    Statement[Any](delete(model).where(_some(model)))
    for model in (DeviceFingerprint, AfterHoursDecline, RememberedPlace)
)
_ERASE_PREFERENCES: Statement[Any] = Statement(
    delete(AfterHoursPreferences).where(AfterHoursPreferences.user_id == _MEMBER)
)
_ERASE_PROFILE: Statement[Any] = Statement(
    delete(AfterHoursProfile).where(AfterHoursProfile.user_id == _MEMBER).returning(AfterHoursProfile.photo_url)
)
# A match, with the other member's messages, would go with its session: only the place goes.
_ERASE_SESSIONS: Statement[Any] = Statement(
    delete(AfterHoursSession).where(_some(AfterHoursSession, ~is_matched(AfterHoursSession.id)))
)
_ERASE_PLACES: Statement[Any] = Statement(
    update(AfterHoursSession)
    .where(
        _some(
            AfterHoursSession,
            or_(
                AfterHoursSession.fuzzed_latitude != literal_column("0"),
                AfterHoursSession.fuzzed_longitude != literal_column("0"),
            ),
        )
    )
    .values(fuzzed_latitude=literal_column("0"), fuzzed_longitude=literal_column("0"))
)


def consent(member_id: str) -> Consent | None:
    """Return the member's consent; None when there is no such member."""
    return _READ_CONSENT.first(member_id=member_id)


def lock(member_id: str) -> Consent | None:
    """Wait for the member's starts in progress, block others until the transaction ends, and return the consent."""
    return _LOCK.first(member_id=member_id)


def set_consent(member_id: str, granted: bool) -> Consent | None:
    """Write the host's two columns."""
    return _SET_CONSENT.first(member_id=member_id, granted=granted)


def export(member_id: str) -> Iterator[tuple[str, Iterator[Sequence[RowMapping]]]]:
    """Yield each table's name and its rows, page by page: read one to its end before the next.

    All is as of one moment, whatever is written meanwhile. It has a connection of its own, as it outlasts the request:
    it needs the app's context for the first table only. Raises DBAPIError and TimeoutError.
    """
    with db.engine.connect() as connection:
        driver: Any = connection.connection.dbapi_connection
        with Awaiting(driver):
            # Not as an option of SQLAlchemy's, which the connection would keep traces of.
            connection.execute(text("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ"))
        connection.execution_options(stream_results=True)
        for name, statement in _EXPORTS.items():
            with Awaiting(driver):
                found = connection.execute(statement, {"member_id": member_id}).mappings()
            yield name, _pages(found, driver)


def _pages(found: MappingResult, driver: Any) -> Iterator[Sequence[RowMapping]]:
    pages = found.partitions(_PAGE)
    while True:
        with Awaiting(driver):
            page = next(pages, None)
        if page is None:
            return
        yield page


class Erased(NamedTuple):
    """What is still to do after an erasure. has_matches: the other members are to be told, then matches are deleted."""

    photo_key: str | None
    has_matches: bool


def erase(member_id: str) -> Erased:
    """Delete the member's rows, and return what is still to do.

    Sessions before what hangs on them: the cleanup, whose deletions cascade, locks them in this order.
    """
    _ERASE_PREFERENCES.run(member_id=member_id)
    profile = _ERASE_PROFILE.first(member_id=member_id)
    with_messages = has_messages()
    _NOTE_ENDS.run(member_id=member_id)
    marked = _MARK_ERASED[with_messages].run(member_id=member_id)[1]
    _repeat(_ERASE_MATCHES[with_messages], member_id)
    _ERASE_SEARCH.run(member_id=member_id)
    _repeat(_ERASE_SESSIONS, member_id)
    _repeat(_ERASE_PLACES, member_id)
    for statement in _ERASE:
        _repeat(statement, member_id)
    return Erased(profile[0] if profile else None, marked > 0)


def _repeat(statement: Statement[Any], member_id: str) -> None:
    while statement.run(member_id=member_id)[1] == _BATCH:
        pass

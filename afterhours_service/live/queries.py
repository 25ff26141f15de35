"""The one question about everybody who is connected."""

import uuid
from collections.abc import Collection
from datetime import datetime
from typing import NamedTuple

from sqlalchemy import ARRAY, Text, and_, any_, bindparam, cast, exists, func, literal_column, select

from afterhours_service.sessions.models import STATEMENT_NOW, AfterHoursSession
from afterhours_service.stores.host import Match, Subscription, User
from afterhours_service.stores.statements import Statement


class Present(NamedTuple):
    """A member whom the gate lets pass, and what a client of theirs should show."""

    member_id: str
    session_id: uuid.UUID | None
    expires_at: datetime | None
    match_id: uuid.UUID | None


_matches = [
    select(Match.id).where(column == User.id, Match.shown(STATEMENT_NOW)).limit(literal_column("1")).scalar_subquery()
    for column in (Match.user_id_1, Match.user_id_2)
]
_PRESENT = Statement(
    select(
        User.id.label("member_id"),
        AfterHoursSession.id.label("session_id"),
        AfterHoursSession.expires_at,
        func.coalesce(*_matches).label("match_id"),
    )
    .outerjoin(AfterHoursSession, and_(AfterHoursSession.user_id == User.id, AfterHoursSession.active(STATEMENT_NOW)))
    .where(
        User.id == any_(cast(bindparam("members"), ARRAY(Text))),
        User.id_verified.is_(True),
        User.after_hours_consent.is_(True),
        exists(select(Subscription.user_id).where(Subscription.user_id == User.id, Subscription.is_current())),
    ),
    Present,
)


def present(members: Collection[str]) -> list[Present]:
    """Return those of the members whom the gate lets pass. Raises as `Statement.all` does."""
    return _PRESENT.all(members=list(members))

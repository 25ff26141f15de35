"""The host application's tables. The service reads them; it writes the two consent columns, in `rights/`, and matches.

The table of matches is the host's where the Node service made it: the host's chat service reads it, and declines.
"""

import uuid
from datetime import datetime
from typing import Any, NamedTuple

from sqlalchemy import (
    BindParameter,
    ColumnElement,
    ForeignKey,
    Index,
    Integer,
    SQLColumnExpression,
    String,
    Text,
    UniqueConstraint,
    Uuid,
    and_,
    bindparam,
    column,
    exists,
    func,
    literal_column,
    or_,
    select,
    table,
    text,
    true,
)
from sqlalchemy.dialects.postgresql import TIMESTAMP
from sqlalchemy.orm import Mapped, mapped_column

from afterhours_service.stores.database import Base
from afterhours_service.stores.statements import Statement

Timestamp = TIMESTAMP(timezone=True)


class User(Base):
    """A member, as the host knows them."""

    __tablename__ = "users"

    id: Mapped[str] = mapped_column(String(255), primary_key=True)
    provider: Mapped[str] = mapped_column(String(50))
    email: Mapped[str | None] = mapped_column(String(255))
    id_verified: Mapped[bool | None] = mapped_column(server_default=text("false"))
    after_hours_consent: Mapped[bool | None] = mapped_column(server_default=text("false"))
    after_hours_consent_at: Mapped[datetime | None] = mapped_column(Timestamp)
    created_at: Mapped[datetime | None] = mapped_column(Timestamp, server_default=func.current_timestamp())


class MainProfile(Base):
    """A member's profile in the host's app, outside After Hours."""

    __tablename__ = "profiles"

    user_id: Mapped[str] = mapped_column(ForeignKey(User.id, ondelete="CASCADE"), primary_key=True)
    name: Mapped[str | None] = mapped_column(String(255))
    age: Mapped[int | None] = mapped_column(Integer)
    gender: Mapped[str | None] = mapped_column(String(50))
    sexual_preference: Mapped[str | None] = mapped_column(String(50))


class Subscription(Base):
    """A purchase of premium; `expires_at` is null if it never expires."""

    __tablename__ = "user_subscriptions"

    id: Mapped[uuid.UUID] = mapped_column(primary_key=True, server_default=func.gen_random_uuid())
    user_id: Mapped[str] = mapped_column(ForeignKey(User.id, ondelete="CASCADE"), index=True)
    is_active: Mapped[bool] = mapped_column(server_default=text("false"))
    product_id: Mapped[str | None] = mapped_column(Text)
    expires_at: Mapped[datetime | None] = mapped_column(Timestamp)
    created_at: Mapped[datetime | None] = mapped_column(Timestamp, server_default=func.current_timestamp())

    @classmethod
    def is_current(cls) -> ColumnElement[bool]:
        """Return the condition that a subscription makes its member premium now."""
        return and_(cls.is_active, or_(cls.expires_at.is_(None), cls.expires_at > func.now()))


class Block(Base):
    """A member has blocked another."""

    __tablename__ = "blocks"
    __table_args__ = (UniqueConstraint("user_id", "blocked_user_id"),)

    id: Mapped[str] = mapped_column(String(255), primary_key=True, server_default=func.gen_random_uuid())
    user_id: Mapped[str] = mapped_column(String(255))
    blocked_user_id: Mapped[str] = mapped_column(String(255))
    reason: Mapped[str | None] = mapped_column(Text)
    created_at: Mapped[datetime | None] = mapped_column(Timestamp, server_default=func.current_timestamp())


# The chat service's, where there is one.
messages = table("after_hours_messages", column("match_id", Uuid))


class Match(Base):
    """Two members who are shown to each other for some minutes.

    The host decides by `declined_by` and `expires_at` alone whether a match is live: so an end that is no member's
    decline sets `expires_at` to its moment. Triggers keep a member out of two live matches, and note each end.
    """

    __tablename__ = "after_hours_matches"
    __table_args__ = (
        UniqueConstraint("session_id", "user_id_1", "user_id_2"),
        Index("idx_after_hours_matches_user_1", "user_id_1", "expires_at"),
        Index("idx_after_hours_matches_user_2", "user_id_2", "expires_at"),
        Index("idx_after_hours_matches_session_2", "session_id_2", postgresql_where=text("session_id_2 IS NOT NULL")),
        Index("idx_after_hours_matches_due", "due_at", postgresql_where=text("due_at IS NOT NULL")),
        Index("idx_after_hours_matches_expires", "expires_at", "id"),
    )

    id: Mapped[uuid.UUID] = mapped_column(primary_key=True, server_default=func.gen_random_uuid())
    # The session of the first member.
    session_id: Mapped[uuid.UUID] = mapped_column(ForeignKey("after_hours_sessions.id", ondelete="CASCADE"))
    user_id_1: Mapped[str] = mapped_column(String(255), ForeignKey(User.id, ondelete="CASCADE"))
    user_id_2: Mapped[str] = mapped_column(String(255), ForeignKey(User.id, ondelete="CASCADE"))
    created_at: Mapped[datetime | None] = mapped_column(Timestamp, server_default=func.current_timestamp())
    expires_at: Mapped[datetime] = mapped_column(Timestamp)
    # The chat service's: who wants to keep the match, and the lasting match that came of it.
    user1_save_vote: Mapped[bool | None] = mapped_column(server_default=text("false"))
    user2_save_vote: Mapped[bool | None] = mapped_column(server_default=text("false"))
    converted_to_match_id: Mapped[str | None] = mapped_column(String(255))
    declined_by: Mapped[str | None] = mapped_column(String(255), ForeignKey(User.id, ondelete="SET NULL"))
    declined_at: Mapped[datetime | None] = mapped_column(Timestamp)
    # From here on ours. The session of the second member; null in a match of the Node service.
    session_id_2: Mapped[uuid.UUID | None]
    # When the match is over unless one of them answers; null once one did, and in a match of the Node service.
    respond_by: Mapped[datetime | None] = mapped_column(Timestamp)
    # The latest moment that an extension can move `expires_at` to.
    lasts_until: Mapped[datetime | None] = mapped_column(Timestamp)
    user1_accepted_at: Mapped[datetime | None] = mapped_column(Timestamp)
    user2_accepted_at: Mapped[datetime | None] = mapped_column(Timestamp)
    # How it ended, and who ended it, if a member did. A match that has run out is noted as soon as a worker sees it.
    ended_at: Mapped[datetime | None] = mapped_column(Timestamp)
    ended_by: Mapped[str | None] = mapped_column(String(255))
    end_reason: Mapped[str | None] = mapped_column(String(20))
    # When both were told of the match.
    announced_at: Mapped[datetime | None] = mapped_column(Timestamp, server_default=func.statement_timestamp())
    # When a worker has to look at the match next: to publish it, to end it, to publish its end. Null after that.
    due_at: Mapped[datetime | None] = mapped_column(Timestamp, server_default=func.statement_timestamp())

    @classmethod
    def live(cls, now: ColumnElement[datetime]) -> ColumnElement[bool]:
        """Select matches that are not over, as the host's chat service does."""
        return and_(cls.declined_by.is_(None), cls.expires_at > now)

    @classmethod
    def shown(cls, now: ColumnElement[datetime]) -> ColumnElement[bool]:
        """Select live matches that were answered, or may still be."""
        return and_(
            cls.live(now),
            or_(
                cls.respond_by.is_(None),
                cls.respond_by > now,
                cls.user1_save_vote.is_(True),
                cls.user2_save_vote.is_(True),
            ),
        )

    @classmethod
    def is_of(cls, member_id: SQLColumnExpression[str]) -> ColumnElement[bool]:
        """Select the matches of a member."""
        return or_(cls.user_id_1 == member_id, cls.user_id_2 == member_id)

    @classmethod
    def is_kept(cls, *, with_messages: bool) -> ColumnElement[bool]:
        """Select matches that are the host's to delete: they have become lasting ones, or have messages.

        with_messages: whether the chat service's table of messages exists.
        """
        saved = cls.converted_to_match_id.is_not(None)
        return or_(saved, exists(messages.c.match_id).where(messages.c.match_id == cls.id)) if with_messages else saved


class Standing(NamedTuple):
    """What the gate checks of a member, in this order."""

    premium: bool
    verified: bool
    consented: bool


_MEMBER: BindParameter[str] = bindparam("member_id")


def select_standing() -> Any:
    """Return a query for the Standing of `:member_id`: one row, even for an unknown member.

    A route's own query may include it, to save a round trip.
    """
    nobody = select(literal_column("1")).subquery("nobody")
    current = select(Subscription.user_id).where(Subscription.user_id == _MEMBER, Subscription.is_current())
    return select(
        exists(current).label("premium"),
        User.id_verified.is_(True).label("verified"),
        User.after_hours_consent.is_(True).label("consented"),
    ).select_from(nobody.outerjoin(User, User.id == _MEMBER))


_STANDING = Statement(select_standing(), Standing)


# Every decline and change of a profile or preferences takes this lock first in its transaction, and a start takes the
# same one; a withdrawal of consent and an erasure take FOR UPDATE, which excludes it (docs/decisions/0011).
_LOCK: Statement[Any] = Statement(
    select(User.after_hours_consent.is_(true()).label("consent"))
    .where(User.id == bindparam("member_id"))
    .with_for_update(read=True, key_share=True)
)
_LOCK_PAIR: Statement[Any] = Statement(
    select(User.id)
    .where(User.id.in_([bindparam("member_id"), bindparam("other_id")]))
    .order_by(User.id)  # so that two who lock each other do not wait for each other
    .with_for_update(read=True, key_share=True)
)
_TRY_LOCK_ERASURE: Statement[Any] = Statement(
    select(func.pg_try_advisory_xact_lock_shared(func.hashtextextended(bindparam("member_id"), bindparam("seed"))))
)
_LOCK_ERASURE: Statement[Any] = Statement(
    select(func.pg_advisory_xact_lock(func.hashtextextended(bindparam("member_id"), bindparam("seed"))))
)
LOCK_SEED = 0x0AF7E12  # arbitrary: makes a collision with another application's advisory locks unlikely

_HAS_MESSAGES: Statement[Any] = Statement(select(func.to_regclass(messages.name).is_not(None)))


def lock(member_id: str) -> bool | None:
    """Wait for a withdrawal or an erasure in progress, and block new ones until the transaction ends.

    Returns the member's consent; None when there is no such member.
    """
    row = _LOCK.first(member_id=member_id)
    return row and row[0]


def lock_pair(member_id: str, other_id: str) -> None:
    """Do as `lock` for two members, whatever their consent."""
    _LOCK_PAIR.run(member_id=member_id, other_id=other_id)


def try_lock_erasure(member_id: str) -> bool:
    """Block erasures until the transaction ends; false when one is in progress."""
    [(taken,)] = _TRY_LOCK_ERASURE.all(member_id=member_id, seed=LOCK_SEED)
    return bool(taken)


def lock_erasure(member_id: str) -> None:
    """Wait for rows that are being created for the member; block new ones until the transaction ends."""
    _LOCK_ERASURE.run(member_id=member_id, seed=LOCK_SEED)


def has_messages() -> bool:
    """Return whether the chat service's table of messages exists; statements that name it run only then."""
    [(found,)] = _HAS_MESSAGES.all()
    return bool(found)


def is_matched(session_id: SQLColumnExpression[uuid.UUID]) -> ColumnElement[bool]:
    """Return the condition that a match refers to the session: deleting the session would delete the match."""
    found = select(true()).where(Match.session_id == session_id).limit(literal_column("1"))
    return found.scalar_subquery().is_not(None)  # one index lookup each, however many matches there are


def standing(member_id: str) -> Standing:
    """Return the member's standing, in one query; all false for an unknown member."""
    [found] = _STANDING.all(member_id=member_id)
    return found

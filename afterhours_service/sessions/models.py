"""The tables of sessions and of the devices they were started from."""

import uuid
from datetime import date, datetime, timedelta
from decimal import Decimal

from sqlalchemy import (
    ARRAY,
    BigInteger,
    CheckConstraint,
    ColumnElement,
    ForeignKey,
    Identity,
    Index,
    Numeric,
    String,
    Uuid,
    and_,
    func,
    text,
)
from sqlalchemy.dialects.postgresql.base import ischema_names
from sqlalchemy.orm import Mapped, mapped_column
from sqlalchemy.types import UserDefinedType

from afterhours_service.stores.database import Base
from afterhours_service.stores.host import Timestamp, User


class Cube(UserDefinedType[str]):
    """A box or a point of several dimensions, in PostgreSQL's notation."""

    cache_ok = True

    def get_col_spec(self, **_: object) -> str:
        """Return the type's name."""
        return "cube"


ischema_names["cube"] = Cube  # so that Alembic's comparison of models and database knows the type

# The database's clocks, which decide whether a session is active. Never now(): it is when the transaction began.
CLOCK_NOW = func.clock_timestamp(type_=Timestamp)  # in statements that may wait for a row lock: it is read after that
STATEMENT_NOW = func.statement_timestamp(type_=Timestamp)  # in statements that use an index: it is constant in one

LATITUDE = Numeric(10, 8)
LONGITUDE = Numeric(11, 8)
# The 25 km cell that a key lies in, as a number: neighbours in the world are neighbours in the index.
CELL = text(
    "cube(1048576 * floor(cube_ll_coord(discovery_key, 3) / 25000)"
    " + 1024 * floor(cube_ll_coord(discovery_key, 2) / 25000) + floor(cube_ll_coord(discovery_key, 1) / 25000))"
)


class AfterHoursSession(Base):
    """A member's presence at one place, from `started_at` until `expires_at`, or until they end it.

    A session that expired has `ended_at = expires_at`. What active, overdue and discoverable mean is defined here, and
    only here. Each of the three takes the clock: CLOCK_NOW or STATEMENT_NOW.
    """

    __tablename__ = "after_hours_sessions"
    __table_args__ = (
        CheckConstraint("expires_at > started_at", "expires_after_start"),
        CheckConstraint("latitude BETWEEN -90 AND 90 AND longitude BETWEEN -180 AND 180", "location"),
        CheckConstraint(
            "fuzzed_latitude BETWEEN -90 AND 90 AND fuzzed_longitude BETWEEN -180 AND 180", "fuzzed_location"
        ),
    )

    id: Mapped[uuid.UUID] = mapped_column(primary_key=True, server_default=func.gen_random_uuid())
    user_id: Mapped[str] = mapped_column(String(255), ForeignKey(User.id, ondelete="CASCADE"))
    started_at: Mapped[datetime | None] = mapped_column(Timestamp, server_default=func.current_timestamp())
    expires_at: Mapped[datetime] = mapped_column(Timestamp)
    ended_at: Mapped[datetime | None] = mapped_column(Timestamp)
    # When the warning for the current expires_at was decided; an extension clears it.
    warned_at: Mapped[datetime | None] = mapped_column(Timestamp)
    # Exact, and null once the session has ended: a database trigger erases them.
    latitude: Mapped[Decimal | None] = mapped_column(LATITUDE)
    longitude: Mapped[Decimal | None] = mapped_column(LONGITUDE)
    fuzzed_latitude: Mapped[Decimal] = mapped_column(LATITUDE)
    fuzzed_longitude: Mapped[Decimal] = mapped_column(LONGITUDE)
    created_at: Mapped[datetime | None] = mapped_column(Timestamp, server_default=func.current_timestamp())
    # The last Idempotency-Key that came with an extension, and what was answered.
    extension_key: Mapped[str | None] = mapped_column(String(64))
    extension_minutes: Mapped[int | None]
    extension_expires_at: Mapped[datetime | None] = mapped_column(Timestamp)
    # Who can be found here, and whom they are looking for; triggers maintain both, discovery reads them.
    discovery_key: Mapped[str | None] = mapped_column(Cube)
    discovery_wish: Mapped[str | None] = mapped_column(Cube)

    @classmethod
    def unended(cls) -> ColumnElement[bool]:
        """Select sessions without a recorded end: active and overdue ones."""
        return cls.ended_at.is_(None)

    @classmethod
    def active(cls, now: ColumnElement[datetime]) -> ColumnElement[bool]:
        """Select sessions that have neither ended nor expired."""
        return and_(cls.unended(), cls.expires_at > now)

    @classmethod
    def overdue(cls, now: ColumnElement[datetime]) -> ColumnElement[bool]:
        """Select sessions that have expired, and whose end is not recorded yet."""
        return and_(cls.unended(), cls.expires_at <= now)

    @classmethod
    def discoverable(cls, now: ColumnElement[datetime], lead: ColumnElement[timedelta]) -> ColumnElement[bool]:
        """Select sessions that are shown to others: active ones with at least `lead` left."""
        return and_(cls.unended(), cls.expires_at >= now + lead)

    def __repr__(self) -> str:
        return f"<AfterHoursSession {self.id}>"  # and never where


Index(
    "idx_after_hours_sessions_active_user",
    AfterHoursSession.user_id,
    unique=True,
    postgresql_where=AfterHoursSession.unended(),
)
Index("idx_after_hours_sessions_user_started", AfterHoursSession.user_id, AfterHoursSession.started_at)
Index(
    "idx_after_hours_sessions_nearest",
    CELL,
    AfterHoursSession.discovery_key,
    postgresql_using="gist",
    # The second condition keeps other statements off this index (docs/decisions/0013).
    postgresql_where=and_(AfterHoursSession.unended(), AfterHoursSession.discovery_key.is_not(None)),
)
Index("idx_after_hours_sessions_expires", AfterHoursSession.expires_at, postgresql_where=AfterHoursSession.unended())
Index("idx_after_hours_sessions_ended", AfterHoursSession.ended_at, postgresql_where=~AfterHoursSession.unended())


class Search(Base):
    """A live member's search for somebody to be shown: one row for as long as their session lasts.

    A start makes it, and triggers follow the session and the match. What is left of an expired session is deleted when
    somebody next looks.
    """

    __tablename__ = "after_hours_search"

    user_id: Mapped[str] = mapped_column(String(255), ForeignKey(User.id, ondelete="CASCADE"), primary_key=True)
    session_id: Mapped[uuid.UUID]
    # Copies of the session's `discovery_key` and `discovery_wish`, and the gender and age that others' wishes ask for.
    key: Mapped[str] = mapped_column(Cube)
    wish: Mapped[str] = mapped_column(Cube)
    me: Mapped[str] = mapped_column(Cube)
    # Since when the member waits.
    since: Mapped[datetime] = mapped_column(Timestamp)
    # When somebody has to be looked for; null while the member only waits to be found, and while they are matched.
    look_at: Mapped[datetime | None] = mapped_column(Timestamp)
    # Since when the member can be found by others who are looked at. Null: not yet, or matched.
    looked_at: Mapped[datetime | None] = mapped_column(Timestamp)
    # When the member was told that there is nobody.
    told_at: Mapped[datetime | None] = mapped_column(Timestamp)
    match_id: Mapped[uuid.UUID | None]


Index("idx_after_hours_search_due", Search.look_at, postgresql_where=Search.look_at.is_not(None))
Index(
    "idx_after_hours_search_untold",
    Search.looked_at,
    postgresql_where=and_(Search.looked_at.is_not(None), Search.told_at.is_(None)),
)
Index(
    "idx_after_hours_search_pool",
    text(CELL.text.replace("discovery_key", "key")),
    Search.key,
    postgresql_using="gist",
    postgresql_where=Search.looked_at.is_not(None),
)


class RememberedPlace(Base):
    """Where a member was last shown in one of the blur's cells.

    id: the digest that stands for member and cell (`places/blur.py`); without LOCATION_SECRET it tells neither.
    visits: how often in a row they were shown there, up to COUNTED_VISITS. last_seen: the day of the last, in UTC.
    """

    __tablename__ = "after_hours_places"

    id: Mapped[uuid.UUID] = mapped_column(Uuid, primary_key=True)
    user_id: Mapped[str] = mapped_column(String(255), ForeignKey(User.id, ondelete="CASCADE"))
    fuzzed_latitude: Mapped[Decimal] = mapped_column(LATITUDE)
    fuzzed_longitude: Mapped[Decimal] = mapped_column(LONGITUDE)
    visits: Mapped[int]
    last_seen: Mapped[date]


Index("idx_after_hours_places_user", RememberedPlace.user_id)
Index("idx_after_hours_places_seen", RememberedPlace.last_seen, RememberedPlace.id)


class ExpiryOutbox(Base):
    """Sessions that expired together, until their expiry is published; from `publish_at` on any worker may do so.

    Table and column have older names, as two consecutive releases share a schema.
    """

    __tablename__ = "after_hours_untold"
    __table_args__ = (Index("idx_after_hours_untold_tell", "tell_at"),)

    id: Mapped[int] = mapped_column(BigInteger, Identity(always=True), primary_key=True)
    publish_at: Mapped[datetime] = mapped_column("tell_at", Timestamp)
    session_ids: Mapped[list[uuid.UUID]] = mapped_column(ARRAY(Uuid))


class DeviceFingerprint(Base):
    """The device that a session was started from, for the host's safety team."""

    __tablename__ = "device_fingerprints"
    __table_args__ = (
        Index("idx_device_fingerprints_session", "session_id"),
        Index("idx_device_fingerprints_user", "user_id"),
    )

    id: Mapped[uuid.UUID] = mapped_column(primary_key=True, server_default=func.gen_random_uuid())
    user_id: Mapped[str] = mapped_column(String(255), ForeignKey(User.id, ondelete="CASCADE"))
    session_id: Mapped[uuid.UUID | None] = mapped_column(ForeignKey(AfterHoursSession.id, ondelete="SET NULL"))
    device_id: Mapped[str | None] = mapped_column(String(255))
    device_model: Mapped[str | None] = mapped_column(String(100))
    platform: Mapped[str | None] = mapped_column(String(20))
    created_at: Mapped[datetime | None] = mapped_column(Timestamp, server_default=func.now())

"""The table of declines."""

import uuid
from datetime import datetime

from sqlalchemy import ForeignKey, Index, String, UniqueConstraint, func
from sqlalchemy.orm import Mapped, mapped_column

from afterhours_service.sessions.models import AfterHoursSession
from afterhours_service.stores.database import Base
from afterhours_service.stores.host import Timestamp, User


class AfterHoursDecline(Base):
    """A member's decision not to see another, nor be seen by them."""

    __tablename__ = "after_hours_declines"
    __table_args__ = (
        UniqueConstraint("user_id", "declined_user_id", name="after_hours_declines_user_pair_unique"),
        Index("idx_after_hours_declines_session", "session_id"),
        Index("idx_after_hours_declines_declined", "declined_user_id"),
        Index("idx_after_hours_declines_created", "created_at"),
    )

    id: Mapped[uuid.UUID] = mapped_column(primary_key=True, server_default=func.gen_random_uuid())
    session_id: Mapped[uuid.UUID] = mapped_column(ForeignKey(AfterHoursSession.id, ondelete="CASCADE"))
    user_id: Mapped[str] = mapped_column(String(255), ForeignKey(User.id, ondelete="CASCADE"))
    declined_user_id: Mapped[str] = mapped_column(String(255), ForeignKey(User.id, ondelete="CASCADE"))
    created_at: Mapped[datetime | None] = mapped_column(Timestamp, server_default=func.current_timestamp())
    decline_count: Mapped[int | None] = mapped_column(server_default="1")
    first_declined_at: Mapped[datetime | None] = mapped_column(Timestamp, server_default=func.current_timestamp())
    last_session_id: Mapped[uuid.UUID | None]

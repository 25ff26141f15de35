"""The table of After Hours profiles."""

from datetime import datetime

from sqlalchemy import ForeignKey, Index, String, Text, func
from sqlalchemy.orm import Mapped, mapped_column

from afterhours_service.stores.database import Base
from afterhours_service.stores.host import Timestamp, User


class AfterHoursProfile(Base):
    """What a member shows at night; `photo_url` holds an object key, never a URL."""

    __tablename__ = "after_hours_profiles"
    __table_args__ = (Index("idx_after_hours_profiles_photo", "photo_url"),)

    user_id: Mapped[str] = mapped_column(String(255), ForeignKey(User.id, ondelete="CASCADE"), primary_key=True)
    photo_url: Mapped[str | None] = mapped_column(Text)
    photo_hash: Mapped[str | None] = mapped_column(String(16))
    description: Mapped[str | None] = mapped_column(Text)
    created_at: Mapped[datetime | None] = mapped_column(Timestamp, server_default=func.current_timestamp())
    updated_at: Mapped[datetime | None] = mapped_column(Timestamp, server_default=func.current_timestamp())

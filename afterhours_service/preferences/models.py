"""The table of After Hours preferences."""

from datetime import datetime

from sqlalchemy import CheckConstraint, ForeignKey, String, func
from sqlalchemy.orm import Mapped, mapped_column

from afterhours_service.stores.database import Base
from afterhours_service.stores.host import Timestamp, User


class AfterHoursPreferences(Base):
    """Whom a member would like to meet at night."""

    __tablename__ = "after_hours_preferences"
    __table_args__ = (
        CheckConstraint("seeking_gender IN ('Any', 'Male', 'Female', 'Non-binary')", "seeking_gender"),
        CheckConstraint("max_distance_km BETWEEN 1 AND 200", "max_distance_km"),
        CheckConstraint("min_age BETWEEN 18 AND 99 AND max_age BETWEEN 18 AND 99 AND min_age <= max_age", "ages"),
        CheckConstraint(
            "sexual_orientation IN ('Straight', 'Gay', 'Bisexual', 'Pansexual', 'Queer', 'Other')", "sexual_orientation"
        ),
    )

    user_id: Mapped[str] = mapped_column(String(255), ForeignKey(User.id, ondelete="CASCADE"), primary_key=True)
    seeking_gender: Mapped[str] = mapped_column(String(50), server_default="Any")
    max_distance_km: Mapped[int | None] = mapped_column(server_default="10")
    min_age: Mapped[int | None] = mapped_column(server_default="18")
    max_age: Mapped[int | None] = mapped_column(server_default="99")
    sexual_orientation: Mapped[str | None] = mapped_column(String(50))
    created_at: Mapped[datetime | None] = mapped_column(Timestamp, server_default=func.current_timestamp())
    updated_at: Mapped[datetime | None] = mapped_column(Timestamp, server_default=func.current_timestamp())

"""Demo members: a happy one, and one for each refusal of the gate."""

import time
from typing import NamedTuple

import jwt
from sqlalchemy import text

from afterhours_service.config import Settings
from afterhours_service.extensions import db

TOKEN_SECONDS = 7 * 24 * 3600


class Member(NamedTuple):
    """A demo member, and what `POST /session/start` answers them."""

    id: str
    name: str
    answer: str
    exists: bool = True
    premium: bool = True
    verified: bool = True
    consent: bool = True


MEMBERS = (
    Member("demo-alex", "Alex", "201"),
    Member("demo-blake", "Blake", "201"),
    Member("demo-free", "Finn", "403 PREMIUM_REQUIRED", premium=False),
    Member("demo-unverified", "Uma", "403 VERIFICATION_REQUIRED", verified=False),
    Member("demo-silent", "Sam", "403 CONSENT_REQUIRED", consent=False),
    Member("demo-new", "Nia", "400 PROFILE_REQUIRED"),
)


def seed() -> None:
    """Write the demo members into the current app's database; those that are there stay as they are."""
    for member in MEMBERS:
        row = member._asdict() | {"email": f"{member.id}@example.org"}
        for statement in (
            """INSERT INTO users (id, provider, email, id_verified, after_hours_consent)
               VALUES (:id, 'demo', :email, :verified, :consent) ON CONFLICT DO NOTHING""",
            """INSERT INTO profiles (user_id, name, age, gender, sexual_preference)
               VALUES (:id, :name, 29, 'Female', 'Bisexual') ON CONFLICT DO NOTHING""",
            """INSERT INTO user_subscriptions (user_id, is_active, product_id)
               SELECT :id, true, 'demo' WHERE :premium
               AND NOT EXISTS (SELECT FROM user_subscriptions WHERE user_id = :id)""",
            """INSERT INTO after_hours_profiles (user_id, description)
               SELECT :id, 'Out tonight' WHERE :id <> 'demo-new' ON CONFLICT DO NOTHING""",
        ):
            db.session.execute(text(statement), row)
    db.session.commit()


def token(member_id: str, settings: Settings, seconds: int = TOKEN_SECONDS) -> str:
    """Return a bearer token for a member, as the host's auth service would issue it; HS256 only."""
    return jwt.encode({"userId": member_id, "exp": int(time.time()) + seconds}, settings.jwt_key, algorithm="HS256")

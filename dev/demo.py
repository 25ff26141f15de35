"""Demo members: two happy ones, one without a profile, and one for each refusal of the gate."""

import logging
from typing import NamedTuple

import pyvips
from sqlalchemy import text

from afterhours_service.config import Settings
from afterhours_service.preferences import service as preferences
from afterhours_service.profiles import photo
from afterhours_service.profiles import service as profiles
from afterhours_service.stores.database import db
from afterhours_service.web import errors
from afterhours_service.web.gate import token_for

TOKEN_SECONDS = 7 * 24 * 3600

logging.getLogger("pyvips").setLevel(logging.WARNING)  # or fifty lines about threads come before the demo's first


class Member(NamedTuple):
    """A demo member, and what `POST /session/start` answers them."""

    id: str
    name: str
    gender: str
    answer: str
    description: str | None = None  # of their After Hours profile; they have none without it
    premium: bool = True
    verified: bool = True
    consent: bool = True


MEMBERS = (
    Member("demo-nia", "Nia", "Female", "400 PROFILE_REQUIRED"),
    Member("demo-alex", "Alex", "Male", "201", "Late shift, early drink"),
    Member("demo-blake", "Blake", "Female", "201", "Vinyl and noodles"),
    Member("demo-finn", "Finn", "Male", "403 PREMIUM_REQUIRED", "Just looking", premium=False),
    Member("demo-uma", "Uma", "Female", "403 VERIFICATION_REQUIRED", "Who, me?", verified=False),
    Member("demo-sam", "Sam", "Non-binary", "403 CONSENT_REQUIRED", "Not tonight", consent=False),
)


def seed() -> None:
    """Write the demo members into the current app's database; those that are there stay as they are."""
    for number, member in enumerate(MEMBERS):
        row = {**member._asdict(), "email": f"{member.id}@example.org"}
        for statement in (
            """INSERT INTO users (id, provider, email, id_verified, after_hours_consent)
               VALUES (:id, 'demo', :email, :verified, :consent) ON CONFLICT DO NOTHING""",
            """INSERT INTO profiles (user_id, name, age, gender, sexual_preference)
               VALUES (:id, :name, 29, :gender, 'Straight') ON CONFLICT DO NOTHING""",
            """INSERT INTO user_subscriptions (user_id, is_active, product_id)
               SELECT :id, true, 'demo' WHERE :premium
               AND NOT EXISTS (SELECT FROM user_subscriptions WHERE user_id = :id)""",
        ):
            db.session.execute(text(statement), row)
        db.session.commit()
        if member.description and member.consent:
            _go_out(member, hue=360 * number // len(MEMBERS))


def token(member_id: str, settings: Settings, seconds: int = TOKEN_SECONDS) -> str:
    """Return a bearer token for a member, as the host's auth service would issue it; HS256 only."""
    return token_for(member_id, settings, seconds)


def _go_out(member: Member, hue: int) -> None:
    """Give the member profile, preferences and photo, unless they are there, or the member does not consent."""
    try:
        profiles.create(member.id, member.description)
        preferences.create(member.id, {})
    except (errors.ProfileExists, errors.PreferencesExist, errors.ConsentRequired):
        return
    photo.upload(member.id, _portrait(hue))


def _portrait(hue: int) -> bytes:
    """Draw a friendly face on a coloured ground, as a PNG. hue: degrees."""
    skin, dark, red = [250, 220, 180], [40, 40, 40], [160, 50, 60]
    ground = pyvips.Image.black(600, 600).new_from_image([70, 60, hue]).copy(interpretation="lch").colourspace("srgb")
    face = ground.draw_circle(skin, 300, 300, 200, fill=True)
    smile = face.draw_circle(red, 300, 350, 80, fill=True).draw_rect(skin, 215, 265, 170, 90, fill=True)
    eyes = smile.draw_circle(dark, 230, 250, 22, fill=True).draw_circle(dark, 370, 250, 22, fill=True)
    png: bytes = eyes.pngsave_buffer()
    return png

"""Demo members: two who can go live and fit each other, one without a profile, and one for each refusal of the gate."""

import logging
from typing import Any, NamedTuple

import pyvips
from sqlalchemy import String, bindparam, cast, exists, literal_column, select, true
from sqlalchemy.dialects.postgresql import insert

from afterhours_service.config import Settings
from afterhours_service.preferences import service as preferences
from afterhours_service.profiles import photo
from afterhours_service.profiles import service as profiles
from afterhours_service.stores.connection import transaction
from afterhours_service.stores.host import MainProfile, Subscription, User
from afterhours_service.stores.statements import Statement
from afterhours_service.web import errors
from afterhours_service.web.gate import token_for

TOKEN_SECONDS = 7 * 24 * 3600

logging.getLogger("pyvips").setLevel(logging.WARNING)  # it would log fifty lines about threads first


class Member(NamedTuple):
    """A demo member, and what `POST /session/start` answers them."""

    id: str
    name: str
    gender: str
    answer: str
    description: str | None = None  # of their After Hours profile; None for no profile
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


_ADD_USER: Statement[Any] = Statement(
    insert(User)
    .values(
        id=bindparam("member_id"),
        provider="demo",
        email=bindparam("address"),
        id_verified=bindparam("verified"),
        after_hours_consent=bindparam("consent"),
    )
    .on_conflict_do_nothing()
)
_ADD_MAIN_PROFILE: Statement[Any] = Statement(
    insert(MainProfile)
    .values(
        user_id=bindparam("member_id"),
        name=bindparam("member_name"),
        age=29,
        gender=bindparam("member_gender"),
        sexual_preference="Straight",
    )
    .on_conflict_do_nothing()
)
_ADD_SUBSCRIPTION: Statement[Any] = Statement(
    insert(Subscription).from_select(
        [Subscription.user_id, Subscription.is_active, Subscription.product_id],
        select(cast(bindparam("member_id"), String), true(), literal_column("'demo'")).where(
            ~exists().where(Subscription.user_id == bindparam("member_id"))
        ),
    )
)


def seed() -> None:
    """Write the demo members into the current app's database; existing ones stay as they are."""
    for number, member in enumerate(MEMBERS):
        with transaction():
            _ADD_USER.run(
                member_id=member.id,
                address=f"{member.id}@example.org",
                verified=member.verified,
                consent=member.consent,
            )
            _ADD_MAIN_PROFILE.run(member_id=member.id, member_name=member.name, member_gender=member.gender)
            if member.premium:
                _ADD_SUBSCRIPTION.run(member_id=member.id)
        if member.description and member.consent:
            _complete(member, hue=360 * number // len(MEMBERS))


def token(member_id: str, settings: Settings, seconds: int = TOKEN_SECONDS) -> str:
    """Return a bearer token for a member, as the host's auth service would issue it; HS256 only."""
    return token_for(member_id, settings, seconds)


def _complete(member: Member, hue: int) -> None:
    """Give the member a profile, preferences and a photo, unless they exist or the member has withdrawn consent."""
    try:
        profiles.create(member.id, member.description)
        preferences.create(member.id, {})
    except (errors.ProfileExists, errors.PreferencesExist, errors.ConsentRequired):
        return
    photo.upload(member.id, portrait(hue))


def portrait(hue: int) -> bytes:
    """Draw a friendly face on a coloured background, as a PNG. hue: degrees."""
    skin, dark, red = [250, 220, 180], [40, 40, 40], [160, 50, 60]
    ground = pyvips.Image.black(600, 600).new_from_image([70, 60, hue]).copy(interpretation="lch").colourspace("srgb")
    face = ground.draw_circle(skin, 300, 300, 200, fill=True)
    smile = face.draw_circle(red, 300, 350, 80, fill=True).draw_rect(skin, 215, 265, 170, 90, fill=True)
    eyes = smile.draw_circle(dark, 230, 250, 22, fill=True).draw_circle(dark, 370, 250, 22, fill=True)
    png: bytes = eyes.pngsave_buffer()
    return png

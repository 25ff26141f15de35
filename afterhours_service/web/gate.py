"""The gate: authenticates the member, and checks that they may use After Hours. It fails closed."""

import time
from typing import Any, NamedTuple

import jwt
from flask import g, request
from sqlalchemy.exc import SQLAlchemyError

from afterhours_service.config import Settings, current_settings
from afterhours_service.stores.host import lock, standing, try_lock_erasure
from afterhours_service.telemetry.log import get_logger
from afterhours_service.text import is_storable
from afterhours_service.web import errors

logger = get_logger(__name__)

MEMBER_ID_LENGTH = 255
NOT_BEFORE_LEEWAY_SECONDS = 10  # the host's clock may be ahead of ours; it never lengthens a token's life
TOKEN_FAILURES = (errors.AuthRequired, errors.TokenExpired, errors.TokenInvalid)
FAILURES = (
    *TOKEN_FAILURES,
    errors.PremiumRequired,
    errors.VerificationRequired,
    errors.ConsentRequired,
    errors.AuthUnavailable,
)


class Token(NamedTuple):
    """A valid token. expires_at: seconds since the epoch."""

    member_id: str
    expires_at: int  # of any size


def current_member_id() -> str:
    """Return the id of the member who asks, by their token.

    Raises AuthRequired, TokenExpired or TokenInvalid.
    """
    if "member_id" not in g:
        g.member_id = member_of(request.headers.get("Authorization"), current_settings())
    member_id: str = g.member_id
    return member_id


def authenticate() -> None:
    """Admit any member with a valid token, premium or not. Raises the failures of the token."""
    current_member_id()


def admit() -> None:
    """Admit only a premium, verified, consenting member.

    Raises the failures of the token, PremiumRequired, VerificationRequired, ConsentRequired or AuthUnavailable.
    """
    check(current_member_id())


def check(member_id: str) -> None:
    """Let only a premium, verified, consenting member pass.

    Raises PremiumRequired, VerificationRequired, ConsentRequired or AuthUnavailable.
    """
    try:
        member = standing(member_id)
    except SQLAlchemyError as error:
        logger.warning("gate could not query the database", error=type(error).__name__)
        raise errors.AuthUnavailable from error
    if not member.premium:
        raise errors.PremiumRequired
    if not member.verified:
        raise errors.VerificationRequired
    if not member.consented:
        raise errors.ConsentRequired


def hold(member_id: str) -> None:
    """Check the member's consent again, and lock it until the transaction ends: it may have changed since the gate.

    Raises VerificationRequired (the member is gone) or ConsentRequired.
    """
    consent = lock(member_id)
    if consent is None:
        raise errors.VerificationRequired
    if not consent:
        raise errors.ConsentRequired


def hold_to_create(member_id: str) -> None:
    """Do as `hold`, for new rows that an erasure in progress would miss.

    Raises ErasureInProgress, VerificationRequired or ConsentRequired.
    """
    if not try_lock_erasure(member_id):
        raise errors.ErasureInProgress
    hold(member_id)


def token_for(member_id: str, settings: Settings, seconds: int) -> str:
    """Return a token for a member, valid for `seconds`, as the host's auth service would issue it; HS256 only."""
    claims: dict[str, Any] = {"userId": member_id, "exp": int(time.time()) + seconds}
    claims |= {"iss": settings.jwt_issuer} if settings.jwt_issuer else {}
    claims |= {"aud": settings.jwt_audience} if settings.jwt_audience else {}
    return jwt.encode(claims, settings.jwt_key, algorithm="HS256")


def member_of(authorization: str | None, settings: Settings) -> str:
    """Return the member id in an Authorization header. Raises AuthRequired, TokenExpired or TokenInvalid."""
    scheme, _, token = (authorization or "").partition(" ")
    if scheme.lower() != "bearer" or not token.strip():
        raise errors.AuthRequired
    return read_token(token.strip(), settings).member_id


def read_token(token: str, settings: Settings) -> Token:
    """Return who sent the token.

    The algorithm is the configured one, whatever the token says. Raises TokenExpired or TokenInvalid.
    """
    try:
        claims: dict[str, Any] = jwt.decode(
            token,
            settings.jwt_key,
            algorithms=[settings.jwt_algorithm],
            issuer=settings.jwt_issuer,
            audience=settings.jwt_audience,
            options={
                "require": ["exp"],
                "verify_aud": settings.jwt_audience is not None,
                # iat promises nothing. sub and jti do not matter beside a valid userId, and may be numbers, which PyJWT
                # refuses. nbf is checked below, with a leeway of its own.
                "verify_iat": False,
                "verify_sub": False,
                "verify_jti": False,
                "verify_nbf": False,
            },
        )
        premature = claims.get("nbf") is not None and int(claims["nbf"]) > time.time() + NOT_BEFORE_LEEWAY_SECONDS
    except jwt.ExpiredSignatureError as error:
        raise errors.TokenExpired from error
    except (jwt.PyJWTError, ValueError, TypeError, OverflowError, RecursionError) as error:  # odd claims and headers
        raise errors.TokenInvalid from error
    if premature:
        raise errors.TokenInvalid
    member_id = claims.get("userId", claims.get("sub"))
    if not isinstance(member_id, str) or not 1 <= len(member_id) <= MEMBER_ID_LENGTH or not is_storable(member_id):
        raise errors.TokenInvalid
    return Token(member_id, int(claims["exp"]))

"""The gate: authenticates the member, and checks that they may use After Hours. It fails closed."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from http import HTTPStatus
from typing import Any, NamedTuple

import jwt
from flask import Response, g, request
from sqlalchemy.exc import SQLAlchemyError

from afterhours_service.config import Settings, current_settings
from afterhours_service.stores.host import Standing, lock, standing, try_lock_erasure
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


def leave_to_the_view() -> None:
    """Authenticate the member; the view then has to `require` their standing before it answers with a success.

    For routes whose first query includes the gate's, which saves a round trip. Raises the failures of the token.
    """
    current_member_id()
    g.is_admission_pending = True


def settle() -> None:
    """Admit the member if that was left to the view and has not happened yet. Raises as `admit` does."""
    if g.get("is_admission_pending"):
        admit()


def verify_was_admitted(response: Response) -> Response:
    """Return the response of a view. Raises RuntimeError if it is a success to a member who was not admitted."""
    if g.get("is_admission_pending") and response.status_code < HTTPStatus.BAD_REQUEST:
        raise RuntimeError("a view did not ask the gate")
    return response


def check(member_id: str) -> None:
    """Let only a premium, verified, consenting member pass.

    Raises PremiumRequired, VerificationRequired, ConsentRequired or AuthUnavailable.
    """
    try:
        member = standing(member_id)
    except SQLAlchemyError as error:
        raise _unavailable(error) from error
    require(member)


@contextmanager
def asked_with_more(member_id: str) -> Iterator[None]:
    """Run a query that includes the gate's.

    Raises AuthUnavailable if that is what fails, and whatever else fails.
    """
    try:
        yield
    except SQLAlchemyError as error:
        if errors.is_database_away(error):
            raise _unavailable(error) from error
        check(member_id)
        raise


def _unavailable(error: SQLAlchemyError) -> errors.AuthUnavailable:
    logger.warning("gate could not query the database", error=type(error).__name__)
    return errors.AuthUnavailable()


def require(member: Standing) -> None:
    """Let only a premium, verified, consenting member pass.

    Raises PremiumRequired, VerificationRequired or ConsentRequired.
    """
    g.pop("is_admission_pending", None)
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


@cache
def _prepared(key: str, algorithm: str) -> jwt.PyJWK:
    """Return a key as PyJWT uses it, which takes longer to make than a token takes to check."""
    known = jwt.get_algorithm_by_name(algorithm)
    return jwt.PyJWK.from_json(known.to_jwk(known.prepare_key(key)), algorithm)


def read_token(token: str, settings: Settings) -> Token:
    """Return who sent the token.

    The algorithm is the configured one, whatever the token says. Raises TokenExpired or TokenInvalid.
    """
    try:
        claims: dict[str, Any] = jwt.decode(
            token,
            _prepared(settings.jwt_key, settings.jwt_algorithm),
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

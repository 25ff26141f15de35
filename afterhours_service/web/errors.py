"""The catalogue of failures that clients see, and the one place that renders them.

A failure's docstring is the sentence that clients read.
"""

from collections.abc import Mapping
from http import HTTPStatus
from typing import Any, ClassVar

from flask import Flask, Response, current_app, g, jsonify
from sqlalchemy.exc import DBAPIError, OperationalError
from sqlalchemy.exc import TimeoutError as PoolTimeout
from werkzeug.exceptions import HTTPException

from afterhours_service.stores.database import READ_ONLY
from afterhours_service.telemetry.log import get_logger

logger = get_logger(__name__)

RETRY_AFTER_SECONDS = "2"
CATALOGUE: dict[str, type["AppError"]] = {}


class AppError(Exception):
    """Something went wrong."""

    status: ClassVar[HTTPStatus]
    code: ClassVar[str]
    headers: ClassVar[Mapping[str, str]] = {}
    extra: ClassVar[Mapping[str, Any]] = {}
    example: ClassVar[Mapping[str, Any]] = {}  # of the fields that a single failure adds to its body

    def __init_subclass__(cls) -> None:
        CATALOGUE.setdefault(cls.code, cls)  # a subclass with another status shares its parent's entry

    def __init__(self, **extra: Any) -> None:
        super().__init__(self.code)
        self.body = {"success": False, "error": self.__doc__, "code": self.code, **self.extra, **extra}


class AuthRequired(AppError):
    """Send a bearer token in the Authorization header."""

    status, code = HTTPStatus.UNAUTHORIZED, "AUTH_REQUIRED"
    headers: ClassVar = {"WWW-Authenticate": "Bearer"}


class TokenExpired(AppError):
    """The token has expired."""

    status, code = HTTPStatus.UNAUTHORIZED, "TOKEN_EXPIRED"
    headers: ClassVar = {"WWW-Authenticate": "Bearer"}


class TokenInvalid(AppError):
    """The token is not valid."""

    status, code = HTTPStatus.UNAUTHORIZED, "TOKEN_INVALID"
    headers: ClassVar = {"WWW-Authenticate": "Bearer"}


class PremiumRequired(AppError):
    """After Hours needs an active premium subscription."""

    status, code = HTTPStatus.FORBIDDEN, "PREMIUM_REQUIRED"
    extra: ClassVar = {"upgrade": True}


class VerificationRequired(AppError):
    """After Hours needs a verified identity."""

    status, code = HTTPStatus.FORBIDDEN, "VERIFICATION_REQUIRED"
    extra: ClassVar = {"requiresVerification": True}


class ConsentRequired(AppError):
    """After Hours needs the member's consent."""

    status, code = HTTPStatus.FORBIDDEN, "CONSENT_REQUIRED"
    extra: ClassVar = {"requiresConsent": True}


class AuthUnavailable(AppError):
    """The member could not be checked right now; try again in a moment."""

    status, code = HTTPStatus.SERVICE_UNAVAILABLE, "AUTH_UNAVAILABLE"
    headers: ClassVar = {"Retry-After": RETRY_AFTER_SECONDS}


class ServiceUnavailable(AppError):
    """The service is briefly unavailable; try again in a moment."""

    status, code = HTTPStatus.SERVICE_UNAVAILABLE, "SERVICE_UNAVAILABLE"
    headers: ClassVar = {"Retry-After": RETRY_AFTER_SECONDS}


class NotReady(AppError):
    """The service cannot serve requests right now."""

    status, code = HTTPStatus.SERVICE_UNAVAILABLE, "NOT_READY"
    headers: ClassVar = {"Retry-After": RETRY_AFTER_SECONDS}
    example: ClassVar = {"status": "unavailable", "database": "unavailable", "schema": "unknown", "redis": "ok"}


class ValidationFailed(AppError):
    """The request is not valid."""

    status, code = HTTPStatus.BAD_REQUEST, "VALIDATION_ERROR"
    example: ClassVar = {"errors": [{"field": "duration", "message": "Must be 15, 30 or 60."}]}

    @classmethod
    def from_messages(cls, messages: Any) -> "ValidationFailed":
        """Build one from marshmallow's messages: an entry per field, with the names of nested fields joined by dots."""
        return cls(errors=[{"field": field, "message": text} for field, text in _flatten(messages)])


class ProfileRequired(AppError):
    """Create an After Hours profile first."""

    status, code = HTTPStatus.BAD_REQUEST, "PROFILE_REQUIRED"


class SessionAlreadyActive(AppError):
    """A session is already active."""

    status, code = HTTPStatus.CONFLICT, "SESSION_ALREADY_ACTIVE"
    example: ClassVar = {
        "session": {
            "id": "e464e3d8-9917-4641-88bb-33bf96d74d59",
            "startedAt": "2026-11-22T21:53:46.069Z",
            "expiresAt": "2026-11-22T22:09:00.000Z",
            "remainingSeconds": 613,
        }
    }


class NoActiveSession(AppError):
    """No session is active."""

    status, code = HTTPStatus.NOT_FOUND, "NO_ACTIVE_SESSION"


class ProfileExists(AppError):
    """An After Hours profile already exists."""

    status, code = HTTPStatus.CONFLICT, "PROFILE_EXISTS"


class ProfileNotFound(AppError):
    """There is no After Hours profile."""

    status, code = HTTPStatus.NOT_FOUND, "PROFILE_NOT_FOUND"


class PreferencesExist(AppError):
    """Preferences already exist."""

    status, code = HTTPStatus.CONFLICT, "PREFERENCES_EXIST"


class PreferencesNotFound(AppError):
    """There are no preferences."""

    status, code = HTTPStatus.NOT_FOUND, "PREFERENCES_NOT_FOUND"


class ErasureInProgress(AppError):
    """Your After Hours data is being erased; try again when that is done."""

    status, code = HTTPStatus.CONFLICT, "ERASURE_IN_PROGRESS"


class NoFile(AppError):
    """Send the photo as multipart/form-data, in the field `photo`."""

    status, code = HTTPStatus.BAD_REQUEST, "NO_FILE"


class InvalidImage(AppError):
    """The file cannot be used as a photo."""

    status, code = HTTPStatus.BAD_REQUEST, "INVALID_IMAGE"
    example: ClassVar = {"detail": "The picture is damaged or incomplete."}


class PhotoNotAllowed(AppError):
    """This photo is not allowed here."""

    status, code = HTTPStatus.FORBIDDEN, "PHOTO_NOT_ALLOWED"


class FileTooLarge(AppError):
    """The file is larger than 10 MB."""

    status, code = HTTPStatus.REQUEST_ENTITY_TOO_LARGE, "FILE_TOO_LARGE"


class StorageUnavailable(AppError):
    """Photos cannot be stored right now; try again in a moment."""

    status, code = HTTPStatus.SERVICE_UNAVAILABLE, "STORAGE_UNAVAILABLE"
    headers: ClassVar = {"Retry-After": RETRY_AFTER_SECONDS}


class RateLimited(AppError):
    """Too many requests; try again later."""

    status, code = HTTPStatus.TOO_MANY_REQUESTS, "RATE_LIMITED"


class SessionRequired(NoActiveSession):
    """Go live first: no session is active."""

    status: ClassVar = HTTPStatus.BAD_REQUEST


class MemberNotFound(AppError):
    """This member cannot be found."""

    status, code = HTTPStatus.NOT_FOUND, "MEMBER_NOT_FOUND"


class MatchNotFound(AppError):
    """There is no such match, or it is over."""

    status, code = HTTPStatus.NOT_FOUND, "MATCH_NOT_FOUND"


class NotFound(AppError):
    """There is nothing at this address."""

    status, code = HTTPStatus.NOT_FOUND, "NOT_FOUND"


class MethodNotAllowed(AppError):
    """This address does not support that method."""

    status, code = HTTPStatus.METHOD_NOT_ALLOWED, "METHOD_NOT_ALLOWED"


class PayloadTooLarge(AppError):
    """The request body is too large."""

    status, code = HTTPStatus.REQUEST_ENTITY_TOO_LARGE, "PAYLOAD_TOO_LARGE"


class BadRequest(AppError):
    """The request could not be understood."""

    status, code = HTTPStatus.BAD_REQUEST, "BAD_REQUEST"


class InternalError(AppError):
    """Something went wrong on our side."""

    status, code = HTTPStatus.INTERNAL_SERVER_ERROR, "INTERNAL_ERROR"


_BY_STATUS: dict[int, type[AppError]] = {error.status: error for error in (NotFound, MethodNotAllowed, PayloadTooLarge)}


def init_app(app: Flask) -> None:
    """Render every exception that a request raises as a failure of the catalogue."""
    app.register_error_handler(AppError, render)
    app.register_error_handler(HTTPException, _render_http)
    app.register_error_handler(DBAPIError, _render_database)
    app.register_error_handler(PoolTimeout, _render_database)
    app.register_error_handler(Exception, _render_unexpected)


# SQLSTATE classes and codes of temporary failures: connection exceptions, insufficient resources, operator intervention
# (which includes timeouts), system errors, serialization failures, locks and objects in use, and a read-only server.
_TEMPORARY = ("08", "53", "57", "58", "40", "55P03", "55006", "25P03", "25P04", READ_ONLY)


def is_database_away(error: Exception) -> bool:
    """Return whether the database is unreachable, read-only or out of time, so that a retry may succeed."""
    if not isinstance(error, DBAPIError):
        return isinstance(error, PoolTimeout)
    code = getattr(error.orig, "pgcode", None)
    if error.connection_invalidated or (code is None and isinstance(error, OperationalError)):
        return True
    return (code or "").startswith(_TEMPORARY)


def render(error: AppError, headers: Mapping[str, str] | None = None) -> Response:
    """Return the response of a failure; `headers` override the failure's own."""
    g.error_code = error.code  # for the request's log line
    response = jsonify(error.body)
    response.status_code = error.status
    response.headers.update({**error.headers, **(headers or {})})
    return response


def _render_http(error: HTTPException) -> Response:
    if error.code is None or error.code >= 500:
        return _render_unexpected(error)
    known = _BY_STATUS.get(error.code, BadRequest)
    kept = {name: value for name, value in error.get_headers() if name in {"Allow", "Retry-After"}}
    return render(known(), kept)


def _render_database(error: Exception) -> Response:
    if not is_database_away(error):
        return _render_unexpected(error)
    logger.warning("database away", error=type(error).__name__)
    return render(ServiceUnavailable())


def _render_unexpected(error: Exception) -> Response:
    if current_app.testing:
        raise error
    logger.error("unexpected failure", exc_info=error)
    return render(InternalError())


def _flatten(messages: Any, prefix: str = "") -> list[tuple[str, str]]:
    if isinstance(messages, Mapping):
        # marshmallow files problems of the object as a whole under "_schema".
        names = (
            (value, ".".join(p for p in (prefix, str(key)) if p and p != "_schema")) for key, value in messages.items()
        )
        return [line for value, name in names for line in _flatten(value, name)]
    texts = messages if isinstance(messages, list) else [messages]
    return [(prefix or "body", str(text)) for text in texts]

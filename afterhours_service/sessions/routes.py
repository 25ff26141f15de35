"""The life of a session over HTTP."""

from typing import Any

from afterhours_service.config import current_settings
from afterhours_service.places.blur import Point
from afterhours_service.sessions import schemas, service
from afterhours_service.web import errors, limits
from afterhours_service.web.gate import current_member_id
from afterhours_service.web.schemas import Blueprint

blueprint = Blueprint("sessions", __name__, url_prefix="/session", description="Go live, extend, end")


@blueprint.route("/start", methods=["POST"])
@blueprint.arguments(schemas.StartSchema)
@blueprint.response(201, schemas.StartResponse)
@blueprint.fails(errors.ProfileRequired, errors.SessionAlreadyActive)
def start_session(body: dict[str, Any]) -> dict[str, Any]:
    """Go live at a place for 15, 30 or 60 minutes."""
    limits.count(current_settings().ratelimit_start)
    place = Point(body["latitude"], body["longitude"])
    session = service.start(current_member_id(), body["duration"], place, body["device_fingerprint"])
    return {"session": {**session._asdict(), "duration_minutes": body["duration"]}}


@blueprint.route("/end", methods=["POST"])
@blueprint.response(200, schemas.EndResponse)
@blueprint.fails(errors.NoActiveSession)
def end_session() -> dict[str, Any]:
    """End the active session now; a body is ignored."""
    return {"message": "The session has ended.", "session": service.end(current_member_id())}


@blueprint.route("/extend", methods=["POST"])
@blueprint.arguments(schemas.IdempotencySchema, location="headers")
@blueprint.arguments(schemas.ExtendSchema)
@blueprint.response(200, schemas.ExtendResponse)
@blueprint.fails(errors.NoActiveSession)
def extend_session(headers: dict[str, Any], body: dict[str, Any]) -> dict[str, Any]:
    """Stay 15, 30 or 60 minutes longer."""
    extension = service.extend(current_member_id(), body["additional_minutes"], headers.get("idempotency_key"))
    session = extension.session
    return {"session": {"id": session.id, "expires_at": session.expires_at, "extended_by_minutes": extension.minutes}}


@blueprint.route("")
@blueprint.response(200, schemas.StatusResponse)
def get_session() -> dict[str, Any]:
    """Return the active session, if there is one, and its remaining time."""
    session = service.status_of_admitted(current_member_id())
    return {"active": session is not None, "session": session}

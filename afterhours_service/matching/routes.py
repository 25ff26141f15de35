"""Matches over HTTP."""

from typing import Any

from afterhours_service.matching import schemas, service
from afterhours_service.web import errors
from afterhours_service.web.gate import current_member_id
from afterhours_service.web.schemas import Blueprint

blueprint = Blueprint("matching", __name__, url_prefix="/match", description="The member whom one is shown")


@blueprint.route("/current")
@blueprint.response(200, schemas.CurrentResponse)
def get_current() -> service.Current:
    """Return my match; or that I am searching, or not live."""
    return service.current(current_member_id())


@blueprint.route("/accept", methods=["POST"])
@blueprint.arguments(schemas.MatchIdSchema)
@blueprint.response(200, schemas.AcceptResponse)
@blueprint.fails(errors.SessionRequired, errors.MatchNotFound)
def accept_match(body: dict[str, Any]) -> dict[str, Any]:
    """Accept my match: then it lasts until `expiresAt`."""
    return {"match": service.accept(current_member_id(), body["match_id"])}


@blueprint.route("/decline", methods=["POST"])
@blueprint.arguments(schemas.MatchIdSchema)
@blueprint.response(200, schemas.DeclineResponse)
@blueprint.fails(errors.SessionRequired, errors.MatchNotFound)
def decline_match(body: dict[str, Any]) -> dict[str, Any]:
    """Decline my match: it is over, and we are hidden from each other for this session of mine and my next two."""
    service.decline(current_member_id(), body["match_id"])
    return {"message": "The match is declined."}

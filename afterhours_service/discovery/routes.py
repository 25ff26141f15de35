"""Discovery over HTTP: the members near me, and declines."""

from typing import Any

from afterhours_service.discovery import schemas, service
from afterhours_service.web import errors
from afterhours_service.web.gate import current_member_id
from afterhours_service.web.schemas import Blueprint

blueprint = Blueprint("discovery", __name__, description="See who is near, decline")


@blueprint.route("/nearby")
@blueprint.arguments(schemas.NearbyQuery, location="query")
@blueprint.response(200, schemas.NearbyResponse)
@blueprint.fails(errors.SessionRequired)
def get_nearby(query: dict[str, Any]) -> service.Nearby:
    """List the members live near me who fit, the nearest first."""
    return service.nearby(current_member_id(), query["limit"], query["cursor"])


@blueprint.route("/nearby/count")
@blueprint.response(200, schemas.CountResponse)
@blueprint.fails(errors.SessionRequired)
def get_count() -> service.Count:
    """Count the members live near me who fit."""
    return service.count(current_member_id())


@blueprint.route("/declines", methods=["POST"])
@blueprint.arguments(schemas.DeclineSchema)
@blueprint.response(201, schemas.DeclineResponse)
@blueprint.fails(errors.SessionRequired, errors.MemberNotFound)
def decline_member(body: dict[str, Any]) -> dict[str, Any]:
    """Hide a member and me from each other, for this session of mine and my next two."""
    service.decline(current_member_id(), body["user_id"])
    return {"decline": body}


@blueprint.route("/declines/<string(maxlength=255):user_id>", methods=["DELETE"])
@blueprint.response(200, schemas.TakeBackResponse)
@blueprint.fails(errors.SessionRequired)
def take_back_decline(user_id: str) -> dict[str, Any]:
    """Take back my decline of a member."""
    service.take_back(current_member_id(), user_id)
    return {"message": "The decline is taken back."}

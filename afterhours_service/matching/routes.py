"""Matching over HTTP: whom I am shown, accept, decline."""

from typing import Any

from afterhours_service.matching import schemas, service
from afterhours_service.web import errors
from afterhours_service.web.gate import current_member_id
from afterhours_service.web.schemas import Blueprint

blueprint = Blueprint("matching", __name__, url_prefix="/match", description="See whom I am matched with, answer")


@blueprint.route("/current")
@blueprint.response(200, schemas.CurrentResponse)
def get_match() -> service.Current:
    """Return the member I am shown, or whether one is being looked for."""
    return service.current(current_member_id())


@blueprint.route("/accept", methods=["POST"])
@blueprint.arguments(schemas.AnswerSchema)
@blueprint.response(200, schemas.AcceptResponse)
@blueprint.fails(errors.SessionRequired, errors.MatchNotFound)
def accept_match(body: dict[str, Any]) -> dict[str, Any]:
    """Accept my match: it then lasts its full time."""
    return {"match": service.accept(current_member_id(), body["match_id"])}


@blueprint.route("/decline", methods=["POST"])
@blueprint.arguments(schemas.AnswerSchema)
@blueprint.response(200, schemas.DeclineResponse)
@blueprint.fails(errors.SessionRequired, errors.MatchNotFound)
def decline_match(body: dict[str, Any]) -> dict[str, Any]:
    """Decline my match: it is over, and another member is looked for."""
    service.decline(current_member_id(), body["match_id"])
    return {"message": "The match is declined."}

"""A member's rights over HTTP: theirs with a token alone, premium or not."""

from itertools import chain
from typing import Any

from flask import Response

from afterhours_service.rights import schemas, service
from afterhours_service.web import errors
from afterhours_service.web.gate import current_member_id
from afterhours_service.web.schemas import Blueprint

blueprint = Blueprint("rights", __name__, description="Consent, data export, erasure")


@blueprint.route("/consent")
@blueprint.response(200, schemas.ConsentResponse)
@blueprint.fails(errors.VerificationRequired)
def get_consent() -> dict[str, Any]:
    """Return the member's consent to After Hours."""
    return {"consent": service.get_consent(current_member_id())}


@blueprint.route("/consent", methods=["PUT"])
@blueprint.arguments(schemas.GrantSchema)
@blueprint.response(200, schemas.ConsentResponse)
@blueprint.fails(errors.VerificationRequired)
def put_consent(body: dict[str, Any]) -> dict[str, Any]:
    """Grant or withdraw consent; a withdrawal ends the session at once."""
    return {"consent": service.set_consent(current_member_id(), body["granted"])}


@blueprint.route("/me/export")
@blueprint.response(200, schemas.ExportResponse)
def export_me() -> Response:
    """Return all data that is held on the member."""
    pieces = service.export(current_member_id())
    # A failure before the first piece gets an error response; after it the body breaks off, and is not valid JSON.
    first = next(pieces)
    return Response(chain(['{"success": true, "data": ', first], pieces, ["}\n"]), mimetype="application/json")


@blueprint.route("/me", methods=["DELETE"])
@blueprint.response(200, schemas.ErasedResponse)
def erase_me() -> dict[str, Any]:
    """Erase all data that is held on the member, photos too, and end their session."""
    service.erase(current_member_id())
    return {"message": "Your After Hours data is erased."}

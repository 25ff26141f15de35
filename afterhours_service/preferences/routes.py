"""Preferences over HTTP."""

from typing import Any

from afterhours_service.preferences import schemas, service
from afterhours_service.web import errors
from afterhours_service.web.gate import current_member_id
from afterhours_service.web.schemas import Blueprint

blueprint = Blueprint(
    "preferences", __name__, url_prefix="/preferences", description="Whom a member would like to meet"
)


@blueprint.route("", methods=["POST"])
@blueprint.arguments(schemas.ChangesSchema)
@blueprint.response(201, schemas.PreferencesResponse)
@blueprint.fails(errors.PreferencesExist, errors.ErasureInProgress)
def create_preferences(body: dict[str, Any]) -> dict[str, Any]:
    """Create my preferences; what is left out gets a default that fits the main profile."""
    return {"preferences": service.create(current_member_id(), body)}


@blueprint.route("")
@blueprint.response(200, schemas.PreferencesResponse)
@blueprint.fails(errors.PreferencesNotFound)
def get_preferences() -> dict[str, Any]:
    """Return my preferences."""
    return {"preferences": service.get(current_member_id())}


@blueprint.route("", methods=["PATCH"])
@blueprint.arguments(schemas.ChangesSchema)
@blueprint.response(200, schemas.PreferencesResponse)
@blueprint.fails(errors.PreferencesNotFound)
def update_preferences(body: dict[str, Any]) -> dict[str, Any]:
    """Change some of my preferences; what is left out is kept."""
    return {"preferences": service.update(current_member_id(), body)}

"""The After Hours profile over HTTP."""

from typing import Any

from flask import request
from werkzeug.exceptions import RequestEntityTooLarge

from afterhours_service.config import current_settings
from afterhours_service.profiles import photo, schemas, service
from afterhours_service.profiles.queries import Profile
from afterhours_service.web import errors, limits
from afterhours_service.web.gate import current_member_id
from afterhours_service.web.schemas import Blueprint

blueprint = Blueprint("profile", __name__, url_prefix="/profile", description="What a member shows at night")


@blueprint.route("", methods=["POST"])
@blueprint.arguments(schemas.DescriptionSchema)
@blueprint.response(201, schemas.ProfileResponse)
@blueprint.fails(errors.ProfileExists, errors.ErasureInProgress)
def create_profile(body: dict[str, Any]) -> dict[str, Any]:
    """Create my After Hours profile, which I need to go live."""
    return _response(service.create(current_member_id(), body.get("description")))


@blueprint.route("")
@blueprint.response(200, schemas.ProfileResponse)
@blueprint.fails(errors.ProfileNotFound)
def get_profile() -> dict[str, Any]:
    """Return my After Hours profile."""
    return _response(service.get(current_member_id()))


@blueprint.route("", methods=["PATCH"])
@blueprint.arguments(schemas.DescriptionSchema)
@blueprint.response(200, schemas.ProfileResponse)
@blueprint.fails(errors.ProfileNotFound)
def update_profile(body: dict[str, Any]) -> dict[str, Any]:
    """Change my description: null clears it, leaving it out keeps it."""
    return _response(service.update(current_member_id(), body))


@blueprint.route("/photo", methods=["POST"])
@blueprint.doc(requestBody={"required": True, "content": {"multipart/form-data": schemas.PHOTO_FORM}})
@blueprint.response(200, schemas.PhotoResponse)
@blueprint.fails(
    errors.NoFile,
    errors.InvalidImage,
    errors.FileTooLarge,
    errors.PhotoNotAllowed,
    errors.ProfileNotFound,
    errors.StorageUnavailable,
)
def upload_photo() -> dict[str, Any]:
    """Set my photo: multipart, field `photo`, at most 10 MB; JPEG, PNG, WebP, HEIC or HEIF."""
    limits.count(current_settings().ratelimit_photo)
    request.max_content_length = photo.MAX_REQUEST_BYTES
    if (request.content_length or 0) > photo.MAX_REQUEST_BYTES:
        raise errors.FileTooLarge
    try:
        file = request.files.get("photo")
    except RequestEntityTooLarge as error:
        raise errors.FileTooLarge from error
    if file is None:
        raise errors.NoFile
    key = photo.upload(current_member_id(), file.stream.read(photo.MAX_BYTES + 1))
    return {"photo": {"url": photo.url(key), "key": key}}


@blueprint.route("/photo", methods=["DELETE"])
@blueprint.response(200, schemas.PhotoDeletedResponse)
@blueprint.fails(errors.ProfileNotFound)
def delete_photo() -> dict[str, Any]:
    """Remove my photo, if there is one."""
    photo.delete(current_member_id())
    return {"message": "There is no photo any more."}


def _response(profile: Profile) -> dict[str, Any]:
    return {"profile": {**profile._asdict(), "photo_url": photo.url(profile.photo_key)}}

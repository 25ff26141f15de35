"""Photos of the folder storage, for whoever holds a signed link; outside the gate, as a bucket would be."""

from flask import Blueprint, Response, request, send_file

from afterhours_service import errors
from afterhours_service.storage import FolderStorage, LinkInvalid, current_storage

blueprint = Blueprint("files", __name__)

PATH = "/photos"


@blueprint.get(f"{PATH}/<path:key>")
def get_photo(key: str) -> Response:
    """Return the object behind a signed, unexpired link; for anything else there is nothing here."""
    storage = current_storage()
    if not isinstance(storage, FolderStorage):
        raise errors.NotFound
    try:
        path, content_type = storage.open(key, request.args.get("expires", ""), request.args.get("signature", ""))
    except (LinkInvalid, FileNotFoundError, ValueError) as error:
        raise errors.NotFound from error
    response = send_file(path, content_type, conditional=True)
    response.headers["Cache-Control"] = "private, max-age=3600"
    response.headers["X-Content-Type-Options"] = "nosniff"
    return response

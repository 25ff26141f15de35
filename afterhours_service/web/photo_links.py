"""Photos of the folder storage, for whoever holds a signed link; outside the gate, as a bucket would be."""

from hashlib import sha256
from io import BytesIO

from flask import Blueprint, Response, request, send_file

from afterhours_service.stores.objects import FolderStorage, LinkInvalid, current_storage
from afterhours_service.web import errors

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
        data = path.read_bytes()
    except (LinkInvalid, FileNotFoundError, ValueError) as error:
        raise errors.NotFound from error
    # Not the file itself: its ETag and Last-Modified would tell when the member was here.
    response = send_file(BytesIO(data), content_type, conditional=True, etag=sha256(data).hexdigest())
    response.headers["Cache-Control"] = "private, max-age=3600"
    response.headers["X-Content-Type-Options"] = "nosniff"
    return response

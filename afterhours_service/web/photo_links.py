"""Photos from the folder storage, for clients with a signed link; outside the gate, as a bucket is."""

from hashlib import sha256
from io import BytesIO

from flask import Blueprint, Response, request, send_file

from afterhours_service.stores.objects import FolderStorage, LinkInvalid, current_storage
from afterhours_service.web import errors

blueprint = Blueprint("files", __name__)

PATH = "/photos"


@blueprint.get(f"{PATH}/<path:key>")
def get_photo(key: str) -> Response:
    """Return the object of a signed link.

    Raises NotFound for a link that is expired or has a wrong signature, and if photos are in a bucket.
    """
    storage = current_storage()
    if not isinstance(storage, FolderStorage):
        raise errors.NotFound
    try:
        path, content_type = storage.open(key, request.args.get("expires", ""), request.args.get("signature", ""))
        data = path.read_bytes()
    except (LinkInvalid, FileNotFoundError, ValueError) as error:
        raise errors.NotFound from error
    # The bytes, not the file: the ETag and Last-Modified of a file would reveal when the member was here.
    response = send_file(BytesIO(data), content_type, conditional=True, etag=sha256(data).hexdigest())
    response.headers["Cache-Control"] = "private, max-age=3600"
    response.headers["X-Content-Type-Options"] = "nosniff"
    return response

"""A profile's photo: the new objects are stored first, then the row is updated, then the old objects are removed."""

import re
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from hashlib import sha256
from uuid import uuid4

from afterhours_service.profiles import queries
from afterhours_service.profiles.imaging import InvalidImage, process
from afterhours_service.profiles.queries import Profile, Replaced
from afterhours_service.stores.connection import release_connection, retried, transaction
from afterhours_service.stores.objects import StorageUnavailable, StoredObject, current_storage
from afterhours_service.stores.redis import only_logged
from afterhours_service.telemetry.log import get_logger
from afterhours_service.web import errors, gate

logger = get_logger(__name__)

PREFIX = "after-hours-photos/"
MAX_BYTES = 10 * 1024 * 1024
MAX_REQUEST_BYTES = MAX_BYTES + 64 * 1024  # the file, and what multipart puts around it
JPEG = "image/jpeg"
ORPHAN_AGE = timedelta(hours=1)
_THUMBNAIL = "-thumbnail"
# Keys that `upload` made: it stores a thumbnail with every photo. The Node service's photos have none.
_HAS_THUMBNAIL = re.compile(r"/[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}-photo\.jpg$")


def upload(member_id: str, data: bytes) -> str:
    """Store a photo and its thumbnail, set the profile's photo, and return the photo's key.

    Leaves nothing behind when it raises ProfileNotFound, FileTooLarge, InvalidImage, PhotoNotAllowed or
    StorageUnavailable, or as `gate.hold`.
    """
    if len(data) > MAX_BYTES:
        raise errors.FileTooLarge
    profile = queries.get(member_id)
    if not profile:
        raise errors.ProfileNotFound
    release_connection()  # no connection is held while pictures are made,
    try:
        made = process(data)
    except InvalidImage as error:
        raise errors.InvalidImage(detail=str(error)) from error
    is_banned = queries.is_banned(made.phash)
    release_connection()  # or sent to the storage
    if is_banned:
        logger.warning("banned photo", member=member_id)
        raise errors.PhotoNotAllowed
    key = f"{PREFIX}{_folder(member_id)}/{uuid4()}-photo.jpg"
    storage = current_storage()
    try:
        storage.put(key, made.image, JPEG)
        storage.put(thumbnail_key(key), made.thumbnail, JPEG)
        replaced = _replace(profile, key, made.phash)
    except Exception as error:
        _remove(key)
        if isinstance(error, StorageUnavailable):
            logger.warning("storage unavailable", error=str(error))
            raise errors.StorageUnavailable from error
        raise
    if replaced and replaced.photo_key:
        _remove(replaced.photo_key)
    return key


@retried
def _replace(profile: Profile, key: str, phash: str) -> Replaced | None:
    with transaction():
        gate.hold(profile.user_id)
        now = queries.get(profile.user_id)
        # The member may have erased everything since, and made a new profile.
        if now is None or now.created_at != profile.created_at:
            raise errors.ProfileNotFound
        return queries.set_photo(profile.user_id, key, phash)


def delete(member_id: str) -> None:
    """Remove the photo from the profile, and then its objects. Raises ProfileNotFound."""
    replaced = queries.set_photo(member_id, None, None)
    if not replaced:
        raise errors.ProfileNotFound
    if replaced.photo_key:
        _remove(replaced.photo_key)


@only_logged("objects left to the cleanup")
def erase(member_id: str, key: str | None) -> None:
    """Remove the member's objects: those of `key`, and all others in their folder.

    What fails is left to the nightly cleanup, as no profile refers to it any more.
    """
    if key:
        _remove(key)
    try:
        current_storage().delete_folder(f"{PREFIX}{_folder(member_id)}")
    except StorageUnavailable as error:
        logger.warning("objects left to the cleanup", error=str(error))


def url(key: str | None, seconds: int | None = None) -> str | None:
    """Return a URL of the object that expires; None without a key, or for one that is not valid.

    seconds: how long it is valid, by default as long as the settings say. The Node service may have written an empty
    key where there is no photo.
    """
    if not key:
        return None
    try:
        return current_storage().url(key, seconds)
    except ValueError:
        logger.warning("invalid photo key in a profile")
        return None


def thumbnail_url(key: str | None, seconds: int | None = None) -> str | None:
    """Return a URL of the photo's thumbnail, as `url` does; of the photo itself where it has no thumbnail."""
    return url(thumbnail_key(key) if key and _HAS_THUMBNAIL.search(key) else key, seconds)


def thumbnail_key(key: str) -> str:
    """Return the key of a photo's thumbnail."""
    return f"{key.removesuffix('.jpg')}{_THUMBNAIL}.jpg"


def delete_orphans(after: str = "") -> Iterator[tuple[int, str]]:
    """Delete the objects that no profile refers to, page by page.

    Yields how many of a page those were, and the page's last key, from which a later run can continue. Objects younger
    than ORPHAN_AGE are kept: their profile may be about to be updated. Raises StorageUnavailable.
    """
    for page, orphans in _orphans(after):
        current_storage().delete(orphans)
        yield len(orphans), page[-1].key


def count_orphans() -> int:
    """Return how many objects no profile refers to. Raises StorageUnavailable."""
    return sum(len(orphans) for _, orphans in _orphans(""))


def _orphans(after: str) -> Iterator[tuple[list[StoredObject], list[str]]]:
    for page in current_storage().list(PREFIX, datetime.now(UTC) - ORPHAN_AGE, after):
        referenced = queries.referenced_keys({key for stored in page for key in _photo_keys(stored.key)})
        yield page, [stored.key for stored in page if referenced.isdisjoint(_photo_keys(stored.key))]


def _photo_keys(key: str) -> set[str]:
    """Return the keys by which a profile may refer to the object: its own, and its photo's if it is a thumbnail."""
    return {key, key.replace(f"{_THUMBNAIL}.jpg", ".jpg")}


def _folder(member_id: str) -> str:
    """Return a member's folder: the id itself if it is a plain name, else its digest."""
    return (
        member_id
        if re.fullmatch(r"[A-Za-z0-9_-][A-Za-z0-9._-]{0,127}", member_id)
        else sha256(member_id.encode()).hexdigest()
    )


@only_logged("objects left to the cleanup")
def _remove(key: str) -> None:
    """Remove a photo's objects; what fails is left to the nightly cleanup."""
    try:
        current_storage().delete([key, thumbnail_key(key)])
    except ValueError:
        logger.warning("invalid photo key in a profile")
    except StorageUnavailable as error:
        logger.warning("objects left to the cleanup", error=str(error))

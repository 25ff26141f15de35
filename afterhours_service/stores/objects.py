"""Objects under keys such as `after-hours-photos/<user>/<uuid>.jpg`: in a folder, or in an S3-compatible bucket.

The database holds keys; URLs are made on request, and expire.
"""

import errno
import math
import mimetypes
import os
import shutil
import tempfile
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from hashlib import sha256
from pathlib import Path
from typing import Any, Protocol, cast
from urllib.parse import quote

from flask import Flask, current_app
from itsdangerous import Signer

from afterhours_service.config import Settings

PAGE = 1000
"""The maximum number of objects in one page of a listing."""

_PUT_ATTEMPTS = 100  # each fails only where another object of its folder was deleted at that moment
"""Attempts to store a file, as another process may remove the empty folder just before."""


class StorageUnavailable(Exception):
    """The storage is down, refuses the request, or is configured wrongly; the call may be retried later."""


class LinkInvalid(Exception):
    """The link to an object is forged, or has expired."""


@dataclass(frozen=True)
class StoredObject:
    """An object as a listing shows it; `modified_at` is an aware time in UTC."""

    key: str
    modified_at: datetime


Page = list[StoredObject]


class Storage(Protocol):
    """What both storages do. Every method raises `ValueError` for a key that `check_key` refuses."""

    def put(self, key: str, data: bytes, content_type: str) -> None:
        """Store an object, whole or not at all, over any other of that key. Raises `StorageUnavailable`."""

    def delete(self, keys: Iterable[str]) -> None:
        """Delete objects; those that do not exist are deleted already. Raises `StorageUnavailable`."""

    def delete_folder(self, folder: str) -> None:
        """Delete every object whose key begins with `folder` and a slash. Raises `StorageUnavailable`."""

    def url(self, key: str, seconds: int | None = None) -> str:
        """Return an address where anyone can read the object until it expires. Makes no network call.

        seconds: how long it is valid, by default as long as the settings say.
        """

    def list(self, prefix: str, older_than: datetime, after: str = "") -> Iterator[Page]:
        """Yield pages of the objects under a prefix last modified before an (aware) moment, in a stable order.

        after: only keys after this one, so that a listing can continue where another one stopped. No page is empty. The
        objects of a page may be deleted before the next page is requested. Raises `StorageUnavailable`.
        """


def init_app(app: Flask, settings: Settings, photos_path: str) -> None:
    """Give the app its storage: the bucket of the settings, or else the folder, served under `photos_path`."""
    seconds = settings.photo_url_seconds
    storage: Storage
    if s3 := settings.s3:
        storage = S3Storage(s3.bucket, s3.endpoint_url, s3.region, s3.access_key_id, s3.secret_access_key, seconds)
    else:
        secret = sha256(b"photo links" + settings.location_secret.encode()).digest()
        storage = FolderStorage(settings.storage_folder, secret, settings.public_url + photos_path, seconds)
    app.extensions["after_hours_storage"] = storage


def current_storage() -> Storage:
    """Return the current app's storage."""
    return cast("Storage", current_app.extensions["after_hours_storage"])


def check_key(key: str) -> None:
    """Raise `ValueError` unless every part of the key is a plain file name.

    That is: not blank, at most 255 bytes, printable, without a backslash, and not beginning with a dot.
    """
    for part in key.split("/"):
        if (
            not part.strip()
            or part.startswith(".")
            or "\\" in part
            or not part.isprintable()
            or len(part.encode()) > 255
        ):
            raise ValueError(f"not a key of an object: {key!r}")


class FolderStorage:
    """Objects as files under `root`, read through `open` by anyone with a URL signed with `secret`.

    A URL lives for `ttl` seconds at least, and at most an eighth or a second longer: its expiry is rounded up, so that
    it stays the same for a while and clients can cache the picture.
    """

    def __init__(self, root: Path, secret: bytes, base_url: str, ttl: int = 7200) -> None:
        self._root = root.absolute()  # relative to the working directory: Flask would use its package's folder
        self._base_url = base_url.rstrip("/")
        self._ttl = ttl
        self._signer = Signer(secret, salt="afterhours-object-link", digest_method=sha256)

    def put(self, key: str, data: bytes, content_type: str) -> None:
        """See `Storage`. A folder keeps no content types: raises `ValueError` where the key's suffix says another."""
        path = self._path(key)
        if content_type != _type_of(key):
            raise ValueError(f"the suffix of {key!r} does not say {content_type}")
        with _unavailable_on(OSError):
            for attempt in range(_PUT_ATTEMPTS):
                try:
                    path.parent.mkdir(parents=True, exist_ok=True)
                    _write_atomically(path, data)
                    break
                except (FileNotFoundError, FileExistsError):  # its folder was empty, and has been removed meanwhile
                    if attempt == _PUT_ATTEMPTS - 1:
                        raise

    def delete(self, keys: Iterable[str]) -> None:
        """See `Storage`. Folders that become empty are removed, too."""
        for key in keys:
            path = self._path(key)
            with _unavailable_on(OSError):
                try:
                    path.unlink()
                except FileNotFoundError:  # deleted already, and a new file may be about to come into its folder
                    continue
            if path.parent != self._root:
                with suppress(OSError):  # not empty, or gone
                    path.parent.rmdir()

    def delete_folder(self, folder: str) -> None:
        """See `Storage`."""
        with _unavailable_on(OSError):
            shutil.rmtree(self._path(folder), onerror=_raise_what_counts)

    def url(self, key: str, seconds: int | None = None) -> str:
        """See `Storage`: `<base_url>/<key>?expires=<epoch seconds>&signature=<signature>`."""
        check_key(key)
        ttl = seconds or self._ttl
        step = max(ttl // 8, 1)
        expires = math.ceil((time.time() + ttl) / step) * step
        return f"{self._base_url}/{quote(key)}?expires={expires}&signature={self._signature(key, str(expires))}"

    def open(self, key: str, expires: str, signature: str) -> tuple[Path, str]:
        """Return the file and the content type behind a URL of `url`, given its three parts.

        Raises `LinkInvalid`, and `FileNotFoundError` when the object is gone.
        """
        genuine = expires.isdecimal() and self._signer.verify_signature(f"{expires}:{key}", signature)
        if not genuine or int(expires) <= time.time():
            raise LinkInvalid
        path = self._path(key)
        if not path.is_file():
            raise FileNotFoundError(path)
        return path, _type_of(key)

    def list(self, prefix: str, older_than: datetime, after: str = "") -> Iterator[Page]:
        """See `Storage`. Looks only into the folder that the prefix names."""
        page: Page = []
        with _unavailable_on(OSError):
            for stored in self._walk(prefix.rpartition("/")[0], tuple(after.split("/"))):
                if stored.key.startswith(prefix) and stored.modified_at < older_than:
                    page.append(stored)
                if len(page) == PAGE:
                    yield page
                    page = []
        if page:
            yield page

    def _walk(self, folder: str, after: tuple[str, ...]) -> Iterator[StoredObject]:
        """Yield the objects of a folder whose parts come after those of `after`, in the order of their parts."""
        start = self._path(folder) if folder else self._root
        for directory, folders, names in os.walk(start, onerror=_raise_unless_gone):
            here = Path(directory).relative_to(self._root).parts
            depth = len(here) + 1
            folders[:] = sorted(name for name in folders if (*here, name) >= after[:depth])
            for name in sorted(names):
                path = Path(directory, name)
                if name.startswith(".") or (*here, name) <= after:  # being written, or behind us
                    continue
                try:
                    modified_at = datetime.fromtimestamp(path.stat().st_mtime, UTC)
                except FileNotFoundError:  # deleted meanwhile
                    continue
                yield StoredObject(path.relative_to(self._root).as_posix(), modified_at)

    def _path(self, key: str) -> Path:
        check_key(key)
        return self._root / key

    def _signature(self, key: str, expires: str) -> str:
        return self._signer.get_signature(f"{expires}:{key}").decode()


class S3Storage:
    """Objects in a bucket of an S3-compatible server, read through presigned URLs that live for `ttl` seconds.

    An attempt gives up when the server takes more than `connect_seconds` to accept the connection or is silent for
    `answer_seconds`. There are two attempts, so that with the defaults a call ends within 20 s: before the API ends
    the waiting worker at 30 s.

    One instance serves any number of threads, and may be made before a fork.
    """

    def __init__(
        self,
        bucket: str,
        endpoint: str,
        region: str,
        access_key: str,
        secret_key: str,
        ttl: int = 7200,
        *,
        connect_seconds: float = 2,
        answer_seconds: float = 5,
    ) -> None:
        """Make no network call yet. Raises `ValueError` when the endpoint is not a URL."""
        # Imported here, as it takes 0.3 s and 40 MB that a service without a bucket does not need.
        import boto3  # noqa: PLC0415
        from botocore.config import Config  # noqa: PLC0415
        from botocore.exceptions import BotoCoreError, ClientError  # noqa: PLC0415

        self._bucket = bucket
        self._ttl = ttl
        self._errors = (BotoCoreError, ClientError)
        self._client = boto3.client(
            "s3",
            endpoint_url=endpoint,
            region_name=region,
            aws_access_key_id=access_key,
            aws_secret_access_key=secret_key,
            config=Config(
                connect_timeout=connect_seconds,
                read_timeout=answer_seconds,
                retries={"mode": "standard", "total_max_attempts": 2},
                s3={"addressing_style": "path"},
                # By default botocore adds checksums that Cloudflare R2 and others do not know.
                request_checksum_calculation="when_required",
                response_checksum_validation="when_required",
            ),
        )

    def put(self, key: str, data: bytes, content_type: str) -> None:
        """See `Storage`."""
        check_key(key)
        with _unavailable_on(*self._errors):
            self._client.put_object(Bucket=self._bucket, Key=key, Body=data, ContentType=content_type)

    def delete(self, keys: Iterable[str]) -> None:
        """See `Storage`. One by one: the bulk request needs a checksum on which the compatible servers differ."""
        for key in keys:
            check_key(key)
            with _unavailable_on(*self._errors):
                self._client.delete_object(Bucket=self._bucket, Key=key)

    def delete_folder(self, folder: str) -> None:
        """See `Storage`."""
        check_key(folder)
        for page in self.list(f"{folder}/", datetime.max.replace(tzinfo=UTC)):
            self.delete(stored.key for stored in page)

    def url(self, key: str, seconds: int | None = None) -> str:
        """See `Storage`."""
        check_key(key)
        url: str = self._client.generate_presigned_url(
            "get_object", Params={"Bucket": self._bucket, "Key": key}, ExpiresIn=seconds or self._ttl
        )
        return url

    def list(self, prefix: str, older_than: datetime, after: str = "") -> Iterator[Page]:
        """See `Storage`."""
        pages = self._client.get_paginator("list_objects_v2").paginate(
            Bucket=self._bucket, Prefix=prefix, StartAfter=after, PaginationConfig={"PageSize": PAGE}
        )
        with _unavailable_on(*self._errors):
            for found in pages:
                page = [
                    StoredObject(item["Key"], item["LastModified"])
                    for item in found.get("Contents", [])
                    if item["LastModified"] < older_than
                ]
                if page:
                    yield page


@contextmanager
def _unavailable_on(*errors: type[Exception]) -> Iterator[None]:
    try:
        yield
    except errors as error:
        raise StorageUnavailable(str(error)) from error


def _raise_unless_gone(error: OSError) -> None:
    if not isinstance(error, FileNotFoundError):
        raise error


def _raise_what_counts(_call: Any, _path: str, failure: tuple[Any, BaseException, Any]) -> None:
    """Let rmtree ignore what is already gone, and a folder in which a new file is being stored."""
    error = failure[1]
    if not isinstance(error, FileNotFoundError) and getattr(error, "errno", None) != errno.ENOTEMPTY:
        raise error


def _type_of(key: str) -> str:
    return mimetypes.guess_type(key)[0] or "application/octet-stream"


def _write_atomically(path: Path, data: bytes) -> None:
    directory = os.open(path.parent, os.O_RDONLY)
    try:
        with tempfile.NamedTemporaryFile(dir=path.parent, prefix=".", delete=False) as file:
            try:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
                Path(file.name).replace(path)
            except BaseException:
                Path(file.name).unlink(missing_ok=True)
                raise
        os.fsync(directory)
    finally:
        os.close(directory)

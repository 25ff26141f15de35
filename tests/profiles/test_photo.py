"""A profile's photo, from the upload to the cleanup of orphans."""

import io
import os
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from flask import Flask
from flask.testing import FlaskClient
from PIL import Image
from werkzeug.test import TestResponse

from afterhours_service import create_app
from afterhours_service.cleanup import service as cleanup
from afterhours_service.config import Settings
from afterhours_service.profiles import imaging, photo
from afterhours_service.stores.database import db
from afterhours_service.stores.objects import StorageUnavailable, current_storage
from tests import client as phone
from tests.client import API, PHOTO, erase, start
from tests.conftest import make_settings
from tests.factories import Factory, bearer
from tests.pictures import plain


@pytest.fixture
def settings(database_url: str, redis_url: str, tmp_path: Path) -> Settings:
    return make_settings(database_url, redis_url, storage_folder=tmp_path / "photos", public_url="http://localhost")


@pytest.fixture
def upload(client: FlaskClient) -> Callable[[str, bytes], TestResponse]:
    return partial(phone.upload, client)


def stored(settings: Settings) -> set[str]:
    return {str(p.relative_to(settings.storage_folder)) for p in settings.storage_folder.rglob("*.jpg")}


def key_of(factory: Factory, member: str) -> Any:
    return factory.execute("SELECT photo_url FROM after_hours_profiles WHERE user_id = %s", member)[0].photo_url


def test_an_upload_is_stored_named_and_served(
    client: FlaskClient, factory: Factory, upload: Any, settings: Settings
) -> None:
    member = factory.member()
    answer = upload(member, plain(), name="../../etc/passwd.svg")
    assert answer.status_code == 200
    key = answer.json["photo"]["key"]
    assert key.startswith(f"after-hours-photos/{member}/")
    assert key_of(factory, member) == key
    assert stored(settings) == {key, photo.thumbnail_key(key)}
    served = client.get(answer.json["photo"]["url"], buffered=True)
    assert (served.status_code, served.mimetype) == (200, "image/jpeg")
    assert served.headers["X-Content-Type-Options"] == "nosniff"
    assert served.headers["Cache-Control"].startswith("private")
    assert Image.open(io.BytesIO(served.data)).size == (64, 64)
    profile = client.get("/api/after-hours/profile", headers=bearer(member)).json["profile"]
    assert client.get(profile["photoUrl"], buffered=True).status_code == 200


@pytest.mark.parametrize(
    "change", [("signature=", "signature=x"), (".jpg?", "-thumbnail.jpg?"), ("expires=", "expires=9")]
)
def test_a_link_that_was_tampered_with_leads_nowhere(
    client: FlaskClient, factory: Factory, upload: Any, change: tuple[str, str]
) -> None:
    url = upload(factory.member(), plain()).json["photo"]["url"]
    answer = client.get(url.replace(*change))
    assert (answer.status_code, answer.json["code"]) == (404, "NOT_FOUND")


def test_a_new_photo_replaces_the_old_objects(factory: Factory, upload: Any, settings: Settings) -> None:
    member = factory.member()
    first = upload(member, plain()).json["photo"]["key"]
    second = upload(member, plain()).json["photo"]["key"]
    assert first != second
    assert stored(settings) == {second, photo.thumbnail_key(second)}


def test_delete_removes_row_and_objects_and_may_be_repeated(
    client: FlaskClient, factory: Factory, upload: Any, settings: Settings
) -> None:
    member = factory.member()
    upload(member, plain())
    for _ in range(2):
        assert client.delete(PHOTO, headers=bearer(member)).status_code == 200
        assert key_of(factory, member) is None
        assert not stored(settings)


@pytest.mark.parametrize(
    ("data", "field", "status", "code"),
    [
        (b"", "photo", 400, "INVALID_IMAGE"),
        (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "photo", 400, "INVALID_IMAGE"),
        (b"x", "foto", 400, "NO_FILE"),
        (b"\0" * (photo.MAX_BYTES + 1), "photo", 413, "FILE_TOO_LARGE"),
        (b"\0" * (photo.MAX_REQUEST_BYTES + 1), "photo", 413, "FILE_TOO_LARGE"),
    ],
    ids=["empty", "SVG", "another field", "too large a photo", "too large a request"],  # not the megabytes themselves
)
def test_a_refused_upload_leaves_nothing_behind(
    factory: Factory, upload: Any, settings: Settings, data: bytes, field: str, status: int, code: str
) -> None:
    member = factory.member()
    kept = upload(member, plain()).json["photo"]["key"]
    answer = upload(member, data, field)
    assert (answer.status_code, answer.json["code"]) == (status, code)
    assert key_of(factory, member) == kept
    assert stored(settings) == {kept, photo.thumbnail_key(kept)}


def test_an_upload_without_multipart_has_no_file(client: FlaskClient, factory: Factory) -> None:
    answer = client.post(PHOTO, data=plain(), content_type="image/jpeg", headers=bearer(factory.member()))
    assert (answer.status_code, answer.json["code"]) == (400, "NO_FILE")


def test_a_photo_needs_a_profile(client: FlaskClient, factory: Factory, upload: Any, settings: Settings) -> None:
    member = factory.member(profile=False)
    assert upload(member, plain()).json["code"] == "PROFILE_NOT_FOUND"
    assert client.delete(PHOTO, headers=bearer(member)).json["code"] == "PROFILE_NOT_FOUND"
    assert not stored(settings)


def test_a_storage_that_fails_half_way_leaves_nothing_half_done(
    app: Flask, factory: Factory, upload: Any, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    member = factory.member()
    kept = upload(member, plain()).json["photo"]["key"]
    storage: Any = app.extensions["after_hours_storage"]
    put = storage.put

    def put_no_thumbnail(key: str, data: bytes, content_type: str) -> None:
        if "thumbnail" in key:
            raise StorageUnavailable("the disk is full")
        put(key, data, content_type)

    monkeypatch.setattr(storage, "put", put_no_thumbnail)
    answer = upload(member, plain())
    assert (answer.status_code, answer.json["code"]) == (503, "STORAGE_UNAVAILABLE")
    assert "Retry-After" in answer.headers
    assert key_of(factory, member) == kept
    assert stored(settings) == {kept, photo.thumbnail_key(kept)}


@pytest.mark.parametrize("member_id", ["auth0|abc/../x", ".hidden", "ü" * 200, "a.b-c_d"])
def test_any_member_id_has_a_folder_of_its_own(app: Flask, factory: Factory, member_id: str) -> None:
    factory.execute("INSERT INTO users (id, provider, after_hours_consent) VALUES (%s, 'test', true)", member_id)
    factory.execute("INSERT INTO after_hours_profiles (user_id) VALUES (%s)", member_id)
    with app.app_context():
        key = photo.upload(member_id, plain())
        assert key_of(factory, member_id) == key
        assert photo.url(key)


@pytest.mark.parametrize("key", [None, "", " ", "\t", "\u00a0", "https://elsewhere/x.jpg", "/x.jpg", "a/ /x.jpg", "a/"])
def test_what_is_no_key_is_no_photo_anywhere(client: FlaskClient, factory: Factory, key: str | None) -> None:
    member, other = factory.member(), factory.member()
    factory.execute("UPDATE after_hours_profiles SET photo_url = %s", key)
    for each in (member, other):
        assert start(client, each).status_code == 201

    profile = client.get(f"{API}/profile", headers=bearer(member)).json["profile"]
    [shown] = client.get(f"{API}/nearby", headers=bearer(other)).json["members"]
    exported = client.get(f"{API}/me/export", headers=bearer(member)).json["data"]["profile"]

    assert profile["photoUrl"] is None
    assert (shown["photoUrl"], shown["thumbnailUrl"]) == (None, None)
    assert (exported["photoUrl"], exported["thumbnailUrl"]) == (None, None)
    assert client.delete(PHOTO, headers=bearer(member)).status_code == 200
    assert erase(client, member).status_code == 200


@pytest.mark.parametrize(
    "name",
    ["1700000000000.jpg", "0b5e8c9e-6f1e-4b7a-9b1e-2a3c4d5e6f70.jpg", "a-photo.jpg", "x.webp", "x-thumbnail.jpg"],
)
def test_a_photo_of_the_node_service_is_its_own_thumbnail(
    app: Flask, client: FlaskClient, factory: Factory, settings: Settings, name: str
) -> None:
    member = factory.member()
    key = f"{photo.PREFIX}{member}/{name}"
    with app.app_context():
        current_storage().put(key, plain(), "image/webp" if name.endswith("webp") else photo.JPEG)
    factory.execute("UPDATE after_hours_profiles SET photo_url = %s", key)

    exported = client.get(f"{API}/me/export", headers=bearer(member)).json["data"]["profile"]

    assert client.get(exported["photoUrl"], buffered=True).data == plain()
    assert client.get(exported["thumbnailUrl"], buffered=True).data == plain()
    age(settings)
    with app.app_context():
        assert cleanup.run(cleanup.Round(step="photos")).counts["photos"] == 0
    assert client.delete(PHOTO, headers=bearer(member)).status_code == 200
    assert not files(settings)


def test_a_new_photo_has_a_small_thumbnail(client: FlaskClient, factory: Factory, upload: Any) -> None:
    member = factory.member()
    upload(member, plain(400))
    exported = client.get(f"{API}/me/export", headers=bearer(member)).json["data"]["profile"]
    for name, side in (("photoUrl", 400), ("thumbnailUrl", 200)):
        served = client.get(exported[name], buffered=True)
        assert Image.open(io.BytesIO(served.data)).size == (side, side)


# The host's bans


def hash_of(factory: Factory, member: str) -> Any:
    return factory.execute("SELECT photo_hash FROM after_hours_profiles WHERE user_id = %s", member)[0].photo_hash


def ban(factory: Factory, *hashes: str) -> None:
    factory.execute("CREATE TABLE IF NOT EXISTS banned_photo_hashes (photo_hash varchar(16) NOT NULL)")
    for phash in hashes:
        factory.execute("INSERT INTO banned_photo_hashes VALUES (%s)", phash)


def drawing(top: int = 40) -> bytes:
    image = Image.new("RGB", (300, 400), "teal")
    image.paste((220, 180, 160), (60, top, 240, top + 150))
    image.paste((30, 20, 20), (100, top + 40, 130, top + 60))
    image.paste((200, 30, 60), (150, top + 100, 290, top + 320))
    out = io.BytesIO()
    image.save(out, "PNG")
    return out.getvalue()


def changed(phash: str, bits: int) -> str:
    """Return the hash with so many of its bits turned over."""
    return f"{int(phash, 16) ^ sum(1 << 6 * bit for bit in range(bits)):016x}"


def test_a_photo_has_its_hash_for_as_long_as_it_is_there(
    client: FlaskClient, factory: Factory, upload: Any, settings: Settings
) -> None:
    member = factory.member()
    upload(member, drawing())
    assert hash_of(factory, member) == imaging.process(drawing()).phash
    upload(member, drawing(10))
    assert hash_of(factory, member) == imaging.process(drawing(10)).phash
    exported = client.get(f"{API}/me/export", headers=bearer(member)).json["data"]["profile"]
    assert exported["photoHash"] == hash_of(factory, member)
    client.delete(PHOTO, headers=bearer(member))
    assert hash_of(factory, member) is None


@pytest.mark.parametrize("spelt", [str.lower, str.upper])
def test_a_picture_that_looks_like_a_banned_one_is_refused(
    factory: Factory, upload: Any, settings: Settings, spelt: Callable[[str], str]
) -> None:
    member = factory.member()
    kept = upload(member, drawing(10)).json["photo"]["key"]
    before = hash_of(factory, member)
    ban(factory, spelt(changed(imaging.process(drawing()).phash, 9)))

    answer = upload(member, drawing())

    assert (answer.status_code, answer.json["code"]) == (403, "PHOTO_NOT_ALLOWED")
    assert (key_of(factory, member), hash_of(factory, member)) == (kept, before)
    assert stored(settings) == {kept, photo.thumbnail_key(kept)}


def test_a_picture_that_looks_otherwise_is_taken_and_rows_that_are_no_hashes_mean_nothing(
    factory: Factory, upload: Any
) -> None:
    ban(factory, changed(imaging.process(drawing()).phash, 10), "", "abc", "x" * 16, "0x12345678901234", " " * 16)
    assert upload(factory.member(), drawing()).status_code == 200


def test_bans_may_come_and_go_while_the_service_runs(factory: Factory, upload: Any) -> None:
    member = factory.member()
    assert upload(member, drawing()).status_code == 200
    ban(factory, hash_of(factory, member))
    assert upload(member, drawing()).status_code == 403
    factory.execute("DROP TABLE banned_photo_hashes")
    assert upload(member, drawing()).status_code == 200


# What is left on the disk


def files(settings: Settings) -> set[str]:
    """Return everything under the folder of the photos, folders too, but for that of the prefix."""
    root = settings.storage_folder
    return {str(path.relative_to(root)) for path in root.rglob("*")} - {photo.PREFIX.rstrip("/")}


def age(settings: Settings) -> None:
    """Make every object old enough for the nightly cleanup."""
    old = time.time() - 3700
    for path in settings.storage_folder.rglob("*.*"):
        os.utime(path, (old, old))


def test_no_folder_is_left_of_a_member_without_photos(
    client: FlaskClient, factory: Factory, upload: Any, settings: Settings
) -> None:
    removed, erased, emptied, nobody = (factory.member() for _ in range(4))
    for member in (removed, erased):
        upload(member, plain())
    (settings.storage_folder / photo.PREFIX / emptied).mkdir()  # as an earlier release left it
    (settings.storage_folder / photo.PREFIX / erased / "left.jpg").write_bytes(b"named by nothing")

    client.delete(PHOTO, headers=bearer(removed))
    for member in (erased, emptied, nobody):
        assert erase(client, member).status_code == 200

    assert files(settings) == set()


def test_an_erasure_looks_into_no_other_folder(
    client: FlaskClient, factory: Factory, upload: Any, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    member, other = factory.member(), factory.member()
    kept = upload(other, plain()).json["photo"]["key"]
    upload(member, plain())
    seen = []
    scandir = os.scandir

    def watched(path: Any) -> Any:
        if isinstance(path, str | Path):
            seen.append(Path(path).name)
        return scandir(path)

    monkeypatch.setattr(os, "scandir", watched)
    assert erase(client, member).status_code == 200
    monkeypatch.undo()
    assert not {other, photo.PREFIX.rstrip("/"), settings.storage_folder.name} & set(seen)
    assert stored(settings) == {kept, photo.thumbnail_key(kept)}


# What a served photo tells


def test_a_served_photo_does_not_tell_when_it_was_uploaded(
    client: FlaskClient, factory: Factory, upload: Any, settings: Settings
) -> None:
    url = upload(factory.member(), plain()).json["photo"]["url"]
    first = client.get(url, buffered=True)
    age(settings)
    later = client.get(url, buffered=True)
    assert first.headers["ETag"] == later.headers["ETag"]
    for answer in (first, later, client.head(url)):
        assert "Last-Modified" not in answer.headers
    for moment in ("Thu, 01 Jan 1970 00:00:00 GMT", "Fri, 31 Dec 2100 00:00:00 GMT"):
        assert client.get(url, headers={"If-Modified-Since": moment}, buffered=True).status_code == 200
        assert client.get(url, headers={"If-Unmodified-Since": moment}, buffered=True).status_code == 200
        ranged = client.get(url, headers={"Range": "bytes=0-9", "If-Range": moment}, buffered=True)
        assert ranged.status_code == 200


def test_a_served_photo_is_asked_for_again_in_parts_or_only_if_it_is_another(
    client: FlaskClient, factory: Factory, upload: Any
) -> None:
    url = upload(factory.member(), plain()).json["photo"]["url"]
    whole = client.get(url, buffered=True)
    etag = whole.headers["ETag"]
    part = client.get(url, headers={"Range": "bytes=10-19", "If-Range": etag}, buffered=True)
    assert (part.status_code, part.data) == (206, whole.data[10:20])
    assert part.headers["Content-Range"] == f"bytes 10-19/{len(whole.data)}"
    assert client.get(url, headers={"If-None-Match": etag}, buffered=True).status_code == 304
    assert client.get(url, headers={"If-None-Match": '"x"'}, buffered=True).data == whole.data


@pytest.fixture
def orphans(app: Flask, factory: Factory, upload: Any, settings: Settings) -> str:
    """Make old objects that no profile names, a young one, and a photo in use; return the key of that."""
    member = factory.member()
    kept: str = upload(member, plain()).json["photo"]["key"]
    with app.app_context():
        for name in ("a/1.jpg", "a/1-thumbnail.jpg", "z/2.jpg", "young/3.jpg"):
            current_storage().put(photo.PREFIX + name, b"x", photo.JPEG)
    old = time.time() - 3700
    for path in settings.storage_folder.rglob("*.jpg"):
        if "young" not in str(path):
            os.utime(path, (old, old))
    return kept


def test_orphans_are_counted_and_removed(app: Flask, orphans: str, settings: Settings) -> None:
    with app.app_context():
        assert cleanup.pending()["photos"] == 3
        assert [cleanup.run().counts["photos"] for _ in range(2)] == [3, 0]
    assert stored(settings) == {orphans, photo.thumbnail_key(orphans), f"{photo.PREFIX}young/3.jpg"}


def test_orphans_are_removed_in_slices(
    app: Flask, orphans: str, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("afterhours_service.stores.objects.PAGE", 2)
    with app.app_context():
        round_ = cleanup.Round(step="photos")
        slices = 0
        while round_.step:
            cleanup.run(round_, seconds=0)
            slices += 1
    assert round_.counts["photos"] == 3
    assert slices > 1


def test_the_settings_choose_the_bucket(database_url: str, redis_url: str) -> None:
    from afterhours_service.config import S3Settings
    from afterhours_service.stores.objects import S3Storage

    s3 = S3Settings(
        bucket="b", endpoint_url="http://127.0.0.1:1", region="auto", access_key_id="a", secret_access_key="s"
    )
    app = create_app(make_settings(database_url, redis_url, s3=s3))
    with app.app_context():
        assert isinstance(current_storage(), S3Storage)
    assert app.test_client().get("/photos/x?expires=1&signature=x").status_code == 404


def test_no_connection_is_held_while_a_picture_is_made(
    app: Flask, upload: Callable[..., TestResponse], factory: Factory, monkeypatch: pytest.MonkeyPatch
) -> None:
    with app.app_context():
        pool = db.engine.pool
    held = []

    def watched(data: bytes) -> Any:
        held.append(pool.checkedout())  # type: ignore[attr-defined]
        return imaging.process(data)

    monkeypatch.setattr(photo, "process", watched)
    assert upload(factory.member(), plain()).status_code == 200
    assert held == [0]

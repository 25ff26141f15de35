import os
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from urllib.error import HTTPError
from urllib.parse import parse_qs, unquote, urlsplit
from urllib.request import urlopen

import pytest

from afterhours_service.stores import objects
from afterhours_service.stores.objects import (
    FolderStorage,
    LinkInvalid,
    S3Storage,
    Storage,
    StorageUnavailable,
    StoredObject,
)
from dev.embedded import free_port
from tests.stopwatch import Stopwatch, eventually

KEY = "after-hours-photos/member-1/0b5e.jpg"
OTHER = "after-hours-photos/auth0|42 ü%+#/0b5f.jpg"
ACCESS_KEY, SECRET_KEY = "nanio-access", "nanio-secret-key"


def in_a_minute() -> datetime:
    return datetime.now(UTC) + timedelta(minutes=1)


def keys(store: Storage, prefix: str = "after-hours-photos/") -> set[str]:
    return {found.key for page in store.list(prefix, in_a_minute()) for found in page}


def get(url: str) -> tuple[int, str, bytes]:
    try:
        with urlopen(url, timeout=60) as answer:
            return answer.status, answer.headers["Content-Type"], answer.read()
    except HTTPError as error:
        with error:
            return error.code, "", b""


# A folder


@pytest.fixture
def folder(tmp_path: Path) -> FolderStorage:
    return FolderStorage(tmp_path / "objects", b"s" * 32, "http://host.example/photos/", ttl=7200)


def parts(url: str) -> tuple[str, str, str]:
    """Return what the route would hand to `open`: key, expires and signature."""
    address = urlsplit(url)
    query = parse_qs(address.query)
    return unquote(address.path.removeprefix("/photos/")), query["expires"][0], query["signature"][0]


@pytest.mark.parametrize("key", [KEY, OTHER, "a?b%2Fc/d.jpg"])
def test_an_object_is_read_through_its_signed_url(folder: FolderStorage, key: str) -> None:
    folder.put(key, b"first", "image/jpeg")
    folder.put(key, b"second", "image/jpeg")

    url = folder.url(key)
    path, content_type = folder.open(*parts(url))

    assert url.startswith("http://host.example/photos/a")
    assert (path.read_bytes(), content_type) == (b"second", "image/jpeg")


def test_a_forged_link_opens_nothing(folder: FolderStorage, tmp_path: Path) -> None:
    folder.put(KEY, b"mine", "image/jpeg")
    folder.put(OTHER, b"theirs", "image/jpeg")
    key, expires, signature = parts(folder.url(KEY))
    stranger = FolderStorage(tmp_path / "objects", b"t" * 32, "http://host.example/photos")

    for forged in [
        (OTHER, expires, signature),
        (key, str(int(expires) + 1), signature),
        (key, expires, signature[:-1]),
        (key, expires, "é"),
        (key, "never", signature),
        ("b.jpg", f"{expires}:a", folder._signature("a:b.jpg", expires)),
        (key, "", ""),
        parts(stranger.url(KEY)),
    ]:
        with pytest.raises(LinkInvalid):
            folder.open(*forged)


def test_links_live_for_their_time_and_stay_the_same_for_a_while(
    folder: FolderStorage, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder.put(KEY, b"x", "image/jpeg")
    now = 1_800_000_000.0  # a multiple of 900 s, an eighth of the life of a link

    def clock() -> float:
        return now

    monkeypatch.setattr("afterhours_service.stores.objects.time.time", clock)
    now += 1
    made = folder.url(KEY)
    now += 898
    assert folder.url(KEY) == made
    now += 2
    assert folder.url(KEY) != made

    now = 1_800_000_001 + 7200
    folder.open(*parts(made))
    now = 1_800_000_000 + 7200 + 900
    with pytest.raises(LinkInvalid):
        folder.open(*parts(made))


def test_a_link_to_a_deleted_object(folder: FolderStorage) -> None:
    folder.put(KEY, b"x", "image/jpeg")
    url = folder.url(KEY)

    folder.delete([KEY, KEY, OTHER])

    with pytest.raises(FileNotFoundError):
        folder.open(*parts(url))


HOSTILE = [
    "",
    "/etc/passwd",
    "../secret.jpg",
    "a/../../secret.jpg",
    "a/./b.jpg",
    "a//b.jpg",
    "a/.hidden",
    "a/",
    "..\\secret.jpg",
    "a/ /b.jpg",
    "a/\u00a0",
    "a\0.jpg",
    "a\n.jpg",
    "a" * 256,
    "ü" * 128,
]


@pytest.mark.parametrize("key", HOSTILE)
def test_no_key_leaves_the_folder(folder: FolderStorage, tmp_path: Path, key: str) -> None:
    (tmp_path / "secret.jpg").write_bytes(b"secret")
    expires = str(int(time.time()) + 60)
    signature = folder._signature(key, expires)

    for attempt in (
        lambda: folder.put(key, b"x", "image/jpeg"),
        lambda: folder.delete([key]),
        lambda: folder.delete_folder(key),
        lambda: folder.url(key),
        lambda: folder.open(key, expires, signature),
    ):
        with pytest.raises(ValueError, match="not a key"):
            attempt()

    assert (tmp_path / "secret.jpg").read_bytes() == b"secret"


def test_a_type_that_the_key_does_not_say_is_refused(folder: FolderStorage) -> None:
    with pytest.raises(ValueError, match="text/html"):
        folder.put(KEY, b"x", "text/html")


def test_listing_a_folder(folder: FolderStorage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(objects, "PAGE", 2)
    assert keys(folder) == set()
    names = [f"after-hours-photos/m{n}/p.jpg" for n in range(5)]
    for name in [*names, "elsewhere/p.jpg"]:
        folder.put(name, b"x", "image/jpeg")
    (tmp_path / "objects/after-hours-photos/m0/.unfinished").touch()
    moment = datetime(2030, 1, 2, 3, 4, 5, tzinfo=UTC)
    os.utime(tmp_path / "objects" / names[0], times=(moment.timestamp(),) * 2)

    pages = list(folder.list("after-hours-photos/", in_a_minute()))

    assert [len(page) for page in pages] == [2, 2]
    assert keys(folder) == set(names[1:])
    later = [found for page in folder.list("", moment + timedelta(seconds=1)) for found in page]
    assert StoredObject(names[0], moment) in later
    assert len(later) == 6
    assert not list(folder.list("", moment - timedelta(days=10_000)))


def test_a_listing_of_what_is_no_folder(folder: FolderStorage) -> None:
    with pytest.raises(ValueError, match="not a key"):
        list(folder.list("../", in_a_minute()))


def test_what_is_listed_may_be_deleted_meanwhile(folder: FolderStorage, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(objects, "PAGE", 1)
    names = [f"after-hours-photos/m{n}/p.jpg" for n in range(4)]
    for name in names:
        folder.put(name, b"x", "image/jpeg")

    for page in folder.list("", in_a_minute()):
        folder.delete(found.key for found in page)

    assert keys(folder) == set()


def test_a_write_that_fails_leaves_nothing(
    folder: FolderStorage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder.put(KEY, b"before", "image/jpeg")

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("afterhours_service.stores.objects.os.fsync", full)
    with pytest.raises(StorageUnavailable, match="No space left"):
        folder.put(KEY, b"after", "image/jpeg")

    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert [path.read_bytes() for path in files] == [b"before"]


def test_a_folder_goes_with_its_last_object(folder: FolderStorage, tmp_path: Path) -> None:
    for name in ("a/1.jpg", "a/2.jpg", "top.jpg"):
        folder.put(name, b"x", "image/jpeg")

    folder.delete(["a/1.jpg"])
    assert keys(folder, "") == {"a/2.jpg", "top.jpg"}
    folder.delete(["a/2.jpg", "top.jpg", "b/never.jpg"])

    assert list((tmp_path / "objects").iterdir()) == []


def test_deleting_a_folder_leaves_the_others(folder: FolderStorage, tmp_path: Path) -> None:
    for name in ("p/a/1.jpg", "p/a/2.jpg", "p/ab/1.jpg", "p/a.jpg"):
        folder.put(name, b"x", "image/jpeg")
    (tmp_path / "objects/p/a/.unfinished").touch()

    folder.delete_folder("p/a")
    folder.delete_folder("p/nobody")

    assert keys(folder, "") == {"p/ab/1.jpg", "p/a.jpg"}
    assert not (tmp_path / "objects/p/a").exists()


def test_a_listing_looks_only_where_it_must(folder: FolderStorage, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("p/a/1.jpg", "p/b/1.jpg", "p/b/2.jpg", "p/c/1.jpg", "q/1.jpg"):
        folder.put(name, b"x", "image/jpeg")
    seen = []
    scandir = os.scandir

    def watched(path: Any) -> Any:
        seen.append(Path(path).name)
        return scandir(path)

    monkeypatch.setattr(os, "scandir", watched)
    assert keys(folder, "p/b/") == {"p/b/1.jpg", "p/b/2.jpg"}
    assert seen == ["b"]
    seen.clear()
    behind = [found.key for page in folder.list("p/", in_a_minute(), after="p/b/1.jpg") for found in page]
    assert behind == ["p/b/2.jpg", "p/c/1.jpg"]
    assert seen == ["p", "b", "c"]


def test_a_put_outlives_the_removal_of_its_folder(
    folder: FolderStorage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "objects" / KEY
    steps = iter([True, True])
    make_temporary = tempfile.NamedTemporaryFile

    def removed_before(*args: Any, **kwargs: Any) -> Any:
        if next(steps, False):
            path.parent.rmdir()
        return make_temporary(*args, **kwargs)

    monkeypatch.setattr("afterhours_service.stores.objects.tempfile.NamedTemporaryFile", removed_before)
    folder.put(KEY, b"x", "image/jpeg")
    assert path.read_bytes() == b"x"


def test_a_put_outlives_an_erasure(folder: FolderStorage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    steps = iter([True, True])
    fsync = os.fsync

    def erased_before(file: int) -> None:
        if next(steps, False):
            folder.delete_folder(KEY.rpartition("/")[0])
        fsync(file)

    monkeypatch.setattr("afterhours_service.stores.objects.os.fsync", erased_before)
    folder.put(KEY, b"x", "image/jpeg")
    assert (tmp_path / "objects" / KEY).read_bytes() == b"x"


@pytest.mark.parametrize("putting", [1, 4])
def test_puts_and_deletions_in_one_folder_do_not_disturb_each_other(folder: FolderStorage, putting: int) -> None:
    done = threading.Event()

    def delete() -> None:
        while not done.is_set():
            folder.delete(["p/m/none.jpg"])

    def put(number: int) -> None:
        for _ in range(20):
            folder.put(f"p/m/{number}.jpg", b"x", "image/jpeg")
            folder.delete([f"p/m/{number}.jpg"])

    deleting = threading.Thread(target=delete)
    deleting.start()
    try:
        with ThreadPoolExecutor(putting) as pool:
            list(pool.map(put, range(putting)))
    finally:
        done.set()
        deleting.join()

    assert keys(folder, "") == set()


def test_a_folder_that_cannot_be_used(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    folder = FolderStorage(tmp_path / "file", b"s" * 32, "http://host.example")

    with pytest.raises(StorageUnavailable):
        folder.put(KEY, b"x", "image/jpeg")
    with pytest.raises(StorageUnavailable):
        folder.delete([KEY])
    with pytest.raises(StorageUnavailable):
        folder.delete_folder("after-hours-photos/m")
    with pytest.raises(StorageUnavailable):
        list(folder.list("", in_a_minute()))


# A bucket on a real S3 server


def listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, Path]]:
    """Start nanio, which checks signatures; give its address and the folder of its buckets."""
    root = tmp_path_factory.mktemp("nanio")
    (root / "photos").mkdir()
    port = free_port()
    command = [sys.executable, "-m", "nanio", "serve", "--data-dir", str(root), "--host", "127.0.0.1"]
    environment = os.environ | {"NANIO_ACCESS_KEY": ACCESS_KEY, "NANIO_SECRET_KEY": SECRET_KEY}
    with subprocess.Popen(
        [*command, "--port", str(port), "--log-level", "error"], env=environment, stderr=subprocess.DEVNULL
    ) as process:
        try:
            eventually(lambda: listens(port))
            yield f"http://127.0.0.1:{port}", root
        finally:
            process.terminate()


def bucket(endpoint: str, name: str = "photos", secret_key: str = SECRET_KEY, ttl: int = 7200) -> S3Storage:
    return S3Storage(name, endpoint, "auto", ACCESS_KEY, secret_key, ttl, connect_seconds=0.3, answer_seconds=0.3)


@pytest.fixture
def s3(server: tuple[str, Path]) -> Iterator[S3Storage]:
    patient = S3Storage("photos", server[0], "auto", ACCESS_KEY, SECRET_KEY)
    yield patient
    patient.delete(keys(patient, ""))


@pytest.mark.parametrize("key", [KEY, OTHER])
def test_an_object_is_read_through_its_presigned_url(s3: S3Storage, key: str) -> None:
    s3.put(key, b"first", "image/jpeg")
    s3.put(key, b"second", "image/jpeg")
    url = s3.url(key)

    assert get(url) == (200, "image/jpeg", b"second")
    assert parse_qs(urlsplit(url).query)["X-Amz-Expires"] == ["7200"]
    assert get(url.replace("X-Amz-Expires=7200", "X-Amz-Expires=7201"))[0] == 403
    assert get(url.partition("?")[0])[0] == 403

    s3.delete([key, key, "after-hours-photos/nobody/none.jpg"])
    assert get(url)[0] == 404


def test_presigned_urls_expire(server: tuple[str, Path], s3: S3Storage) -> None:
    s3.put(KEY, b"x", "image/jpeg")
    url = bucket(server[0], ttl=1).url(KEY)

    eventually(lambda: get(url)[0] == 403)


def test_listing_a_bucket(s3: S3Storage, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(objects, "PAGE", 2)
    names = [f"after-hours-photos/m{n}/p.jpg" for n in range(5)]
    for name in [*names, "elsewhere/p.jpg"]:
        s3.put(name, b"x", "image/jpeg")

    pages = list(s3.list("after-hours-photos/", in_a_minute()))

    assert [len(page) for page in pages] == [2, 2, 1]
    assert [found.key for page in pages for found in page] == names
    assert abs(pages[0][0].modified_at - datetime.now(UTC)) < timedelta(minutes=1)
    assert list(s3.list("after-hours-photos/", datetime.now(UTC) - timedelta(hours=1))) == []

    for page in s3.list("after-hours-photos/", in_a_minute()):
        s3.delete(found.key for found in page)
    assert keys(s3, "") == {"elsewhere/p.jpg"}


def test_deleting_a_folder_of_a_bucket_leaves_the_others(s3: S3Storage, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(objects, "PAGE", 1)
    for name in ("p/a/1.jpg", "p/a/2.jpg", "p/ab/1.jpg", "p/a.jpg"):
        s3.put(name, b"x", "image/jpeg")

    s3.delete_folder("p/a")
    s3.delete_folder("p/nobody")

    assert keys(s3, "") == {"p/ab/1.jpg", "p/a.jpg"}


@pytest.mark.parametrize("key", HOSTILE)
def test_no_odd_key_gets_into_a_bucket(s3: S3Storage, key: str) -> None:
    for attempt in (lambda: s3.put(key, b"x", "image/jpeg"), lambda: s3.delete([key]), lambda: s3.url(key)):
        with pytest.raises(ValueError, match="not a key"):
            attempt()


def assert_unavailable(store: S3Storage) -> None:
    with pytest.raises(StorageUnavailable):
        store.put(KEY, b"x", "image/jpeg")
    with pytest.raises(StorageUnavailable):
        store.delete([KEY])
    with pytest.raises(StorageUnavailable):
        list(store.list("", in_a_minute()))


def test_a_wrong_secret(server: tuple[str, Path], s3: S3Storage) -> None:
    s3.put(OTHER, b"x", "image/jpeg")
    stranger = bucket(server[0], secret_key="not the secret")

    assert_unavailable(stranger)

    assert get(stranger.url(OTHER))[0] == 403
    assert keys(s3, "") == {OTHER}


def test_a_missing_bucket(server: tuple[str, Path]) -> None:
    endpoint, root = server

    assert_unavailable(bucket(endpoint, "missing"))

    assert not (root / "missing").exists()


def test_a_server_that_is_away() -> None:
    assert_unavailable(bucket(f"http://127.0.0.1:{free_port()}"))


def test_a_server_that_never_answers() -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        with Stopwatch() as took:
            assert_unavailable(bucket(f"http://127.0.0.1:{silent.getsockname()[1]}"))

        assert took.seconds < 15  # three calls, of two attempts each


def test_a_malformed_endpoint_is_told_at_once() -> None:
    with pytest.raises(ValueError, match="endpoint"):
        bucket("not a URL")


def test_a_bucket_serves_threads(s3: S3Storage) -> None:
    names = {f"after-hours-photos/m{n}/p.jpg" for n in range(8)}
    threads = [threading.Thread(target=s3.put, args=(name, b"x", "image/jpeg")) for name in names]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert keys(s3) == names

"""The photo of a card: its links live as long as the match."""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest
from flask import Flask
from flask.testing import FlaskClient

from afterhours_service.config import S3Settings
from afterhours_service.stores.objects import FolderStorage
from tests.client import current, moment, upload
from tests.factories import Factory
from tests.matching.pairs import FIRST_LOOK_SECONDS, live, matched, work
from tests.pictures import plain

Events = Callable[[], list[dict[str, Any]]]
LINKS = ("photoUrl", "thumbnailUrl")
BUCKET = S3Settings(
    bucket="photos", endpoint_url="https://s3.example.org", access_key_id="an-id", secret_access_key="a-secret"
)
KEY = "after-hours-photos/m/0b5e8c9e-6f1e-4b7a-9b1e-2a3c4d5e6f70-photo.jpg"


def query(url: str) -> dict[str, str]:
    """Return the parameters of a URL."""
    return {name: value for name, [value] in parse_qs(urlsplit(url).query).items()}


def path(url: str) -> str:
    """Return what a client asks of our own server."""
    parts = urlsplit(url)
    return f"{parts.path}?{parts.query}"


def test_links_of_a_folder_open_until_the_match_is_over_and_not_much_longer(
    app: Flask, client: FlaskClient, factory: Factory, events: Events, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, other = live(client, factory), live(client, factory)
    assert upload(client, other, plain()).status_code == 200
    factory.travel(FIRST_LOOK_SECONDS)
    work(app)
    [payload] = [
        event["payload"] for event in events() if event["targetUserId"] == one and "matchId" in event["payload"]
    ]
    shown = current(client, one)["match"]
    ends_at = moment(shown["expiresAt"]).timestamp()
    for url in (profile[link] for profile in (payload["profile"], shown["profile"]) for link in LINKS):
        assert client.get(path(url)).status_code == 200
        expires = int(query(url)["expires"])
        assert ends_at <= expires <= ends_at + 600 / 8 + 1
        with monkeypatch.context() as patch:
            patch.setattr("afterhours_service.stores.objects.time.time", lambda: ends_at - 0.1)
            assert client.get(path(url)).status_code == 200
            patch.setattr("afterhours_service.stores.objects.time.time", lambda expires=expires: float(expires))
            assert client.get(path(url)).status_code == 404


def test_links_of_a_bucket_live_until_the_match_is_over(make_app: Callable[..., Flask], factory: Factory) -> None:
    app = make_app(s3=BUCKET)
    pair = matched(app, factory)
    factory.execute("UPDATE after_hours_profiles SET photo_url = %s", KEY)
    for _ in range(2):
        shown = current(app.test_client(), pair.one)["match"]
        left = moment(shown["expiresAt"]).timestamp() - time.time()
        for link in LINKS:
            assert left <= int(query(shown["profile"][link])["X-Amz-Expires"]) <= left + 60, "the machine may be slow"
        factory.travel(200)


@pytest.mark.parametrize("seconds", [1, 7, 8, 9, 100, 601, 7200])
@pytest.mark.parametrize("fraction", [0.0, 0.5, 0.999])
def test_a_link_of_a_folder_is_never_too_short_and_at_most_an_eighth_or_a_second_too_long(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seconds: int, fraction: float
) -> None:
    folder = FolderStorage(tmp_path, b"s" * 32, "http://host.example")
    for second in range(1_800_000_000, 1_800_000_020):
        monkeypatch.setattr("afterhours_service.stores.objects.time.time", lambda now=second + fraction: now)
        lives = int(query(folder.url(KEY, seconds))["expires"]) - (second + fraction)
        assert seconds <= lives <= seconds + max(seconds / 8, 1)

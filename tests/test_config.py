"""The environment: read once, checked as a whole."""

import dataclasses
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from hypothesis import given
from hypothesis import strategies as st

from afterhours_service import create_app
from afterhours_service.config import S3Settings, Settings, SettingsError
from tests.test_access import ec_key, pem, rsa_key

SECRET = "s3cret-" * 5
NEEDED = {"DATABASE_URL": "postgresql://user:pass-word@db/after_hours", "JWT_SECRET": SECRET, "LOCATION_SECRET": SECRET}
NAMES = [
    "DATABASE_URL",
    "DATABASE_PREPARE",
    "REDIS_URL",
    "JWT_SECRET",
    "JWT_PUBLIC_KEY",
    "JWT_ISSUER",
    "JWT_AUDIENCE",
    "APP_ENV",
    "AFTER_HOURS_MINUTE_SECONDS",
    "AFTER_HOURS_RETENTION_DAYS",
    "AFTER_HOURS_CLEANUP_CRON",
    "LOG_LEVEL",
    "LOCATION_SECRET",
    "RATELIMIT_ENABLED",
    "RATELIMIT_DEFAULT",
    "RATELIMIT_PHOTO",
    "PHOTO_URL_SECONDS",
    "PUBLIC_URL",
    "API_DOCS",
    "CORS_ORIGINS",
    "S3_BUCKET",
    "S3_ENDPOINT_URL",
    "S3_REGION",
    "S3_ACCESS_KEY_ID",
    "S3_SECRET_ACCESS_KEY",
    "METRICS_TOKEN",
    "METRICS_HOST",
    "METRICS_PORT",
]


@pytest.fixture(autouse=True)
def bare(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in NAMES:
        monkeypatch.delenv(name, raising=False)


def read(monkeypatch: pytest.MonkeyPatch, **environment: str) -> Settings:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    return Settings.from_environ()


def problems(monkeypatch: pytest.MonkeyPatch, **environment: str) -> set[str]:
    """Return the names of the variables that are refused, all of which the message must name."""
    with pytest.raises(SettingsError) as caught:
        read(monkeypatch, **environment)
    assert all(name in str(caught.value) for name in caught.value.problems)
    assert SECRET not in str(caught.value)
    assert "pass-word" not in str(caught.value)
    return set(caught.value.problems)


def test_the_defaults(monkeypatch: pytest.MonkeyPatch) -> None:
    assert read(monkeypatch, **NEEDED) == Settings(
        database_url="postgresql+psycopg2://user:pass-word@db/after_hours",
        redis_url="redis://localhost:6379/0",
        jwt_key=SECRET,
        jwt_algorithm="HS256",
        jwt_issuer=None,
        jwt_audience=None,
        minute_seconds=60,
        retention_days=7,
        cleanup_cron="0 4 * * *",
        log_level="INFO",
        location_secret=SECRET,
        ratelimit_enabled=True,
        ratelimit_default="120 per minute",
        ratelimit_photo="10 per hour",
        photo_url_seconds=7200,
        storage_folder=Path(".state/photos"),
        public_url="http://127.0.0.1:8000",
        s3=None,
        production=False,
        api_docs=True,
        cors_origins=(),
    )


def test_everything_can_be_set(monkeypatch: pytest.MonkeyPatch) -> None:
    settings = read(
        monkeypatch,
        **NEEDED,
        REDIS_URL="rediss://cache:6380/3",
        JWT_ISSUER="host",
        JWT_AUDIENCE="after-hours",
        AFTER_HOURS_MINUTE_SECONDS="1",
        AFTER_HOURS_RETENTION_DAYS="30",
        AFTER_HOURS_CLEANUP_CRON="30 3 * * 1",
        LOG_LEVEL="debug",
    )
    assert (settings.redis_url, settings.jwt_issuer, settings.jwt_audience) == (
        "rediss://cache:6380/3",
        "host",
        "after-hours",
    )
    assert (settings.minute_seconds, settings.retention_days, settings.cleanup_cron, settings.log_level) == (
        1,
        30,
        "30 3 * * 1",
        "DEBUG",
    )


def test_nothing_set_names_what_is_needed(monkeypatch: pytest.MonkeyPatch) -> None:
    assert problems(monkeypatch) == {"DATABASE_URL", "JWT_SECRET", "LOCATION_SECRET"}


@pytest.mark.parametrize(
    ("environment", "on"),
    [
        ({}, True),
        ({"API_DOCS": "false"}, False),
        ({"APP_ENV": "production"}, False),
        ({"APP_ENV": "production", "API_DOCS": "true"}, True),
    ],
)
def test_the_api_is_documented_but_in_production_only_when_asked(
    monkeypatch: pytest.MonkeyPatch, environment: dict[str, str], on: bool
) -> None:
    assert read(monkeypatch, **NEEDED, **environment).api_docs is on


def test_web_pages_that_may_ask_are_named_one_by_one(monkeypatch: pytest.MonkeyPatch) -> None:
    origins = ("https://app.example.com", "http://localhost:3000")
    assert read(monkeypatch, **NEEDED, CORS_ORIGINS=",".join(origins)).cors_origins == origins
    for bad in ("*", "null", "app.example.com", "https://app.example.com/", "https://*.example.com", f"{origins[0]},*"):
        assert problems(monkeypatch, **NEEDED, CORS_ORIGINS=bad) == {"CORS_ORIGINS"}


BUCKET = {
    "S3_BUCKET": "photos",
    "S3_ENDPOINT_URL": "https://account.r2.example",
    "S3_ACCESS_KEY_ID": "id",
    "S3_SECRET_ACCESS_KEY": "pass-word",
}


def test_a_bucket_can_be_set_and_needs_all_its_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    s3 = read(monkeypatch, **NEEDED, **BUCKET).s3
    assert s3 == S3Settings(
        bucket="photos",
        endpoint_url="https://account.r2.example",
        region="auto",
        access_key_id="id",
        secret_access_key="pass-word",
    )
    assert "pass-word" not in repr(s3)
    for name in BUCKET.keys() - {"S3_BUCKET"}:
        monkeypatch.delenv(name)
    assert problems(monkeypatch) == BUCKET.keys() - {"S3_BUCKET"}


def test_every_problem_is_named_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    bad = {
        name: "?"
        for name in NAMES
        if name not in {"JWT_ISSUER", "JWT_AUDIENCE", "APP_ENV", "METRICS_HOST"} and name[:2] != "S3"
    }
    assert problems(monkeypatch, **bad) == bad.keys()


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *(("DATABASE_URL", url) for url in ("", "after_hours", "mysql://h/d", "sqlite://", "postgresql+psycopg://h/d")),
        *(("DATABASE_URL", url) for url in ("postgresql:/h/d", "postgresql://h:port/d", "http://h")),
        *(("REDIS_URL", url) for url in ("", "localhost:6379", "http://h", "redis://", "unix://", "redis://h:port")),
        ("REDIS_URL", "redis://[::1"),
        ("JWT_SECRET", ""),
        ("JWT_SECRET", "x" * 31),
        *(("AFTER_HOURS_MINUTE_SECONDS", value) for value in ("", "0", "-60", "1.5", "one", "1e2", "NaN")),
        *(("AFTER_HOURS_RETENTION_DAYS", value) for value in ("", "0", "-1", "a week")),
        *(("AFTER_HOURS_CLEANUP_CRON", line) for line in ("", "4", "0 4 * *", "61 * * * *", "a b c d e", "0 0 31 2 *")),
        *(("METRICS_PORT", value) for value in ("0", "65536", "http")),
        ("METRICS_TOKEN", "x" * 31),
        *(("LOG_LEVEL", value) for value in ("", "LOUD", "20")),
    ],
)
def test_a_malformed_value_is_refused(monkeypatch: pytest.MonkeyPatch, name: str, value: str) -> None:
    assert problems(monkeypatch, **{**NEEDED, name: value}) == {name}


@given(st.sampled_from(NAMES), st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"])))
def test_noise_is_taken_or_refused_by_name(name: str, value: str) -> None:
    with pytest.MonkeyPatch.context() as monkeypatch:
        refused = {name}
        try:
            read(monkeypatch, **{**NEEDED, name: value})
        except SettingsError as error:
            refused = set(error.problems)
        # A bucket of any name needs the other settings of a bucket.
        assert refused in ({name}, BUCKET.keys() - {name} if name == "S3_BUCKET" else {name})


@pytest.mark.parametrize(
    ("url", "rewritten"),
    [
        ("postgresql://h/d", "postgresql+psycopg2://h/d"),
        ("postgres://h/d", "postgresql+psycopg2://h/d"),
        ("postgresql+psycopg2://h/d", "postgresql+psycopg2://h/d"),
        ("postgresql://u:p%40@/d?host=/run/pg", "postgresql+psycopg2://u:p%40@/d?host=/run/pg"),
    ],
)
def test_the_url_that_operators_write_names_the_driver_we_have(
    monkeypatch: pytest.MonkeyPatch, url: str, rewritten: str
) -> None:
    assert read(monkeypatch, **{**NEEDED, "DATABASE_URL": url}).database_url == rewritten


@pytest.mark.parametrize(("key", "algorithm"), [(rsa_key, "RS256"), (ec_key, "ES256")])
@pytest.mark.parametrize("in_one_line", [False, True])
def test_a_public_key_decides_its_algorithm(
    monkeypatch: pytest.MonkeyPatch, key: Any, algorithm: str, in_one_line: bool
) -> None:
    public = pem(key().public_key())
    written = public.replace("\n", "\\n") if in_one_line else public
    settings = read(monkeypatch, **{**NEEDED, "JWT_SECRET": "", "JWT_PUBLIC_KEY": written})
    assert (settings.jwt_algorithm, settings.jwt_key) == (algorithm, public)


def test_a_public_key_wins_over_a_secret(monkeypatch: pytest.MonkeyPatch) -> None:
    assert read(monkeypatch, **NEEDED, JWT_PUBLIC_KEY=pem(rsa_key().public_key())).jwt_algorithm == "RS256"


def private(key: Any) -> str:
    text: str = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()).decode()
    return text


@pytest.mark.parametrize(
    "make",
    [
        lambda: "not a key",
        lambda: pem(rsa_key().public_key())[:-60],
        lambda: private(ec_key()),
        lambda: pem(rsa.generate_private_key(65537, 1024).public_key()),
        lambda: pem(ec.generate_private_key(ec.SECP384R1()).public_key()),
    ],
    ids=["noise", "cut off", "private", "short RSA", "another curve"],
)
def test_another_key_is_refused(monkeypatch: pytest.MonkeyPatch, make: Any) -> None:
    assert problems(monkeypatch, **NEEDED, JWT_PUBLIC_KEY=make()) == {"JWT_PUBLIC_KEY"}


def test_production_has_minutes_of_sixty_seconds(monkeypatch: pytest.MonkeyPatch) -> None:
    production = {**NEEDED, "APP_ENV": "production"}
    assert read(monkeypatch, **production).minute_seconds == 60
    assert problems(monkeypatch, **production, AFTER_HOURS_MINUTE_SECONDS="59") == {"AFTER_HOURS_MINUTE_SECONDS"}


def test_no_secret_is_printed(monkeypatch: pytest.MonkeyPatch) -> None:
    settings = read(monkeypatch, **NEEDED, REDIS_URL="redis://:pass-word@h/0")
    assert SECRET not in repr(settings)
    assert "pass-word" not in repr(settings)


def test_settings_do_not_change(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        read(monkeypatch, **NEEDED).minute_seconds = 1  # type: ignore[misc]


def test_an_app_does_not_start_without_its_settings() -> None:
    with pytest.raises(SettingsError, match="DATABASE_URL"):
        create_app()

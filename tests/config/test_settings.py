"""The environment: read once, checked as a whole."""

import dataclasses
import os
import re
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from hypothesis import given
from hypothesis import strategies as st

from afterhours_service import create_app
from afterhours_service.config import S3Settings, Settings, SettingsError
from dev import settings as page
from tests.keys import ec_key, pem, rsa_key

SECRET = "s3cret-" * 5
LOCATION_SECRET = "pl4ce-" * 6
NEEDED = {
    "DATABASE_URL": "postgresql://user:pass-word@db/after_hours",
    "JWT_SECRET": SECRET,
    "LOCATION_SECRET": LOCATION_SECRET,
}
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
    "MATCHING_ENABLED",
    "AFTER_HOURS_RETENTION_DAYS",
    "AFTER_HOURS_PLACE_DAYS",
    "AFTER_HOURS_CLEANUP_CRON",
    "LOG_LEVEL",
    "LOCATION_SECRET",
    "RATELIMIT_ENABLED",
    "RATELIMIT_DEFAULT",
    "RATELIMIT_PHOTO",
    "RATELIMIT_START",
    "PHOTO_URL_SECONDS",
    "STORAGE_FOLDER",
    "PUBLIC_URL",
    "API_DOCS",
    "CORS_ORIGINS",
    "S3_BUCKET",
    "S3_ENDPOINT_URL",
    "S3_REGION",
    "S3_ACCESS_KEY_ID",
    "S3_SECRET_ACCESS_KEY",
    "API_HOST",
    "API_PORT",
    "WEB_CONCURRENCY",
    "LIVE_HOST",
    "LIVE_PORT",
    "METRICS_TOKEN",
    "METRICS_HOST",
    "METRICS_PORT",
]


@pytest.fixture(autouse=True)
def bare(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave nothing of the developer's environment but what pytest itself put there."""
    for name in os.environ.keys() - {"PATH"}:
        if not name.startswith(("PYTEST", "TEST_", "COV_")):
            monkeypatch.delenv(name)


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
        location_secret=LOCATION_SECRET,
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
        MATCHING_ENABLED="false",
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
    assert not settings.matching_enabled


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
        name: "?" for name in NAMES if name not in {"JWT_ISSUER", "JWT_AUDIENCE", "STORAGE_FOLDER"} and name[:2] != "S3"
    }
    assert problems(monkeypatch, **bad) == bad.keys()


LIBPQ_REFUSES = (
    "sslmod=require",
    "sslmode=perhaps",
    "async=1",
    "cursor_factory=x",
    "host=a&host=b&port=1",
    "target_session_attrs=x",
    "connect_timeout=soon",
    "keepalives_idle=x",
    "service=nowhere",
    "hostaddr=x",
    "sslrootcert=/nonexistent",
)
REDIS_REFUSES = (
    "family=0",
    "sslmode=x",
    "decode_responses=true",
    "protocol=3",
    "socket_timeout=soon",
    "max_connections=-1",
)
# A host that is a piece of something else, because a character was not encoded or a name not filled in.
MISPARSED = ("u:p@a b/0", "${HOST}/0", "u:p@%2Frun/0", "1.2.3.256/0", "h!/0")


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *(("DATABASE_URL", url) for url in ("", "after_hours", "mysql://h/d", "sqlite://", "postgresql+psycopg://h/d")),
        *(("DATABASE_URL", url) for url in ("postgresql:/h/d", "postgresql://h:port/d", "http://h")),
        *(("DATABASE_URL", f"postgresql://h{rest}") for rest in (":0/d", ":65536/d", "/d?port=x", "/d@i", "/d/e")),
        *(("DATABASE_URL", f"postgresql://h/d?{query}") for query in LIBPQ_REFUSES),
        *(("DATABASE_URL", f"postgresql://{rest}") for rest in MISPARSED),
        *(("REDIS_URL", f"redis://{rest}") for rest in MISPARSED),
        *(("REDIS_URL", url) for url in ("", "localhost:6379", "http://h", "redis://", "unix://", "redis://h:port")),
        *(("REDIS_URL", url) for url in ("redis://[::1", "redis:///0", "redis://:p#ss@h/0", "redis://:p?ss@h/0")),
        *(
            ("REDIS_URL", f"redis://h{rest}")
            for rest in (":0", ":65536", "/x", "/0/1", "/-1", "?db=x", "?db=-1", "?db=")
        ),
        *(("REDIS_URL", f"redis://h/0?{query}") for query in REDIS_REFUSES),
        *(("REDIS_URL", f"redis+sentinel://h/name/0?{query}") for query in REDIS_REFUSES),
        *(("REDIS_URL", f"redis+sentinel://a,{rest}") for rest in MISPARSED),
        *(
            ("REDIS_URL", f"redis+sentinel://{rest}")
            for rest in ("", "h", "h/", "h/a b/0", "h:0/name", "h:port/name", "h,/name", "h/name/x", "h/name/0/1")
        ),
        ("REDIS_URL", "unix+sentinel:///run/redis.sock/name"),
        *(("DATABASE_URL", f"postgresql://{rest}") for rest in ("a:1,b:x/d", "a,b:0/d", "a,b c/d", "u:p@a,/d@e")),
        *(("DATABASE_URL", f"postgresql:///d?host=a,b&port={ports}") for ports in ("1,2,3", "0,1", "x,y")),
        ("REDIS_URL", "unix://run/redis.sock"),
        ("REDIS_URL", "unix:///run/redis.sock?family=0"),
        ("REDIS_URL", "rediss://h?ssl_cert_reqs=perhaps"),
        ("REDIS_URL", "rediss://h?ssl_ca_certs=/nonexistent"),
        ("JWT_SECRET", ""),
        ("JWT_SECRET", "x" * 31),
        *(("AFTER_HOURS_MINUTE_SECONDS", value) for value in ("", "0", "-60", "1.5", "one", "1e2", "NaN")),
        *(
            (name, value)
            for name in ("AFTER_HOURS_RETENTION_DAYS", "AFTER_HOURS_PLACE_DAYS")
            for value in ("", "0", "-1", "a week")
        ),
        *(("AFTER_HOURS_CLEANUP_CRON", line) for line in ("", "4", "0 4 * *", "61 * * * *", "a b c d e", "0 0 31 2 *")),
        *(("METRICS_PORT", value) for value in ("0", "65536", "http")),
        *(("METRICS_HOST", value) for value in ("", "a b", "127.0.0.256", "localhost:9000", "http://h")),
        *(("APP_ENV", value) for value in ("", "Production", "prod", "staging", "production ")),
        *(
            ("PUBLIC_URL", url)
            for url in ("h", "https://", "https://h?x=1", "https://h/#a", "https://a b", "http://h:x")
        ),
        *(("PUBLIC_URL", url) for url in ("https://${HOST}", "https://h:0")),
        *(("STORAGE_FOLDER", folder) for folder in ("", "/dev/null", "/dev/null/photos", "x" * 300)),
        *((name, limit) for name in ("RATELIMIT_DEFAULT", "RATELIMIT_PHOTO") for limit in ("", "0 per hour", "many")),
        *(("PHOTO_URL_SECONDS", value) for value in ("0", "604801")),
        ("AFTER_HOURS_MINUTE_SECONDS", "86401"),
        ("AFTER_HOURS_RETENTION_DAYS", "36501"),
        ("AFTER_HOURS_PLACE_DAYS", "36501"),
        ("METRICS_TOKEN", "é" * 32),
        ("METRICS_TOKEN", "two words " * 4),
        ("LOCATION_SECRET", ""),
        *((name, " " * 40) for name in ("JWT_SECRET", "LOCATION_SECRET", "METRICS_TOKEN")),
        *((name, "short" + " " * 40) for name in ("JWT_SECRET", "LOCATION_SECRET", "METRICS_TOKEN")),
        ("METRICS_TOKEN", "x" * 31),
        *(("LOG_LEVEL", value) for value in ("", "LOUD", "20")),
    ],
)
def test_a_malformed_value_is_refused(monkeypatch: pytest.MonkeyPatch, name: str, value: str) -> None:
    assert problems(monkeypatch, **{**NEEDED, name: value}) == {name}


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *(("DATABASE_URL", f"postgresql://{rest}") for rest in ("/d", "u:p%40ss@h/d", "u:p#/?s@h/d", "[::1]:5433/d")),
        *(
            ("DATABASE_URL", f"postgresql://h/d?{query}")
            for query in ("host=a:1&host=b:2", "host=/run/pg", "port=6432")
        ),
        (
            "DATABASE_URL",
            "postgresql://h/d?sslmode=require&application_name=x&options=-csearch_path%3Dapp&gssencmode=require",
        ),
        *(("REDIS_URL", f"redis://{rest}") for rest in ("h", "h/", "h/3", "h:6380?db=3", ":p%40ss@h", "u:p@[::1]:1/0")),
        ("REDIS_URL", "redis://under_score.internal?socket_timeout=5&max_connections=9&client_name=x"),
        ("REDIS_URL", "rediss://h?ssl_cert_reqs=none"),
        ("REDIS_URL", "unix://u:p@/run/redis.sock?db=2"),
        *(("REDIS_URL", f"redis+sentinel://{rest}") for rest in ("h/name", "u:p%40@a:1,[::1]:2,c/my-master/3")),
        ("REDIS_URL", "rediss+sentinel://:p@a,b/name/0?sentinel_password=s%2F&sentinel_username=u&ssl_cert_reqs=none"),
        *(
            ("DATABASE_URL", f"postgresql://{rest}")
            for rest in ("a,b/d", "a:1,b:2/d", "u:p%40@a,[::1]:2/d?sslmode=require")
        ),
        ("DATABASE_URL", "postgres://a:5432,b:5433/d?target_session_attrs=read-write&connect_timeout=2"),
        ("DATABASE_URL", "postgresql:///d?host=/run/a,/run/b&port=5432,5433"),
        ("STORAGE_FOLDER", "new/folder"),
        ("METRICS_HOST", "::"),
    ],
)
def test_what_operators_write_is_taken(monkeypatch: pytest.MonkeyPatch, name: str, value: str) -> None:
    read(monkeypatch, **{**NEEDED, name: value})


def test_secrets_differ_from_one_another(monkeypatch: pytest.MonkeyPatch) -> None:
    assert problems(monkeypatch, **{**NEEDED, "LOCATION_SECRET": SECRET}) == {"LOCATION_SECRET"}
    assert problems(monkeypatch, **NEEDED, METRICS_TOKEN=SECRET) == {"METRICS_TOKEN"}
    assert problems(monkeypatch, **NEEDED, METRICS_TOKEN=LOCATION_SECRET) == {"METRICS_TOKEN"}


@pytest.mark.parametrize("name", ["JWT_SECRET", "LOCATION_SECRET", "METRICS_TOKEN"])
@pytest.mark.parametrize("in_one_line", [False, True])
def test_a_key_is_no_secret(monkeypatch: pytest.MonkeyPatch, name: str, in_one_line: bool) -> None:
    public = pem(rsa_key().public_key())
    written = public.replace("\n", "\\n") if in_one_line else public
    assert problems(monkeypatch, **{**NEEDED, name: written}) == {name}


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("S3_BUCKET", "no bucket"),
        ("S3_REGION", "no region"),
        *(("S3_ENDPOINT_URL", url) for url in ("r2.example", "https://a b", "https://h:x", "https://_@/")),
        *((name, " ") for name in ("S3_ACCESS_KEY_ID", "S3_SECRET_ACCESS_KEY")),
    ],
)
def test_a_bucket_that_no_client_could_reach_is_refused(monkeypatch: pytest.MonkeyPatch, name: str, value: str) -> None:
    assert problems(monkeypatch, **NEEDED, **{**BUCKET, name: value}) == {name}


def test_the_documentation_is_current() -> None:
    assert page.text() == page.PATH.read_text(), "run `make settings`"


def test_every_setting_is_documented() -> None:
    rows = re.findall(r"^\| `([A-Z0-9_]+)` \| [^|]+ \| [^|]+ \|$", page.PATH.read_text(), re.MULTILINE)
    assert sorted(rows) == sorted(NAMES)


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

"""Settings: read from the environment once, checked as a whole, never changed."""

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self, cast
from urllib.parse import urlsplit

from click import ClickException
from crontab import CronTab
from cryptography.hazmat.primitives.asymmetric.ec import SECP256R1, EllipticCurvePublicKey
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPublicKey
from cryptography.hazmat.primitives.serialization import load_pem_public_key
from environs import Env, EnvValidationError, ValidationError
from limits import parse_many
from sqlalchemy import make_url
from sqlalchemy.exc import ArgumentError

SECRET_BYTES = 32  # RFC 7518, section 3.2: an HS256 key is at least as long as its hash


class SettingsError(ClickException):
    """The environment is not usable; the message names every problem. Commands show it alone, and exit with 1."""

    def __init__(self, problems: dict[str, list[str]]) -> None:
        self.problems = problems
        lines = [f"  {name}: {' '.join(messages)}" for name, messages in sorted(problems.items())]
        super().__init__("\n".join(["the settings are not usable:", *lines]))


@dataclass(frozen=True, slots=True, kw_only=True)
class S3Settings:
    """An S3-compatible bucket, such as Cloudflare R2's."""

    bucket: str
    endpoint_url: str
    region: str
    access_key_id: str = field(repr=False)
    secret_access_key: str = field(repr=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """What the environment says, with its defaults."""

    database_url: str = field(repr=False)
    database_prepare: bool = True
    redis_url: str = field(repr=False)
    jwt_key: str = field(repr=False)
    jwt_algorithm: str
    jwt_issuer: str | None = None
    jwt_audience: str | None = None
    minute_seconds: int = 60
    retention_days: int = 7
    cleanup_cron: str = "0 4 * * *"
    log_level: str = "INFO"
    location_secret: str = field(repr=False)
    ratelimit_enabled: bool = True
    ratelimit_default: str = "120 per minute"
    ratelimit_photo: str = "10 per hour"
    photo_url_seconds: int = 7200
    storage_folder: Path = Path(".state/photos")
    public_url: str = "http://127.0.0.1:8000"
    s3: S3Settings | None = None
    production: bool = False
    api_docs: bool = False
    cors_origins: tuple[str, ...] = ()
    metrics_token: str | None = field(default=None, repr=False)
    metrics_host: str = "127.0.0.1"
    metrics_port: int | None = None

    @classmethod
    def from_environ(cls) -> Self:
        """Read the process's environment.

        Raises SettingsError with every missing or malformed variable.
        """
        env = Env(eager=False)
        problems: dict[str, list[str]] = {}
        database_url = env.str("DATABASE_URL", validate=_is_postgresql_url)
        database_prepare = env.bool("DATABASE_PREPARE", True)
        redis_url = env.str("REDIS_URL", "redis://localhost:6379/0", validate=_is_redis_url)
        secret = env.str("JWT_SECRET", "", validate=_is_long_enough)
        public_key = env.str("JWT_PUBLIC_KEY", "").replace("\\n", "\n")
        issuer, audience = env.str("JWT_ISSUER", ""), env.str("JWT_AUDIENCE", "")
        production = env.str("APP_ENV", "development") == "production"
        minute_seconds = env.int("AFTER_HOURS_MINUTE_SECONDS", 60, validate=_at_least_one)
        retention_days = env.int("AFTER_HOURS_RETENTION_DAYS", 7, validate=_at_least_one)
        cleanup_cron = env.str("AFTER_HOURS_CLEANUP_CRON", "0 4 * * *", validate=_is_cron)
        log_level = env.str("LOG_LEVEL", "INFO", validate=_is_log_level)
        location_secret = env.str("LOCATION_SECRET", validate=_is_long_enough)
        limits_on = env.bool("RATELIMIT_ENABLED", True)
        limit, photo_limit = (
            env.str(name, default, validate=_is_rate_limit)
            for name, default in (("RATELIMIT_DEFAULT", "120 per minute"), ("RATELIMIT_PHOTO", "10 per hour"))
        )
        photo_url_seconds = env.int("PHOTO_URL_SECONDS", 7200, validate=_at_least_one)
        storage_folder = env.path("STORAGE_FOLDER", Path(".state/photos"))
        public_url = env.str("PUBLIC_URL", "http://127.0.0.1:8000", validate=_is_http_url)
        s3 = _s3(env)
        api_docs = env.bool("API_DOCS", not production)
        cors_origins: list[str] | None = env.list("CORS_ORIGINS", [], validate=_are_origins)
        metrics_token = env.str("METRICS_TOKEN", "", validate=_is_long_enough)
        metrics_host = env.str("METRICS_HOST", "127.0.0.1")
        metrics_port = env.int("METRICS_PORT", None, validate=_is_port)
        try:
            env.seal()
        except EnvValidationError as error:
            problems.update(cast("dict[str, list[str]]", error.error_messages))
        if production and minute_seconds not in {60, None}:
            problems.setdefault("AFTER_HOURS_MINUTE_SECONDS", []).append("Must be 60 when APP_ENV is production.")
        algorithm = "HS256"
        if public_key:
            try:
                algorithm = _algorithm_of(public_key)
            except ValueError as error:
                problems["JWT_PUBLIC_KEY"] = [str(error)]
        elif not secret and "JWT_SECRET" not in problems:
            problems["JWT_SECRET"] = ["Environment variable not set (nor JWT_PUBLIC_KEY)."]
        if problems:
            raise SettingsError(problems)
        return cls(
            database_url=_for_psycopg2(database_url),
            database_prepare=database_prepare,
            redis_url=redis_url,
            jwt_key=public_key or secret,
            jwt_algorithm=algorithm,
            jwt_issuer=issuer or None,
            jwt_audience=audience or None,
            minute_seconds=minute_seconds,
            retention_days=retention_days,
            cleanup_cron=cleanup_cron,
            log_level=log_level.upper(),
            location_secret=location_secret,
            ratelimit_enabled=limits_on,
            ratelimit_default=limit,
            ratelimit_photo=photo_limit,
            photo_url_seconds=photo_url_seconds,
            storage_folder=storage_folder,
            public_url=public_url.rstrip("/"),
            s3=s3,
            production=production,
            api_docs=api_docs,
            cors_origins=tuple(cors_origins or ()),
            metrics_token=metrics_token or None,
            metrics_host=metrics_host,
            metrics_port=metrics_port,
        )


def _s3(env: Env) -> S3Settings | None:
    """Read the bucket's settings; with S3_BUCKET set the others are required."""
    bucket = env.str("S3_BUCKET", "")
    if not bucket:
        return None
    return S3Settings(
        bucket=bucket,
        endpoint_url=env.str("S3_ENDPOINT_URL", validate=_is_http_url),
        region=env.str("S3_REGION", "auto"),
        access_key_id=env.str("S3_ACCESS_KEY_ID"),
        secret_access_key=env.str("S3_SECRET_ACCESS_KEY"),
    )


def _for_psycopg2(url: str) -> str:
    # SQLAlchemy 2.1 takes a bare postgresql:// for psycopg 3.
    return re.sub(r"^postgres(ql)?(\+psycopg2)?://", "postgresql+psycopg2://", url)


def _is_postgresql_url(value: str) -> None:
    try:
        name = make_url(value).drivername
    except (ArgumentError, ValueError):
        name = None
    if name not in {"postgres", "postgresql", "postgres+psycopg2", "postgresql+psycopg2"}:
        raise ValidationError("Not a PostgreSQL URL (postgresql://…).")


def _is_redis_url(value: str) -> None:
    try:
        parts = urlsplit(value)
        usable = parts.scheme in {"redis", "rediss", "unix"} and (parts.netloc or parts.path.strip("/"))
        _ = parts.port  # the parser reads it only when asked
    except ValueError:
        usable = False
    if not usable:
        raise ValidationError("Not a Redis URL (redis://, rediss:// or unix://).")


def _is_long_enough(value: str) -> None:
    if value and len(value.encode()) < SECRET_BYTES:
        raise ValidationError(f"Shorter than {SECRET_BYTES} bytes.")


def _at_least_one(value: int) -> None:
    if value < 1:
        raise ValidationError("Must be at least 1.")


def _is_port(value: int | None) -> None:
    if value is not None and not 1 <= value <= 65535:
        raise ValidationError("Not a port (1 to 65535).")


def _is_cron(value: str) -> None:
    try:
        wait = CronTab(value).next(default_utc=True)
    except ValueError as error:
        raise ValidationError(f"Not a cron line: {error}") from error
    if wait is None:
        raise ValidationError("Never comes.")


def _is_rate_limit(value: str) -> None:
    try:
        parse_many(value)
    except ValueError as error:
        raise ValidationError("Not a rate limit, such as 120 per minute.") from error


def _is_http_url(value: str) -> None:
    if not re.match(r"https?://[^/?#]+", value):
        raise ValidationError("Not an http:// or https:// URL.")


def _are_origins(values: list[str]) -> None:
    # Each by its name: an asterisk would let any page ask.
    if not all(re.fullmatch(r"https?://[a-z0-9.\[\]:-]+", value) for value in values):
        raise ValidationError("Not origins, such as https://app.example.com,https://admin.example.com.")


def _is_log_level(value: str) -> None:
    if value.upper() not in {"DEBUG", "INFO", "WARNING", "ERROR", "CRITICAL"}:
        raise ValidationError("Not one of DEBUG, INFO, WARNING, ERROR, CRITICAL.")


def _algorithm_of(pem: str) -> str:
    """Return the one algorithm that a public key is for.

    Raises ValueError for anything but an RSA key of 2048 bits or more, or an EC key on P-256.
    """
    try:
        key = load_pem_public_key(pem.encode())
    except Exception as error:
        raise ValueError("Not a PEM public key.") from error
    if isinstance(key, RSAPublicKey) and key.key_size >= 2048:
        return "RS256"
    if isinstance(key, EllipticCurvePublicKey) and isinstance(key.curve, SECP256R1):
        return "ES256"
    raise ValueError("Neither RSA of at least 2048 bits (RS256) nor EC on P-256 (ES256).")

"""Settings: read from the environment once, checked as a whole, never changed."""

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self, cast

from click import ClickException
from environs import Env, EnvValidationError, ValidationError, validate
from flask import current_app

from afterhours_service.config import validators

PHOTO_URL_MAX_SECONDS = 604_800  # a week, as S3 has it


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
        database_url = env.str("DATABASE_URL", validate=validators.is_postgresql_url)
        database_prepare = env.bool("DATABASE_PREPARE", True)
        redis_url = env.str("REDIS_URL", "redis://localhost:6379/0", validate=validators.is_redis_url)
        secret = env.str("JWT_SECRET", "", validate=validators.is_secret)
        public_key = env.str("JWT_PUBLIC_KEY", "").replace("\\n", "\n")
        issuer, audience = env.str("JWT_ISSUER", ""), env.str("JWT_AUDIENCE", "")
        production = env.str("APP_ENV", "development", validate=validators.is_environment) == "production"
        minute_seconds = env.int("AFTER_HOURS_MINUTE_SECONDS", 60, validate=validate.Range(1, 86_400))
        retention_days = env.int("AFTER_HOURS_RETENTION_DAYS", 7, validate=validate.Range(1, 36_500))
        cleanup_cron = env.str("AFTER_HOURS_CLEANUP_CRON", "0 4 * * *", validate=validators.is_cron)
        log_level = env.str("LOG_LEVEL", "INFO", validate=validators.is_log_level)
        location_secret = env.str("LOCATION_SECRET", validate=[validators.is_given, validators.is_secret])
        limits_on = env.bool("RATELIMIT_ENABLED", True)
        limit, photo_limit = (
            env.str(name, default, validate=validators.is_rate_limit)
            for name, default in (("RATELIMIT_DEFAULT", "120 per minute"), ("RATELIMIT_PHOTO", "10 per hour"))
        )
        photo_url_seconds = env.int("PHOTO_URL_SECONDS", 7200, validate=validate.Range(1, PHOTO_URL_MAX_SECONDS))
        storage_folder = env.path("STORAGE_FOLDER", Path(".state/photos"), validate=validators.is_folder)
        public_url = env.str("PUBLIC_URL", "http://127.0.0.1:8000", validate=validators.is_base_url)
        s3 = _s3(env)
        api_docs = env.bool("API_DOCS", not production)
        cors_origins: list[str] | None = env.list("CORS_ORIGINS", [], validate=validators.are_origins)
        metrics_token = env.str("METRICS_TOKEN", "", validate=validators.is_bearer_token)
        metrics_host = env.str("METRICS_HOST", "127.0.0.1", validate=validators.is_host)
        metrics_port = env.int("METRICS_PORT", None, validate=validators.is_port)
        problems: dict[str, list[str]] = {}
        try:
            env.seal()
        except EnvValidationError as error:
            problems.update(cast("dict[str, list[str]]", error.error_messages))
        if production and minute_seconds not in {60, None}:
            problems.setdefault("AFTER_HOURS_MINUTE_SECONDS", []).append("Must be 60 when APP_ENV is production.")
        algorithm = "HS256"
        if public_key:
            try:
                algorithm = validators.algorithm_of(public_key)
            except ValidationError as error:
                problems["JWT_PUBLIC_KEY"] = [str(error)]
        elif not secret and "JWT_SECRET" not in problems:
            problems["JWT_SECRET"] = ["Environment variable not set (nor JWT_PUBLIC_KEY)."]
        secrets = {"JWT_SECRET": secret, "LOCATION_SECRET": location_secret, "METRICS_TOKEN": metrics_token}
        for name, other in _equals(secrets).items():
            problems.setdefault(name, []).append(f"Is the same as {other}.")
        if s3 and not problems:
            problems |= _problems_of(s3)
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
        endpoint_url=env.str("S3_ENDPOINT_URL", validate=validators.is_base_url),
        region=env.str("S3_REGION", "auto"),
        access_key_id=env.str("S3_ACCESS_KEY_ID", validate=validators.is_given),
        secret_access_key=env.str("S3_SECRET_ACCESS_KEY", validate=validators.is_given),
    )


def _problems_of(s3: S3Settings) -> dict[str, list[str]]:
    """Build a client of the bucket, and sign a link, which talks to nobody."""
    # Imported here: 0.3 s and 40 MB that only those pay who have a bucket.
    import boto3  # noqa: PLC0415
    from botocore.exceptions import BotoCoreError, InvalidRegionError  # noqa: PLC0415

    try:
        client = boto3.client(
            "s3",
            endpoint_url=s3.endpoint_url,
            region_name=s3.region,
            aws_access_key_id=s3.access_key_id,
            aws_secret_access_key=s3.secret_access_key,
        )
        client.generate_presigned_url("get_object", Params={"Bucket": s3.bucket, "Key": "key"})
    except InvalidRegionError as error:
        return {"S3_REGION": [str(error)]}
    except BotoCoreError as error:
        return {"S3_BUCKET": [str(error)]}
    except ValueError as error:
        return {"S3_ENDPOINT_URL": [str(error)]}
    return {}


def _equals(secrets: dict[str, str]) -> dict[str, str]:
    """Return the secrets that are the same as one before them, by name."""
    known: dict[str, str] = {}
    given = {name: value for name, value in secrets.items() if value}
    return {name: first for name, value in given.items() if (first := known.setdefault(value, name)) != name}


def _for_psycopg2(url: str) -> str:
    # SQLAlchemy 2.1 takes a bare postgresql:// for psycopg 3.
    return re.sub(r"^postgres(ql)?(\+psycopg2)?://", "postgresql+psycopg2://", url)


def current_settings() -> Settings:
    """Return the settings of the current app."""
    return cast("Settings", current_app.extensions["after_hours_settings"])

"""Settings: read from the environment once, checked as a whole, never changed."""

from dataclasses import dataclass
from pathlib import Path
from typing import Self, cast

from click import ClickException
from environs import Env, EnvValidationError, ValidationError, validate
from flask import current_app

from afterhours_service.config import validators
from afterhours_service.config.urls import for_psycopg2
from afterhours_service.config.variables import Variable, from_variables, setting, variables_of

PHOTO_URL_MAX_SECONDS = 604_800  # a week: S3 signs no link for longer

_WITH_BUCKET = "required if `S3_BUCKET` is set"
_JWT_SECRET = Variable(
    name="JWT_SECRET",
    help="HS256 secret of your auth service, at least 32 bytes",
    default="",
    check=validators.is_secret,
    shown_default="required, unless `JWT_PUBLIC_KEY` is set",
)
_JWT_PUBLIC_KEY = Variable(
    name="JWT_PUBLIC_KEY",
    help="PEM public key for RS256 (RSA) or ES256 (P-256) tokens instead; `\\n` may stand for a line break",
    default="",
)
_SECRETS = ("JWT_SECRET", "LOCATION_SECRET", "METRICS_TOKEN")  # no two of them may be equal


class SettingsError(ClickException):
    """The environment cannot be used; the message names every problem. Commands print it and exit with 1."""

    def __init__(self, problems: dict[str, list[str]]) -> None:
        self.problems = problems
        lines = [f"  {name}: {' '.join(messages)}" for name, messages in sorted(problems.items())]
        super().__init__("\n".join(["invalid settings:", *lines]))


def _or_none(value: str) -> str | None:
    return value or None


@dataclass(frozen=True, slots=True, kw_only=True)
class S3Settings:
    """An S3-compatible bucket; with S3_BUCKET set, the others are required."""

    bucket: str = setting(
        "S3_BUCKET", "bucket for photos, on S3 or compatible storage such as Cloudflare R2", shown_default="none"
    )
    endpoint_url: str = setting(
        "S3_ENDPOINT_URL", "URL of the storage", check=validators.is_base_url, shown_default=_WITH_BUCKET
    )
    region: str = setting("S3_REGION", "region of the bucket", default="auto")
    access_key_id: str = setting(
        "S3_ACCESS_KEY_ID", "ID of the access key", check=validators.is_given, secret=True, shown_default=_WITH_BUCKET
    )
    secret_access_key: str = setting(
        "S3_SECRET_ACCESS_KEY",
        "secret of the access key",
        check=validators.is_given,
        secret=True,
        shown_default=_WITH_BUCKET,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """Every setting, declared where its field is. `make settings` writes them into docs/settings.md."""

    database_url: str = setting(
        "DATABASE_URL",
        "PostgreSQL URL (`postgresql://…`); Unix sockets work too, and several hosts"
        " ([a primary and its standbys](zones.md)). Its parameters, such as `?options=-csearch_path%3Dapp`, override"
        " the service's own",
        check=validators.is_postgresql_url,
        convert=for_psycopg2,
        secret=True,
    )
    database_prepare: bool = setting(
        "DATABASE_PREPARE",
        "whether connections keep prepared statements; `false` behind PgBouncer in transaction mode",
        type=Env.bool,
        default=True,
    )
    redis_url: str = setting(
        "REDIS_URL",
        "Redis or Valkey URL (`redis://`, `rediss://`, `unix://`), or that of its sentinels:"
        " `redis+sentinel://:password@s1:26379,s2:26379,s3:26379/mymaster/0` ([more](zones.md)). The service sets the"
        " timeouts itself",
        default="redis://localhost:6379/0",
        check=validators.is_redis_url,
        secret=True,
    )
    jwt_key: str = from_variables(_JWT_SECRET, _JWT_PUBLIC_KEY, secret=True)
    jwt_algorithm: str  # the one that the key is for
    jwt_issuer: str | None = setting(
        "JWT_ISSUER", "if set, the `iss` claim that a token must have", default="", convert=_or_none
    )
    jwt_audience: str | None = setting(
        "JWT_AUDIENCE", "if set, the `aud` claim that a token must have", default="", convert=_or_none
    )
    location_secret: str = setting(
        "LOCATION_SECRET",
        "key of the location blur and of links to photos, at least 32 bytes; change it only if it has leaked"
        " ([why](privacy.md))",
        check=[validators.is_given, validators.is_secret],
        secret=True,
    )
    production: bool = setting(
        "APP_ENV",
        "`development` or `production`, which refuses what is for demos only and sends the HSTS header",
        default="development",
        check=validators.is_environment,
        convert=lambda name: name == "production",
    )
    minute_seconds: int = setting(
        "AFTER_HOURS_MINUTE_SECONDS",
        "length of a minute of a session in seconds, for demos and tests; 60 in production",
        type=Env.int,
        default=60,
        check=validate.Range(1, 86_400),
    )
    matching_enabled: bool = setting(
        "MATCHING_ENABLED",
        "whether live members are matched with each other",
        type=Env.bool,
        default=True,
    )
    retention_days: int = setting(
        "AFTER_HOURS_RETENTION_DAYS",
        "how many days declines and ended sessions are kept",
        type=Env.int,
        default=7,
        check=validate.Range(1, 36_500),
    )
    place_days: int = setting(
        "AFTER_HOURS_PLACE_DAYS",
        "how many days after the last visit the [blur](privacy.md#how-the-blur-works) remembers a place",
        type=Env.int,
        default=90,
        check=validate.Range(1, 36_500),
    )
    cleanup_cron: str = setting(
        "AFTER_HOURS_CLEANUP_CRON",
        "when the nightly cleanup runs: a cron expression, in UTC",
        default="0 4 * * *",
        check=validators.is_cron,
    )
    ratelimit_enabled: bool = setting(
        "RATELIMIT_ENABLED",
        "whether requests are limited per member; `false` for load tests",
        type=Env.bool,
        default=True,
    )
    ratelimit_default: str = setting(
        "RATELIMIT_DEFAULT",
        "how many requests a member may send; routes for leaving have"
        " [limits of their own](api.md#failures-of-any-request)",
        default="120 per minute",
        check=validators.is_rate_limit,
    )
    ratelimit_photo: str = setting(
        "RATELIMIT_PHOTO",
        "how many photos a member may upload",
        default="10 per hour",
        check=validators.is_rate_limit,
    )
    ratelimit_start: str = setting(
        "RATELIMIT_START",
        "how many sessions a member may start: who could be anywhere at once could [map the others]"
        "(privacy.md#what-it-does-not-promise)",
        default="30 per hour",
        check=validators.is_rate_limit,
    )
    photo_url_seconds: int = setting(
        "PHOTO_URL_SECONDS",
        "how many seconds the URL of a photo is valid",
        type=Env.int,
        default=7200,
        check=validate.Range(1, PHOTO_URL_MAX_SECONDS),
    )
    storage_folder: Path = setting(  # noqa: RUF009 - a field, not a shared default
        "STORAGE_FOLDER",
        "folder for photos if there is no bucket; a relative path starts at the working directory",
        type=Env.path,
        default=Path(".state/photos"),
        check=validators.is_folder,
    )
    public_url: str = setting(
        "PUBLIC_URL",
        "URL at which clients reach this service; photos in the folder are linked from it",
        default="http://127.0.0.1:8000",
        check=validators.is_base_url,
        convert=lambda url: url.rstrip("/"),
    )
    s3: S3Settings | None = None
    api_docs: bool = setting(
        "API_DOCS",
        "whether to serve `GET /openapi.json` and the page `/docs`",
        type=Env.bool,
        default=None,
        convert=bool,
        shown_default="`true`; in production `false`",
    )
    cors_origins: tuple[str, ...] = setting(
        "CORS_ORIGINS",
        "origins of the web pages that may call the API, such as `https://app.example.com,https://admin.example.com`",
        type=Env.list,
        default=(),
        check=validators.are_origins,
        convert=tuple,
    )
    api_host: str = setting(
        "API_HOST",
        "address of the API",
        default="127.0.0.1",
        check=validators.is_host,
    )
    api_port: int = setting(
        "API_PORT",
        "port of the API",
        type=Env.int,
        default=8000,
        check=validators.is_port,
    )
    web_concurrency: int = setting(
        "WEB_CONCURRENCY",
        "number of processes of the API; one per core",
        type=Env.int,
        default=1,
        check=validate.Range(1, 256),
    )
    live_host: str = setting(
        "LIVE_HOST",
        "address of the live gateway",
        default="127.0.0.1",
        check=validators.is_host,
    )
    live_port: int = setting(
        "LIVE_PORT",
        "port of the live gateway",
        type=Env.int,
        default=8002,
        check=validators.is_port,
    )
    metrics_token: str | None = setting(
        "METRICS_TOKEN",
        "bearer token of `GET /metrics`, at least 32 bytes; without one, the API serves no metrics",
        default="",
        check=validators.is_bearer_token,
        convert=_or_none,
        secret=True,
    )
    metrics_host: str = setting(
        "METRICS_HOST",
        "address at which worker and scheduler serve their metrics",
        default="127.0.0.1",
        check=validators.is_host,
    )
    metrics_port: int | None = setting(
        "METRICS_PORT",
        "port at which worker and scheduler serve their metrics; without one, they serve none",
        type=Env.int,
        default=None,
        check=validators.is_port,
    )
    log_level: str = setting(
        "LOG_LEVEL",
        "`DEBUG`, `INFO`, `WARNING`, `ERROR` or `CRITICAL`",
        default="INFO",
        check=validators.is_log_level,
        convert=str.upper,
    )

    @classmethod
    def from_environ(cls) -> Self:
        """Read the process's environment.

        Raises SettingsError with every missing or malformed variable.
        """
        env = Env(eager=False)
        given = {one.name: one.read(env) for _, one in variables_of(cls)}
        s3 = _read_s3(env)
        problems = _problems_of(env)
        production = given["APP_ENV"] == "production"
        if given["API_DOCS"] is None:
            given["API_DOCS"] = not production
        if production and given["AFTER_HOURS_MINUTE_SECONDS"] not in {60, None}:
            problems.setdefault("AFTER_HOURS_MINUTE_SECONDS", []).append("Must be 60 if APP_ENV is production.")
        algorithm = "HS256"
        secret, public_key = given["JWT_SECRET"], given["JWT_PUBLIC_KEY"].replace("\\n", "\n")
        if public_key:
            try:
                algorithm = validators.algorithm_of(public_key)
            except ValidationError as error:
                problems["JWT_PUBLIC_KEY"] = [str(error)]
        elif not secret and "JWT_SECRET" not in problems:
            problems["JWT_SECRET"] = ["Set JWT_SECRET or JWT_PUBLIC_KEY."]
        for name, other in _equals({name: given[name] for name in _SECRETS}).items():
            problems.setdefault(name, []).append(f"Must differ from {other}.")
        if s3 and not problems:
            problems = _problems_of_bucket(s3)
        if problems:
            raise SettingsError(problems)
        values = {name: one.convert(given[one.name]) for name, one in variables_of(cls)}
        return cls(**{**values, "jwt_key": public_key or secret, "jwt_algorithm": algorithm, "s3": s3})


def _read_s3(env: Env) -> S3Settings | None:
    """Read the bucket's settings; None without S3_BUCKET."""
    if not env.str("S3_BUCKET", ""):
        return None
    return S3Settings(**{name: one.read(env) for name, one in variables_of(S3Settings)})


def _problems_of(env: Env) -> dict[str, list[str]]:
    """Return the problems of the variables that were read, by name."""
    try:
        env.seal()
    except EnvValidationError as error:
        return dict(cast("dict[str, list[str]]", error.error_messages))
    return {}


def _problems_of_bucket(s3: S3Settings) -> dict[str, list[str]]:
    """Return why no client of the bucket could be built: build one and sign a link, which connects to nothing."""
    # Imported here, as it takes 0.3 s and 40 MB that a service without a bucket does not need.
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
    """Return the secrets that equal an earlier one, each with the name of that one."""
    known: dict[str, str] = {}
    given = {name: value for name, value in secrets.items() if value}
    return {name: first for name, value in given.items() if (first := known.setdefault(value, name)) != name}


def current_settings() -> Settings:
    """Return the settings of the current app."""
    return cast("Settings", current_app.extensions["after_hours_settings"])

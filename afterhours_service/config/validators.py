"""Checks of single settings, where possible by the library that will use them, without connecting to anything.

Each raises ValidationError with a message that contains no secret.
"""

import ipaddress
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, urlsplit

import psycopg2
from crontab import CronTab
from cryptography.hazmat.primitives.asymmetric.ec import SECP256R1, EllipticCurvePublicKey
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPublicKey
from cryptography.hazmat.primitives.serialization import load_pem_public_key
from environs import ValidationError
from jwt import InvalidKeyError
from jwt.algorithms import HMACAlgorithm
from limits import parse_many
from psycopg2.extensions import make_dsn
from redis import ConnectionPool
from sqlalchemy import make_url
from sqlalchemy.exc import ArgumentError

from afterhours_service.config.urls import SentinelUrl, for_psycopg2

SECRET_BYTES = 32  # RFC 7518, section 3.2: an HS256 key is at least as long as its hash
LIBPQ_NUMBERS = {  # libpq checks them only after it has connected
    "connect_timeout",
    "keepalives",
    "keepalives_idle",
    "keepalives_interval",
    "keepalives_count",
    "tcp_user_timeout",
}
LIBPQ_FILES = {"sslrootcert", "sslcert", "sslkey", "sslcrl"}
REDIS_FILES = {"ssl_ca_certs", "ssl_certfile", "ssl_keyfile"}
# Others are unknown to redis-py, or change the replies that the service reads (decode_responses, protocol …).
REDIS_PARAMETERS = {
    "db",
    "username",
    "password",
    "client_name",
    "health_check_interval",
    "max_connections",
    "socket_connect_timeout",
    "socket_keepalive",
    "socket_timeout",
    "ssl_ca_path",
    "ssl_cert_reqs",
    "ssl_check_hostname",
    "ssl_min_version",
    *REDIS_FILES,
}
PERCENT = "percent-encode special characters of user and password"


def is_postgresql_url(value: str) -> None:
    """Check that psycopg2 and libpq accept the URL and its parameters."""
    try:
        url = make_url(for_psycopg2(value))
    except Exception as error:  # of many types, some with the URL in their message
        raise ValidationError("Not a PostgreSQL URL (postgresql://…).") from error
    if url.drivername != "postgresql+psycopg2":
        raise ValidationError("Not a PostgreSQL URL (postgresql://…).")
    if re.search("[@/]", url.database or ""):
        raise ValidationError(f"The database is malformed: {PERCENT}.")
    if "0" in (str(url.port), *str(url.query.get("port", "")).split(",")):
        raise ValidationError("Port 0 cannot be used.")
    try:
        _, given = url.get_dialect()().create_connect_args(url)
        make_dsn(**given)
        _ask_libpq(given)
        for address in filter(None, given.get("hostaddr", "").split(",")):
            ipaddress.ip_address(address)
    except (psycopg2.Error, ArgumentError, ValueError) as error:
        raise ValidationError(f"libpq rejects it: {str(error).strip()}.") from error
    if not all(map(_is_host_or_socket, str(given.get("host") or "localhost").split(","))):
        raise ValidationError(f"A host is malformed: {PERCENT}.")
    for name in LIBPQ_NUMBERS & given.keys():
        if not re.fullmatch(r"-?\d{1,9}", str(given[name])):
            raise ValidationError(f"{name} is not a number.")
    _are_files({name: given[name] for name in LIBPQ_FILES & given.keys() if given[name] != "system"})


def _ask_libpq(given: Mapping[str, Any]) -> None:
    """Make libpq parse all parameters by connecting to a socket that does not exist."""
    hosts = str(given.get("host", "")).split(",")
    try:
        psycopg2.connect(**{**given, "host": ",".join("/nonexistent" for _ in hosts), "hostaddr": ""}).close()
    except psycopg2.OperationalError as error:
        if not re.search("connection to server on socket|local socket", str(error)):
            raise


def is_redis_url(value: str) -> None:
    """Check that redis-py accepts the URL, without connecting."""
    kind = "Not a Redis URL (redis://, rediss://, unix:// or redis+sentinel://)."
    try:
        if sentinels := SentinelUrl.parse(value):
            _are_sentinels(sentinels)
            value = sentinels.server
        url = urlsplit(value)
        host, port = url.hostname, url.port
    except ValueError as error:
        raise ValidationError(kind) from error
    if url.scheme not in {"redis", "rediss", "unix"} or not (url.netloc or url.path.strip("/")):
        raise ValidationError(kind)
    is_socket = url.scheme == "unix"
    if url.fragment or "@" in url.query or (host if is_socket else not _is_host(host or "")):
        raise ValidationError(f"The host is missing or malformed: {PERCENT}.")
    if port == 0:
        raise ValidationError("Port 0 cannot be used.")
    if not is_socket and not re.fullmatch(r"/?\d*", url.path):
        raise ValidationError("The database is not a number.")
    given = dict(parse_qsl(url.query, keep_blank_values=True))
    if unknown := given.keys() - REDIS_PARAMETERS:
        raise ValidationError(f"Unknown parameters: {', '.join(sorted(unknown))}.")
    if not re.fullmatch(r"\d+", given.get("db", "0")):
        raise ValidationError("The database is not a number.")
    try:
        ConnectionPool.from_url(value).make_connection()
    except Exception as error:  # TypeError, ValueError, RedisError …, depending on the parameter
        raise ValidationError(f"redis-py rejects it: {error}.") from error
    _are_files({name: given[name] for name in REDIS_FILES & given.keys()})


def _are_sentinels(url: SentinelUrl) -> None:
    for host, port in url.sentinels:
        if not _is_host(host):
            raise ValidationError(f"The host of a sentinel is missing or malformed: {PERCENT}.")
        if port == 0:
            raise ValidationError("Port 0 cannot be used.")
    if not re.fullmatch(r"[\w.-]+", url.service):
        raise ValidationError("What the sentinels call the servers is missing: …:26379/mymaster/0.")


def is_secret(value: str) -> None:
    """Check that a secret is long enough and not a key, which may be public. An empty value passes."""
    if not value:
        return
    try:
        length = len(value.strip().encode())
    except UnicodeEncodeError as error:
        raise ValidationError("Not UTF-8.") from error
    if length < SECRET_BYTES:
        raise ValidationError(f"Shorter than {SECRET_BYTES} bytes.")
    try:
        HMACAlgorithm(HMACAlgorithm.SHA256).prepare_key(value.replace("\\n", "\n"))
        is_key = "-----BEGIN" in value
    except InvalidKeyError:
        is_key = True
    if is_key:
        raise ValidationError("This is a key, not a secret; set JWT_PUBLIC_KEY to use a public key.")


def is_bearer_token(value: str) -> None:
    """Check that a secret can be sent in an Authorization header."""
    is_secret(value)
    if not re.fullmatch(r"[ -~]*", value) or value != value.strip():
        raise ValidationError("Must be printable ASCII without spaces at either end.")


def is_environment(value: str) -> None:
    """Accept the two names only: a typo would otherwise mean development."""
    if value not in {"development", "production"}:
        raise ValidationError("Must be development or production.")


def is_given(value: str) -> None:
    """Check for a value that is not blank."""
    if not value.strip():
        raise ValidationError("Must not be empty.")


def is_port(value: int | None) -> None:
    """Check for a TCP port."""
    if value is not None and not 1 <= value <= 65535:
        raise ValidationError("Must be a port, 1 to 65535.")


def is_host(value: str) -> None:
    """Check for an IP address or a host name."""
    if not _is_host(value):
        raise ValidationError("Not an IP address or a host name.")


def is_cron(value: str) -> None:
    """Check for a cron expression that fires."""
    try:
        wait = CronTab(value).next(default_utc=True)
    except ValueError as error:
        raise ValidationError(f"Not a cron expression: {error}") from error
    if wait is None:
        raise ValidationError("This cron expression never fires.")


def is_rate_limit(value: str) -> None:
    """Check for a rate limit that allows at least one request."""
    try:
        limits = parse_many(value)
    except ValueError as error:
        raise ValidationError("Not a rate limit, such as 120 per minute.") from error
    if not all(limit.amount and limit.multiples for limit in limits):
        raise ValidationError("This rate limit allows no request at all.")


def is_base_url(value: str) -> None:
    """Check for a URL that a path can be appended to."""
    try:
        url = urlsplit(value)
        usable = url.scheme in {"http", "https"} and url.port != 0 and _is_host(url.hostname or "")
    except ValueError:
        usable = False
    if not usable or re.search(r"[?#\s]", value):
        raise ValidationError("Must be an http:// or https:// URL without a query.")


def are_origins(values: list[str]) -> None:
    """Check for origins as browsers send them; an asterisk, which would allow any page, is not one."""
    try:
        for value in values:
            is_base_url(value)
            if not re.fullmatch(r"https?://[a-z0-9.\[\]:-]+", value):
                raise ValidationError("Not an origin.")
    except ValidationError as error:
        raise ValidationError("Must be origins, such as https://app.example.com,https://admin.example.com.") from error


def is_folder(value: Path) -> None:
    """Check for a folder, or a path at which one can be created."""
    if not value.parts:
        raise ValidationError("Must not be empty.")
    try:
        nearest = next(path for path in (value.absolute(), *value.absolute().parents) if path.exists())
    except OSError as error:
        raise ValidationError(f"Not a folder: {error.strerror}.") from error
    if not nearest.is_dir():
        raise ValidationError("Not a folder, or inside a file.")


def is_log_level(value: str) -> None:
    """Check for a level of the logging module."""
    if value.upper() not in {"DEBUG", "INFO", "WARNING", "ERROR", "CRITICAL"}:
        raise ValidationError("Must be DEBUG, INFO, WARNING, ERROR or CRITICAL.")


def algorithm_of(pem: str) -> str:
    """Return the JWT algorithm for a public key: RS256 or ES256."""
    try:
        key = load_pem_public_key(pem.encode())
    except Exception as error:
        raise ValidationError("Not a PEM public key.") from error
    if isinstance(key, RSAPublicKey) and key.key_size >= 2048:
        return "RS256"
    if isinstance(key, EllipticCurvePublicKey) and isinstance(key.curve, SECP256R1):
        return "ES256"
    raise ValidationError("Must be an RSA key of at least 2048 bits (RS256) or an EC key on P-256 (ES256).")


def _is_host(host: str) -> bool:
    """Return whether a parsed host is a real one, and not part of an unencoded password."""
    if ":" in host or re.fullmatch(r"[\d.]+", host):
        try:
            ipaddress.ip_address(host)
        except ValueError:
            return False
        return True
    return re.fullmatch(r"\w[\w.-]*", host) is not None


def _is_host_or_socket(host: str) -> bool:
    return host.startswith(("/", "@")) or _is_host(host)


def _are_files(paths: dict[str, str]) -> None:
    for name, path in paths.items():
        if not Path(path).is_file():
            raise ValidationError(f"The file in {name} does not exist.")

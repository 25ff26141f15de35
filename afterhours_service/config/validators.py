"""Checks of single settings, by what will use them where that can be built without talking to anybody.

Each raises ValidationError with a sentence that names no secret.
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

SECRET_BYTES = 32  # RFC 7518, section 3.2: an HS256 key is at least as long as its hash
POSTGRESQL_SCHEMES = {"postgres", "postgresql", "postgres+psycopg2", "postgresql+psycopg2"}
LIBPQ_NUMBERS = {  # which libpq looks at only when it has connected
    "connect_timeout",
    "keepalives",
    "keepalives_idle",
    "keepalives_interval",
    "keepalives_count",
    "tcp_user_timeout",
}
LIBPQ_FILES = {"sslrootcert", "sslcert", "sslkey", "sslcrl"}
REDIS_FILES = {"ssl_ca_certs", "ssl_certfile", "ssl_keyfile"}
# Others are unknown to redis-py, or would change what the service reads from it (decode_responses, protocol …).
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
    """Build what psycopg2 is given from the URL, and let libpq refuse what it does not know."""
    try:
        url = make_url(value)
    except Exception as error:  # many, and some show the URL
        raise ValidationError("Not a PostgreSQL URL (postgresql://…).") from error
    if url.drivername not in POSTGRESQL_SCHEMES:
        raise ValidationError("Not a PostgreSQL URL (postgresql://…).")
    if not all(map(_is_host, (url.host or "localhost").split(","))) or re.search("[@/]", url.database or ""):
        raise ValidationError(f"The host or the database is malformed: {PERCENT}.")
    if url.port == 0:
        raise ValidationError("Port 0 is none.")
    try:
        _, given = url.set(drivername="postgresql+psycopg2").get_dialect()().create_connect_args(url)
        make_dsn(**given)
        _ask_libpq(given)
        for address in filter(None, given.get("hostaddr", "").split(",")):
            ipaddress.ip_address(address)
    except (psycopg2.Error, ArgumentError, ValueError) as error:
        raise ValidationError(f"PostgreSQL's client library refuses it: {str(error).strip()}.") from error
    for name in LIBPQ_NUMBERS & given.keys():
        if not re.fullmatch(r"-?\d{1,9}", str(given[name])):
            raise ValidationError(f"{name} is not a number.")
    _are_files({name: given[name] for name in LIBPQ_FILES & given.keys() if given[name] != "system"})


def _ask_libpq(given: Mapping[str, Any]) -> None:
    """Let libpq read all parameters, and look for a server where there is none."""
    hosts = str(given.get("host", "")).split(",")
    try:
        psycopg2.connect(**{**given, "host": ",".join("/nonexistent" for _ in hosts), "hostaddr": ""}).close()
    except psycopg2.OperationalError as error:
        if not re.search("connection to server on socket|local socket", str(error)):
            raise


def is_redis_url(value: str) -> None:
    """Build a connection from the URL, without connecting."""
    kind = "Not a Redis URL (redis://, rediss:// or unix://)."
    try:
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
        raise ValidationError("Port 0 is none.")
    if not is_socket and not re.fullmatch(r"/?\d*", url.path):
        raise ValidationError("The database is not a number.")
    given = dict(parse_qsl(url.query, keep_blank_values=True))
    if unknown := given.keys() - REDIS_PARAMETERS:
        raise ValidationError(f"Unknown parameters: {', '.join(sorted(unknown))}.")
    if not re.fullmatch(r"\d+", given.get("db", "0")):
        raise ValidationError("The database is not a number.")
    try:
        ConnectionPool.from_url(value).make_connection()
    except Exception as error:  # TypeError, ValueError, RedisError: whatever the parameter runs into
        raise ValidationError(f"Redis's client library refuses it: {error}.") from error
    _are_files({name: given[name] for name in REDIS_FILES & given.keys()})


def is_secret(value: str) -> None:
    """Refuse what anybody could guess or knows already; nothing at all is left to the caller."""
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
        raise ValidationError("A key in PEM or another format, not a secret; JWT_PUBLIC_KEY takes a public one.")


def is_bearer_token(value: str) -> None:
    """Refuse a secret that no Authorization header can hold."""
    is_secret(value)
    if not re.fullmatch(r"[ -~]*", value) or value != value.strip():
        raise ValidationError("Only printable ASCII characters can be sent, and no blanks at the ends.")


def is_environment(value: str) -> None:
    """Refuse what would be taken for development by mistake."""
    if value not in {"development", "production"}:
        raise ValidationError("Neither development nor production.")


def is_given(value: str) -> None:
    """Refuse an empty value."""
    if not value.strip():
        raise ValidationError("Is empty.")


def is_port(value: int | None) -> None:
    """Refuse what is no TCP port."""
    if value is not None and not 1 <= value <= 65535:
        raise ValidationError("Not a port (1 to 65535).")


def is_host(value: str) -> None:
    """Refuse what is neither an address nor a name."""
    if not _is_host(value):
        raise ValidationError("Neither an address nor a host's name.")


def is_cron(value: str) -> None:
    """Refuse what is no cron line, or one that never fires."""
    try:
        wait = CronTab(value).next(default_utc=True)
    except ValueError as error:
        raise ValidationError(f"Not a cron line: {error}") from error
    if wait is None:
        raise ValidationError("Never comes.")


def is_rate_limit(value: str) -> None:
    """Refuse what is no limit, or one that lets nobody pass."""
    try:
        limits = parse_many(value)
    except ValueError as error:
        raise ValidationError("Not a rate limit, such as 120 per minute.") from error
    if not all(limit.amount and limit.multiples for limit in limits):
        raise ValidationError("Lets nobody pass.")


def is_base_url(value: str) -> None:
    """Refuse what no path can be appended to."""
    try:
        url = urlsplit(value)
        usable = url.scheme in {"http", "https"} and url.port != 0 and _is_host(url.hostname or "")
    except ValueError:
        usable = False
    if not usable or re.search(r"[?#\s]", value):
        raise ValidationError("Not an http:// or https:// URL without a query.")


def are_origins(values: list[str]) -> None:
    """Refuse what browsers do not send: each origin by its name, as an asterisk would let any page ask."""
    try:
        for value in values:
            is_base_url(value)
            if not re.fullmatch(r"https?://[a-z0-9.\[\]:-]+", value):
                raise ValidationError("Not an origin.")
    except ValidationError as error:
        raise ValidationError("Not origins, such as https://app.example.com,https://admin.example.com.") from error


def is_folder(value: Path) -> None:
    """Refuse what cannot be a folder, now or later."""
    if not value.parts:
        raise ValidationError("Is empty.")
    try:
        nearest = next(path for path in (value.absolute(), *value.absolute().parents) if path.exists())
    except OSError as error:
        raise ValidationError(f"Not a folder: {error.strerror}.") from error
    if not nearest.is_dir():
        raise ValidationError("Is not a folder, or lies below a file.")


def is_log_level(value: str) -> None:
    """Refuse what the logging module has no name for."""
    if value.upper() not in {"DEBUG", "INFO", "WARNING", "ERROR", "CRITICAL"}:
        raise ValidationError("Not one of DEBUG, INFO, WARNING, ERROR, CRITICAL.")


def algorithm_of(pem: str) -> str:
    """Return the one algorithm that a public key is for: RSA of 2048 bits or more, or EC on P-256."""
    try:
        key = load_pem_public_key(pem.encode())
    except Exception as error:
        raise ValidationError("Not a PEM public key.") from error
    if isinstance(key, RSAPublicKey) and key.key_size >= 2048:
        return "RS256"
    if isinstance(key, EllipticCurvePublicKey) and isinstance(key.curve, SECP256R1):
        return "ES256"
    raise ValidationError("Neither RSA of at least 2048 bits (RS256) nor EC on P-256 (ES256).")


def _is_host(host: str) -> bool:
    """Tell whether a URL's parser found a host where there is one, and not a piece of a password."""
    if ":" in host or re.fullmatch(r"[\d.]+", host):
        try:
            ipaddress.ip_address(host)
        except ValueError:
            return False
        return True
    return re.fullmatch(r"\w[\w.-]*", host) is not None


def _are_files(paths: dict[str, str]) -> None:
    for name, path in paths.items():
        if not Path(path).is_file():
            raise ValidationError(f"{name} names no file.")

"""Is the process there, and can it work? Outside the gate, for load balancers."""

from typing import Any

from alembic.script import ScriptDirectory
from alembic.util import CommandError
from marshmallow import fields
from redis.exceptions import ReadOnlyError, RedisError
from sqlalchemy.exc import SQLAlchemyError

from afterhours_service.jobs.events import CHANNEL
from afterhours_service.jobs.timers import SCHEDULED
from afterhours_service.stores.connection import release_connection
from afterhours_service.stores.database import MIGRATIONS, db
from afterhours_service.stores.redis import WRITE, current_redis, redis_failed, refusals
from afterhours_service.stores.sql import read
from afterhours_service.web import errors
from afterhours_service.web.schemas import Blueprint, envelope

blueprint = Blueprint("health", __name__, description="For load balancers, without a token")

VERSION_TABLE = "after_hours_alembic_version"

# What the service sends to Redis: a write, a timer, a script with the keys that ours have, an event.
NEEDED = (
    WRITE,
    ("ZADD", SCHEDULED, 0, "after-hours-probe"),
    ("EVAL", "return 1", 3, SCHEDULED, "rq:job:after-hours-probe", CHANNEL),
    ("PUBLISH", CHANNEL, ""),
)

HealthResponse = envelope("HealthResponse", status=fields.String())
ReadyResponse = envelope(
    "ReadyResponse", **{name: fields.String() for name in ("status", "database", "schema", "redis")}
)


@blueprint.route("/healthz")
@blueprint.doc(security=[])
@blueprint.response(200, HealthResponse)
def healthz() -> dict[str, Any]:
    """Answer, if the process does."""
    return {"success": True, "status": "ok"}


@blueprint.route("/readyz")
@blueprint.doc(security=[])
@blueprint.response(200, ReadyResponse)
@blueprint.fails(errors.NotReady)
def readyz() -> dict[str, Any]:
    """Tell of the database, the schema's version and Redis; only the first two are needed to serve."""
    found = parts()
    if not is_ready(found):
        raise errors.NotReady(status="unavailable", **found)
    return {"success": True, "status": "ok" if found["redis"] == "ok" else "degraded", **found}


def parts() -> dict[str, str]:
    """Ask of database, schema and Redis whether this process may do there what it needs."""
    database = _database()
    schema = "unknown" if database == "unavailable" else _schema()
    return {"database": database, "schema": schema, "redis": _redis()}


def is_ready(found: dict[str, str]) -> bool:
    """Tell whether the service can serve; Redis isn't needed for that."""
    return found["database"] == "ok" and found["schema"] in {"ok", "newer"}


def _database() -> str:
    """Ask the database whether it takes writes; a connection that does not is of no use, nor are those beside it."""
    try:
        [(read_only,)] = read("SELECT current_setting('transaction_read_only')::boolean OR pg_is_in_recovery()")
    except SQLAlchemyError as error:
        # libpq's words, when the server told so as it was connected to
        return "read-only" if "read-only" in str(error) else "unavailable"
    if read_only:
        release_connection()
        db.engine.dispose()
        return "read-only"
    return "ok"


def _schema() -> str:
    """Compare the database's revision with the code's; a newer one comes from a release that is being rolled out."""
    scripts = ScriptDirectory(str(MIGRATIONS))
    try:
        rows = read(f"SELECT version_num FROM {VERSION_TABLE}")  # noqa: S608
    except SQLAlchemyError as error:
        missing = getattr(getattr(error, "orig", None), "pgcode", None) == "42P01"
        return "behind" if missing else "unknown"
    revision = rows[0][0] if rows else None
    if revision in scripts.get_heads():
        return "ok"
    try:
        return "behind" if revision is None or scripts.get_revision(revision) else "newer"
    except CommandError:
        return "newer"


def _redis() -> str:
    """Ask Redis whether it would take what the service sends, and name what it would refuse."""
    try:
        refused = refusals(current_redis(), *NEEDED)
    except RedisError as error:
        redis_failed(error)
        return "read-only" if isinstance(error, ReadOnlyError) else "unavailable"
    return "ok" if not refused else "refuses " + ", ".join(f"{name} ({code})" for name, code in sorted(refused.items()))

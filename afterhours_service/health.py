"""Is the process there, and can it work? Outside the gate, for load balancers."""

from typing import Any

from alembic.script import ScriptDirectory
from alembic.util import CommandError
from marshmallow import fields
from redis.exceptions import RedisError
from sqlalchemy.exc import SQLAlchemyError

from afterhours_service import errors
from afterhours_service.extensions import MIGRATIONS, read
from afterhours_service.queue import current_redis
from afterhours_service.schemas import Blueprint, envelope

blueprint = Blueprint("health", __name__, description="For load balancers, without a token")

VERSION_TABLE = "after_hours_alembic_version"

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
    """Look at database, schema and Redis."""
    schema, redis = _schema(), _redis()
    return {"database": "unavailable" if schema == "unknown" else "ok", "schema": schema, "redis": redis}


def is_ready(found: dict[str, str]) -> bool:
    """Tell whether the service can serve; Redis isn't needed for that."""
    return found["schema"] in {"ok", "newer"}


def _schema() -> str:
    """Compare the database's revision with the code's; a newer one comes from a release that is being rolled out."""
    scripts = ScriptDirectory(str(MIGRATIONS))
    try:
        rows = read(f"SELECT version_num FROM {VERSION_TABLE}")  # noqa: S608
    except SQLAlchemyError as error:
        missing = getattr(error, "orig", None) is not None and getattr(error.orig, "pgcode", None) == "42P01"  # type: ignore[attr-defined]
        return "behind" if missing else "unknown"
    revision = rows[0][0] if rows else None
    if revision in scripts.get_heads():
        return "ok"
    try:
        return "behind" if revision is None or scripts.get_revision(revision) else "newer"
    except CommandError:
        return "newer"


def _redis() -> str:
    try:
        current_redis().ping()
    except RedisError:
        return "unavailable"
    return "ok"

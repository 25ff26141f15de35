"""Liveness and readiness, for load balancers: is the process running, and can it serve? Without a token."""

from typing import Any, NamedTuple

from alembic.script import ScriptDirectory
from alembic.util import CommandError
from marshmallow import fields
from redis.exceptions import ReadOnlyError, RedisError
from sqlalchemy import column, literal_column, select, table
from sqlalchemy.exc import SQLAlchemyError

from afterhours_service.jobs.events import CHANNEL
from afterhours_service.jobs.timers import SCHEDULED
from afterhours_service.stores.connection import release_connection
from afterhours_service.stores.database import MIGRATIONS, db
from afterhours_service.stores.redis import WRITE, current_redis, redis_failed, refusals
from afterhours_service.stores.statements import Statement
from afterhours_service.web import errors
from afterhours_service.web.schemas import Blueprint, envelope

blueprint = Blueprint("health", __name__, description="For load balancers, without a token")

VERSION_TABLE = "after_hours_alembic_version"
UNDEFINED_TABLE = "42P01"  # an SQLSTATE

# Samples of what the service sends to Redis: a write, a timer, a script with the keys that ours have, an event.
PROBES = (
    WRITE,
    ("ZADD", SCHEDULED, 0, "after-hours-probe"),
    ("EVAL", "return 1", 3, SCHEDULED, "rq:job:after-hours-probe", CHANNEL),
    ("PUBLISH", CHANNEL, ""),
)

_IS_READ_ONLY: Statement[Any] = Statement(
    select(literal_column("current_setting('transaction_read_only')::boolean OR pg_is_in_recovery()"))
)
_VERSION: Statement[Any] = Statement(select(column("version_num")).select_from(table(VERSION_TABLE)))


class Health(NamedTuple):
    """Whether database, schema and Redis are "ok", or what is wrong."""

    database: str
    schema: str
    redis: str

    @property
    def is_schema_current(self) -> bool:
        """True unless the schema is behind the code; a newer one comes from a release that is being rolled out."""
        return self.schema in {"ok", "newer"}

    @property
    def is_ready(self) -> bool:
        """True when the service can serve requests; Redis is not needed for that."""
        return self.database == "ok" and self.is_schema_current


HealthResponse = envelope("HealthResponse", status=fields.String())
ReadyResponse = envelope("ReadyResponse", status=fields.String(), **{name: fields.String() for name in Health._fields})


@blueprint.route("/healthz")
@blueprint.doc(security=[])
@blueprint.response(200, HealthResponse)
def healthz() -> dict[str, Any]:
    """Answer as long as the process is running."""
    return {"success": True, "status": "ok"}


@blueprint.route("/readyz")
@blueprint.doc(security=[])
@blueprint.response(200, ReadyResponse)
@blueprint.fails(errors.NotReady)
def readyz() -> dict[str, Any]:
    """Report on the database, its schema and Redis; only the first two are needed to serve."""
    health = check()
    if not health.is_ready:
        raise errors.NotReady(status="unavailable", **health._asdict())
    return {"success": True, "status": "ok" if health.redis == "ok" else "degraded", **health._asdict()}


def check() -> Health:
    """Check that this process can do in database, schema and Redis what it needs to. Raises nothing."""
    database = _check_database()
    schema = "unknown" if database == "unavailable" else _check_schema()
    return Health(database, schema, _check_redis())


def _check_database() -> str:
    """Ask whether the database accepts writes. If not, the pool's connections are dropped: they are to that server."""
    try:
        [(is_read_only,)] = _IS_READ_ONLY.all()
    except SQLAlchemyError as error:
        # libpq's message, from a server that was read-only when it was connected to
        return "read-only" if "read-only" in str(error) else "unavailable"
    if is_read_only:
        release_connection()
        db.engine.dispose()
        return "read-only"
    return "ok"


def _check_schema() -> str:
    """Compare the database's revision with the code's."""
    scripts = ScriptDirectory(str(MIGRATIONS))
    try:
        row = _VERSION.first()
    except SQLAlchemyError as error:
        is_missing = getattr(getattr(error, "orig", None), "pgcode", None) == UNDEFINED_TABLE
        return "behind" if is_missing else "unknown"
    revision = row[0] if row else None
    if revision in scripts.get_heads():
        return "ok"
    try:
        return "behind" if revision is None or scripts.get_revision(revision) else "newer"
    except CommandError:  # a revision that this code does not know
        return "newer"


def _check_redis() -> str:
    """Ask Redis whether it would accept what the service sends, and name what it would refuse."""
    try:
        refused = refusals(current_redis(), *PROBES)
    except RedisError as error:
        redis_failed(error)
        return "read-only" if isinstance(error, ReadOnlyError) else "unavailable"
    return "ok" if not refused else "refuses " + ", ".join(f"{name} ({code})" for name, code in sorted(refused.items()))

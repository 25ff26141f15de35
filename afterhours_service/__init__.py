"""After Hours Mode for dating apps: a member goes live at one place for a while, and then is gone, on time."""

import os
import time
import weakref
from uuid import uuid4

import structlog
from flask import Flask, Response, g, request
from sqlalchemy.exc import SQLAlchemyError

from afterhours_service.blueprint import after_hours
from afterhours_service.cli import after_hours as commands
from afterhours_service.config import Settings
from afterhours_service.monitoring import health, prometheus
from afterhours_service.stores import objects, redis
from afterhours_service.stores.connection import give_back
from afterhours_service.stores.database import (
    connect_args,
    db,
    drop_lost_connections,
    migrate,
    replace_closed_connections,
)
from afterhours_service.telemetry import log, metrics
from afterhours_service.web import errors, headers, limits, openapi, photo_links
from afterhours_service.web.api import api

logger = log.get_logger(__name__)

MAX_BODY_BYTES = 64 * 1024


def create_app(settings: Settings | None = None) -> Flask:
    """Join the parts into an app.

    settings: the process's environment, when left out. Raises SettingsError.
    """
    settings = settings or Settings.from_environ()
    log.configure(settings.log_level)
    app = Flask(__name__, static_folder=None)
    app.config.update(
        API_TITLE="After Hours",
        API_VERSION="1",
        OPENAPI_VERSION="3.1.0",
        MAX_CONTENT_LENGTH=MAX_BODY_BYTES,
        SQLALCHEMY_DATABASE_URI=settings.database_url,
        SQLALCHEMY_ENGINE_OPTIONS={
            "pool_timeout": 2,
            # An error's text is logged; where a member is must not be in it.
            "hide_parameters": True,
            "connect_args": connect_args(
                settings.database_url,
                "statement_timeout=5s",
                "lock_timeout=2s",
                "idle_in_transaction_session_timeout=10s",
                connect_timeout=3,
                # A database host that vanished without a word is given up after so long, not after many minutes.
                keepalives_idle=5,
                keepalives_interval=2,
                keepalives_count=3,
                tcp_user_timeout=10_000,  # milliseconds
                application_name="after-hours",
            ),
        },
    )
    app.extensions["after_hours_settings"] = settings
    db.init_app(app)
    for teardown in (_let_go, give_back):  # before the extension's own, which would raise
        app.teardown_appcontext(redis.only_logged("connection not given back")(teardown))
    with app.app_context():
        replace_closed_connections(db.engine)
        drop_lost_connections(db.engine)
        metrics.watch_pool(db.engine)
    migrate.init_app(app, db, compare_type=True)
    redis.init_app(app, settings)
    _log_requests(app)
    headers.init_app(app, settings)
    limits.init_app(app, settings)  # asks before each request, in the order of registration
    objects.init_app(app, settings, photo_links.PATH)
    if settings.api_docs:
        openapi.init_app(app)
        app.register_blueprint(openapi.page)
    for described in (after_hours, health.blueprint):
        (api if settings.api_docs else app).register_blueprint(described)  # to describe it takes longer than the rest
    app.register_blueprint(photo_links.blueprint)
    app.register_blueprint(prometheus.blueprint)
    app.cli.add_command(commands)
    errors.init_app(app)  # after flask-smorest, whose own handler drops headers
    _dispose_in_children(app)
    return app


def _log_requests(app: Flask) -> None:
    @app.before_request
    def begin() -> None:
        given = request.headers.get("X-Request-ID", "")
        g.started, g.request_id = time.perf_counter(), given if log.REQUEST_ID.fullmatch(given) else uuid4().hex
        structlog.contextvars.clear_contextvars()
        structlog.contextvars.bind_contextvars(request_id=g.request_id)

    @app.after_request
    def finish(response: Response) -> Response:
        response.headers["X-Request-ID"] = g.request_id
        with redis.only_logged("request not counted"):
            note(response)
        return response

    def note(response: Response) -> None:
        seconds = time.perf_counter() - g.started
        route = request.url_rule.rule if request.url_rule else None  # a path may hold anything
        code = g.get("error_code")
        log.request_line(
            __name__,
            method=request.method,
            route=route,
            status=response.status_code,
            code=code,
            ms=round(seconds * 1000, 1),
        )
        method = request.method if route else "other"  # so may the method of a request for nothing
        metrics.REQUESTS.labels(method, route or "none", response.status_code, code or "").inc()
        metrics.REQUEST_SECONDS.labels(method, route or "none").observe(seconds)


def _let_go(_error: BaseException | None) -> None:
    """Roll back what a request or job has only read; a connection that died since must not cost it its answer."""
    if not db.session.registry.has():
        return
    try:
        db.session.rollback()
    except SQLAlchemyError as error:
        db.session().invalidate()
        logger.warning("database away", error=type(error).__name__)


def _dispose_in_children(app: Flask) -> None:
    """Let a forked child open database connections of its own: two processes must not talk over one."""
    reference = weakref.ref(app)

    def dispose() -> None:
        if parent := reference():
            with parent.app_context():
                db.engine.dispose(close=False)

    os.register_at_fork(after_in_child=dispose)

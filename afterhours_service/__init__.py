"""After Hours Mode for dating apps: a member goes live at one place for a while, and then is gone, on time."""

from flask import Flask

from afterhours_service.blueprint import after_hours
from afterhours_service.cli import after_hours as commands
from afterhours_service.config import Settings
from afterhours_service.jobs.timers import reconcile_soon
from afterhours_service.matching import jobs as _matching_jobs  # noqa: F401 - likewise
from afterhours_service.monitoring import health, prometheus
from afterhours_service.sessions import jobs as _session_jobs  # noqa: F401 - gives the session timers their job
from afterhours_service.stores import engine, objects, redis
from afterhours_service.telemetry import log
from afterhours_service.web import docs_page, errors, headers, limits, openapi, overload, photo_links, request_log

MAX_BODY_BYTES = 64 * 1024


def create_app(settings: Settings | None = None) -> Flask:
    """Build the app.

    settings: read from the process's environment if omitted. Raises SettingsError.
    """
    settings = settings or Settings.from_environ()
    log.configure(settings.log_level)
    app = Flask(__name__, static_folder=None)
    app.config["MAX_CONTENT_LENGTH"] = MAX_BODY_BYTES
    app.url_map.merge_slashes = False  # it would redirect, to whatever host the client has named
    app.extensions["after_hours_settings"] = settings

    engine.init_app(app, settings)
    redis.init_app(app, settings, reconcile_soon)
    objects.init_app(app, settings, photo_links.PATH)

    # Called before each request, in this order.
    request_log.init_app(app)
    headers.init_app(app, settings)
    overload.init_app(app)
    limits.init_app(app, settings)

    api = openapi.init_app(app) if settings.api_docs else app  # describing the API takes longer than all the rest
    api.register_blueprint(after_hours)
    api.register_blueprint(health.blueprint)
    app.register_blueprint(photo_links.blueprint)
    app.register_blueprint(prometheus.blueprint)
    if settings.api_docs:
        app.register_blueprint(docs_page.blueprint)
    app.cli.add_command(commands)
    errors.init_app(app)  # after flask-smorest, whose own error handler would drop headers
    return app

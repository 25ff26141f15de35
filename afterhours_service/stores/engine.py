"""The app's database engine: its options, its pool, and the cleanup after each request, job and fork."""

import os
import weakref

from flask import Flask

from afterhours_service.config import Settings
from afterhours_service.stores.connection import release_connection
from afterhours_service.stores.database import (
    connect_args,
    db,
    drop_lost_connections,
    migrate,
    replace_closed_connections,
)
from afterhours_service.stores.redis import only_logged
from afterhours_service.stores.servers import find_primary
from afterhours_service.telemetry import metrics


def init_app(app: Flask, settings: Settings) -> None:
    """Give the app its engine, Flask-SQLAlchemy and Flask-Migrate."""
    app.config["SQLALCHEMY_DATABASE_URI"] = settings.database_url
    app.config["SQLALCHEMY_ENGINE_OPTIONS"] = {
        "pool_timeout": 2,  # seconds
        "hide_parameters": True,  # errors are logged, and parameters contain members' places
        "connect_args": connect_args(
            settings.database_url,
            "statement_timeout=5s",
            "lock_timeout=2s",
            "idle_in_transaction_session_timeout=10s",
            f"after_hours.minute_seconds={settings.minute_seconds}",  # for the triggers of matching
            connect_timeout=3,
            # Give up a database host that vanished after seconds rather than minutes.
            keepalives_idle=5,
            keepalives_interval=2,
            keepalives_count=3,
            tcp_user_timeout=10_000,  # milliseconds
            application_name="after-hours",
        ),
    }
    db.init_app(app)
    app.teardown_appcontext(only_logged("connection not returned to the pool")(release_connection))
    with app.app_context():
        app.extensions["after_hours_servers"] = find_primary(db.engine)
        replace_closed_connections(db.engine, app.extensions["after_hours_servers"])
        drop_lost_connections(db.engine)
        metrics.watch_pool(db.engine)
    migrate.init_app(app, db, compare_type=True)
    _dispose_in_children(app)


def _dispose_in_children(app: Flask) -> None:
    """Give a forked child database connections of its own: two processes cannot share one."""
    reference = weakref.ref(app)

    def dispose() -> None:
        if parent := reference():
            with parent.app_context():
                db.engine.dispose(close=False)
            parent.extensions["after_hours_servers"].begin_anew()

    os.register_at_fork(after_in_child=dispose)

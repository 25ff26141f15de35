"""The Flask extensions, made once, joined to an app in create_app, and the short way to the database."""

import select
from typing import Any, cast

from flask import current_app
from flask_migrate import Migrate
from flask_smorest import Api
from flask_sqlalchemy import SQLAlchemy
from sqlalchemy import Engine, MetaData, event
from sqlalchemy.exc import DisconnectionError
from sqlalchemy.orm import DeclarativeBase

from afterhours_service.config import Settings


class Base(DeclarativeBase):
    """Names constraints as PostgreSQL does by itself, so that adopted tables and ours have the same."""

    metadata = MetaData(
        naming_convention={
            "ix": "ix_%(table_name)s_%(column_0_name)s",
            "pk": "%(table_name)s_pkey",
            "fk": "%(table_name)s_%(column_0_name)s_fkey",
            "uq": "%(table_name)s_%(column_0_N_name)s_key",
            "ck": "%(table_name)s_%(constraint_name)s_check",
        }
    )


db = SQLAlchemy(model_class=Base)
migrate = Migrate(directory="alembic")
api = Api()


def current_settings() -> Settings:
    """Return the settings of the current app."""
    return cast("Settings", current_app.extensions["after_hours_settings"])


def replace_closed_connections(engine: Engine) -> None:
    """Let the pool replace a connection that the server has closed, as pool_pre_ping does, without its round trip.

    An idle connection has nothing to say: one that can be read from tells of its end.
    """

    @event.listens_for(engine, "checkout")
    def check(connection: Any, *_: Any) -> None:
        idle = select.poll()
        idle.register(connection, select.POLLIN)
        if connection.closed or idle.poll(0):
            raise DisconnectionError

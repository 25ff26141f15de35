"""Whose connections to the database are whose: each process has its own, and each goes back as it came."""

import subprocess
import sys

from flask import Flask
from flask.testing import FlaskClient
from sqlalchemy import text

from afterhours_service.stores.connection import cursor
from afterhours_service.stores.database import db
from tests.client import status
from tests.conftest import ROOT
from tests.factories import Factory
from tests.processes import environ

FORK = """
import os
from afterhours_service import create_app
from afterhours_service.stores.connection import cursor

app = create_app()

def backend():
    with app.app_context(), cursor() as opened:
        opened.execute("SELECT pg_backend_pid()")
        return opened.fetchone()[0]

mine = backend()
reader, writer = os.pipe()
if os.fork() == 0:
    os.write(writer, str(backend()).encode())
    os._exit(0)
os.wait()
theirs = int(os.read(reader, 99))
assert theirs != mine, "the child talks over the connection of its parent"
assert backend() == mine, "the child has closed the connection of its parent"
"""


def test_a_forked_child_opens_connections_of_its_own(database_url: str, redis_url: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", FORK],
        check=False,
        cwd=ROOT,
        env=environ(database_url, redis_url),
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr


def test_a_connection_goes_back_as_it_came(app: Flask, client: FlaskClient, factory: Factory) -> None:
    """The statements of a request commit one by one; the transaction of the next one must not, over the same line."""
    member = factory.member()

    def in_a_job() -> None:
        with app.app_context(), cursor() as opened:
            opened.execute("SELECT 1")

    for use in (lambda: status(client, member), in_a_job):
        use()
        with app.app_context():
            assert db.engine.pool.checkedout() == 0  # type: ignore[attr-defined]
            with db.engine.connect() as connection:  # which never commits
                connection.execute(text("UPDATE users SET after_hours_consent = false"))
        assert factory.execute("SELECT after_hours_consent FROM users")[0].after_hours_consent is True

"""The two answers for load balancers: the process is there, and it can work."""

from collections.abc import Callable
from typing import Any

import pytest
from flask import Flask
from flask.testing import FlaskClient

from afterhours_service.monitoring.health import VERSION_TABLE
from tests.factories import Factory


def ask(client: FlaskClient, path: str = "/readyz") -> tuple[int, Any]:
    response = client.get(path)
    return response.status_code, response.json


NOT_READY = {"success": False, "code": "NOT_READY", "error": "The service cannot serve requests right now."}


def test_the_process_answers_whatever_is_away(make_app: Callable[..., Flask]) -> None:
    app = make_app(database_url="postgresql+psycopg2://nobody@/none?host=/nonexistent", redis_url="unix:///nonexistent")
    assert ask(app.test_client(), "/healthz") == (200, {"success": True, "status": "ok"})


def test_all_is_well(client: FlaskClient) -> None:
    parts = {"database": "ok", "schema": "ok", "redis": "ok"}
    assert ask(client) == (200, {"success": True, "status": "ok", **parts})


def test_redis_away_is_degraded_and_serves(make_app: Callable[..., Flask]) -> None:
    parts = {"database": "ok", "schema": "ok", "redis": "unavailable"}
    answer = ask(make_app(redis_url="unix:///nonexistent").test_client())
    assert answer == (200, {"success": True, "status": "degraded", **parts})


def test_the_database_away_is_unavailable(make_app: Callable[..., Flask]) -> None:
    app = make_app(database_url="postgresql+psycopg2://nobody@/none?host=/nonexistent")
    parts = {"database": "unavailable", "schema": "unknown", "redis": "ok"}
    assert ask(app.test_client()) == (503, {**NOT_READY, "status": "unavailable", **parts})


@pytest.mark.parametrize("behind", [f"DELETE FROM {VERSION_TABLE}", f"DROP TABLE {VERSION_TABLE}"])
def test_a_schema_that_is_behind_is_unavailable(client: FlaskClient, factory: Factory, behind: str) -> None:
    factory.execute(behind)
    parts = {"database": "ok", "schema": "behind", "redis": "ok"}
    assert ask(client) == (503, {**NOT_READY, "status": "unavailable", **parts})
    assert client.get("/readyz").headers["Retry-After"]


def test_a_newer_schema_serves_while_a_release_is_rolled_out(client: FlaskClient, factory: Factory) -> None:
    factory.execute(f"UPDATE {VERSION_TABLE} SET version_num = '9999'")
    parts = {"database": "ok", "schema": "newer", "redis": "ok"}
    assert ask(client) == (200, {"success": True, "status": "ok", **parts})

"""A small storm: every route, many threads, few members; `python -m benchmarks.storm` is a large one."""

import contextlib

import psycopg2
import pytest
from flask import Flask

from benchmarks.storm import ROUTES, Storm, join
from tests.factories import token


@pytest.mark.usefixtures("patience")
def test_a_storm_breaks_nothing(app: Flask, database_url: str) -> None:
    app.testing = False  # failures are answered, as in production
    members = ["one", "two", "three"]
    with contextlib.closing(psycopg2.connect(database_url)) as connection:
        connection.autocommit = True
        for member in members:
            join(connection, member)
    storm = Storm(app, database_url, members, token)
    storm.run(threads=8, requests=50)
    assert list(storm.broken()) == []
    assert storm.answers.total() == 400
    assert {answer.route for answer in storm.answers} == ROUTES.keys()

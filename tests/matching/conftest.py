"""What tests of matching share."""

from collections.abc import Callable

import pytest
from flask import Flask

from afterhours_service.matching import rounds
from tests.factories import Factory

Work = Callable[[], None]


@pytest.fixture
def work(app: Flask, factory: Factory) -> Work:
    """Return a function that lets everybody be due, and does what is due until nothing is left."""

    def until_quiet() -> None:
        factory.execute("UPDATE after_hours_search SET look_at = now() WHERE match_id IS NULL")
        with app.app_context():
            while rounds.do_what_is_due():
                pass

    return until_quiet

"""The plan that a connection keeps takes the keys from the index, also when it was made while nobody was live."""

from datetime import timedelta

import pytest
from flask import Flask

from afterhours_service.discovery import queries
from afterhours_service.stores.connection import cursor
from afterhours_service.stores.sql import run
from tests.factories import Factory, Live


@pytest.mark.parametrize(("statement", "in_order"), [(queries._PAGE, True), (queries._COUNT, False)])
def test_the_plan_that_is_kept_reads_the_index(
    app: Flask, factory: Factory, live: Live, statement: str, in_order: bool
) -> None:
    with app.app_context():
        me = queries.asker(live())
        assert me
        factory.execute("DELETE FROM after_hours_sessions")
        parameters = queries._parameters(me, 20, timedelta(minutes=2), None)
        for _ in range(7):
            run(statement, queries._AS_WRITTEN, **parameters)
        plan = "\n".join(line for (line,) in run(statement, f"{queries._AS_WRITTEN} EXPLAIN", **parameters))
        with cursor() as opened:
            opened.execute(
                "SELECT sum(custom_plans) FROM pg_prepared_statements WHERE statement LIKE '%(discovery_wish, %'"
            )
            assert opened.fetchall() == [(0,)]
    assert "Index Scan using idx_after_hours_sessions_nearest" in plan
    assert ("Order By: (discovery_key <-> " in plan) is in_order
    assert "Seq Scan" not in plan
    assert "Disabled: true" not in plan

"""The plan that a connection keeps takes the keys from the index, also when it was made while nobody was live."""

from datetime import timedelta
from typing import Any

import pytest
from flask import Flask

from afterhours_service.discovery import queries
from afterhours_service.stores.connection import cursor
from afterhours_service.stores.statements import Statement
from tests.factories import Factory, Live


@pytest.mark.parametrize(("statement", "in_order"), [(queries._PAGE, True), (queries._COUNT, False)])
def test_the_plan_that_is_kept_reads_the_index(
    app: Flask, factory: Factory, live: Live, monkeypatch: pytest.MonkeyPatch, statement: Statement[Any], in_order: bool
) -> None:
    with app.app_context():
        me = queries.asker(live())
        assert me
        factory.execute("DELETE FROM after_hours_sessions")
        parameters = {**queries._parameters(me, timedelta(minutes=2)), "limit": 20}
        for _ in range(7):
            statement.run(**parameters)
        monkeypatch.setattr(statement, "_before", f"{statement._before} EXPLAIN")
        monkeypatch.setattr(statement, "_make", tuple)
        plan = "\n".join(line for (line,) in statement.run(**parameters)[0])
        with cursor() as opened:
            opened.execute(
                "SELECT sum(custom_plans) FROM pg_prepared_statements WHERE statement LIKE '%.discovery_wish, $%'"
            )
            assert opened.fetchall() == [(0,)]
    assert "Index Scan using idx_after_hours_sessions_nearest" in plan
    assert ("Order By: (discovery_key <-> " in plan) is in_order
    assert "Seq Scan" not in plan
    assert "Disabled: true" not in plan

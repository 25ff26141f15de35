"""On random small worlds everybody is matched who can be, and nobody with whom they do not fit."""

from itertools import combinations
from random import Random
from unittest.mock import patch

import pytest
from flask import Flask
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from afterhours_service.matching import rounds
from tests.discovery.test_reference import make_world, sees, write
from tests.factories import Factory
from tests.matching.conftest import Work


@pytest.mark.parametrize("crowd", [0, 300], ids=["along the curve", "by the index"])
@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(seed=st.integers(0, 2**32))
def test_matches_are_the_references(app: Flask, factory: Factory, work: Work, crowd: int, seed: int) -> None:
    world = make_world(Random(seed))
    numbers = {member: number for number, member in enumerate(write(factory, world))}
    with app.app_context():
        rounds.look()
    with patch.object(rounds, "CROWD", crowd):
        work()
    rows = factory.execute("SELECT user_id_1, user_id_2 FROM after_hours_matches")
    pairs = [(numbers[row.user_id_1], numbers[row.user_id_2]) for row in rows]
    matched = [number for pair in pairs for number in pair]
    assert len(matched) == len(set(matched))
    for one, other in pairs:
        assert sees(world, one, other)
        assert sees(world, other, one)
    waiting = [number for number in numbers.values() if number not in matched]
    assert not [pair for pair in combinations(waiting, 2) if sees(world, *pair) and sees(world, *reversed(pair))]

"""The rules of matching as tables and properties."""

from datetime import UTC, datetime, timedelta
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from afterhours_service.matching import rules

NOW = datetime(2026, 11, 26, 23, 0, tzinfo=UTC)
EDGES = st.lists(st.tuples(st.integers(0, 9).map(float), st.sampled_from("abcd"), st.sampled_from("efgh")), max_size=20)


@pytest.mark.parametrize(
    ("metres", "waited", "minute_seconds", "cost"),
    [(1000.0, 0.0, 60, 1000.0), (1000.0, 60.0, 60, 500.0), (1000.0, 1.0, 1, 500.0), (0.0, 0.0, 60, 0.0)],
)
def test_who_is_near_or_has_waited_comes_first(metres: float, waited: float, minute_seconds: int, cost: float) -> None:
    assert rules.cost(metres, waited, minute_seconds) == cost


@pytest.mark.parametrize(
    ("seconds_left", "counts"), [(300, True), (2.001, True), (2, False), (0, False), (-1, False), (None, True)]
)
def test_a_card_that_declines_by_itself_is_no_decline(seconds_left: float | None, counts: bool) -> None:
    respond_by = None if seconds_left is None else NOW + timedelta(seconds=seconds_left)
    assert rules.counts_as_decline(NOW, respond_by) is counts


@given(edges=EDGES, seed=st.integers())
def test_pairs_are_the_cheapest_whatever_the_order(edges: list[tuple[float, str, str]], seed: int) -> None:
    pairs = rules.greedy(edges)
    shuffled = Random(seed).sample(edges, len(edges))
    assert rules.greedy(shuffled) == pairs
    members = [member for pair in pairs for member in pair]
    assert len(members) == len(set(members))
    costs = {(one, other): min(c for c, a, b in edges if (a, b) == (one, other)) for _, one, other in edges}
    for (one, other), cost in costs.items():
        rivals = [costs[pair] for pair in pairs if {one, other} & set(pair)]
        assert rivals, "both are left"
        assert min(rivals) <= cost

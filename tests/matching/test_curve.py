"""Pairs along the curve fit, and nobody is in two; many who could be paired are."""

from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from afterhours_service.matching.curve import Searcher, propose

RADIUS = 6_371_008.8


def crowd(seed: int, size: int, spread: float = 8000.0) -> list[Searcher]:
    """Return members of all kinds around one point."""
    dice = Random(seed)

    def searcher(number: int) -> Searcher:
        gender, seeks = dice.choice([(1, (2, 2)), (2, (1, 1)), (3, (0, 3)), (0, (0, 3)), (1, (0, 3))])
        age = dice.randint(18, 60)
        youngest, oldest = (age, age) if dice.random() < 0.9 else (18, 99)
        wish = (18, 99) if dice.random() < 0.3 else (max(18, age - 10), age + 10)
        return Searcher(
            f"member-{number}",
            RADIUS,
            dice.gauss(0, spread),
            dice.gauss(0, spread),
            gender,
            youngest,
            oldest,
            *seeks,
            *wish,
            dice.choice([5e3, 1e4, 2e5]),
            15.0,
        )

    return [searcher(number) for number in range(size)]


def fit(one: Searcher, other: Searcher) -> bool:
    metres = sum((a - b) ** 2 for a, b in zip(one[1:4], other[1:4], strict=True)) ** 0.5
    return all(
        a.seeks_low <= b.gender <= a.seeks_high
        and a.min_age <= b.youngest
        and b.oldest <= a.max_age
        and metres <= a.reach
        for a, b in ((one, other), (other, one))
    )


@given(seed=st.integers(0, 2**32), size=st.integers(0, 120))
def test_pairs_fit_and_nobody_is_in_two(seed: int, size: int) -> None:
    members = crowd(seed, size)
    found = {member.user_id: member for member in members}
    pairs = propose(members, 60)
    paired = [member for pair in pairs for member in pair]
    assert len(paired) == len(set(paired))
    assert all(fit(found[one], found[other]) for one, other in pairs)
    assert sorted(propose(list(reversed(members)), 60)) == sorted(pairs)


@pytest.mark.parametrize("spread", [100.0, 8000.0], ids=["in one street", "in a city"])
def test_few_are_left_of_a_crowd(spread: float) -> None:
    members = crowd(1, 600, spread)
    assert len(propose(members, 60)) * 2 >= 0.75 * len(members)


def test_the_nearer_of_two_is_chosen() -> None:
    anybody = Searcher("a", RADIUS, 0, 0, 0, 30, 30, 0, 3, 18, 99, 1e4, 15)
    near, far = anybody._replace(user_id="b", y=300.0), anybody._replace(user_id="c", y=-900.0)
    assert propose([anybody, near, far], 60) == [("a", "b")]
    assert propose([anybody, near, far._replace(waited=3600.0)], 60) == [("a", "c")]

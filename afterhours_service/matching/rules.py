"""stub"""

from fractions import Fraction
from collections.abc import Iterable
from datetime import datetime, timedelta

LENGTH_MINUTES = 10
ANSWER_MINUTES = 5
COOLDOWN_MINUTES = Fraction(1, 2)


def cost(metres: float, waited: float, minute_seconds: int) -> float:
    return metres / (1 + waited / minute_seconds)


def greedy(edges: Iterable[tuple[float, str, str]]) -> list[tuple[str, str]]:
    taken: set[str] = set()
    pairs = []
    for _, a, b in sorted(edges):
        if a not in taken and b not in taken:
            taken |= {a, b}
            pairs.append((a, b))
    return pairs


def counts_as_decline(now: datetime, respond_by: datetime | None) -> bool:
    return respond_by is None or now < respond_by - timedelta(seconds=2)

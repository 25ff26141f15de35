"""The rules of matching that are not SQL, as pure functions."""

from collections.abc import Iterable
from datetime import datetime, timedelta
from fractions import Fraction

LENGTH_MINUTES = 10
"""How long a match lasts, if both sessions last as long."""

ANSWER_MINUTES = 5
"""How long a match waits until one of the two accepts it."""

COOLDOWN_MINUTES = Fraction(1, 2)
"""How long a member who declined waits before somebody is looked for again. The trigger after_hours_match_over adds it,
too."""

CARD_SECONDS = 2
"""So long before a match is over for want of an answer, a client whose clock is ahead declines by itself."""

PUBLISH_LEASE = timedelta(seconds=10)
"""How long a process has to publish a match or its end; after that any worker does."""


def cost(metres: float, waited: float, minute_seconds: int) -> float:
    """Return what a pair costs: the lower, the sooner they are matched.

    metres: between their blurred points. waited: seconds, of both together; each minute of it counts as much as the
    distance itself, so that somebody far away is not left waiting for ever.
    """
    return metres / (1 + waited / minute_seconds)


def greedy(edges: Iterable[tuple[float, str, str]]) -> list[tuple[str, str]]:
    """Return pairs out of (cost, member, member), the cheapest first, nobody twice; no edge is left between the rest.

    With distinct costs no two members would both rather have each other, and the costs saved are at least half of the
    best possible (R. Preis, "Linear Time 1/2-Approximation Algorithm for Maximum Weighted Matching", 1999).
    """
    taken: set[str] = set()
    pairs = []
    for _, one, other in sorted(edges):
        if one not in taken and other not in taken:
            taken.update((one, other))
            pairs.append((one, other))
    return pairs


def counts_as_decline(now: datetime, respond_by: datetime | None) -> bool:
    """Return whether a decline is the member's own, and not their client's, which declines when nobody answered."""
    return respond_by is None or now < respond_by - timedelta(seconds=CARD_SECONDS)

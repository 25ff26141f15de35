"""Pairs for a crowd, as a pure function: neighbours along space-filling curves, then the cheapest pair first.

Members of a kind, which is a gender and whom it seeks, are sorted along a Z-curve through space. Each looks at those of
the kinds they may like that are next to them on the curve; two curves, shifted against each other, have no seam in
common (T. Chan, "Closest-point problems simplified on the RAM", 2002; S. Liao, M. Lopez, S. Leutenegger, "High
dimensional similarity search with space filling curves", 2001). Who is left over asks the index, which misses nobody.
"""

from bisect import bisect_left
from collections import defaultdict
from collections.abc import Sequence
from typing import NamedTuple

from afterhours_service.matching.rules import cost, greedy

ENOUGH = 6  # who fit, for each
WINDOW = 24  # neighbours looked at on either side
PASSES = 4
WORTH_A_PASS = 50  # the next pass is worth it if one out of so many was matched

_STEP_METRES = 32.0  # of the curve's grid
_ORIGIN_METRES = 6.5e6  # beyond the Earth's radius, so that no coordinate is negative
_SHIFTS = (0, 174_763)  # steps; a third of the curve's side
_TEN_BITS = [sum((number >> bit & 1) << 3 * bit for bit in range(10)) for number in range(1024)]


class Searcher(NamedTuple):
    """A member for whom somebody has to be found; docs/discovery.md explains the numbers.

    x, y, z: metres from the Earth's centre, of the blurred point. gender, seeks_low, seeks_high: numbers of genders.
    youngest, oldest: the member's age, or 18 and 99 if it is unknown. reach: metres. waited: seconds.
    """

    user_id: str
    x: float
    y: float
    z: float
    gender: float
    youngest: float
    oldest: float
    seeks_low: float
    seeks_high: float
    min_age: float
    max_age: float
    reach: float
    waited: float


def propose(searchers: Sequence[Searcher], minute_seconds: int) -> list[tuple[str, str]]:
    """Return pairs of members who fit each other, nobody twice. minute_seconds: length of a minute."""
    free, pairs = list(searchers), list[tuple[str, str]]()
    for _ in range(PASSES):
        found = greedy((price, *pair) for pair, price in _edges(free, minute_seconds).items())
        pairs += found
        if len(found) * WORTH_A_PASS < len(free):
            break
        taken = {member for pair in found for member in pair}
        free = [searcher for searcher in free if searcher.user_id not in taken]
    return pairs


def _edges(searchers: Sequence[Searcher], minute_seconds: int) -> dict[tuple[str, str], float]:
    """Return who fits whom, among neighbours on the curves, and what the pair costs."""
    edges: dict[tuple[str, str], float] = {}
    for shift in _SHIFTS:
        kinds: dict[tuple[float, float, float], list[tuple[int, Searcher]]] = defaultdict(list)
        for each in searchers:
            kinds[each.gender, each.seeks_low, each.seeks_high].append((_place(each, shift), each))
        for members in kinds.values():
            members.sort()
        for kind, asking in kinds.items():
            for other, asked in kinds.items():
                like_each_other = kind[1] <= other[0] <= kind[2] and other[1] <= kind[0] <= other[2]
                if like_each_other and (len(asking), kind) <= (len(asked), other):  # each two kinds once: the fewer ask
                    _look_around(asking, asked, minute_seconds, edges)
    return edges


def _look_around(
    asking: Sequence[tuple[int, Searcher]],
    asked: Sequence[tuple[int, Searcher]],
    minute_seconds: int,
    edges: dict[tuple[str, str], float],
) -> None:
    """Add the edges between two kinds; for each who asks at most ENOUGH, within WINDOW on either side."""
    places = [place for place, _ in asked]
    size, at = len(asked), 0
    for place, me in asking:
        at = bisect_left(places, place, at)
        user_id, x, y, z, _, youngest, oldest, _, _, min_age, max_age, reach, waited = me
        found = 0
        for step in range(WINDOW):
            if found >= ENOUGH:
                break
            for position in (at - 1 - step, at + step):
                if not 0 <= position < size:
                    continue
                other_id, ox, oy, oz, _, other_youngest, other_oldest, _, _, low, high, other_reach, other_waited = (
                    asked[position][1]
                )
                if not (min_age <= other_youngest and other_oldest <= max_age and low <= youngest and oldest <= high):
                    continue
                metres = ((x - ox) ** 2 + (y - oy) ** 2 + (z - oz) ** 2) ** 0.5
                if metres <= reach and metres <= other_reach and user_id != other_id:
                    pair = (user_id, other_id) if user_id < other_id else (other_id, user_id)
                    if pair not in edges:
                        edges[pair] = cost(metres, waited + other_waited, minute_seconds)
                    found += 1


def _place(searcher: Searcher, shift: int) -> int:
    """Return where a member is on a Z-curve: the bits of the three coordinates, interleaved."""
    x, y, z = (
        int((coordinate + _ORIGIN_METRES) / _STEP_METRES) + shift for coordinate in (searcher.x, searcher.y, searcher.z)
    )
    low = _TEN_BITS[x & 1023] | _TEN_BITS[y & 1023] << 1 | _TEN_BITS[z & 1023] << 2
    high = _TEN_BITS[x >> 10] | _TEN_BITS[y >> 10] << 1 | _TEN_BITS[z >> 10] << 2
    return low | high << 30

"""stub"""

from typing import NamedTuple
from collections.abc import Sequence


class Searcher(NamedTuple):
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
    return []

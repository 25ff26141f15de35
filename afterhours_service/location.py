"""The blur: pure functions from a place to the place that may be shown."""

import math
from collections.abc import Callable
from typing import NamedTuple

EARTH_RADIUS_METRES = 6_371_008.8  # mean radius, IUGG
BLUR_RADIUS_METRES = 500.0
BLUR_DECIMALS = 3


class Point(NamedTuple):
    """A place on Earth, in degrees; it prints without its coordinates."""

    latitude: float
    longitude: float

    def __repr__(self) -> str:
        return "<Point>"


def blur(point: Point, uniform: Callable[[], float]) -> Point:
    """Return a uniformly random point of the disc of BLUR_RADIUS_METRES around `point`, rounded to BLUR_DECIMALS.

    uniform: returns numbers from [0, 1). Destination on a sphere by bearing and distance, right at the poles and the
    antimeridian (Chris Veness, Movable Type Scripts, "Destination point given distance and bearing").
    """
    angle = BLUR_RADIUS_METRES * math.sqrt(uniform()) / EARTH_RADIUS_METRES
    bearing = 2 * math.pi * uniform()
    latitude, longitude = math.radians(point.latitude), math.radians(point.longitude)
    sine = math.sin(latitude) * math.cos(angle) + math.cos(latitude) * math.sin(angle) * math.cos(bearing)
    new_latitude = math.asin(max(-1.0, min(1.0, sine)))
    # Divided by cos(latitude), which is next to nothing at the poles: there every longitude is as likely as any other.
    new_longitude = longitude + math.atan2(
        math.sin(bearing) * math.sin(angle),
        math.cos(latitude) * math.cos(angle) - math.sin(latitude) * math.sin(angle) * math.cos(bearing),
    )
    degrees = (math.degrees(new_longitude) + 180) % 360 - 180
    return Point(round(math.degrees(new_latitude), BLUR_DECIMALS), round(degrees, BLUR_DECIMALS))

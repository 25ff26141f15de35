"""The picture in docs/privacy.md: where a member is shown in 300 sessions from one home, before and now."""

import math

import numpy as np

from afterhours_service.places.blur import BLUR_BOUND_METRES, CELL_RADIUS_METRES, NEAR_METRES, Point
from benchmarks.blurs import FUZZ_RADIUS_METRES, Array, Cells, Plane, fuzz

MEMBER_ID = "member-5"
SESSIONS = 300
NOISE_METRES = 8.0
_SCALE = 5.2  # metres to a unit of the picture
_HOME = (
    '<path d="M0 -9 9 0H6V8H-6V0H-9Z" fill="#111827" stroke="#fff" stroke-width="1.5"/>'
    '<text x="12" y="5" font-weight="600">home</text>'
)
_STYLE = (
    "<style>text{font:13px sans-serif;fill:#374151;stroke:#fff;stroke-width:4px;paint-order:stroke}"
    ".title{font-size:15px;font-weight:600}</style>"
)


def draw(home: Point, *, secret: bytes) -> str:
    rng = np.random.default_rng(1)
    plane = Plane(home)
    fixes = rng.normal(0, NOISE_METRES, (SESSIONS, 2))
    fuzzed = fuzz(fixes, plane, rng)
    cells = Cells(plane, 400, member_id=MEMBER_ID, secret=secret)
    shown = cells.points[np.unique(cells.track(fixes, [0] * SESSIONS, 90).shown)]
    order = np.hypot(*cells.centres.T).argsort()
    own, neighbour = cells.centres[order[:2]]
    bearing = math.atan2(*(neighbour - own)[::-1])
    near = [cell for cell in cells.centres if np.hypot(*cell) <= NEAR_METRES]
    before = [_circle(np.zeros(2), FUZZ_RADIUS_METRES), *_dots(fuzzed), _HOME, _cross(fuzzed.mean(axis=0))]
    now = [
        *(_hexagon(cell, bearing) for cell in near),
        _circle(shown[0], BLUR_BOUND_METRES),
        *_dots(shown, radius=6),
        _HOME,
    ]
    return "\n".join(
        [
            '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 720 432" role="img" aria-labelledby="title">',
            f'<title id="title">{SESSIONS} sessions from one home: a cloud around it before, one point now</title>',
            _STYLE,
            '<clipPath id="frame"><rect x="-170" y="-165" width="340" height="330" rx="6"/></clipPath>',
            '<rect width="720" height="432" fill="#fff"/>',
            *_panel(185, f"Before: {SESSIONS} random points", "their mean (+) is the home", before),
            *_panel(535, f"Now: {SESSIONS} times the same point", "the home may be anywhere in the circle", now),
            f'<path d="M20 413v8m0 -4h{250 / _SCALE:.1f}m0 -4v8" fill="none" stroke="#374151"/>',
            '<text x="78" y="421">250 m</text>',
            "</svg>\n",
        ]
    )


def _panel(x: int, title: str, caption: str, shapes: list[str]) -> list[str]:
    return [
        f'<g transform="translate({x} 200)">',
        f'<text class="title" y="-177" text-anchor="middle">{title}</text>',
        '<rect x="-170" y="-165" width="340" height="330" rx="6" fill="#f9fafb" stroke="#e5e7eb"/>',
        '<g clip-path="url(#frame)">',
        *shapes,
        "</g>",
        f'<text y="186" text-anchor="middle">{caption}</text>',
        "</g>",
    ]


def _xy(metres: Array) -> tuple[float, float]:
    east, north = metres / _SCALE
    return round(float(east), 1), round(float(-north), 1)


def _dots(points: Array, radius: float = 2.2) -> list[str]:
    return ['<g fill="#dc2626">', *(f'<circle cx="{x}" cy="{y}" r="{radius}"/>' for x, y in map(_xy, points)), "</g>"]


def _circle(centre: Array, radius: float) -> str:
    x, y = _xy(centre)
    return (
        f'<circle cx="{x}" cy="{y}" r="{radius / _SCALE:.1f}" fill="none" stroke="#6b7280" stroke-dasharray="5 4"/>'
        f'<text x="{x}" y="{y - radius / _SCALE - 5:.1f}" text-anchor="middle">{radius:.0f} m</text>'
    )


def _cross(centre: Array) -> str:
    x, y = _xy(centre)
    return f'<path d="M{x - 14} {y}h28M{x} {y - 14}v28" stroke="#60a5fa" stroke-width="2.5"/>'


def _hexagon(cell: Array, bearing: float) -> str:
    """The cell, one of whose neighbours lies towards `bearing`."""
    angles = bearing + (np.arange(6) + 0.5) * math.pi / 3
    corners = cell + CELL_RADIUS_METRES * np.stack([np.cos(angles), np.sin(angles)], axis=-1)
    path = "L".join(f"{x} {y}" for x, y in map(_xy, corners))
    return f'<path d="M{path}Z" fill="none" stroke="#d1d5db"/>'

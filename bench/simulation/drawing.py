"""Curves as an SVG picture, with nothing but text."""

from collections.abc import Mapping, Sequence
from html import escape
from math import floor, log10

Curve = Sequence[tuple[float, float]]

#: Told apart by those who see no red, or no green.
COLOURS = ("#0072b2", "#56b4e9", "#d55e00", "#009e73", "#cc79a7", "#e69f00")
_WIDTH, _HEIGHT = 640, 300
_LEFT, _RIGHT, _TOP, _BOTTOM = 64, 16, 36, 36


def picture(charts: Mapping[str, Mapping[str, Curve]]) -> str:
    """One chart under the other; each is a title and curves by label."""
    drawn = [_chart(title, curves, number * _HEIGHT) for number, (title, curves) in enumerate(charts.items())]
    size = f'width="{_WIDTH}" height="{max(1, len(drawn)) * _HEIGHT}"'
    style = "text{font:12px sans-serif;fill:#333}"
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" {size}>',
            f'<style>{style}</style><rect width="100%" height="100%" fill="#fff"/>',
            *drawn,
            "</svg>\n",
        ]
    )


def _chart(title: str, curves: Mapping[str, Curve], down: int) -> str:
    points = [point for curve in curves.values() for point in curve]
    most_x, most_y = (max((point[axis] for point in points), default=0.0) or 1.0 for axis in (0, 1))
    wide, high = _WIDTH - _LEFT - _RIGHT, _HEIGHT - _TOP - _BOTTOM

    def place(x: float, y: float) -> str:
        return f"{_LEFT + wide * x / most_x:.1f},{_TOP + high * (1 - y / most_y):.1f}"

    out = [f'<g transform="translate(0,{down})">', f'<text x="{_LEFT}" y="20" font-weight="bold">{escape(title)}</text>']
    for tick in _ticks(most_y):
        high_up = place(0, tick).partition(",")[2]
        out.append(f'<line x1="{_LEFT}" x2="{_WIDTH - _RIGHT}" y1="{high_up}" y2="{high_up}" stroke="#ddd"/>')
        out.append(f'<text x="{_LEFT - 6}" y="{high_up}" text-anchor="end">{tick:g}</text>')
    for tick in _ticks(most_x):
        along = place(tick, 0).partition(",")[0]
        out.append(f'<text x="{along}" y="{_HEIGHT - _BOTTOM + 18}" text-anchor="middle">{tick:g}</text>')
    for number, (label, curve) in enumerate(curves.items()):
        colour, at = COLOURS[number % len(COLOURS)], _WIDTH - _RIGHT - 110 * (len(curves) - number)
        line = " ".join(place(x, y) for x, y in curve)
        out.append(f'<polyline points="{line}" fill="none" stroke="{colour}" stroke-width="2"/>')
        out.append(f'<rect x="{at}" y="10" width="10" height="10" fill="{colour}"/><text x="{at + 14}" y="20">{escape(label)}</text>')
    return "\n".join([*out, "</g>"])


def _ticks(most: float) -> list[float]:
    """Four to ten round numbers from 0 to `most`."""
    step = 10.0 ** floor(log10(most))
    step = next(each for each in (step, step / 2, step / 5, step / 10) if most / each >= 4)
    return [number * step for number in range(int(most / step) + 1)]

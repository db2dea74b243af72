"""A picture of an ablation as SVG: each row a point with its intervals. Needs no library."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any
from xml.sax.saxutils import escape

from solon.trainer.ablation.results import Result

_WIDTH, _HEIGHT = 900, 560
_LEFT, _TOP, _SIDE = 80, 30, 460
_COLOURS = ("#1b6ca8", "#d1495b", "#2e7d32", "#b8860b", "#6a4c93", "#00798c", "#8d5524", "#555555")


@dataclass(frozen=True, slots=True)
class _Point:
    number: int
    title: str
    x: float
    y: float
    half_x: float
    half_y: float

    @property
    def colour(self) -> str:
        return _COLOURS[(self.number - 1) % len(_COLOURS)]


@dataclass(frozen=True, slots=True)
class _Axis:
    """Values to pixels."""

    low: float
    high: float
    start: float
    end: float

    def at(self, value: float) -> float:
        return self.start + (value - self.low) / (self.high - self.low) * (self.end - self.start)

    def ticks(self) -> Iterator[float]:
        return (self.low + (self.high - self.low) * step / 4 for step in range(5))


def svg(result: Result) -> str:
    """The picture; rows that have not been measured are not in it."""
    points = list(_points(result))
    x, y = result["picture"]["x"], result["picture"]["y"]
    across = _axis([(p.x, p.half_x) for p in points], _LEFT, _LEFT + _SIDE)
    up = _axis([(p.y, p.half_y) for p in points], _TOP + _SIDE, _TOP)
    body = [*_frame(x, y, across, up)]
    for point in points:
        body += _drawn(point, across, up)
    size = f'width="{_WIDTH}" height="{_HEIGHT}" viewBox="0 0 {_WIDTH} {_HEIGHT}"'
    style = 'font-family="sans-serif" font-size="13"'
    white = f'<rect width="{_WIDTH}" height="{_HEIGHT}" fill="white"/>'
    head = f'<svg xmlns="http://www.w3.org/2000/svg" {size} {style}>'
    return "\n".join([head, white, *body, "</svg>", ""])


def _points(result: Result) -> Iterator[_Point]:
    axes = result["picture"]
    for number, row in enumerate(result["rows"].values(), 1):
        x, y = (row["measures"].get(axes[axis]) for axis in ("x", "y"))
        if x and y:
            yield _Point(number, row["title"], x["mean"], y["mean"], _half(x), _half(y))


def _half(found: Mapping[str, Any]) -> float:
    return float(found["half"] or 0.0)


def _axis(values: list[tuple[float, float]], start: float, end: float) -> _Axis:
    low = min((value - half for value, half in values), default=0.0)
    high = max((value + half for value, half in values), default=1.0)
    room = 0.05 * (high - low) or 0.05
    return _Axis(low - room, high + room, start, end)


def _frame(x: str, y: str, across: _Axis, up: _Axis) -> Iterator[str]:
    yield (
        f'<rect x="{_LEFT}" y="{_TOP}" width="{_SIDE}" height="{_SIDE}" fill="none" stroke="#999"/>'
    )
    bottom = _TOP + _SIDE
    for value in across.ticks():
        yield _text(across.at(value), bottom + 18, _tick(x, value), anchor="middle")
    for value in up.ticks():
        yield _text(_LEFT - 8, up.at(value) + 4, _tick(y, value), anchor="end")
    yield _text(_LEFT + _SIDE / 2, bottom + 42, _name(x), anchor="middle")
    turn = f'transform="rotate(-90 18 {_TOP + _SIDE / 2:.0f})"'
    yield _text(18, _TOP + _SIDE / 2, _name(y), anchor="middle", more=turn)


def _drawn(point: _Point, across: _Axis, up: _Axis) -> Iterator[str]:
    x, y = across.at(point.x), up.at(point.y)
    line = f'stroke="{point.colour}" stroke-opacity="0.5"'
    ends = across.at(point.x - point.half_x), across.at(point.x + point.half_x)
    yield f'<line x1="{ends[0]:.1f}" y1="{y:.1f}" x2="{ends[1]:.1f}" y2="{y:.1f}" {line}/>'
    ends = up.at(point.y - point.half_y), up.at(point.y + point.half_y)
    yield f'<line x1="{x:.1f}" y1="{ends[0]:.1f}" x2="{x:.1f}" y2="{ends[1]:.1f}" {line}/>'
    yield f'<circle cx="{x:.1f}" cy="{y:.1f}" r="4" fill="{point.colour}"/>'
    yield _text(x + 7, y - 6, str(point.number), more=f'fill="{point.colour}"')
    legend = f"{point.number}  {point.title}"
    yield _text(_LEFT + _SIDE + 24, _TOP + 20 * point.number, legend, more=f'fill="{point.colour}"')


def _text(x: float, y: float, text: str, *, anchor: str = "start", more: str = "") -> str:
    place = f'x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}"'
    return f"<text {place} {more}>{escape(text)}</text>"


def _name(measure: str) -> str:
    return measure.replace(".", " ").replace("_", " ")


def _tick(measure: str, value: float) -> str:
    return f"{value:.0f} s" if measure == "seconds" else f"{100 * value:.1f} %"

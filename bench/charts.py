"""Charts as plain SVG text, without a library: bars, and curves on logarithmic axes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from math import ceil, floor, log10

OURS, OTHERS = "#0b6e4f", "#9aa5b1"
COLOURS = (OURS, "#c2571a", "#3d5a98", "#7a3e8e")
INK, FAINT = "#1f2933", "#d9dee3"
WIDTH = 760
_BAR_HEIGHT, _BAR_GAP, _TOP = 22, 10, 44
_LABEL_WIDTH, _VALUE_WIDTH = 270, 130


@dataclass(frozen=True, slots=True)
class Bar:
    """One bar; `note` stands behind its value."""

    label: str
    value: float
    ours: bool = False
    note: str = ""


@dataclass(frozen=True, slots=True)
class Curve:
    """One line through points (x, y), and `marks` that were measured."""

    label: str
    points: Sequence[tuple[float, float]]
    marks: Sequence[tuple[float, float]] = ()


def bars(title: str, items: Sequence[Bar], *, form: str = ",.0f") -> str:
    """Draw horizontal bars from zero, in the order given."""
    widest = max((item.value for item in items), default=1.0) or 1.0
    room = WIDTH - _LABEL_WIDTH - _VALUE_WIDTH
    parts = [_text(0, 20, title, weight="bold", size=15)]
    for number, item in enumerate(items):
        top = _TOP + number * (_BAR_HEIGHT + _BAR_GAP)
        middle = top + _BAR_HEIGHT / 2 + 4
        length = max(room * item.value / widest, 1)
        colour, weight = (OURS, "bold") if item.ours else (OTHERS, "normal")
        value = f"{item.value:{form}}" + (f"  {item.note}" if item.note else "")
        parts += [
            _text(_LABEL_WIDTH - 10, middle, item.label, anchor="end", weight=weight),
            f'<rect x="{_LABEL_WIDTH}" y="{top}" width="{length:.1f}" height="{_BAR_HEIGHT}"'
            f' rx="2" fill="{colour}"/>',
            _text(_LABEL_WIDTH + length + 8, middle, value, weight=weight),
        ]
    return _svg(title, _TOP + len(items) * (_BAR_HEIGHT + _BAR_GAP), parts)


def curves(title: str, lines: Sequence[Curve], *, x_name: str, y_name: str) -> str:
    """Draw curves on logarithmic axes: x in powers of 2, y in powers of 10."""
    left, right, top, bottom = 70, WIDTH - 150, 50, 330
    xs = sorted({x for line in lines for x, _ in line.points})
    ys = [y for line in lines for _, y in [*line.points, *line.marks]]
    if not ys:
        return _svg(title, top, [_text(0, 20, f"{title}: not measured", weight="bold", size=15)])
    low, high = floor(log10(min(ys))), ceil(log10(max(ys)))

    def place(x: float, y: float) -> tuple[float, float]:
        across = log10(x / xs[0]) / (log10(xs[-1] / xs[0]) or 1)
        up = (log10(y) - low) / max(high - low, 1)
        return left + (right - left) * across, bottom - (bottom - top) * up

    parts = [_text(0, 20, title, weight="bold", size=15), _text(0, 38, y_name, size=12)]
    for x in xs:
        across, _ = place(x, 10**low)
        parts += [
            _line(across, top, across, bottom),
            _text(across, bottom + 18, f"{x:g}", "middle"),
        ]
    for power in range(low, high + 1):
        _, up = place(xs[0], 10**power)
        parts += [_line(left, up, right, up), _text(left - 8, up + 4, f"{10**power:,}", "end")]
    parts.append(_text((left + right) / 2, bottom + 38, x_name, "middle"))
    ends = _apart([place(*line.points[-1])[1] for line in lines])
    for line, colour, label_y in zip(lines, COLOURS, ends, strict=False):
        parts += _curve(line, colour, [place(*p) for p in line.points], label_y)
        parts += [_mark(*place(*mark), colour) for mark in line.marks]
    return _svg(title, bottom + 50, parts)


def _apart(heights: Sequence[float], gap: float = 16) -> list[float]:
    """Move labels down where they would lie upon each other."""
    moved, lowest = list(heights), float("-inf")
    for number in sorted(range(len(moved)), key=lambda n: heights[n]):
        moved[number] = lowest = max(heights[number], lowest + gap)
    return moved


def _curve(
    line: Curve, colour: str, placed: list[tuple[float, float]], label_y: float
) -> list[str]:
    path = " ".join(f"{x:.1f},{y:.1f}" for x, y in placed)
    return [
        f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="2.5"/>',
        _text(placed[-1][0] + 8, label_y + 4, line.label, colour=colour),
    ]


def _mark(x: float, y: float, colour: str) -> str:
    return (
        f'<circle cx="{x:.1f}" cy="{y:.1f}" r="5" fill="white" stroke="{colour}" stroke-width="2"/>'
    )


def _line(x1: float, y1: float, x2: float, y2: float) -> str:
    return f'<line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" stroke="{FAINT}"/>'


def _text(
    x: float,
    y: float,
    text: str,
    anchor: str = "start",
    *,
    weight: str = "normal",
    size: int = 13,
    colour: str = INK,
) -> str:
    return (
        f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" font-weight="{weight}"'
        f' font-size="{size}" fill="{colour}" xml:space="preserve">{escape(text)}</text>'
    )


def _svg(title: str, height: float, parts: Sequence[str]) -> str:
    """Wrap the parts; its own white ground keeps it readable on a dark page."""
    margin = 16
    box = f"{-margin} {-margin} {WIDTH + 2 * margin} {height + 2 * margin:.0f}"
    ground = f'<rect x="{-margin}" y="{-margin}" width="100%" height="100%" fill="white" rx="6"/>'
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="{box}" width="{WIDTH + 2 * margin}"'
        f' role="img" aria-label="{escape(title)}" font-family="system-ui, sans-serif">'
        f"{ground}{''.join(parts)}</svg>\n"
    )

"""Charts as SVG text, drawn by matplotlib: bars, and curves on logarithmic axes."""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from bench import common

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

OURS, OTHERS = "#0b6e4f", "#9aa5b1"
COLOURS = (OURS, "#c2571a", "#3d5a98", "#7a3e8e")
INK, FAINT = "#1f2933", "#d9dee3"
_WIDTH_INCHES = 8.25
# Text stays text, and the same chart is the same bytes.
_STYLE = {
    "svg.fonttype": "none",
    "svg.hashsalt": "memworker",
    "font.size": 10,
    "text.color": INK,
    "text.parse_math": False,
}
_NO_METADATA = dict.fromkeys(("Creator", "Date", "Format", "Type"))


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
    """Draw horizontal bars from zero, in the order given.

    Raises UsageError where matplotlib is not installed.
    """
    return _svg(lambda axes: draw_bars(axes, title, items, form), 0.6 + 0.36 * len(items))


def curves(title: str, lines: Sequence[Curve], *, x_name: str, y_name: str) -> str:
    """Draw curves on logarithmic axes: x in powers of 2, y in powers of 10.

    Raises UsageError where matplotlib is not installed.
    """
    if not any(line.points for line in lines):
        return _svg(lambda axes: draw_bars(axes, f"{title}: not measured", [], ""), 0.6)
    return _svg(lambda axes: draw_curves(axes, title, lines, x_name, y_name), 4.2)


def draw_bars(axes: Axes, title: str, items: Sequence[Bar], form: str) -> None:
    """Put bars on axes, the first on top."""
    _head(axes, title)
    axes.invert_yaxis()
    axes.spines[:].set_visible(False)
    axes.tick_params(length=0)
    axes.xaxis.set_visible(False)
    rows = range(len(items))
    drawn = axes.barh(
        rows,
        [item.value for item in items],
        height=0.68,
        color=[OURS if item.ours else OTHERS for item in items],
    )
    axes.bar_label(drawn, [f"{item.value:{form}}  {item.note}" for item in items], padding=6)
    axes.set_yticks(rows, [item.label for item in items])
    for label, item in zip(axes.get_yticklabels(), items, strict=True):
        label.set_fontweight("bold" if item.ours else "normal")
    axes.margins(x=0.15)


def draw_curves(axes: Axes, title: str, lines: Sequence[Curve], x_name: str, y_name: str) -> None:
    """Put curves on axes, what was measured as circles."""
    _head(axes, title)
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    axes.set_xlabel(x_name)
    axes.set_ylabel(y_name)
    axes.grid(color=FAINT)
    axes.spines[:].set_visible(False)
    for line, colour in zip(lines, COLOURS, strict=False):
        axes.plot(*zip(*line.points, strict=True), color=colour, label=line.label)
        if line.marks:
            xs, ys = zip(*line.marks, strict=True)
            axes.plot(xs, ys, "o", color=colour, markerfacecolor="white")
    xs = sorted({x for line in lines for x, _ in line.points})
    axes.set_xticks(xs, [f"{x:g}" for x in xs])
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
    axes.minorticks_off()
    axes.legend(frameon=False)


def _head(axes: Axes, title: str) -> None:
    figure = axes.get_figure()
    figure.suptitle(title, x=0.01, horizontalalignment="left", fontsize=11, fontweight="bold")


def _svg(draw: Callable[[Axes], None], height: float) -> str:
    """Draw on a figure `height` inches high; its white ground keeps it readable on a dark page."""
    rc_context = common.optional("matplotlib").rc_context
    new_figure = common.optional("matplotlib.figure").Figure
    with rc_context(_STYLE):
        figure: Figure = new_figure(figsize=(_WIDTH_INCHES, height), layout="constrained")
        draw(figure.add_subplot())
        out = io.StringIO()
        figure.savefig(out, format="svg", metadata=_NO_METADATA)
    # What precedes the element belongs to a file of its own, not into a page.
    return out.getvalue()[out.getvalue().index("<svg") :]

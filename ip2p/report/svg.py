"""Charts as inline SVG in one style: thin grid, direct labels, colours from the page's own variables.

Colour comes from CSS classes only, so that a chart follows the page into dark mode; no chart tells by colour alone.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from markupsafe import Markup, escape

Point = tuple[float, float]
Range = tuple[float, float]

MARKS = (
    "M-4.5 0a4.5 4.5 0 1 0 9 0a4.5 4.5 0 1 0 -9 0z",
    "M-4 -4h8v8h-8z",
    "M0 -5.5L5.5 0L0 5.5L-5.5 0z",
    "M0 -5.2L5 4H-5z",
    "M0 5.2L5 -4H-5z",
    "M-1.8 -5h3.6v3.2h3.2v3.6h-3.2v3.2h-3.6v-3.2h-3.2v-3.6h3.2z",
)
"""Shapes of the series around a centre: disc, square, diamond, triangles, cross. There are as many colours."""


@dataclass(frozen=True, slots=True)
class Frame:
    """A plotting area in pixels and the data ranges it shows."""

    x: Range
    y: Range
    width: float = 420
    height: float = 250
    left: float = 48
    right: float = 14
    top: float = 14
    bottom: float = 42

    def px(self, value: float) -> float:
        """Returns the horizontal pixel of a value."""
        return self.left + (value - self.x[0]) / (self.x[1] - self.x[0]) * (self.width - self.left - self.right)

    def py(self, value: float) -> float:
        """Returns the vertical pixel of a value."""
        return (
            self.height
            - self.bottom
            - (value - self.y[0]) / (self.y[1] - self.y[0]) * (self.height - self.top - self.bottom)
        )


@dataclass(slots=True)
class Drawing:
    """SVG elements inside a frame; a screen reader reads out `title` and `text`."""

    frame: Frame
    title: str
    text: str
    elements: list[str] = field(default_factory=list)

    def line(self, points: Sequence[Point], css: str) -> None:
        """Draws a line through data points."""
        path = " ".join(f"{self.frame.px(x):.1f},{self.frame.py(y):.1f}" for x, y in points)
        self.elements.append(f'<polyline class="{css}" points="{path}"/>')

    def mark(self, x: float, y: float, series: int, tip: str) -> None:
        """Draws a point with a tooltip; its shape and colour tell its series."""
        place = f'transform="translate({self.frame.px(x):.1f} {self.frame.py(y):.1f})"'
        path = f'<path d="{MARKS[series % len(MARKS)]}" {place}>'
        self.elements.append(f'<g class="mark s{series}">{path}<title>{escape(tip)}</title></path></g>')

    def area(self, outlines: Sequence[Sequence[Point]], css: str) -> None:
        """Fills the union of some outlines of data points as one area."""
        paths = (" ".join(f"{self.frame.px(x):.1f},{self.frame.py(y):.1f}" for x, y in outline) for outline in outlines)
        inside = "".join(f'<polygon points="{path}"/>' for path in paths)
        self.elements.append(f'<g class="{css}">{inside}</g>')

    def bar(self, x: Range, y: Range, css: str, tip: str = "") -> None:
        """A rectangle between data corners."""
        left, top = self.frame.px(x[0]), self.frame.py(y[1])
        width, height = max(0.0, self.frame.px(x[1]) - left), max(0.0, self.frame.py(y[0]) - top)
        place = f'x="{left:.1f}" y="{top:.1f}" width="{width:.1f}" height="{height:.1f}"'
        self.elements.append(f'<rect class="{css}" {place}><title>{escape(tip)}</title></rect>')

    def segment(self, start: Point, end: Point, css: str) -> None:
        """A straight line between two data points."""
        self.line([start, end], css)

    def label(
        self, x: float, y: float, words: str, css: str = "note", anchor: str = "start", shift: Point = (0, 0)
    ) -> None:
        """Writes words at a data point, moved by a shift in pixels."""
        self._words(self.frame.px(x) + shift[0], self.frame.py(y) + shift[1], words, css, anchor)

    def axes(
        self,
        x_title: str,
        y_title: str,
        *,
        x_ticks: Sequence[float] | None = None,
        y_ticks: int = 5,
        x_number: Callable[[float], str] | None = None,
        y_number: Callable[[float], str] | None = None,
    ) -> None:
        """Draws grid, tick labels and titles; call it first, so that the data lies on top."""
        frame, base = self.frame, self.frame.height - self.frame.bottom
        for value in ticks(frame.y, y_ticks) if y_ticks else ():
            self._rule(frame.py(value), "grid")
            self._words(frame.left - 8, frame.py(value) + 4, (y_number or number)(value), "tick", "end")
        for value in ticks(frame.x, 6) if x_ticks is None else x_ticks:
            self._words(frame.px(value), base + 18, (x_number or number)(value), "tick", "middle")
        self._rule(base, "axis")
        self._words((frame.left + frame.width - frame.right) / 2, frame.height - 6, x_title, "axis-title", "middle")
        if y_title:
            turned = f'transform="translate(12 {(frame.top + base) / 2:.1f}) rotate(-90)"'
            self.elements.append(f'<text class="axis-title" {turned} text-anchor="middle">{escape(y_title)}</text>')

    def _rule(self, height: float, css: str) -> None:
        ends = f'x1="{self.frame.left}" x2="{self.frame.width - self.frame.right}" y1="{height:.1f}" y2="{height:.1f}"'
        self.elements.append(f'<line class="{css}" {ends}/>')

    def _words(self, x: float, y: float, words: str, css: str, anchor: str) -> None:
        place = f'x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}"'
        self.elements.append(f'<text class="{css}" {place}>{escape(words)}</text>')

    def svg(self) -> Markup:
        """Returns the finished chart."""
        width, height = self.frame.width, self.frame.height
        size = f'viewBox="0 0 {width:g} {height:g}" style="max-width:{width * 1.4:.0f}px"'
        head = f'<svg class="chart" role="img" aria-label="{escape(self.title)}. {escape(self.text)}" {size}>'
        return Markup(head + "".join(self.elements) + "</svg>")


@dataclass(frozen=True, slots=True)
class Chart:
    """A chart with what stands around it."""

    title: str
    svg: Markup
    legend: Markup | None = None
    num_left_out: int = 0
    """Series that the chart has no colour for."""


def legend(names: Sequence[str]) -> Markup:
    """Tells which shape and colour is which series."""
    keys = (
        f'<li><svg width="14" height="14" viewBox="-7 -7 14 14" aria-hidden="true">'
        f'<g class="mark s{number}"><path d="{MARKS[number % len(MARKS)]}"/></g></svg> {escape(name)}</li>'
        for number, name in enumerate(names)
    )
    return Markup('<ul class="legend">' + "".join(keys) + "</ul>")


def ticks(bounds: Range, about: int) -> list[float]:
    """Returns round numbers inside a range, about `about` of them."""
    low, high = bounds
    step = round_step((high - low) / max(1, about))
    first = math.ceil(low / step - 1e-9)
    return [index * step for index in range(first, math.floor(high / step + 1e-9) + 1)]


def round_step(step: float) -> float:
    """Returns the least of 1, 2, 2.5, 5 times a power of ten that is no smaller."""
    if step <= 0 or not math.isfinite(step):
        return 1.0
    power = 10.0 ** math.floor(math.log10(step))
    return next(power * factor for factor in (1, 2, 2.5, 5, 10) if power * factor >= step * (1 - 1e-9))


def padded(values: Sequence[float], share: float = 0.06) -> Range:
    """Returns a range around values with a margin on both sides; (0, 1) if there are none."""
    finite = [value for value in values if math.isfinite(value)]
    if not finite:
        return 0.0, 1.0
    low, high = min(finite), max(finite)
    margin = (high - low) * share or max(abs(high), 1.0) * 0.1
    return low - margin, high + margin


def number(value: float) -> str:
    """Writes the number of a tick, short."""
    if abs(value) >= 10_000:
        return f"{value / 1000:g}k"
    return f"{round(value, 6):g}".replace("-", "−")

"""The paper's figure 8: what an editor keeps of the input against how far it follows the text, along its knob.

Shaded is, at every point, the 95 % interval both ways, joined from point to point.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from typing import Any

from markupsafe import Markup

from ip2p.evaluation.report.charts import MARKS, Drawing, Frame, Point, padded
from ip2p.evaluation.report.figures import interval_of

Row = Mapping[str, Any]
X, Y = "clip_direction", "clip_image"
KNOBS = {"image_guidance_scale": "image guidance", "strength": "strength", "guidance_scale": "text guidance"}
"""What a point may stand for, by column."""
LABEL = (26.0, 12.0)
"""Room of a point's label in pixels."""
SHIFTS = ((9, -8), (9, 16), (-9, -8), (-9, 16))
"""Where it may go, beside its point."""


def usable(curves: Mapping[str, Sequence[Row]]) -> dict[str, list[Row]]:
    """The curves that have points, without the points that lack a figure; as many as there are colours."""
    found = {name: [point for point in curve if _is_whole(point)] for name, curve in curves.items()}
    return dict(itertools.islice(((name, points) for name, points in found.items() if points), len(MARKS)))


def _is_whole(point: Row) -> bool:
    return all(point.get(name) is not None and math.isfinite(point[name]) for name in (X, Y))


def knob_of(point: Row) -> tuple[str, float | None]:
    """What a point of a curve stands for, in words, and its value."""
    told = ((words, float(point[name])) for name, words in KNOBS.items() if point.get(name) is not None)
    return next(told, ("", None))


def tradeoff_chart(curves: Mapping[str, Sequence[Row]]) -> Markup | None:
    """Every curve with its band; None where there is no point."""
    curves = usable(curves)
    points = [point for curve in curves.values() for point in curve]
    if not points:
        return None
    xs, ys = ([bound for point in points for bound in interval_of(point, name)] for name in (X, Y))
    frame = Frame(padded(xs, 0.06), padded(ys, 0.08), width=460, height=320, left=60)
    drawing = Drawing(frame, "CLIP image similarity against direction", _told(curves))
    drawing.axes("CLIP direction similarity (edit follows the text) →", "CLIP image similarity →")
    for number, curve in enumerate(curves.values()):
        drawing.area(band_of(curve), f"band s{number}")
    for number, curve in enumerate(curves.values()):
        drawing.line([(point[X], point[Y]) for point in curve], f"series s{number}")
    for number, (name, curve) in enumerate(curves.items()):
        for point in curve:
            drawing.mark(
                point[X], point[Y], number, f"{name}{_at(point)}: direction {point[X]:.3f}, image {point[Y]:.3f}"
            )
    _label(drawing, curves)
    return drawing.svg()


def _told(curves: Mapping[str, Sequence[Row]]) -> str:
    lines = (
        f"{name}: " + ", ".join(f"{point[X]:.3f} and {point[Y]:.3f}{_at(point)}" for point in curve)
        for name, curve in curves.items()
    )
    return "; ".join(lines)


def _at(point: Row) -> str:
    words, value = knob_of(point)
    return f" at {words} {value:g}" if value is not None else ""


def _label(drawing: Drawing, curves: Mapping[str, Sequence[Row]]) -> None:
    """The knob beside every point where its words hide nothing; of several curves the ends alone."""
    frame = drawing.frame
    places = [(frame.px(point[X]), frame.py(point[Y])) for curve in curves.values() for point in curve]
    taken = [(x - 5, y - 5, x + 5, y + 5) for x, y in places]
    for curve in curves.values():
        for point in curve if len(curves) == 1 else {id(each): each for each in (curve[0], curve[-1])}.values():
            value = knob_of(point)[1]
            at = frame.px(point[X]), frame.py(point[Y])
            free = next((shift for shift in SHIFTS if _is_free(_box(at, shift), taken)), None)
            if value is None or free is None:
                continue
            taken.append(_box(at, free))
            drawing.label(point[X], point[Y], f"{value:g}", "point-label", "start" if free[0] > 0 else "end", free)


def _box(at: Point, shift: Point) -> tuple[float, float, float, float]:
    left = at[0] + shift[0] - (LABEL[0] if shift[0] < 0 else 0)
    return left, at[1] + shift[1] - LABEL[1] + 2, left + LABEL[0], at[1] + shift[1] + 2


def _is_free(box: tuple[float, ...], taken: Sequence[tuple[float, ...]]) -> bool:
    return not any(
        box[0] < other[2] and other[0] < box[2] and box[1] < other[3] and other[1] < box[3] for other in taken
    )


def band_of(curve: Sequence[Row]) -> list[list[Point]]:
    """Outlines whose union is the band: the hull of every two neighbours' intervals; of one point its own."""
    rounds = [_round(point) for point in curve]
    if len(rounds) == 1:
        return rounds
    return [convex_hull([*one, *other]) for one, other in itertools.pairwise(rounds)]


def _round(point: Row, num: int = 32) -> list[Point]:
    """An outline that reaches as far as the interval in each of the four directions."""
    (left, right), (low, high) = interval_of(point, X), interval_of(point, Y)
    outline = []
    for number in range(num):
        across, along = math.cos(2 * math.pi * number / num), math.sin(2 * math.pi * number / num)
        reach = (right - point[X]) if across > 0 else (point[X] - left)
        rise = (high - point[Y]) if along > 0 else (point[Y] - low)
        outline.append((point[X] + reach * across, point[Y] + rise * along))
    return outline


def convex_hull(points: Sequence[Point]) -> list[Point]:
    """The corners of the least convex outline around points, counter-clockwise."""
    ordered = sorted(set(points))
    if len(ordered) < 3:
        return ordered
    return [*_chain(ordered)[:-1], *_chain(ordered[::-1])[:-1]]


def _chain(ordered: Sequence[Point]) -> list[Point]:
    chain: list[Point] = []
    for point in ordered:
        while len(chain) > 1 and _turn(chain[-2], chain[-1], point) <= 0:
            chain.pop()
        chain.append(point)
    return chain


def _turn(first: Point, second: Point, third: Point) -> float:
    """Positive where the way over three points turns left."""
    return (second[0] - first[0]) * (third[1] - first[1]) - (second[1] - first[1]) * (third[0] - first[0])

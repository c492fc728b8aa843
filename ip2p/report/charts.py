"""The report's charts: what each one plots, in which range and with which words."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
from markupsafe import Markup

from ip2p.report.format import is_number, mapping, percent, score
from ip2p.report.svg import MARKS, Drawing, Frame, Point, padded
from ip2p.scoring import Score

Row = Mapping[str, Any]

NUM_BINS = 36
QUARTERS = (0.0, 0.25, 0.5, 0.75, 1.0)


def score_histogram(candidates: pa.Table, score: Score, thresholds: Row) -> Markup | None:
    """Draws accepted below, rejected stacked on top, thresholds as dashed lines; None if nothing was measured."""
    if score.column not in candidates.column_names:
        return None
    values = candidates[score.column].cast(pa.float64()).to_numpy()
    accepted = candidates["accepted"].cast(pa.bool_()).fill_null(False).to_numpy()
    finite = np.isfinite(values)
    values, accepted = values[finite], accepted[finite]
    if not values.size:
        return None
    bounds = _bounds_of(score, thresholds)
    low, high = padded([values.min(), values.max(), *bounds.values()], 0.02)
    edges = np.linspace(low, high, NUM_BINS + 1)
    kept, _ = np.histogram(values[accepted], edges)
    dropped, _ = np.histogram(values[~accepted], edges)
    text = f"{_told(values[accepted])} accepted; {_told(values[~accepted])} rejected"
    frame = Frame((low, high), (0, max(1, (kept + dropped).max() * 1.12)), width=420, height=210, left=52)
    drawing = Drawing(frame, score.meaning, text)
    drawing.axes(score.unit, "", y_ticks=3)
    for left, right, some, rest in zip(edges[:-1], edges[1:], kept, dropped, strict=True):
        where = f"{left:.3f} to {right:.3f}"
        drawing.bar((left, right), (0, some), "accepted", f"{where}: {some} accepted")
        drawing.bar((left, right), (some, some + rest), "rejected", f"{where}: {rest} rejected")
    for sign, value in bounds.items():
        drawing.segment((value, 0), (value, frame.y[1]), "threshold")
        near_end = value > low + 0.7 * (high - low)
        shift = (-5, 10) if near_end else (5, 10)
        drawing.label(value, frame.y[1], f"{sign} {value:g}", anchor="end" if near_end else "start", shift=shift)
    return drawing.svg()


def _bounds_of(score: Score, thresholds: Row) -> dict[str, float]:
    """Returns the thresholds of a score by their sign; one that every similarity passes is left out."""
    set_bounds = {**thresholds, **mapping(thresholds.get("further"))}
    bounds = {"≥": set_bounds.get(score.name), "≤": set_bounds.get(f"max_{score.name}")}
    floor = -1.0 if score.is_similarity else -math.inf
    return {sign: value for sign, value in bounds.items() if is_number(value) and value > floor}


def _told(values: Any) -> str:
    return f"{values.size} (mean {values.mean():.3f})" if values.size else "none"


def loss_chart(loss: Sequence[Row]) -> Markup | None:
    """The logged loss, thin, and its running mean; None with fewer than two entries."""
    rows = [row for row in loss if math.isfinite(row["loss"])]
    if len(rows) < 2:
        return None
    steps = np.array([row["step"] for row in rows], np.float64)
    values = np.array([row["loss"] for row in rows], np.float64)
    smooth = running_mean(values, max(1, len(values) // 20))
    top = float(np.quantile(values, 0.98)) * 1.15 or 1.0
    text = f"from {smooth[0]:.4f} at step {steps[0]:.0f} to {smooth[-1]:.4f} at step {steps[-1]:.0f}"
    drawing = Drawing(Frame((0.0, float(steps[-1])), (0.0, top), width=460, height=230), "Training loss", text)
    drawing.axes("optimizer step", "loss")
    every = max(1, len(rows) // 500)
    drawing.line([(x, min(y, top)) for x, y in zip(steps[::every], values[::every], strict=True)], "raw")
    drawing.line([(x, min(y, top)) for x, y in zip(steps[::every], smooth[::every], strict=True)], "series")
    drawing.label(steps[-1], smooth[-1], f"{smooth[-1]:.4f}", anchor="end", shift=(0, -10))
    return drawing.svg()


def running_mean(values: Any, reach: int) -> Any:
    """Mean over the neighbours within reach on both sides."""
    sums = np.concatenate([[0.0], np.cumsum(values)])
    low = np.maximum(np.arange(len(values)) - reach, 0)
    high = np.minimum(np.arange(len(values)) + reach + 1, len(values))
    return (sums[high] - sums[low]) / (high - low)


RATES = {"done": "rate-done", "kept": "rate-kept", "success": "rate-success"}


def rates_chart(curve: Sequence[Row]) -> Markup | None:
    """Done, kept and success over the image guidance scale with Wilson bands; None where nothing was judged."""
    points = [point for point in curve if point.get("success") is not None]
    if len(points) < 2:
        return None
    scales = [float(point["image_guidance_scale"]) for point in points]
    text = "; ".join(
        f"at {scale:g} success {point['success']:.0%}" for scale, point in zip(scales, points, strict=True)
    )
    frame = Frame((scales[0], scales[-1]), (0.0, 1.0), width=460, height=320, left=72, right=70)
    drawing = Drawing(frame, "Oracle's shares over the image guidance scale", text)
    drawing.axes("image guidance scale", "share of edits", x_ticks=scales, y_number=percent)
    for name, css in RATES.items():
        bounds = [interval_of(point, name) for point in points]
        lows = [(scale, low) for scale, (low, _) in zip(scales, bounds, strict=True)]
        highs = [(scale, high) for scale, (_, high) in zip(scales, bounds, strict=True)]
        drawing.band(lows, highs, f"band {css}")
    heights: list[float] = []
    for name, css in RATES.items():
        drawing.line([(scale, point[name]) for scale, point in zip(scales, points, strict=True)], f"series {css}")
        last = points[-1][name]
        heights.append(_free_height(frame.py(last), heights))
        drawing.label(scales[-1], last, name, shift=(7, heights[-1] - frame.py(last) + 4))
    return drawing.svg()


def _free_height(wanted: float, taken: Sequence[float], gap: float = 17.0) -> float:
    while any(abs(wanted - other) < gap for other in taken):
        wanted += 2.0
    return wanted


def by_type_chart(
    series: Mapping[str, Mapping[str, Row]], value: str, title: str, x_title: str, *, share: bool = True
) -> Markup | None:
    """A row per edit type, a mark with its 95 % interval per series; `series` is name → edit type → figures."""
    series = dict(list(series.items())[: len(MARKS)])
    kinds = list(dict.fromkeys(kind for some in series.values() for kind in some if _has(some, kind, value)))
    if not kinds:
        return None
    form = percent if share else score
    name, first = next(iter(series.items()))
    text = "; ".join(f"{kind} {form(some[value])}" for kind, some in first.items() if is_number(some.get(value)))
    per_row = max(30.0, 12.0 * len(series) + 14)
    left = min(150.0, 30 + 7 * max(map(len, kinds)))
    shown = [some[kind] for some in series.values() for kind in kinds if _has(some, kind, value)]
    across = (0.0, 1.0) if share else padded([bound for some in shown for bound in interval_of(some, value)])
    frame = Frame(across, (0.0, float(len(kinds))), height=48 + per_row * len(kinds), left=left, right=22, top=6)
    drawing = Drawing(frame, title, f"{name}: {text}")
    drawing.axes(x_title, "", y_ticks=0, x_ticks=QUARTERS if share else None, x_number=percent if share else None)
    for row, kind in enumerate(kinds):
        centre = len(kinds) - row - 0.5
        drawing.segment((across[0], centre), (across[1], centre), "grid")
        drawing.label(across[0], centre, kind, "row-label", anchor="end", shift=(-10, 4))
        for index, (name, some) in enumerate(series.items()):
            if _has(some, kind, value):
                height = centre + ((len(series) - 1) / 2 - index) * 12.0 / per_row
                _by_type_mark(drawing, f"{kind}, {name}", some[kind], value, (height, index), form)
    return drawing.svg()


def _by_type_mark(
    drawing: Drawing, name: str, figures: Row, value: str, place: tuple[float, int], form: Callable[[float], str]
) -> None:
    low, high = interval_of(figures, value)
    height, index = place
    tip = f"{name}: {form(figures[value])} ({form(low)} to {form(high)}, n = {figures.get('n', '–')})"
    drawing.segment((low, height), (high, height), f"interval s{index}")
    drawing.mark(figures[value], height, index, tip)


def _has(some: Mapping[str, Row], kind: str, value: str) -> bool:
    return kind in some and is_number(some[kind].get(value))


def interval_of(figures: Row, name: str) -> tuple[float, float]:
    """The 95 % interval of a figure; the figure itself where there is none."""
    found = figures.get(f"{name}_interval") or figures.get("interval") or (figures[name], figures[name])
    return float(found[0]), float(found[1])


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
    drawing = Drawing(frame, "CLIP image similarity against direction", _describe_curves(curves))
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


def _describe_curves(curves: Mapping[str, Sequence[Row]]) -> str:
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

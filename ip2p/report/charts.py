"""The report's charts: what each one plots, in which range and with which words."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from ip2p.config import Thresholds
from ip2p.report.facts import Figure, Figures
from ip2p.report.format import count, percent, score
from ip2p.report.svg import MARKS, Chart, Drawing, Frame, Point, legend, padded
from ip2p.scoring.score import LEAST_SIMILARITY, Bound, Score

Floats = npt.NDArray[np.float64]

NUM_BINS = 36
QUARTERS = (0.0, 0.25, 0.5, 0.75, 1.0)


def score_histogram(candidates: pa.Table, score: Score, thresholds: Thresholds) -> Chart | None:
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
    text = f"{_summary(values[accepted])} accepted; {_summary(values[~accepted])} rejected"
    frame = Frame((low, high), (0, max(1, (kept + dropped).max() * 1.12)), width=420, height=210, left=52)
    drawing = Drawing(frame, score.meaning, text)
    drawing.axes(score.unit, "", y_ticks=3)
    for left, right, num_accepted, num_rejected in zip(edges[:-1], edges[1:], kept, dropped, strict=True):
        span = f"{left:.3f} to {right:.3f}"
        drawing.bar((left, right), (0, num_accepted), "accepted", f"{span}: {num_accepted} accepted")
        both = num_accepted + num_rejected
        drawing.bar((left, right), (num_accepted, both), "rejected", f"{span}: {num_rejected} rejected")
    for sign, value in bounds.items():
        drawing.segment((value, 0), (value, frame.y[1]), "threshold")
        near_end = value > low + 0.7 * (high - low)
        shift = (-5, 10) if near_end else (5, 10)
        drawing.label(value, frame.y[1], f"{sign} {value:g}", anchor="end" if near_end else "start", shift=shift)
    return Chart(score.meaning, drawing.svg())


def _bounds_of(score: Score, thresholds: Thresholds) -> dict[str, float]:
    """Returns the thresholds of a score by their sign; one that every similarity passes is left out."""
    bounds = {"≥": thresholds.bounds.get(Bound(score, "low").threshold)}
    bounds["≤"] = thresholds.bounds.get(Bound(score, "high").threshold)
    floor = LEAST_SIMILARITY if score.is_similarity else -math.inf
    return {sign: value for sign, value in bounds.items() if value is not None and value > floor}


def _summary(values: Floats) -> str:
    return f"{values.size} (mean {values.mean():.3f})" if values.size else "none"


def loss_chart(loss: Sequence[tuple[int, float]]) -> Chart | None:
    """Draws the logged loss over the steps, thin, and its running mean; None with fewer than two entries."""
    logged = np.array([(step, value) for step, value in loss if math.isfinite(value)], np.float64)
    if len(logged) < 2:
        return None
    steps, values = logged.T
    smooth = running_mean(values, max(1, len(values) // 20))
    top = float(np.quantile(values, 0.98)) * 1.15 or 1.0
    text = f"from {smooth[0]:.4f} at step {steps[0]:.0f} to {smooth[-1]:.4f} at step {steps[-1]:.0f}"
    drawing = Drawing(Frame((0.0, float(steps[-1])), (0.0, top), width=460, height=230), "Training loss", text)
    drawing.axes("optimizer step", "loss")
    every = max(1, len(logged) // 500)
    drawing.line([(x, min(y, top)) for x, y in zip(steps[::every], values[::every], strict=True)], "raw")
    drawing.line([(x, min(y, top)) for x, y in zip(steps[::every], smooth[::every], strict=True)], "series")
    drawing.label(steps[-1], smooth[-1], f"{smooth[-1]:.4f}", anchor="end", shift=(0, -10))
    return Chart(f"Loss over {count(int(steps[-1]))} optimizer steps", drawing.svg())


def running_mean(values: Floats, reach: int) -> Floats:
    """Averages over the neighbours within reach on both sides."""
    sums = np.concatenate([[0.0], np.cumsum(values)])
    low = np.maximum(np.arange(len(values)) - reach, 0)
    high = np.minimum(np.arange(len(values)) + reach + 1, len(values))
    means: Floats = (sums[high] - sums[low]) / (high - low)
    return means


RATES = ("done", "kept", "success")


def rates_chart(curve: Sequence[Figures]) -> Chart | None:
    """Draws done, kept and success over the image guidance scale with Wilson bands; None if nothing was judged."""
    rows = [[point.get(name) for name in ("image_guidance_scale", *RATES)] for point in curve]
    points = [[figure for figure in row if figure] for row in rows if all(row)]
    if len(points) < 2:
        return None
    scales = [scale.value for scale, *_ in points]
    text = "; ".join(f"at {scale.value:g} success {success.value:.0%}" for scale, *_, success in points)
    title = "The oracle's shares over the image guidance scale"
    frame = Frame((scales[0], scales[-1]), (0.0, 1.0), width=460, height=320, left=72, right=70)
    drawing = Drawing(frame, title, text)
    drawing.axes("image guidance scale", "share of edits", x_ticks=scales, y_number=percent)
    shares = dict(zip(RATES, list(zip(*points, strict=True))[1:], strict=True))
    for name in RATES:
        lows, highs = zip(*(figure.bounds for figure in shares[name]), strict=True)
        drawing.area([list(zip([*scales, *scales[::-1]], [*lows, *highs[::-1]], strict=True))], f"band rate-{name}")
    heights: list[float] = []
    for name in RATES:
        values = [figure.value for figure in shares[name]]
        drawing.line(list(zip(scales, values, strict=True)), f"series rate-{name}")
        heights.append(_free_height(frame.py(values[-1]), heights))
        drawing.label(scales[-1], values[-1], name, shift=(7, heights[-1] - frame.py(values[-1]) + 4))
    return Chart(title, drawing.svg())


def _free_height(height: float, taken: Sequence[float], gap: float = 17.0) -> float:
    """Moves a height down until it is at least `gap` pixels from those that are taken."""
    while any(abs(height - other) < gap for other in taken):
        height += 2.0
    return height


def by_type_chart(
    series: Mapping[str, Mapping[str, Figures]], value: str, title: str, x_title: str, *, share: bool = True
) -> Chart | None:
    """Draws a row per edit type with a mark and its interval per series; `series` is name → edit type → figures."""
    measured = {
        name: {kind: (figure, figures.n) for kind, figures in by_type.items() if (figure := figures.get(value))}
        for name, by_type in series.items()
    }
    drawn = [(name, by_type) for name, by_type in measured.items() if by_type]
    left_out, drawn = len(drawn[len(MARKS) :]), drawn[: len(MARKS)]
    kinds = list(dict.fromkeys(kind for _, by_type in drawn for kind in by_type))
    if not kinds:
        return None
    form = percent if share else score
    name, first = drawn[0]
    text = "; ".join(f"{kind} {form(figure.value)}" for kind, (figure, _) in first.items())
    per_row = max(30.0, 12.0 * len(drawn) + 14)
    left = min(150.0, 30 + 7 * max(map(len, kinds)))
    bounds = [bound for _, by_type in drawn for figure, _ in by_type.values() for bound in figure.bounds]
    across = (0.0, 1.0) if share else padded(bounds)
    frame = Frame(across, (0.0, float(len(kinds))), height=48 + per_row * len(kinds), left=left, right=22, top=6)
    drawing = Drawing(frame, title, f"{name}: {text}")
    drawing.axes(x_title, "", y_ticks=0, x_ticks=QUARTERS if share else None, x_number=percent if share else None)
    for row, kind in enumerate(kinds):
        centre = len(kinds) - row - 0.5
        drawing.segment((across[0], centre), (across[1], centre), "grid")
        drawing.label(across[0], centre, kind, "row-label", anchor="end", shift=(-10, 4))
        for index, (name, by_type) in enumerate(drawn):
            if kind in by_type:
                (figure, n), (low, high) = by_type[kind], by_type[kind][0].bounds
                height = centre + ((len(drawn) - 1) / 2 - index) * 12.0 / per_row
                drawing.segment((low, height), (high, height), f"interval s{index}")
                tip = f"{kind}, {name}: {form(figure.value)} ({form(low)} to {form(high)}, n = {n})"
                drawing.mark(figure.value, height, index, tip)
    return Chart(title, drawing.svg(), legend([name for name, _ in drawn]), left_out)


X, Y = "clip_direction", "clip_image"
KNOBS = {"image_guidance_scale": "image guidance", "strength": "strength", "guidance_scale": "text guidance"}
"""Settings that a point may stand for, by column."""
LABEL = (26.0, 12.0)
"""Size of a point's label in pixels."""
SHIFTS = ((9, -8), (9, 16), (-9, -8), (-9, 16))
"""Places for it beside its point."""


@dataclass(frozen=True, slots=True)
class CurvePoint:
    """A point of the trade-off between what is kept and what is changed."""

    x: Figure
    """CLIP direction."""
    y: Figure
    """CLIP image similarity."""
    knob: str
    """The setting that it stands for, in words; empty if there is none."""
    setting: float | None

    @property
    def place(self) -> Point:
        """Returns where the point lies."""
        return self.x.value, self.y.value

    @property
    def at(self) -> str:
        """Says what the point stands for, as the end of a phrase."""
        return f" at {self.knob}" if self.knob else ""


def curve_points(curve: Sequence[Figures]) -> list[CurvePoint]:
    """Returns the points of a curve that can be drawn: those with both similarities."""
    points = [(figures.get(X), figures.get(Y), knob_of(figures)) for figures in curve]
    return [CurvePoint(x, y, *knob) for x, y, knob in points if x and y]


def knob_of(point: Figures) -> tuple[str, float | None]:
    """Returns what a point of a curve stands for, in words, and the setting's value."""
    settings = ((words, setting.value) for name, words in KNOBS.items() if (setting := point.get(name)))
    return next(((f"{words} {value:g}", value) for words, value in settings), ("", None))


def tradeoff_chart(curves: Mapping[str, Sequence[Figures]]) -> Chart | None:
    """Draws every curve with its band; None if there is no point."""
    drawn = {name: points for name, curve in curves.items() if (points := curve_points(curve))}
    drawn = dict(itertools.islice(drawn.items(), len(MARKS)))
    points = [point for curve in drawn.values() for point in curve]
    if not points:
        return None
    xs = [bound for point in points for bound in point.x.bounds]
    ys = [bound for point in points for bound in point.y.bounds]
    frame = Frame(padded(xs, 0.06), padded(ys, 0.08), width=460, height=320, left=60)
    lines = (
        f"{name}: " + ", ".join(f"{point.x.value:.3f} and {point.y.value:.3f}{point.at}" for point in curve)
        for name, curve in drawn.items()
    )
    title = "CLIP image similarity against direction"
    drawing = Drawing(frame, title, "; ".join(lines))
    drawing.axes("CLIP direction similarity (edit follows the text) →", "CLIP image similarity →")
    for number, curve in enumerate(drawn.values()):
        drawing.area(band_of(curve), f"band s{number}")
    for number, curve in enumerate(drawn.values()):
        drawing.line([point.place for point in curve], f"series s{number}")
    for number, (name, curve) in enumerate(drawn.items()):
        for point in curve:
            tip = f"{name}{point.at}: direction {point.x.value:.3f}, image {point.y.value:.3f}"
            drawing.mark(*point.place, number, tip)
    _label(drawing, list(drawn.values()))
    return Chart(title, drawing.svg(), legend(list(drawn)), sum(map(bool, curves.values())) - len(drawn))


def _label(drawing: Drawing, curves: Sequence[Sequence[CurvePoint]]) -> None:
    """Writes the setting beside every point if the words cover nothing; with several curves, only at their ends."""
    frame = drawing.frame
    pixels = [(frame.px(point.x.value), frame.py(point.y.value)) for curve in curves for point in curve]
    taken = [(x - 5, y - 5, x + 5, y + 5) for x, y in pixels]
    for curve in curves:
        for point in curve if len(curves) == 1 else {id(end): end for end in (curve[0], curve[-1])}.values():
            at = frame.px(point.x.value), frame.py(point.y.value)
            free = next((shift for shift in SHIFTS if _is_free(_box(at, shift), taken)), None)
            if point.setting is None or free is None:
                continue
            taken.append(_box(at, free))
            drawing.label(*point.place, f"{point.setting:g}", "point-label", "start" if free[0] > 0 else "end", free)


def _box(at: Point, shift: Point) -> tuple[float, float, float, float]:
    left = at[0] + shift[0] - (LABEL[0] if shift[0] < 0 else 0)
    return left, at[1] + shift[1] - LABEL[1] + 2, left + LABEL[0], at[1] + shift[1] + 2


def _is_free(box: tuple[float, ...], taken: Sequence[tuple[float, ...]]) -> bool:
    return not any(
        box[0] < other[2] and other[0] < box[2] and box[1] < other[3] and other[1] < box[3] for other in taken
    )


def band_of(curve: Sequence[CurvePoint]) -> list[list[Point]]:
    """Returns outlines whose union is the band: the hull of each two neighbours' intervals; of one point its own."""
    ellipses = [_ellipse(point) for point in curve]
    if len(ellipses) == 1:
        return ellipses
    return [convex_hull([*one, *other]) for one, other in itertools.pairwise(ellipses)]


def _ellipse(point: CurvePoint, num: int = 32) -> list[Point]:
    """Returns an outline that reaches as far as the interval in each of the four directions."""
    (left, right), (low, high), (x, y) = point.x.bounds, point.y.bounds, point.place
    outline = []
    for number in range(num):
        across, along = math.cos(2 * math.pi * number / num), math.sin(2 * math.pi * number / num)
        reach = (right - x) if across > 0 else (x - left)
        rise = (high - y) if along > 0 else (y - low)
        outline.append((x + reach * across, y + rise * along))
    return outline


def convex_hull(points: Sequence[Point]) -> list[Point]:
    """Returns the corners of the least convex outline around points, counter-clockwise."""
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
    """Returns a positive number if the way over three points turns left."""
    return (second[0] - first[0]) * (third[1] - first[1]) - (second[1] - first[1]) * (third[0] - first[0])

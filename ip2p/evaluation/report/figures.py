"""The report's charts: what each one plots, in which range and with which words."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from markupsafe import Markup

from ip2p.evaluation.report.charts import Drawing, Frame, padded

Row = Mapping[str, Any]

SCORES = {
    "clip_original": ("original", "Original image ↔ original prompt"),
    "clip_edited": ("edited", "Edited image ↔ edited prompt"),
    "clip_direction": ("direction", "Direction: change of image ↔ change of text"),
    "clip_image": ("image", "Original image ↔ edited image"),
}
"""Column of a similarity: its threshold's name and its title."""

NUM_BINS = 36


def score_histogram(candidates: Sequence[Row], column: str, threshold: float | None) -> Markup | None:
    """Accepted below, rejected stacked on top, the threshold as a dashed line; None where there are no scores."""
    values = np.array([row[column] for row in candidates], np.float64)
    accepted = np.array([bool(row["accepted"]) for row in candidates])
    finite = np.isfinite(values)
    values, accepted = values[finite], accepted[finite]
    if not values.size:
        return None
    marked = threshold if threshold is not None and threshold > -1 else None
    low, high = padded([*values, *([] if marked is None else [marked])], 0.02)
    edges = np.linspace(low, high, NUM_BINS + 1)
    kept, _ = np.histogram(values[accepted], edges)
    dropped, _ = np.histogram(values[~accepted], edges)
    title = SCORES[column][1]
    text = f"{_told(values[accepted])} accepted; {_told(values[~accepted])} rejected"
    drawing = Drawing(
        Frame((low, high), (0, max(1, (kept + dropped).max() * 1.12)), width=360, height=190, left=40), title, text
    )
    drawing.axes("cosine similarity", "", y_ticks=3)
    for left, right, some, rest in zip(edges[:-1], edges[1:], kept, dropped, strict=True):
        where = f"{left:.3f} to {right:.3f}"
        drawing.bar((left, right), (0, some), "accepted", f"{where}: {some} accepted")
        drawing.bar((left, right), (some, some + rest), "rejected", f"{where}: {rest} rejected")
    if marked is not None:
        drawing.segment((marked, 0), (marked, drawing.frame.y[1]), "threshold")
        near_end = marked > low + 0.7 * (high - low)
        shift = (-5, 10) if near_end else (5, 10)
        drawing.label(marked, drawing.frame.y[1], f"≥ {marked:g}", anchor="end" if near_end else "start", shift=shift)
    return drawing.svg()


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
    drawing = Drawing(Frame((0.0, float(steps[-1])), (0.0, top), width=560, height=260), "Training loss", text)
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


def guidance_chart(curve: Sequence[Row]) -> Markup | None:
    """What is kept against what is changed, one point per image guidance scale, with 95 % bands both ways."""
    points = [
        point for point in curve if point.get("clip_direction") is not None and point.get("clip_image") is not None
    ]
    if not points:
        return None
    xs = [bound for point in points for bound in _interval(point, "clip_direction")]
    ys = [bound for point in points for bound in _interval(point, "clip_image")]
    text = "; ".join(
        f"at {p['image_guidance_scale']:g} {p['clip_direction']:.3f} and {p['clip_image']:.3f}" for p in points
    )
    drawing = Drawing(Frame(padded(xs, 0.08), padded(ys, 0.1)), "CLIP image similarity against direction", text)
    drawing.axes("CLIP direction similarity (edit follows the text) →", "CLIP image similarity →")
    for point in points:
        (left, right), (low, high) = _interval(point, "clip_direction"), _interval(point, "clip_image")
        drawing.segment((left, point["clip_image"]), (right, point["clip_image"]), "whisker")
        drawing.segment((point["clip_direction"], low), (point["clip_direction"], high), "whisker")
    drawing.line([(point["clip_direction"], point["clip_image"]) for point in points], "series")
    for point in points:
        scale = f"{point['image_guidance_scale']:g}"
        tip = f"image guidance {scale}: direction {point['clip_direction']:.3f}, image {point['clip_image']:.3f}"
        drawing.dot(point["clip_direction"], point["clip_image"], "mark", tip)
        drawing.label(point["clip_direction"], point["clip_image"], scale, "point-label", shift=(8, -8))
    return drawing.svg()


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
    frame = Frame((scales[0], scales[-1]), (0.0, 1.0), right=62)
    drawing = Drawing(frame, "Oracle's shares over the image guidance scale", text)
    drawing.axes("image guidance scale", "share of edits", x_ticks=scales)
    heights: list[float] = []
    for name, css in RATES.items():
        bounds = [_interval(point, name) for point in points]
        lows = [(scale, low) for scale, (low, _) in zip(scales, bounds, strict=True)]
        highs = [(scale, high) for scale, (_, high) in zip(scales, bounds, strict=True)]
        drawing.band(lows, highs, f"band {css}")
    for name, css in RATES.items():
        drawing.line([(scale, point[name]) for scale, point in zip(scales, points, strict=True)], f"series {css}")
        heights.append(_free_height(drawing.frame.py(points[-1][name]), heights))
        drawing.label(
            scales[-1], points[-1][name], name, shift=(7, heights[-1] - drawing.frame.py(points[-1][name]) + 4)
        )
    return drawing.svg()


def _free_height(wanted: float, taken: Sequence[float], gap: float = 14.0) -> float:
    while any(abs(wanted - other) < gap for other in taken):
        wanted += 2.0
    return wanted


def by_type_chart(series: Mapping[str, Mapping[str, Row]], value: str, title: str, x_title: str) -> Markup | None:
    """A row per edit type, a dot with its 95 % interval per series; `series` is name → edit type → figures."""
    kinds = list(dict.fromkeys(kind for some in series.values() for kind in some))
    if not kinds:
        return None
    spread = 0.22 * (len(series) - 1)
    first = next(iter(series))
    text = "; ".join(f"{kind} {series[first][kind][value]:.0%}" for kind in kinds if _has(series[first], kind, value))
    frame = Frame((0.0, 1.0), (0.0, float(len(kinds))), height=52 + 34 * len(kinds), left=92, top=6)
    drawing = Drawing(frame, title, f"{first}: {text}")
    drawing.axes(x_title, "", y_ticks=0, x_ticks=[0, 0.25, 0.5, 0.75, 1])
    for row, kind in enumerate(kinds):
        centre = len(kinds) - row - 0.5
        drawing.segment((0, centre), (1, centre), "grid")
        drawing.label(0, centre, kind, "row-label", anchor="end", shift=(-10, 4))
        for index, (name, some) in enumerate(series.items()):
            if not _has(some, kind, value):
                continue
            height = centre + spread / 2 - 0.22 * index
            low, high = _interval(some[kind], value)
            tip = f"{kind}, {name}: {some[kind][value]:.1%} ({low:.1%} to {high:.1%}, n = {some[kind]['n']})"
            drawing.segment((low, height), (high, height), f"interval s{index}")
            drawing.mark(some[kind][value], height, f"mark s{index}", tip, index)
    return drawing.svg()


def _has(some: Mapping[str, Row], kind: str, value: str) -> bool:
    return kind in some and some[kind].get(value) is not None


def _interval(figures: Row, name: str) -> tuple[float, float]:
    found = figures.get(f"{name}_interval") or figures.get("interval") or (figures[name], figures[name])
    return float(found[0]), float(found[1])

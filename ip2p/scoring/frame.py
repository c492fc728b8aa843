"""How far what did not change was moved, grown or turned between a pair's two images; `shift` is about what did."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
from PIL import Image

from ip2p.comparing import Frame, find_frame
from ip2p.scoring.score import Batch, Measure, Score


def frame_of(original: Image.Image, edited: Image.Image) -> Frame | None:
    """Returns the frame of a pair, None if it cannot be measured."""
    return find_frame(np.asarray(original), np.asarray(edited))


def _measure(read: Callable[[Frame, tuple[int, int]], float]) -> Measure:
    """Makes a measure of a number that a frame and the size of its picture give."""

    def measure(batch: Batch) -> list[float]:
        frames = zip(batch.once(frame_of), batch.originals, strict=True)
        return [math.nan if frame is None else read(frame, image.size) for frame, image in frames]

    return measure


def _score(
    name: str, title: str, meaning: str, unit: str, read: Measure, place: int, too_low: str = "", too_high: str = ""
) -> Score:
    return Score(
        name=name,
        column=name,
        title=title,
        meaning=meaning,
        unit=unit,
        is_similarity=True,
        passes_unmeasured=True,
        setting="frame",
        prepare=lambda _: read,
        place=place,
        too_low=too_low,
        too_high=too_high,
    )


SCORES = (
    _score(
        "frame_drift",
        "frame drift",
        "How far the corner of what did not change moved that moved most",
        "share of the shorter side",
        _measure(lambda frame, size: frame.drift(*size)),
        110,
        too_high="the picture moved, grew or turned",
    ),
    _score(
        "frame_shift",
        "frame shift",
        "How far the middle of what did not change moved",
        "share of the shorter side",
        _measure(lambda frame, _: frame.shift),
        111,
        too_high="the picture moved",
    ),
    _score(
        "frame_scale",
        "frame scale",
        "How much what did not change has grown",
        "factor",
        _measure(lambda frame, _: frame.scale),
        112,
        too_low="the picture shrank",
        too_high="the picture grew",
    ),
    _score(
        "frame_rotation",
        "frame rotation",
        "How far what did not change was turned",
        "degrees, either way",
        _measure(lambda frame, _: abs(frame.rotation)),
        113,
        too_high="the picture turned",
    ),
)

"""Adds a measure of edits: how far an edit shifts the mean colour of the area that it should not touch.

This file is a complete plug-in. Copied to `ip2p/evaluation/measures/colour.py`, it is measured for every edit, stored
in `scores.parquet` as `colour_kept`, and summarised in `figures.json`, the report, comparisons and benchmarks.

Run as a script, it measures three simple editors on edits of the shapes domain: `python examples/add_a_measure.py`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ip2p.config import fingerprint
from ip2p.evaluation.cases import EditCase, Pixels
from ip2p.evaluation.measures import Column, Measure, Values, fit_to


@dataclass(frozen=True)
class ColourMeasure(Measure):
    """Measures the distance between the mean colours of the input and the edited image, outside the mask."""

    order = 45
    columns = (Column("colour_kept", "Colour shift", "lower", "mean"),)
    identity = fingerprint("colour", 1)  # raise the number if the values change

    def __call__(self, cases: Sequence[EditCase], before: Sequence[Pixels], after: Sequence[Pixels]) -> list[Values]:
        """Returns the shift of each edit, on a scale of 0 to the square root of 3; None without a mask."""
        return [{"colour_kept": colour_shift(*edit)} for edit in zip(cases, before, after, strict=True)]


def colour_shift(case: EditCase, before: Pixels, after: Pixels) -> float | None:
    """Returns the RGB distance between the mean colours outside the mask; None if there is no such area."""
    kept = case.kept_area
    if kept is None:
        return None
    means = [image[kept].mean(0) / 255 for image in (before, fit_to(after, before))]
    return float(np.linalg.norm(means[0] - means[1]))


def main() -> None:
    """Prints the mean shift of the unchanged input, the right answer and a darkened input."""
    from ip2p.shapes.domain import ShapesDomain

    cases = [case for case in ShapesDomain().draw_cases(70, seed=0) if case.target_image is not None]
    before = [case.original_image for case in cases]
    editors = {
        "copy": before,
        "right answer": [case.target_image for case in cases if case.target_image is not None],
        "half as bright": [image // 2 for image in before],
    }
    for name, after in editors.items():
        shifts = [row["colour_kept"] for row in ColourMeasure()(cases, before, after)]
        print(f"{name:<15} {np.mean([shift for shift in shifts if shift is not None]):.3f}")


if __name__ == "__main__":
    main()

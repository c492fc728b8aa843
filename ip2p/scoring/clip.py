"""CLIP's four similarities of a pair (paper, section 3.1.2)."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from ip2p.config import ScoringConfig
from ip2p.scoring.score import Batch, Measure, Score

UNIT = "cosine similarity"


def _similarity(column: int) -> Callable[[ScoringConfig], Measure]:
    """Takes one of the four cosines that a batch computes at once."""

    def measure(batch: Batch) -> Sequence[float]:
        cosines: list[float] = batch.similarities[:, column].tolist()
        return cosines

    return lambda _: measure


SCORES = (
    Score(
        name="original",
        column="clip_original",
        title="original",
        meaning="Original image ↔ original prompt",
        unit=UNIT,
        too_low="original image unlike its prompt",
        is_similarity=True,
        prepare=_similarity(0),
        place=10,
    ),
    Score(
        name="edited",
        column="clip_edited",
        title="edited",
        meaning="Edited image ↔ edited prompt",
        unit=UNIT,
        too_low="edited image unlike its prompt",
        is_similarity=True,
        prepare=_similarity(1),
        place=11,
    ),
    Score(
        name="direction",
        column="clip_direction",
        title="direction",
        meaning="Direction: change of image ↔ change of text",
        unit=UNIT,
        too_low="change unlike the text's",
        is_similarity=True,
        prepare=_similarity(2),
        place=12,
    ),
    Score(
        name="image",
        column="clip_image",
        title="image",
        meaning="Original image ↔ edited image",
        unit=UNIT,
        too_low="images too unlike",
        too_high="images too alike",
        is_similarity=True,
        prepare=_similarity(3),
        place=13,
    ),
)

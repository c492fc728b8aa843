"""CLIP's four similarities of a pair (paper, section 3.1.2)."""

from __future__ import annotations

from ip2p.scoring.score import Batch, Score


def _similarity(number: int, name: str, meaning: str, too_low: str, too_high: str = "") -> Score:
    """Declares one of the four cosines that a batch computes at once."""

    def measure(batch: Batch) -> list[float]:
        cosines: list[float] = batch.similarities[:, number].tolist()
        return cosines

    return Score(
        name=name,
        column=f"clip_{name}",
        title=name,
        meaning=meaning,
        unit="cosine similarity",
        is_similarity=True,
        prepare=lambda _: measure,
        place=10 + number,
        too_low=too_low,
        too_high=too_high,
    )


SCORES = (
    _similarity(0, "original", "Original image ↔ original prompt", too_low="original image unlike its prompt"),
    _similarity(1, "edited", "Edited image ↔ edited prompt", too_low="edited image unlike its prompt"),
    _similarity(2, "direction", "Direction: change of image ↔ change of text", too_low="change unlike the text's"),
    _similarity(3, "image", "Original image ↔ edited image", too_low="images too unlike", too_high="images too alike"),
)

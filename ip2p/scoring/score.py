"""What a filter score is. One file of this package declares each; filter, tables, card and report derive from it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Literal

from ip2p.config import ScoringConfig
from ip2p.records import EditTriplet

if TYPE_CHECKING:
    from PIL import Image
    from torch import Tensor

    from ip2p.scoring.scorer import PairScorer

Side = Literal["low", "high"]
"""Where a score may be beyond its bound."""


@dataclass(frozen=True)
class Batch:
    """Pairs to score, with what several scores share."""

    triplets: Sequence[EditTriplet]
    originals: Sequence[Image.Image]
    """RGB, as they are stored."""
    edited: Sequence[Image.Image]
    clip: PairScorer

    @cached_property
    def embeddings(self) -> Tensor:
        """Returns CLIP's unit embeddings, (2 N, D): of the N originals, then of the N edited images."""
        return self.clip.embed_images([*self.originals, *self.edited])

    @cached_property
    def similarities(self) -> Tensor:
        """Returns CLIP's cosines, (N, 4): original, edited, direction, image."""
        return self.clip.similarities(self.triplets, self.embeddings)


Measure = Callable[[Batch], Sequence[float]]
"""One number per pair of a batch; NaN if there is none."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Score:
    """A number of a rendered pair by which the filter can accept or reject it."""

    name: str
    """Names the score in thresholds (`direction`, `max_image`) and in reasons (`low_direction`, `high_image`)."""
    column: str
    """Column of the tables of candidates, pairs and the dataset."""
    title: str
    """Short name for cards and lists."""
    meaning: str
    """What is measured; the title of its chart."""
    unit: str
    """What the numbers are; the title of its chart's axis."""
    prepare: Callable[[ScoringConfig], Measure]
    """Loads what the score needs and returns the function that measures a batch."""
    too_low: str = ""
    """Why a pair below the minimum is rejected, in words; a score without them has no minimum."""
    too_high: str = ""
    """Why a pair above the maximum is rejected; a score without them has no maximum."""
    is_similarity: bool
    """True if it says how alike things are; the ablation without the filter drops the bounds of these alone."""
    setting: str = ""
    """Setting of `scoring` that asks for the score; empty if it is always measured."""
    place: int = 100
    """Scores are listed and judged in this order, then by name; the first beyond its bound names the reason."""

    def is_wanted(self, config: ScoringConfig) -> bool:
        """True if the config asks for the score."""
        return not self.setting or bool(config.get(self.setting))


@dataclass(frozen=True, slots=True)
class Bound:
    """One side on which a score can be out of bounds."""

    score: Score
    side: Side

    @property
    def reason(self) -> str:
        """Names the verdict on a pair beyond the bound: `low_direction`, `high_image`."""
        return f"{self.side}_{self.score.name}"

    @property
    def threshold(self) -> str:
        """Names the setting of `Thresholds`: `direction`, `max_image`."""
        return f"max_{self.score.name}" if self.side == "high" else self.score.name

    @property
    def words(self) -> str:
        """Says why a pair beyond the bound is rejected."""
        return self.score.too_high if self.side == "high" else self.score.too_low

    @property
    def loosening(self) -> str:
        """Says which way to move the threshold so that more pairs pass."""
        return "raise" if self.side == "high" else "lower"

"""Defines a filter score. One file of this package declares each; filter, tables, card and report derive from it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal, Protocol, TypeVar

from ip2p.config import ScoringConfig
from ip2p.records import EditTriplet

if TYPE_CHECKING:
    from PIL import Image
    from torch import Tensor

T = TypeVar("T")

LEAST_SIMILARITY = -1.0
"""Minimum that every similarity passes."""
Side = Literal["low", "high"]
"""On which side of its bound a score can be out of bounds."""


class Clip(Protocol):
    """The CLIP whose embeddings several scores share."""

    def embed_images(self, images: Sequence[Image.Image]) -> Tensor:
        """Returns (N, D) unit embeddings."""

    def similarities(self, triplets: Sequence[EditTriplet], embeddings: Tensor) -> Tensor:
        """Returns (N, 4) cosines: original, edited, direction, image."""


@dataclass(frozen=True)
class Batch:
    """Pairs to score, and the embeddings that several scores share."""

    triplets: Sequence[EditTriplet]
    originals: Sequence[Image.Image]
    """RGB, decoded as they are stored."""
    edited: Sequence[Image.Image]
    clip: Clip
    _shared: dict[Callable[..., Any], Any] = field(default_factory=dict)

    def once(self, compare: Callable[..., T], *further: Sequence[object]) -> list[T]:
        """Returns what a function makes of each pair's two images, and of further values that a pair has.

        Several scores share one computation.
        """
        if compare not in self._shared:
            pairs = zip(self.originals, self.edited, *further, strict=True)
            self._shared[compare] = [compare(*values) for values in pairs]
        shared: list[T] = self._shared[compare]
        return shared

    @cached_property
    def embeddings(self) -> Tensor:
        """Returns CLIP's (2 N, D) unit embeddings of the originals, then of the edited images."""
        return self.clip.embed_images([*self.originals, *self.edited])

    @cached_property
    def similarities(self) -> Tensor:
        """Returns CLIP's (N, 4) cosines: original, edited, direction, image."""
        return self.clip.similarities(self.triplets, self.embeddings)


Measure = Callable[[Batch], Sequence[float]]
"""Measures a batch: one number per pair, NaN if a pair has none."""


def pair_by_pair(compare: Callable[[Image.Image, Image.Image], float]) -> Measure:
    """Makes a measure of a function of a pair's two images."""
    return lambda batch: [compare(*images) for images in zip(batch.originals, batch.edited, strict=True)]


@dataclass(frozen=True, slots=True, kw_only=True)
class Score:
    """A number by which the filter can accept or reject a rendered pair."""

    name: str
    """Names the score in thresholds (`direction`, `max_image`) and in reasons (`low_direction`, `high_image`)."""
    column: str
    """Column in the tables of candidates and pairs, and in the dataset."""
    title: str
    """Short name for cards and lists."""
    meaning: str
    """What it measures; the title of its chart."""
    unit: str
    """Unit of the numbers; the label of its chart's axis."""
    prepare: Callable[[ScoringConfig], Measure] | None
    """Loads what the score needs and returns the function that measures a batch; None if a judge gives the score, which
    is asked only about pairs that pass the bounds of all others."""
    too_low: str = ""
    """Words for a pair below the minimum; if empty, the score has no minimum."""
    too_high: str = ""
    """Words for a pair above the maximum; if empty, the score has no maximum."""
    is_similarity: bool
    """True if it measures a similarity; the ablation without the filter drops these bounds alone."""
    passes_unmeasured: bool = False
    """True if a pair of which the score cannot be measured passes its bounds; else it is rejected by them. What a judge
    has not given yet is another matter: `ip2p.filtering.OPEN`."""
    setting: str = ""
    """Setting of `scoring` that asks for the score; empty if it is always measured."""
    place: int = 100
    """Scores are listed and judged in this order, then by name; the first out of bounds gives the reason."""

    def is_wanted(self, config: ScoringConfig) -> bool:
        """Returns True if the config asks for the score."""
        return self.prepare is not None and (not self.setting or bool(config.get(self.setting)))

    @property
    def is_asked(self) -> bool:
        """Returns True if a judge gives the score."""
        return self.prepare is None


@dataclass(frozen=True, slots=True)
class Bound:
    """The minimum or the maximum of a score."""

    score: Score
    side: Side

    @property
    def reason(self) -> str:
        """Names the reason against a pair beyond the bound: `low_direction`, `high_image`."""
        return f"{self.side}_{self.score.name}"

    @property
    def threshold(self) -> str:
        """Names the setting of `Thresholds`: `direction`, `max_image`."""
        return f"max_{self.score.name}" if self.side == "high" else self.score.name

    @property
    def words(self) -> str:
        """Explains the reason."""
        return self.score.too_high if self.side == "high" else self.score.too_low

    @property
    def loosening(self) -> str:
        """Names the direction in which moving the threshold accepts more pairs."""
        return "raise" if self.side == "high" else "lower"

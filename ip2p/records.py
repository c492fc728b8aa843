"""The records of the pipeline. Each wraps the earlier ones; no field is filled in later."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields


@dataclass(frozen=True, slots=True, kw_only=True)
class EditTriplet:
    """A caption, an instruction and the caption of the edited image."""

    original_prompt: str
    edit_prompt: str
    edited_prompt: str
    edit_type: str = ""
    source: str = ""
    """Who wrote it: a model, a file, a person."""
    picture: str = ""
    """Hash of the real picture that is edited, see `hash_picture`; empty if the original is rendered too."""

    @property
    def id(self) -> str:
        """Returns the content hash of the three texts and, if there is one, the picture: 16 hexadecimal digits."""
        picture = (self.picture,) if self.picture else ()
        return content_hash(self.original_prompt, self.edit_prompt, self.edited_prompt, *picture)


TEXT_COLUMNS = tuple(field.name for field in fields(EditTriplet))
"""The columns of tables that hold a triplet."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RenderSpec:
    """What is drawn for one candidate, as a pure function of (run seed, triplet, candidate number)."""

    triplet_id: str
    candidate: int
    seed: int
    guidance_scale: float
    p2p: float = 0.0
    """Fraction of the steps in which the edited side uses the original's self-attention maps."""
    cross_p2p: float = 0.0
    """The same for cross-attention maps, of tokens that the captions share or that replace one another."""
    shared_steps: float = 0.0
    """Fraction of first steps in which both sides follow the original's caption."""
    reweight: float = 1.0
    """Factor on the cross-attention maps of the edited caption's new words."""
    reweight_steps: float = 1.0
    """Fraction of first steps with that factor."""
    local_blend: float = 0.0
    """Fraction of last steps in which the sides may differ only at the changed words' places."""
    image_guidance_scale: float | None = None
    """How closely an editor keeps to the picture; None for its default."""
    strength: float | None = None
    """Fraction of the noise that the picture is started from; None for the backend's default."""


SPEC_COLUMNS = tuple(field.name for field in fields(RenderSpec) if field.name != "triplet_id")
"""The columns of tables that hold a spec."""
DRAWN_COLUMNS = tuple(name for name in SPEC_COLUMNS if name not in ("candidate", "seed"))
"""The columns that are drawn from a range; the two others are integers."""
SHOWN_COLUMNS = ("shown_judge", "shown_prompt")
"""The columns of tables that hold which instruction a judge sees in a pair."""
ANSWER_COLUMNS = ("vlm_judge", "vlm_answer", *SHOWN_COLUMNS)
"""The columns of tables that hold what a judge was asked and said."""
LATER_COLUMNS = ("picture", "image_guidance_scale", "strength", "failure", *ANSWER_COLUMNS)
"""Columns that came later: a file lacks those that none of its rows fills, so runs without them are as before."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """One attempt to render a triplet."""

    triplet: EditTriplet
    spec: RenderSpec


CLIP_SCORES = ("original", "edited", "direction", "image")
"""The scores that every pair has."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PairScores:
    """CLIP's cosine similarities in [-1, 1] (paper, section 3.1.2), and the further scores that were measured."""

    original: float
    """Original image against original prompt."""
    edited: float
    """Edited image against edited prompt."""
    direction: float
    """Change of the image embedding against change of the text embedding."""
    image: float
    """Original image against edited image."""
    further: Mapping[str, float] = field(default_factory=dict)
    """Other scores of `ip2p.scoring` by name; one that was not measured is missing."""
    first_look: bool = False
    """True if the scores are those of a first look of fewer steps, which the candidate did not pass."""
    failure: str = ""
    """Why there is no pair to score, if the backend could not make one; all scores are NaN then."""
    vlm_judge: str = ""
    """Identity of the vision-language judge that was asked, if one was."""
    vlm_answer: str = ""
    """Its answers, in its own words."""
    shown_judge: str = ""
    """Identity of the judge that was asked which instruction the pair shows, if one was."""
    shown_prompt: str = ""
    """The instruction that the pair shows, by its judge; empty if its answer holds none."""

    @classmethod
    def of_failure(cls, reason: str) -> PairScores:
        """Returns the record of a candidate that was not rendered, and why."""
        return cls(original=math.nan, edited=math.nan, direction=math.nan, image=math.nan, failure=reason)

    @classmethod
    def from_values(
        cls, values: Iterable[tuple[str, float | None]], *, first_look: bool = False, failure: str = ""
    ) -> PairScores:
        """Builds the record from (name, value) of all scores; None if one was not measured."""
        measured = {name: value for name, value in values if value is not None}
        original, edited, direction, image = (measured.pop(name, math.nan) for name in CLIP_SCORES)
        return cls(
            original=original,
            edited=edited,
            direction=direction,
            image=image,
            further=measured,
            first_look=first_look,
            failure=failure,
        )

    def get(self, name: str) -> float | None:
        """Returns a score by name; None if it was not measured."""
        return getattr(self, name) if name in CLIP_SCORES else self.further.get(name)


EMBEDDINGS_COLUMN = "clip_embeddings"
"""The column of pairs that holds CLIP's unit embeddings of the original and the edited image, as float16."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """Accepted, or the reason against it, one of `ip2p.filtering.REASONS`: `low_direction`, `over_limit`, …"""

    reason: str = ""

    @property
    def accepted(self) -> bool:
        """Returns True if there is no reason against it."""
        return not self.reason


@dataclass(frozen=True, slots=True, kw_only=True)
class ScoredCandidate:
    """A candidate with its scores and the filter's verdict."""

    candidate: Candidate
    scores: PairScores
    verdict: Verdict


def content_hash(*parts: object) -> str:
    """Returns 16 hexadecimal digits of SHA-256 over the parts, framed so that no two lists of parts collide."""
    digest = hashlib.sha256()
    for part in parts:
        text = str(part).encode()
        digest.update(len(text).to_bytes(8, "big") + text)
    return digest.hexdigest()[:16]


def hash_picture(content: bytes) -> str:
    """Returns 16 hexadecimal digits of SHA-256 over the bytes of a picture file."""
    return hashlib.sha256(content).hexdigest()[:16]


def hash_to_unit(*parts: object) -> float:
    """Returns a number in [0, 1) that is a pure function of the parts."""
    return int(content_hash(*parts), 16) / 2**64


def hash_to_seed(*parts: object) -> int:
    """Returns a 63-bit generator seed that is a pure function of the parts."""
    return int(content_hash("seed", *parts), 16) >> 1

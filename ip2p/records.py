"""The nouns of the pipeline. Each record wraps the earlier ones; none has a field that is filled in later."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field, fields
from typing import Any


@dataclass(frozen=True, slots=True, kw_only=True)
class EditTriplet:
    """A caption, an instruction and the caption of the edited picture."""

    original_prompt: str
    edit_prompt: str
    edited_prompt: str
    edit_type: str = ""
    source: str = ""
    """What wrote it: a model, a file, a person."""

    @property
    def id(self) -> str:
        """Content hash of the three texts: 16 hexadecimal digits."""
        return content_hash(self.original_prompt, self.edit_prompt, self.edited_prompt)


@dataclass(frozen=True, slots=True, kw_only=True)
class RenderSpec:
    """All that chance decides of one candidate; a pure function of (run seed, triplet, candidate number)."""

    triplet_id: str
    candidate: int
    seed: int
    guidance_scale: float
    p2p: float
    """Fraction of the steps during which the edited side uses the original's self-attention maps."""
    cross_p2p: float = 0.0
    """The same of cross-attention maps, for the tokens that the captions share or that stand for one another."""
    shared_steps: float = 0.0
    """Fraction of the steps, from the first, during which both sides follow the original's caption."""
    reweight: float = 1.0
    """Factor on the cross-attention maps of the edited caption's new words."""
    reweight_steps: float = 1.0
    """Fraction of the steps, from the first, during which it holds."""
    local_blend: float = 0.0
    """Fraction of the steps, up to the last, in which the sides may differ at the changed words' places alone."""


SPEC_COLUMNS = tuple(field.name for field in fields(RenderSpec) if field.name != "triplet_id")
"""The names under which tables hold a spec."""
DRAWN_COLUMNS = tuple(name for name in SPEC_COLUMNS if name not in ("candidate", "seed"))
"""Those of what is drawn from a range; the two others are whole numbers."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """One attempt at a triplet."""

    triplet: EditTriplet
    spec: RenderSpec


@dataclass(frozen=True, slots=True, kw_only=True)
class PairScores:
    """CLIP's cosine similarities in [-1, 1] (paper, section 3.1.2), and what else is asked for."""

    original: float
    """Original image against original prompt."""
    edited: float
    """Edited image against edited prompt."""
    direction: float
    """Change of the image embedding against change of the text embedding."""
    image: float
    """Original image against edited image."""
    contrast: float | None = None
    """The lesser standard deviation of the two images' brightness, in [0, 0.5]; a flat image has none."""
    ssim: float | None = None
    """Structural similarity of the two images (Wang et al., 2004)."""
    dino: float | None = None
    """Cosine similarity of the two images by a self-supervised model such as DINOv2."""
    nsfw: float | None = None
    """The worse of the two images by a head on CLIP's embeddings: a probability, or a margin over its own threshold."""
    first_look: bool = False
    """Of a first look of fewer steps, which it did not pass."""
    embeddings: bytes | None = field(default=None, repr=False, compare=False)
    """CLIP's unit embeddings of the original and the edited image, as float16; stored with the images, not here."""


SCORE_COLUMNS = {
    "clip_original": "original",
    "clip_edited": "edited",
    "clip_direction": "direction",
    "clip_image": "image",
    "contrast": "contrast",
    "ssim": "ssim",
    "dino": "dino",
    "nsfw": "nsfw",
}
"""The columns of tables that hold scores, and the scores' names."""
EMBEDDINGS_COLUMN = "clip_embeddings"
"""The column that holds `PairScores.embeddings`, of tables with images."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """Accepted, or the reason why not: `low_original`, `low_edited`, `low_direction`, `low_image`, `over_limit`, …"""

    reason: str = ""

    @property
    def accepted(self) -> bool:
        """True where there is no reason against it."""
        return not self.reason


@dataclass(frozen=True, slots=True, kw_only=True)
class ScoredCandidate:
    """A candidate with its scores and what the filter said of them."""

    candidate: Candidate
    scores: PairScores
    verdict: Verdict


def content_hash(*parts: object) -> str:
    """16 hexadecimal digits of SHA-256 over the parts, each framed so that no two lists of parts collide."""
    digest = hashlib.sha256()
    for part in parts:
        text = str(part).encode()
        digest.update(len(text).to_bytes(8, "big") + text)
    return digest.hexdigest()[:16]


def hash_to_unit(*parts: object) -> float:
    """A number in [0, 1) that is a pure function of the parts."""
    return int(content_hash(*parts), 16) / 2**64


def hash_to_seed(*parts: object) -> int:
    """A 63-bit generator seed that is a pure function of the parts."""
    return int(content_hash("seed", *parts), 16) >> 1


def as_row(scored: ScoredCandidate) -> dict[str, Any]:
    """Flattens a scored candidate into the columns of the candidates table."""
    triplet, spec, scores = scored.candidate.triplet, scored.candidate.spec, scored.scores
    return {
        "triplet_id": spec.triplet_id,
        "original_prompt": triplet.original_prompt,
        "edit_prompt": triplet.edit_prompt,
        "edited_prompt": triplet.edited_prompt,
        "edit_type": triplet.edit_type,
        "source": triplet.source,
        **{name: getattr(spec, name) for name in SPEC_COLUMNS},
        **{column: getattr(scores, name) for column, name in SCORE_COLUMNS.items()},
        "first_look": scores.first_look,
        "accepted": scored.verdict.accepted,
        "reason": scored.verdict.reason,
    }


def from_row(row: dict[str, Any]) -> ScoredCandidate:
    """Reads a row of the candidates table back; the inverse of `as_row`."""
    triplet = EditTriplet(
        original_prompt=row["original_prompt"],
        edit_prompt=row["edit_prompt"],
        edited_prompt=row["edited_prompt"],
        edit_type=row["edit_type"],
        source=row["source"],
    )
    spec = RenderSpec(triplet_id=row["triplet_id"], **{name: row[name] for name in SPEC_COLUMNS})
    values = {name: row[column] for column, name in SCORE_COLUMNS.items()}
    scores = PairScores(**values, first_look=bool(row["first_look"]))
    return ScoredCandidate(
        candidate=Candidate(triplet=triplet, spec=spec), scores=scores, verdict=Verdict(reason=row["reason"])
    )

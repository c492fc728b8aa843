"""CLIP's similarities of an edit, and which CLIP judges."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

from ip2p.config import EvaluationConfig, ScoringConfig, fingerprint
from ip2p.evaluation.cases import EditCase, Pixels
from ip2p.evaluation.measures import Column, Measure, Setup, Values, as_images, targets_of
from ip2p.sources.content import Source, note


@dataclass(frozen=True)
class ClipMeasure(Measure):
    """Measures CLIP's four similarities (paper, section 4.2) and the similarity to the target, MagicBrush's CLIP-I."""

    scoring: ScoringConfig
    later: tuple[str, ...] = ()
    """The content of its weights, if it has changed since it was noted."""
    order = 20
    columns = (
        # the input against its own caption is the same for every editor
        Column("clip_original", "CLIP input ↔ caption", "higher", "mean", shown_in="nowhere", always=True),
        Column("clip_edited", "CLIP edited ↔ caption", "higher", "mean", shown_in="runs", always=True),
        Column("clip_direction", "CLIP direction", "higher", "mean", shown_in="runs", always=True),
        Column("clip_image", "CLIP image", "higher", "mean", shown_in="runs", always=True),
        Column("clip_target", "CLIP image ↔ target", "higher", "mean", shown_in="runs"),
    )

    @classmethod
    def from_setup(cls, setup: Setup) -> Self:
        """Makes the measure, whatever the settings."""
        words = setup.clip.clip_model, setup.clip.clip_pretrained
        weights = [Source("evaluation.judge_clip_model", word) for word in words if word]
        return cls(setup.clip, tuple(note(setup.notes, weights)))

    @property
    def identity(self) -> str:
        """Returns a hash of the judge's weights."""
        return fingerprint("clip", self.scoring.clip_model, self.scoring.clip_pretrained, *self.later)

    def __call__(self, cases: Sequence[EditCase], before: Sequence[Pixels], after: Sequence[Pixels]) -> list[Values]:
        """Returns None for similarities to a caption or a target that a case lacks."""
        from ip2p.scoring.scorer import load_pair_scorer

        scorer = load_pair_scorer(self.scoring)
        scores = scorer.score([case.triplet for case in cases], as_images(before), as_images(after))
        rows: list[Values] = [
            {
                "clip_original": pair.original if case.original_prompt else None,
                "clip_edited": pair.edited if case.edited_prompt else None,
                "clip_direction": pair.direction if case.original_prompt and case.edited_prompt else None,
                "clip_image": pair.image,
                "clip_target": None,
            }
            for case, pair in zip(cases, scores, strict=True)
        ]
        targets = targets_of(cases)
        triplets = [cases[number].triplet for number in targets]
        edited = as_images([after[number] for number in targets])
        to_target = scorer.score(triplets, as_images(list(targets.values())), edited)
        for number, pair in zip(targets, to_target, strict=True):
            rows[number]["clip_target"] = pair.image
        return rows


def judge_of(knobs: EvaluationConfig, scoring: ScoringConfig) -> ScoringConfig:
    """Returns the CLIP that judges: the evaluation's own, or the filter's if none is set."""
    if knobs.judge_clip_model is None:
        model, pretrained = scoring.clip_model, scoring.clip_pretrained
    else:
        model, pretrained = knobs.judge_clip_model, knobs.judge_clip_pretrained
    return ScoringConfig(clip_model=model, clip_pretrained=pretrained, device=knobs.device)


def describe_judge(knobs: EvaluationConfig, scoring: ScoringConfig) -> dict[str, str | bool]:
    """Names the judge and the filter's CLIP, and states whether they are the same."""
    judge = judge_of(knobs, scoring)
    same = (judge.clip_model, judge.clip_pretrained) == (scoring.clip_model, scoring.clip_pretrained)
    return {"model": _short_name(judge), "filter": _short_name(scoring), "same_as_filter": same}


def _short_name(scoring: ScoringConfig) -> str:
    name = scoring.clip_model.rstrip("/").rsplit("/", 1)[-1]
    return f"{name} ({scoring.clip_pretrained})" if scoring.clip_pretrained else name

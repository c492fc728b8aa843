"""Puts a run's judges on trial: true pairs that a domain draws, each with the right instruction and a wrong one.

The wrong instruction asks for an edit of the same kind, such as another colour or another object, so that only a judge
who sees what was asked for can tell the two apart.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Protocol, runtime_checkable

from PIL import Image

from ip2p.config import PipelineConfig, ScoringConfig
from ip2p.evaluation.cases import Pixels, load_domain
from ip2p.picture_judge import PictureJudge
from ip2p.records import EditTriplet
from ip2p.scoring.reliability import Reliability, measure_reliability, write_reliability

BLOCK = 64
"""Trials that a judge gets at a time."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Trial:
    """A true pair with a right and a wrong triplet."""

    original_image: Pixels
    edited_image: Pixels
    right: EditTriplet
    wrong: EditTriplet


@runtime_checkable
class TrialDomain(Protocol):
    """A domain that draws trials."""

    def draw_trials(self, num: int, seed: int) -> list[Trial]:
        """Draws true pairs with right and wrong instructions of one kind; a pure function of its arguments."""
        ...


def try_judges(config: PipelineConfig, num: int) -> dict[str, Reliability]:
    """Measures the judges of a run's filter and writes the result beside it. ValueError without a domain that can."""
    name = config.evaluation.domain
    domain = load_domain(name) if name else None
    if not isinstance(domain, TrialDomain):
        raise ValueError(
            f"evaluation.domain {name or 'is not set and'} draws no trials. Set one such as "
            "ip2p.shapes.domain:ShapesDomain, whose pictures the judges must be able to read."
        )
    trials = domain.draw_trials(num, config.evaluation.seed)
    judges = {"clip_direction": measure_reliability(*direction_scores(config.scoring, trials))}
    if config.filtering.vlm.model:
        judge = PictureJudge(config.filtering.vlm, config.out / "judges.vlm.jsonl")
        judges["vlm_followed"] = measure_reliability(*followed_scores(judge, trials))
    write_reliability(config.out, judges)
    return judges


def direction_scores(config: ScoringConfig, trials: Sequence[Trial]) -> tuple[list[float], list[float]]:
    """Returns CLIP's direction similarities of each trial's right and wrong triplet."""
    from ip2p.scoring.scorer import load_pair_scorer

    scorer = load_pair_scorer(config)
    blocks = [trials[start : start + BLOCK] for start in range(0, len(trials), BLOCK)]
    right, wrong = list[float](), list[float]()
    for block in blocks:
        sides = ([trial.original_image for trial in block], [trial.edited_image for trial in block])
        embeddings = scorer.embed_images([Image.fromarray(each) for each in chain(*sides)])
        right += scorer.similarities([trial.right for trial in block], embeddings)[:, 2].tolist()
        wrong += scorer.similarities([trial.wrong for trial in block], embeddings)[:, 2].tolist()
    return right, wrong


def followed_scores(judge: PictureJudge, trials: Sequence[Trial]) -> tuple[list[float | None], list[float | None]]:
    """Returns how far each trial's right and wrong instruction were followed, by a judge; None without a score."""

    def ask(instructions: Sequence[str]) -> list[float | None]:
        edits = [
            (instruction, trial.original_image, trial.edited_image)
            for instruction, trial in zip(instructions, trials, strict=True)
        ]
        return [None if scores is None else scores.followed for scores in judge.score_what_it_can(edits)]

    return ask([trial.right.edit_prompt for trial in trials]), ask([trial.wrong.edit_prompt for trial in trials])

"""Scores by a vision-language judge, which `ip2p.picture_judge` asks. Every answer is on disk before it is used."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from ip2p.config import VlmConfig
from ip2p.evaluation.cases import EditCase, Pixels
from ip2p.evaluation.measures import Column, Measure, Setup, Values, fit_to
from ip2p.picture_judge import PictureJudge, judge_identity
from ip2p.sources.content import Source, note


@dataclass(frozen=True)
class VlmMeasure(Measure):
    """Asks for scores from 0 to 10; slow, so it skips sweeps and grids."""

    config: VlmConfig
    journal: Path
    later: tuple[str, ...] = ()
    """The content of a local model, if it has changed since it was noted."""
    order = 70
    edits_only = True
    columns = (
        Column("vlm_followed", "VLM: followed", "higher", "mean"),
        Column("vlm_kept", "VLM: kept", "higher", "mean"),
        Column("vlm_quality", "VLM: quality", "higher", "mean"),
        Column("vlm", "VLM: overall", "higher", "mean"),
    )

    @classmethod
    def from_setup(cls, setup: Setup) -> Self | None:
        """Makes the measure if a model is set; its answers are stored in the folder."""
        config = setup.knobs.vlm
        if not config.model:
            return None
        model = [Source("evaluation.vlm.model", config.model, config.revision)] if config.backend == "local" else []
        return cls(config, setup.folder / "vlm-answers.jsonl", tuple(note(setup.notes, model)))

    @property
    def identity(self) -> str:
        """Returns a hash of the model and the questions."""
        return judge_identity(self.config, self.later)

    def __call__(self, cases: Sequence[EditCase], before: Sequence[Pixels], after: Sequence[Pixels]) -> list[Values]:
        """Returns None for scores that an answer does not hold. RuntimeError if the server does not answer."""
        judge = PictureJudge(self.config, self.journal, self.later)
        pictures = ((original, fit_to(edited, original)) for original, edited in zip(before, after, strict=True))
        edits = [(case.edit_prompt, *pair) for case, pair in zip(cases, pictures, strict=True)]
        return [
            {
                "vlm_followed": scores.followed,
                "vlm_kept": scores.kept,
                "vlm_quality": scores.quality,
                "vlm": scores.overall,
            }
            for scores in judge.score_edits(edits)
        ]

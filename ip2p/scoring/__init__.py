"""The scores of a rendered pair: a registry that needs no torch. `scorer` measures what a config asks for.

Every module here but those in `BESIDE` is a plug-in: it declares `SCORES`, imports torch and models only inside its
functions, and is found by its place in this folder. A new score is one new file and a row in docs/data.md.
"""

from __future__ import annotations

from ip2p.config import ScoringConfig
from ip2p.plugins import modules_in
from ip2p.scoring.score import Bound, Score, Side

BESIDE = ("reliability", "score", "scorer")
"""Modules of this package that declare no score."""


def _read_scores() -> dict[str, Score]:
    """Returns the scores of all plug-ins by name, in their order. ValueError if two share a name or a column."""
    scores: list[Score] = [score for module in modules_in(__name__, __path__, BESIDE) for score in module.SCORES]
    for score in scores:
        rivals = [other for other in scores if other.name == score.name or other.column == score.column]
        if len(rivals) > 1:
            raise ValueError(
                f"{len(rivals)} scores are called {score.name} or fill {score.column}. Rename all but one."
            )
    return {score.name: score for score in sorted(scores, key=lambda score: (score.place, score.name))}


SCORES = _read_scores()
"""All scores by name, in the order in which they are listed and judged."""
SCORE_COLUMNS = {score.column: name for name, score in SCORES.items()}
"""The columns of tables that hold scores, and the scores' names."""
_FIRST = ("clip_original", "clip_edited", "clip_direction", "clip_image", "contrast", "ssim", "dino", "nsfw", "shift")
"""Columns of every table, measured or not."""
LATER_SCORES = tuple(column for column in SCORE_COLUMNS if column not in _FIRST)
"""Columns that a table lacks if none of its rows has a value, so that runs that do not measure them are as before."""
_SIDES: tuple[Side, ...] = ("low", "high")
BOUNDS = {
    bound.reason: bound
    for is_asked in (False, True)
    for side in _SIDES
    for score in SCORES.values()
    if score.is_asked == is_asked and (bound := Bound(score, side)).words
}
"""The bounds of all scores by the reason of a pair beyond them, in the order in which they are checked: what a judge is
asked for comes last."""


def check_settings(config: ScoringConfig) -> None:
    """Raises ValueError for a setting that no score reads, and lists those that exist."""
    settings = [score.setting for score in SCORES.values() if score.setting]
    for name in config.further:
        if name not in settings:
            raise ValueError(f"scoring.further sets {name}, which no score reads. Known are: {', '.join(settings)}.")


__all__ = ["BOUNDS", "LATER_SCORES", "SCORES", "SCORE_COLUMNS", "Score", "check_settings"]

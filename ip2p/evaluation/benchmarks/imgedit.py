"""ImgEdit-Bench (Ye et al., 2025), its basic suite: nine types of edits, three scores from 1 to 5 for each edit.

The questions are ours: they ask for the same three scores of each type, in other words. The authors' scripts average
the three scores, then the edits of each type, and end there; an overall figure is taken over the edits or over the
types, so both are given.
"""

from __future__ import annotations

import logging
import math
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

from ip2p.evaluation.benchmark_cases import file_loaders, read_listing
from ip2p.evaluation.benchmarks import Aggregate, Answer, Asked, Benchmark, Facts, Judged, Question, SourceEdit
from ip2p.evaluation.cases import EditCase, Pixels
from ip2p.evaluation.measures import Column, Values, as_images
from ip2p.evaluation.metrics import mean_of
from ip2p.sources.row import Row

logger = logging.getLogger(__name__)

LISTINGS = ("basic_edit.json", "singleturn.json")
"""Names of the listing in the authors' repository and in their archive of pictures."""
PLACES = ("", "original_images", "singleturn")
"""Folders beside the listing that the pictures may lie in."""
SCORES = ("compliance", "naturalness", "detail")
QUESTION = """You see two pictures: the first is an original, the second is what came out when somebody was asked to
edit it. {task} The request, word for word, was: "{instruction}"
Give three whole numbers from 1 to 5, where 1 means failed, 3 means half right and 5 means that nothing is left to wish.
"compliance": {compliance}
"naturalness": {naturalness}
"detail": {detail}
Looks cannot save an edit that misses the request: neither "naturalness" nor "detail" may exceed "compliance".
Answer with JSON alone, such as {{"why": "a short reason", "compliance": 4, "naturalness": 3, "detail": 4}}."""
SEAMS = "does it look like one picture? Seams, smears, pasted borders, clashing colour or sharpness cost points."
PHYSICS = "do light, shadow, perspective and contact fit the scene, and is all that was not asked about as it was?"
CRITERIA: dict[str, tuple[str, str, str, str]] = {
    "add": (
        "Something was to be added.",
        "is what was to be added there, of the right kind, number, place, size and look, with nothing else added?",
        SEAMS,
        PHYSICS,
    ),
    "adjust": (
        "A property of something was to be changed.",
        "has the right thing the asked colour, material or other property, with its shape and all else left alone?",
        SEAMS,
        PHYSICS,
    ),
    "remove": (
        "Something was to be removed.",
        "is all of it gone, nothing else with it, and nothing put in its place?",
        SEAMS,
        PHYSICS,
    ),
    "replace": (
        "Something was to be replaced by something else.",
        "is the old thing fully gone, and the new one of the right kind, number, place, size and look?",
        SEAMS,
        PHYSICS,
    ),
    "background": (
        "The background was to be changed.",
        "is the background the one that was asked for, with the foreground left alone?",
        "can one tell where the foreground ends and the new background begins? Halos and jumps in grain cost points.",
        "do foreground and background agree in light, horizon, scale and depth?",
    ),
    "style": (
        "The whole picture was to be given another style.",
        "is the asked style there, in colours, strokes and light, over all of the picture?",
        "is what the picture shows still there, in the same layout and shapes, whatever its style?",
        "is it cleanly made? Noise, bands, blur and broken strokes cost points.",
    ),
    "action": (
        "Somebody's pose or expression was to be changed.",
        "is the pose or expression the one that was asked for, in every limb and in the face?",
        "is it the same individual, with the same face, hair and clothes?",
        "is the body well formed and the picture clean? Wrong limbs, halos and false light cost points.",
    ),
    "extract": (
        "One thing was to be cut out and put on plain white.",
        "is it the right thing, all of it, and nothing else?",
        "is the outline exact and the rest pure white? Fringes, holes and remains of the background cost points.",
        "is the thing itself as it was: sharp, complete, in its own colours?",
    ),
    "compose": (
        "Several things were to be changed in different ways.",
        "was each of them changed as asked, and nothing else?",
        SEAMS,
        PHYSICS,
    ),
}
"""What was to be done, and what the three scores ask, by edit type."""
OTHER_NAMES = {"alter": "adjust", "hybrid": "compose"}
"""Names of types in other versions of the listing."""


class ImgEdit(Benchmark):
    """Has a judge give three scores, by questions that depend on the type."""

    name = "imgedit"
    order = 30
    words = "ImgEdit-Bench's protocol: three scores from 1 to 5 by a judge, averaged by edit type"
    columns = (
        Column("imgedit", "ImgEdit", "higher", "mean"),
        Column("imgedit_compliance", "ImgEdit: compliance", "higher", "mean"),
        Column("imgedit_naturalness", "ImgEdit: naturalness", "higher", "mean"),
        Column("imgedit_detail", "ImgEdit: detail", "higher", "mean"),
    )
    published = dict.fromkeys((column.name for column in columns), "")
    takes = ()
    needs = "asks by ImgEdit-Bench's edit types"
    questions = (QUESTION, *(text for texts in CRITERIA.values() for text in texts))

    def read(self, asked: Asked) -> list[SourceEdit] | None:
        """Reads the listing, or a folder that holds one, with the pictures beside it."""
        paths = [asked.path] if asked.path.name in LISTINGS else [asked.path / name for name in LISTINGS]
        path = next((path for path in paths if path.is_file()), None)
        if path is None:
            return None
        listing = read_listing(path)
        edits = [edit for key, row in listing if (edit := _read_edit(path.parent, key, row)) is not None]
        if len(edits) < len(listing):
            logger.warning("left out %d of %d edits of %s", len(listing) - len(edits), len(listing), path)
        return edits

    def ask(self, case: EditCase, before: Pixels, after: Pixels) -> list[Question]:
        """Asks once, about both pictures as they are."""
        task, *scores = CRITERIA[OTHER_NAMES.get(case.edit_type, case.edit_type)]
        texts = dict(zip(SCORES, scores, strict=True)) | {"task": task, "instruction": case.edit_prompt}
        text = QUESTION.format(**texts)
        return [Question(pictures=as_images([before, after]), text=text, scores=SCORES, low=1, high=5)]

    def values(self, case: EditCase, answers: Sequence[Answer]) -> Values:
        """Averages the three scores."""
        (scores,) = answers
        if scores is None:
            return dict.fromkeys(column.name for column in self.columns)
        single = {f"imgedit_{name}": score for name, score in zip(SCORES, scores, strict=True)}
        return {"imgedit": math.fsum(scores) / len(scores), **single}

    def aggregate(self, edits: Sequence[Judged]) -> list[Aggregate]:
        """Averages over the edits, over the types' averages, and by type."""
        by_type: dict[str, list[float]] = defaultdict(list)
        for case, values in edits:
            by_type[case.edit_type] += [score] if (score := values["imgedit"]) is not None else []
        averages = {kind: mean_of(scores) for kind, scores in sorted(by_type.items())}
        scores = [score for group in by_type.values() for score in group]
        return [
            Aggregate(label="mean over edits", value=mean_of(scores), n=len(scores)),
            Aggregate(label="mean over types", value=mean_of(averages.values()), n=len(scores)),
            *(Aggregate(label=kind, value=value, n=len(by_type[kind])) for kind, value in averages.items()),
        ]


def _read_edit(folder: Path, key: str, row: Row) -> SourceEdit | None:
    """Reads an edit; None, with a line of the log, if it lacks an instruction, a known type or its picture."""
    instruction, kind = row.wording("prompt"), row.text("edit_type")
    picture = next((path for place in PLACES if (path := folder / place / row.text("id")).is_file()), None)
    if instruction is None or picture is None or OTHER_NAMES.get(kind, kind) not in CRITERIA:
        reason = "no instruction" if instruction is None else "no picture" if picture is None else f"the type {kind!r}"
        logger.info("left out %s: %s", row.where, reason)
        return None
    texts = {"edit_prompt": instruction, "edit_type": kind}
    return SourceEdit(texts, file_loaders({"original_image": picture}), Facts(output=f"{key}.png"))

"""KRIS-Bench (Wu et al., 2025): edits that take knowledge, four scores from 1 to 5, here from 0 to 100.

The questions are ours: they ask for the same scores in other words. As in the summary that is published with BAGEL,
every single score counts alike, so that an edit of a task with a fourth score weighs more. Tasks whose edits take
several pictures, temporal prediction and multi-element composition, are left out: the editors here take one.
"""

from __future__ import annotations

import logging
from collections import Counter, defaultdict
from collections.abc import Sequence
from pathlib import Path

from PIL import Image

from ip2p.evaluation.benchmark_cases import file_loaders, read_listing
from ip2p.evaluation.benchmarks import (
    Aggregate,
    Answer,
    Asked,
    Benchmark,
    Facts,
    Judged,
    Question,
    SourceEdit,
    facts_of,
)
from ip2p.evaluation.cases import EditCase, Pixels
from ip2p.evaluation.measures import Column, Values, as_images
from ip2p.evaluation.metrics import mean_of
from ip2p.images import open_pixels
from ip2p.sources.row import Row

logger = logging.getLogger(__name__)

LISTING = "annotation.json"
DIMENSIONS = {
    "attribute perception": (
        "count_change",
        "color_change",
        "size_adjustment",
        "part_completion",
        "anomaly_correction",
    ),
    "spatial perception": ("viewpoint_change", "position_movement"),
    "temporal prediction": ("temporal_prediction",),
    "social science": ("humanities", "practical_knowledge"),
    "natural science": ("biology", "chemistry", "geography", "mathematics", "medicine", "physics"),
    "logical reasoning": ("abstract_reasoning", "rule-based_reasoning"),
    "instruction decomposition": ("multi-element_composition", "multi-instruction_execution"),
}
"""Folders of the data by what they test."""
LEVELS = {
    "factual knowledge": ("attribute perception", "spatial perception", "temporal prediction"),
    "conceptual knowledge": ("social science", "natural science"),
    "procedural knowledge": ("logical reasoning", "instruction decomposition"),
}
DIMENSION_OF = {category: dimension for dimension, categories in DIMENSIONS.items() for category in categories}
WITH_KNOWLEDGE = {
    category
    for dimension in ("social science", "natural science", "logical reasoning")
    for category in DIMENSIONS[dimension]
}
"""Folders whose edits are also scored by what ought to have happened."""
SEVERAL = ("temporal_prediction", "multi-element_composition")
TRUTH, EXPLANATION = "truth", "explanation"

SCALE = "Give a whole number from 1 to 5: 1 means failed, 3 half right, 5 that nothing is left to wish."
PAIR = """You see two pictures: an original, and then what came out when somebody was asked to edit it.
The request, word for word, was: "{instruction}"
"""
CONSISTENCY = f"""{PAIR}Find out first what the request lets or makes change. Look at everything else: who and what is
there, where it stands, its colours, the light, the setting. How much of that is exactly as it was? Whether the request
was carried out, and how well, does not count here.
{SCALE}
4 stands for one tiny difference, 2 for two or more clear ones.
Answer with JSON alone, such as {{{{"why": "a short reason", "consistency": 4}}}}."""
QUALITY = f"""You see a picture that a machine made. How well is it made, whatever it shows? Bodies and things should be
whole, writing readable, light and perspective right, textures clean, nothing doubled or smeared. A small or slightly
soft picture loses no points for that.
{SCALE}
Answer with JSON alone, such as {{"why": "a short reason", "quality": 4}}."""
FOLLOWED = """Say to yourself what differs between the two, and what a picture would show in which the request is
carried out to the letter. How far does the second picture get there? It must be the right thing that changed, in the
right way and to the right degree. Changes beyond the request do not count here.
"""
INSTRUCTION = f"""{PAIR}{{hint}}{FOLLOWED}{SCALE}
Answer with JSON alone, such as {{{{"why": "a short reason", "instruction": 4}}}}."""
REPAIR_HINT = """The original holds a mistake that was to be repaired. Of a right picture it is known: "{explanation}"
"""
VIEW_HINT = """A third picture shows the asked view as it really looks. Compare the second one's view with it.
"""
KNOWLEDGE = f"""{PAIR}What ought to happen is known: "{{explanation}}"
Give two scores.
"instruction": {FOLLOWED}"knowledge": Does the second picture show what ought to happen? If "instruction" is 1 or 2,
"knowledge" is 1.
{SCALE}
Answer with JSON alone, such as {{{{"why": "a short reason", "instruction": 4, "knowledge": 3}}}}."""


class Kris(Benchmark):
    """Has a judge score consistency, quality, the instruction and, by task, the knowledge."""

    name = "kris"
    order = 50
    words = "KRIS-Bench's protocol: scores by a judge from 0 to 100, by what kind of knowledge an edit takes"
    columns = (
        Column("kris_consistency", "VC", "higher", "mean"),
        Column("kris_quality", "VQ", "higher", "mean"),
        Column("kris_instruction", "IF", "higher", "mean"),
        Column("kris_knowledge", "KP", "higher", "mean"),
    )
    published = dict.fromkeys((column.name for column in columns), "")
    takes = ()
    needs = "asks by KRIS-Bench's tasks"
    questions = (CONSISTENCY, QUALITY, INSTRUCTION, REPAIR_HINT, VIEW_HINT, KNOWLEDGE)

    def read(self, asked: Asked) -> list[SourceEdit] | None:
        """Reads `CATEGORY/annotation.json` of every category that the folder has, with the pictures beside each."""
        listings = [path for name in DIMENSION_OF if (path := asked.path / name / LISTING).is_file()]
        if not listings:
            return None
        edits, left_out = list[SourceEdit](), Counter[str]()
        for path in listings:
            for key, row in read_listing(path):
                if reason := _lacks(path.parent, row):
                    left_out[reason] += 1
                    logger.info("left out %s: %s", row.where, reason)
                else:
                    edits.append(_read_edit(path.parent, key, row))
        reasons = ", ".join(f"{num} with {reason}" for reason, num in left_out.items())
        if not edits:
            raise ValueError(
                f"{asked.source} holds no edit that can be made: {reasons or 'it is empty'}. Add other tasks."
            )
        if reasons:
            logger.warning("edits left out: %s", reasons)
        return edits

    def ask(self, case: EditCase, before: Pixels, after: Pixels) -> list[Question]:
        """Asks about consistency, about quality, and about the instruction with what is known of the right result."""
        pair, facts = as_images([before, after]), facts_of(case)
        texts = {"instruction": case.edit_prompt, "explanation": facts.texts[EXPLANATION], "hint": ""}
        pictures = pair + as_images([open_pixels(facts.files[TRUTH])] if TRUTH in facts.files else [])
        if TRUTH in facts.files:
            texts["hint"] = VIEW_HINT
        elif case.edit_type == "anomaly_correction" and facts.texts[EXPLANATION]:
            texts["hint"] = REPAIR_HINT.format(**texts)
        knows = case.edit_type in WITH_KNOWLEDGE
        question = (KNOWLEDGE if knows else INSTRUCTION).format(**texts)
        return [
            _question(pair, CONSISTENCY.format(**texts), "consistency"),
            _question(pair[1:], QUALITY, "quality"),
            _question(pictures, question, "instruction", *(["knowledge"] if knows else [])),
        ]

    def values(self, case: EditCase, answers: Sequence[Answer]) -> Values:
        """Puts each score on a scale of 0 to 100."""
        single = [score for scores, num in zip(answers, (1, 1, 2), strict=True) for score in _padded(scores, num)]
        names = (column.name for column in self.columns)
        return {name: None if score is None else (score - 1) * 25 for name, score in zip(names, single, strict=True)}

    def aggregate(self, edits: Sequence[Judged]) -> list[Aggregate]:
        """Averages all single scores: overall, by level and by dimension; those of a dimension and a task by kind."""
        groups: dict[str, list[Judged]] = defaultdict(list)
        for case, values in edits:
            groups[case.edit_type].append((case, values))
        by_dimension = {
            dimension: [edit for category in categories for edit in groups[category]]
            for dimension, categories in DIMENSIONS.items()
        }
        headlines = {"overall": list(edits)}
        headlines |= {level: [edit for name in names for edit in by_dimension[name]] for level, names in LEVELS.items()}
        details = {name: chosen for name, chosen in (*by_dimension.items(), *sorted(groups.items())) if chosen}
        every = [column.name for column in self.columns]
        return [
            *(_average(name, chosen, every) for name, chosen in (headlines | by_dimension).items() if chosen),
            *(
                _average(f"{name}, {column.title}", chosen, [column.name], is_headline=False)
                for name, chosen in details.items()
                for column in self.columns
            ),
        ]


def _lacks(folder: Path, row: Row) -> str:
    """Says why an edit cannot be made; empty if it can."""
    pictures = row.values.get("ori_img")
    if folder.name in SEVERAL or (isinstance(pictures, list) and len(pictures) > 1):
        return "several pictures, where an editor takes one"
    if row.wording("ins_en") is None:
        return "no instruction"
    return "" if isinstance(row.picture("ori_img"), Path) else "no picture"


def _read_edit(folder: Path, key: str, row: Row) -> SourceEdit:
    picture, truth = row.picture("ori_img"), row.picture("gt_img")
    facts = Facts(
        output=f"{folder.name}/{key}.jpg",
        texts={EXPLANATION: row.text("explain_en")},
        files={TRUTH: truth} if isinstance(truth, Path) else {},
    )
    texts = {"edit_prompt": row.wording("ins_en") or "", "edit_type": folder.name}
    return SourceEdit(texts, file_loaders({"original_image": picture}), facts)


def _question(pictures: Sequence[Image.Image], text: str, *scores: str) -> Question:
    return Question(pictures=pictures, text=text, scores=scores, low=1, high=5)


def _padded(scores: Answer, num: int) -> list[float | None]:
    """Returns so many scores of an answer, None for those that it lacks."""
    return [*(scores or ()), *[None] * num][:num]


def _average(label: str, edits: Sequence[Judged], names: Sequence[str], *, is_headline: bool = True) -> Aggregate:
    scores = [score for _, values in edits for name in names if (score := values[name]) is not None]
    return Aggregate(label=label, value=mean_of(scores), n=len(scores), is_headline=is_headline)

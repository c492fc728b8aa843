"""A benchmark's own judge: asks its questions about every edit, as often as wanted, and aggregates by its own rules.

A refused question, or an answer without the scores, leaves values out and is counted; it never counts as 0. Every
answer is on disk before it is used, under a key that states the judge, the question, the pictures and the repeat.
"""

from __future__ import annotations

import logging
import statistics
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from ip2p.config import VlmConfig, fingerprint
from ip2p.evaluation.benchmarks import Answer, Benchmark, Facts, Question
from ip2p.evaluation.cases import EditCase, Pixels
from ip2p.evaluation.measures import Column, Measure, Values
from ip2p.evaluation.metrics import Figures, Record, mean_of
from ip2p.images import hash_pixels
from ip2p.picture_judge import Ask, judge_edits, judge_settings, read_scores
from ip2p.records import content_hash
from ip2p.sources.content import Source, content_of, note
from ip2p.store.journal import Journal, RecordFile

logger = logging.getLogger(__name__)

COUNTS = ("asked", "refused", "without_scores")
"""What is counted of the questions about an edit."""
Edit = tuple[EditCase, Pixels, Pixels]
"""A case, and the pictures before and after."""


@dataclass(frozen=True, kw_only=True)
class JudgeMeasure(Measure):
    """Asks a benchmark's questions; slow, so it skips sweeps."""

    benchmark: Benchmark
    config: VlmConfig
    repeats: int
    journal: Path
    facts: str
    """Hash of what the benchmark alone knows of the edits."""
    later: tuple[str, ...]
    """The content of a local model, if it has changed since it was noted."""
    columns: tuple[Column, ...]  # type: ignore[misc]  # they are the benchmark's
    order = 80
    edits_only = True

    @property
    def judge(self) -> str:
        """Returns a hash of what decides an answer to a question."""
        return fingerprint("judge", *judge_settings(self.config), *self.later)

    @property
    def identity(self) -> str:
        """Returns a hash of the judge, the questions and what is told of the edits."""
        return fingerprint(self.judge, self.benchmark.name, self.benchmark.questions, self.repeats, self.facts)

    def __call__(self, cases: Sequence[EditCase], before: Sequence[Pixels], after: Sequence[Pixels]) -> list[Values]:
        """Returns None for values that the judge did not give.

        RuntimeError if the server does not answer, ValueError if it has refused all that it was ever asked.
        """
        journal = Journal(self.journal)
        rows = judge_edits(self.config, list(zip(cases, before, after, strict=True)), partial(self._score, journal))
        self._check_refusals(journal)
        return rows

    def _check_refusals(self, journal: Journal) -> None:
        """Raises a ValueError, and forgets the refusals, if there is nothing else: then the settings are wrong."""
        records = journal.read()
        own = [record for record in records if record.get("judge") == self.judge]
        if len(own) > 1 and all("refused" in record for record in own):
            journal.rewrite([record for record in records if record.get("judge") != self.judge])
            raise ValueError(
                f"{self.config.server.base_url} refused every question: {own[0]['refused']}. Check that "
                f"{self.config.model} sees pictures, and evaluation.vlm.max_new_tokens."
            )

    def _score(self, journal: Journal, ask: Ask, edit: Edit) -> Values:
        questions, counts, rows = self.benchmark.ask(*edit), Counter[str](), list[Values]()
        for repeat in range(1, self.repeats + 1):
            answers = [self._answer(journal, ask, question, repeat, counts) for question in questions]
            rows.append(self.benchmark.values(edit[0], answers))
        values: Values = {f"judge_{name}": float(counts[name]) for name in COUNTS}
        for column in self.benchmark.columns:
            values[column.name] = mean_of([row[column.name] for row in rows])
            values |= {_of_repeat(column.name, number): row[column.name] for number, row in enumerate(rows, start=1)}
        return values

    def _answer(self, journal: Journal, ask: Ask, question: Question, repeat: int, counts: Counter[str]) -> Answer:
        pictures = [hash_pixels(np.asarray(picture)) for picture in question.pictures]
        key = content_hash(self.judge, question.text, *pictures, repeat)
        if journal.get(key) is None:
            reply = ask(question.pictures, question.text)
            journal.add(key, {"judge": self.judge, "repeat": repeat, "question": question.text, **reply})
        entry = journal.get(key) or {}  # of two edits that ask the same at once, both take the first answer
        scores = read_scores(str(entry.get("text", "")), question.scores, question.low, question.high)
        counts["asked"] += 1
        counts["refused"] += "refused" in entry
        counts["without_scores"] += "refused" not in entry and scores is None
        return scores


def set_up_judge(
    benchmark: Benchmark, config: VlmConfig, cases: Sequence[EditCase], repeats: int, folder: Path
) -> JudgeMeasure | None:
    """Makes the measure of a benchmark that has questions, if a judge is set; its answers are stored in the folder."""
    if not benchmark.questions:
        return None
    if not config.model:
        logger.warning("no judge: %s is judged by a vision-language model. Set --evaluation.vlm.model.", benchmark.name)
        return None
    model = [_local_model(config)] if config.backend == "local" else []
    counts = [Column(f"judge_{name}", name, None, "mean", shown_in="nowhere") for name in COUNTS]
    repeated = [
        Column(_of_repeat(column.name, number), column.title, column.better, "mean", shown_in="nowhere")
        for column in benchmark.columns
        for number in range(1, repeats + 1)
    ]
    return JudgeMeasure(
        benchmark=benchmark,
        config=config,
        repeats=repeats,
        journal=folder / "vlm-answers.jsonl",
        facts=content_hash(*(case.payload.identity for case in cases if isinstance(case.payload, Facts))),
        later=tuple(note(folder, model)),
        columns=(*benchmark.columns, *counts, *repeated),
    )


def describe_judge(measure: JudgeMeasure) -> Figures:
    """Names who judged, and by which questions: what two sets of figures must share to be comparable."""
    config = measure.config
    served = Counter(
        str(entry["model"])
        for entry in RecordFile(measure.journal).read()
        if isinstance(entry, dict) and entry.get("judge") == measure.judge and entry.get("model")
    )
    if len(served) > 1:
        names = ", ".join(served)
        logger.warning("the server answered as %s: the figures mix their judgements", names)
    return {
        "model": config.model,
        "backend": config.backend,
        "revision": config.revision,
        "content": content_of(_local_model(config)) if config.backend == "local" else None,
        "served_as": dict(served),
        "temperature": config.temperature,
        "questions": content_hash(*measure.benchmark.questions),
        "repeats": measure.repeats,
    }


def describe_answers(records: Sequence[Record]) -> dict[str, int]:
    """Counts the questions that were asked, refused and answered without the scores, over all repeats."""
    return {name: round(sum(record[f"judge_{name}"] or 0 for record in records)) for name in COUNTS}


def aggregate(
    benchmark: Benchmark, records: Sequence[Record], cases: Sequence[EditCase], repeats: int
) -> list[Figures]:
    """Computes the benchmark's own figures: each repeat's, their mean, and their standard deviation if there are two.

    `n` is the number of scores that the repeat with the fewest averages.
    """
    names = [column.name for column in benchmark.columns]
    by_repeat = []
    for number in range(1, repeats + 1):
        values = [{name: record[_of_repeat(name, number)] for name in names} for record in records]
        edits = [(cases[record["case"]], row) for record, row in zip(records, values, strict=True)]
        by_repeat.append(benchmark.aggregate(edits))
    published = []
    for figures in zip(*by_repeat, strict=True):
        measured = [figure.value for figure in figures if figure.value is not None]
        published.append(
            {
                "label": figures[0].label,
                "mean": mean_of([figure.value for figure in figures]),
                "sd": statistics.stdev(measured) if len(measured) > 1 else None,
                "n": min(figure.n for figure in figures),
                "repeats": [figure.value for figure in figures],
                "is_headline": figures[0].is_headline,
            }
        )
    return published


def _of_repeat(name: str, number: int) -> str:
    return f"{name}@{number}"


def _local_model(config: VlmConfig) -> Source:
    return Source("evaluation.vlm.model", config.model or "", config.revision)

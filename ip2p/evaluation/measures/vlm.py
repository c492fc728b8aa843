"""Scores by a vision-language judge, after VIEScore (Ku et al., 2024), but with differently worded questions.

One question shows both pictures and asks how far the instruction was followed and how much else was kept; another shows
the edited one alone and asks how natural and how clean it is. The lower score of each question counts, and their
geometric mean is the overall score. Every answer is on disk before it is used; one without scores counts as None.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Self

import numpy as np
from PIL import Image

from ip2p.chat_client import ChatClient, picture_part
from ip2p.config import VlmConfig, fingerprint
from ip2p.evaluation.cases import EditCase, Pixels, hash_pixels
from ip2p.evaluation.measures import Column, Measure, Setup, Values, as_images, fit_to
from ip2p.images import encode_png
from ip2p.records import content_hash
from ip2p.server_client import Reply
from ip2p.sources.content import Source, note
from ip2p.store.journal import Journal

BOTH = """You see two pictures. The first is an original. The second is somebody's attempt to edit it as asked:
"{instruction}"
Give two scores from 0 to 10.
"followed": 0 if nothing of what was asked can be seen in the second picture, 10 if all of it can and nothing more.
"kept": 0 if the second picture has nothing to do with the first, 10 if all that was not asked about is as it was.
Answer with JSON alone, such as {{"why": "a short reason", "followed": 3, "kept": 8}}."""
ALONE = """You see a picture that a machine made. Give two scores from 0 to 10, whatever it shows.
"natural": 0 if light, shadow, distance and shapes make no sense, 10 if they fit a picture of its kind.
"clean": 0 if it is full of smears, broken things and other faults, 10 if there are none.
Answer with JSON alone, such as {"why": "a short reason", "natural": 6, "clean": 7}."""
QUESTIONS = (BOTH, ALONE)

Edit = tuple[EditCase, Pixels, Pixels]
"""A case, and the pictures before and after."""
Ask = Callable[[Sequence[Image.Image], str], Reply]
"""Takes pictures and a question; returns the answer or the refusal, and the model that the server names."""


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
        return fingerprint("vlm", *judge_settings(self.config), QUESTIONS, *self.later)

    def __call__(self, cases: Sequence[EditCase], before: Sequence[Pixels], after: Sequence[Pixels]) -> list[Values]:
        """Returns None for scores that an answer does not hold. RuntimeError if the server does not answer."""
        score = partial(self._score, Journal(self.journal))
        return judge_edits(self.config, list(zip(cases, before, after, strict=True)), score)

    def _score(self, journal: Journal, ask: Ask, edit: Edit) -> Values:
        case, before, after = edit
        pictures = as_images([before, fit_to(after, before)])
        question = BOTH.format(instruction=case.edit_prompt)
        both = read_scores(self._answer(ask, journal, pictures, question), ("followed", "kept"))
        alone = read_scores(self._answer(ask, journal, pictures[1:], ALONE), ("natural", "clean"))
        return {
            "vlm_followed": both[0] if both else None,
            "vlm_kept": both[1] if both else None,
            "vlm_quality": min(alone) if alone else None,
            "vlm": math.sqrt(min(both) * min(alone)) if both and alone else None,
        }

    def _answer(self, ask: Ask, journal: Journal, pictures: Sequence[Image.Image], question: str) -> str:
        key = content_hash(self.identity, question, *(hash_pixels(np.asarray(picture)) for picture in pictures))
        entry = journal.get(key)
        if entry is None:
            entry = {"question": question, "text": str(ask(pictures, question).get("text", ""))}
            journal.add(key, entry)
        return str(entry["text"])


def judge_settings(config: VlmConfig) -> tuple[object, ...]:
    """Returns what of the settings decides a judge's answers."""
    sampling = [config.temperature] if config.temperature else []
    return config.model, config.revision, config.max_new_tokens, *sampling


def judge_edits(config: VlmConfig, edits: Sequence[Edit], score: Callable[[Ask, Edit], Values]) -> list[Values]:
    """Scores edits with the judge that is set: together by a server, one after the other by a model in this process.

    RuntimeError if the server does not answer.
    """
    if config.backend == "local":
        answer = local_judge(config)
        return [score(lambda pictures, question: {"text": answer(pictures, question)}, edit) for edit in edits]
    with closing(ChatClient(config.server)) as client:
        return client.ask_together(edits, partial(score, partial(_ask_server, client, config)))


def read_scores(answer: str, names: Sequence[str], low: float = 0, high: float = 10) -> tuple[float, ...] | None:
    """Reads scores in low..high from the last JSON object of an answer that has them all; None if there is none."""
    for text in reversed(re.findall(r"\{[^{}]*\}", answer)):
        try:
            values = json.loads(text)
            scores = tuple(float(values[name]) for name in names)
        except (ValueError, TypeError, KeyError):
            continue
        return scores if all(low <= score <= high for score in scores) else None
    return None


def _ask_server(client: ChatClient, config: VlmConfig, pictures: Sequence[Image.Image], question: str) -> Reply:
    images = [picture_part(encode_png(np.asarray(picture))) for picture in pictures]
    request = {
        "model": config.model,
        "messages": [{"role": "user", "content": [*images, {"type": "text", "text": question}]}],
        "temperature": config.temperature,
        "max_tokens": config.max_new_tokens,
    }
    return client.ask(request, names_model=True)


def local_judge(config: VlmConfig) -> Callable[[Sequence[Image.Image], str], str]:
    """Loads a transformers model, once per process, and returns how to ask it."""
    from ip2p.models.seeing import load_seeing_model

    model = load_seeing_model(
        config.model,
        what="evaluation.vlm.model",
        revision=config.revision,
        device=config.device,
        dtype=config.dtype,
    )

    def ask(pictures: Sequence[Image.Image], question: str) -> str:
        content = [{"type": "image"} for _ in pictures] + [{"type": "text", "text": question}]
        return model.answer([{"role": "user", "content": content}], pictures, max_new_tokens=config.max_new_tokens)

    return ask

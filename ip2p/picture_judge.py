"""Asks a vision-language model about an edit: the one owner of the questions, the answers and how pictures are sent.

After VIEScore (Ku et al., 2024), but with differently worded questions. One question shows both pictures and asks how
far the instruction was followed and how much else was kept; another shows the edited one alone and asks how natural and
how clean it is. The lower score of each question counts, and their geometric mean is the overall score.

A third question asks which instruction the two pictures show. It does not name the written one, so that the answer
follows the pictures alone.
"""

from __future__ import annotations

import json
import logging
import math
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
from PIL import Image

from ip2p.chat_client import ChatClient, picture_part
from ip2p.config import VlmConfig, fingerprint
from ip2p.images import encode_png, hash_pixels, open_picture
from ip2p.records import content_hash
from ip2p.server_client import Reply
from ip2p.store.journal import Journal

logger = logging.getLogger(__name__)

Pixels = npt.NDArray[np.uint8]
"""(height, width, 3)."""
T = TypeVar("T")
A = TypeVar("A")

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
SHOWN = """You see two pictures. The second was made from the first by one edit.
Write the instruction that turns the first into the second: short, as a person would ask for it, and of nothing that the
pictures do not show. Leave it empty if they show no edit.
Answer with JSON alone, such as {"instruction": "make the wall blue"}."""

MOST_FAILURES = 3
"""Questions in a row without an answer after which no further one is sent."""

Ask = Callable[[Sequence[Image.Image], str], Reply]
"""Takes pictures and a question; returns the answer or the refusal, and the model that the server names."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EditScores:
    """What a judge says about an edit; None for scores that an answer does not hold."""

    followed: float | None
    kept: float | None
    quality: float | None
    overall: float | None
    answer: str
    """Both answers, in the judge's words."""


def judge_settings(config: VlmConfig) -> tuple[object, ...]:
    """Returns what of the settings decides a judge's answers."""
    sampling = [config.temperature] if config.temperature else []
    return config.model, config.revision, config.max_new_tokens, *sampling


def judge_identity(config: VlmConfig, later: Sequence[str] = ()) -> str:
    """Returns a hash of the model and the questions; `later` is the content of a model that has changed since."""
    return fingerprint("vlm", *judge_settings(config), QUESTIONS, *later)


def shown_identity(config: VlmConfig, later: Sequence[str] = ()) -> str:
    """Returns a hash of the model and the question for the instruction that a pair shows."""
    return fingerprint("vlm shown", *judge_settings(config), SHOWN, *later)


class PictureJudge:
    """Asks about edits and stores every answer in a journal before it is used, so that none is asked for twice."""

    def __init__(self, config: VlmConfig, journal: Path, later: Sequence[str] = ()) -> None:
        self.config = config
        self.identity = judge_identity(config, later)
        self.shown_identity = shown_identity(config, later)
        self.failures = 0
        """Questions in a row that had no answer."""
        self._journal = Journal(journal)

    def score_edits(self, edits: Sequence[tuple[str, Pixels, Pixels]]) -> list[EditScores]:
        """Scores edits, each an instruction and two pictures of one size. RuntimeError if no answer comes."""
        return judge_edits(self.config, edits, self._score)

    def score_what_it_can(self, edits: Sequence[tuple[str, Pixels, Pixels]]) -> list[EditScores | None]:
        """Scores edits; None for those without an answer."""
        return self._answer_what_it_can(edits, self._score)

    def write_what_it_can(self, pairs: Sequence[tuple[bytes, bytes]]) -> list[str | None]:
        """Writes the instructions that pairs of picture files show; "" if an answer holds none, None without one."""
        return self._answer_what_it_can(pairs, self._write)

    def _answer_what_it_can(self, edits: Sequence[T], about: Callable[[Ask, T], A]) -> list[A | None]:
        """Asks about each edit. Gives up after `MOST_FAILURES` in a row without an answer."""

        def attempt(ask: Ask, edit: T) -> A | None:
            if self.failures >= MOST_FAILURES:
                return None
            try:
                answer = about(ask, edit)
            except RuntimeError as error:
                self.failures += 1
                logger.warning("a pair is left open: %s", error)
                return None
            self.failures = 0
            return answer

        if not edits or self.failures >= MOST_FAILURES:
            return [None] * len(edits)
        return judge_edits(self.config, edits, attempt)

    def _write(self, ask: Ask, pair: tuple[bytes, bytes]) -> str:
        return read_instruction(self._answer(ask, [open_picture(content) for content in pair], SHOWN))

    def _score(self, ask: Ask, edit: tuple[str, Pixels, Pixels]) -> EditScores:
        instruction, *pixels = edit
        pictures = [Image.fromarray(each) for each in pixels]
        answers = [
            self._answer(ask, pictures, BOTH.format(instruction=instruction)),
            self._answer(ask, pictures[1:], ALONE),
        ]
        both = read_scores(answers[0], ("followed", "kept"))
        alone = read_scores(answers[1], ("natural", "clean"))
        return EditScores(
            followed=both[0] if both else None,
            kept=both[1] if both else None,
            quality=min(alone) if alone else None,
            overall=math.sqrt(min(both) * min(alone)) if both and alone else None,
            answer="\n".join(answers),
        )

    def _answer(self, ask: Ask, pictures: Sequence[Image.Image], question: str) -> str:
        key = content_hash(self.identity, question, *(hash_pixels(np.asarray(picture)) for picture in pictures))
        texts = self._journal.once(
            key, lambda: {"question": question, "text": str(ask(pictures, question).get("text", ""))}
        )
        return str(texts["text"])


def judge_edits(config: VlmConfig, edits: Sequence[T], score: Callable[[Ask, T], A]) -> list[A]:
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
    for values in _objects(answer):
        try:
            scores = tuple(float(values[name]) for name in names)
        except (ValueError, TypeError, KeyError):
            continue
        return scores if all(low <= score <= high for score in scores) else None
    return None


def read_instruction(answer: str) -> str:
    """Reads the instruction of the last JSON object of an answer that has one, in one line; "" if there is none."""
    texts = (values.get("instruction") for values in _objects(answer))
    return next((" ".join(text.split()) for text in texts if isinstance(text, str)), "")


def _objects(answer: str) -> Iterator[dict[str, Any]]:
    """Yields the flat JSON objects of an answer, the last first."""
    for text in reversed(re.findall(r"\{[^{}]*\}", answer)):
        try:
            yield json.loads(text)
        except ValueError:
            continue


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
        config.model, what="vlm.model", revision=config.revision, device=config.device, dtype=config.dtype
    )

    def ask(pictures: Sequence[Image.Image], question: str) -> str:
        content = [{"type": "image"} for _ in pictures] + [{"type": "text", "text": question}]
        return model.answer([{"role": "user", "content": content}], pictures, max_new_tokens=config.max_new_tokens)

    return ask

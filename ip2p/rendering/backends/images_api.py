"""The `images-api` backend: a server of the OpenAI route images/edits edits the pictures as the instructions say.

Every answer is on disk before it is used, and stays there: a kill costs only the requests in flight, and whatever is
judged or rendered again is not paid for twice. A refusal, an empty answer, and a file that is no picture or has another
shape than the original fail for their candidate alone.
"""

from __future__ import annotations

import importlib.util
import json
import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from ip2p.config import OPTIONAL_RANGES, RenderingConfig
from ip2p.images import check_shapes, encode_image, fit_picture, open_picture, read_size
from ip2p.images_client import EditAnswer, ImagesClient
from ip2p.records import Candidate, content_hash
from ip2p.rendering.backends import Failure, MakesPairs, Pictures
from ip2p.rendering.table import EncodedPair
from ip2p.store.journal import AnswerFolder

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Edit:
    """What is asked of the server."""

    key: str
    """Hash of all of it, and of the candidate's seed, since a server may answer one request in many ways."""
    form: Mapping[str, Any]
    picture: bytes

    @classmethod
    def of(cls, config: RenderingConfig, candidate: Candidate, picture: bytes) -> Edit:
        """Writes a candidate's request."""
        form, seed = form_of(config, candidate, picture), candidate.spec.seed
        key = content_hash("images-api", json.dumps(form, sort_keys=True), candidate.triplet.picture, seed)
        return cls(key, form, picture)


class ImagesApi(MakesPairs):
    """Sends pictures and instructions, many at once."""

    name = "images-api"
    draws = OPTIONAL_RANGES

    def __init__(self, answers: AnswerFolder | None = None) -> None:
        self.answers = answers

    def keeping(self, folder: Path) -> MakesPairs:
        """Returns the backend that looks for answers in a folder before it asks."""
        return ImagesApi(AnswerFolder(folder))

    def check(self, config: RenderingConfig) -> None:
        """Raises a ValueError of one line for settings that cannot work."""
        for section in (config, *config.per_edit_type.values()):
            for name in OPTIONAL_RANGES:
                if getattr(section, name) is not None and name not in config.images_api.drawn:
                    raise ValueError(
                        f"rendering.{name} is not sent to the server. Name it in rendering.images_api.drawn, or leave "
                        "it out."
                    )
        if not config.server.base_url:
            raise ValueError("rendering.server.base_url is not set. Give an address such as http://127.0.0.1:8000/v1.")
        if not config.model:
            raise ValueError("rendering.model is not set. Give the model's name on the server.")
        if config.first_look_steps is not None:
            raise ValueError("rendering.first_look_steps has no meaning for the backend images-api. Leave it out.")
        if importlib.util.find_spec("openai") is None:
            raise ValueError("asking a server needs openai. Install it with: pip install 'ip2p[server]'")

    def make_pairs(
        self, config: RenderingConfig, candidates: Sequence[Candidate], pictures: Pictures
    ) -> Iterator[EncodedPair | Failure]:
        """Asks for `config.batch_size` edits together. RuntimeError if the server stays away; answers are kept."""
        with closing(ImagesClient(config.server)) as client:
            for start in range(0, len(candidates), config.batch_size):
                batch = candidates[start : start + config.batch_size]
                edits = [Edit.of(config, candidate, pictures[candidate.triplet.picture]) for candidate in batch]
                answers = client.ask_together(edits, partial(self._answer, client))
                self._keep_refusals(config, edits, answers)
                for edit, answer in zip(edits, answers, strict=True):
                    yield as_pair(config, edit.picture, answer)

    def _answer(self, client: ImagesClient, edit: Edit) -> EditAnswer:
        """Takes the answer from the folder if it is there, else from the server."""
        stored = None if self.answers is None else self.answers.get(edit.key)
        if stored:
            return EditAnswer(stored) if isinstance(stored, bytes) else EditAnswer(**stored, is_stored=True)
        answer = client.edit(edit.picture, edit.form)
        if answer.reason != "refused":
            self._keep(edit, answer)
        return answer

    def _keep_refusals(self, config: RenderingConfig, edits: Sequence[Edit], answers: Sequence[EditAnswer]) -> None:
        """Stores refusals, unless there is nothing else: a server that refuses all requests is asked wrongly."""
        both = zip(edits, answers, strict=True)
        refused = [(edit, answer) for edit, answer in both if answer.reason == "refused" and not answer.is_stored]
        if not refused:
            return
        url, message = config.server.base_url, refused[0][1].message
        if len(refused) == len(edits) > 1 and not any(answer.by_policy for answer in answers):
            raise ValueError(f"{url} refused every request: {message}. Check rendering.model and rendering.images_api.")
        logger.warning("%s refused %d of %d requests: %s", url, len(refused), len(edits), message)
        for edit, answer in refused:
            self._keep(edit, answer)

    def _keep(self, edit: Edit, answer: EditAnswer) -> None:
        if self.answers is not None:
            self.answers.add(edit.key, answer.content or {"reason": answer.reason, "message": answer.message})


REASONS = {"refused": "refused", "no_picture": "an answer without a picture"}
"""Words for why an answer holds no picture."""


def as_pair(config: RenderingConfig, original: bytes, answer: EditAnswer) -> EncodedPair | Failure:
    """Fits the answer to the original's size, and encodes it as every image is."""
    if answer.reason:
        return Failure(REASONS[answer.reason])
    try:
        edited = open_picture(answer.content)
    except ValueError:
        return Failure("an answer that is no picture")
    size = read_size(original)
    try:
        check_shapes(size, edited.size)
    except ValueError:
        return Failure("an answer of another shape")
    pixels = np.asarray(fit_picture(edited, size))
    return EncodedPair(original, encode_image(pixels, config.image_format, config.image_quality))


def form_of(config: RenderingConfig, candidate: Candidate, picture: bytes) -> dict[str, Any]:
    """Returns the fields of a candidate's request, beside the picture."""
    api, spec = config.images_api, candidate.spec
    form: dict[str, Any] = {"model": config.model, "prompt": candidate.triplet.edit_prompt, "n": 1}
    if api.size:
        width, height = read_size(picture)
        form["size"] = f"{width}x{height}" if api.size == "picture" else api.size
    if api.response_format != "none":
        form["response_format"] = api.response_format
    drawn = {name: spec.seed % 2**31 if name == "seed" else getattr(spec, name) for name in api.drawn}
    return form | {name: value for name, value in drawn.items() if value is not None} | api.fields

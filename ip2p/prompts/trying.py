"""Triplets about one caption, by hand: what `ip2p prompts try` prints and a web page may show."""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Callable
from pathlib import Path

from ip2p.config import PipelineConfig
from ip2p.prompts.asking import Request
from ip2p.prompts.backends import check_backend, open_backend
from ip2p.prompts.cleaning import normalise
from ip2p.prompts.lengths import length_check
from ip2p.prompts.screening import Screen
from ip2p.prompts.write import Generation, judge, write_about

logger = logging.getLogger(__name__)


def try_caption(config: PipelineConfig, caption: str, num_triplets: int = 1) -> list[Generation]:
    """What a run of this config would write about the caption and say of it. ValueError where the caption is empty."""
    caption = normalise(caption)
    if not caption:
        raise ValueError("the caption is empty. Give a text such as 'a photo of a horse in a field'.")
    check_backend(config.prompts)
    fits = _length_check(config)
    requests = [Request(caption, attempt) for attempt in range(num_triplets)] if fits(caption) else []
    with tempfile.TemporaryDirectory(prefix="ip2p-try-") as folder:
        backend = open_backend(config.prompts, Path(folder) / "journal.jsonl")
        answers = backend.answer(requests, on_answer=lambda num: None)
    written = write_about(config.prompts, [caption], zip(requests, answers, strict=True), fits=fits)
    return judge(written, Screen(config.prompts.screening, fits))


def _length_check(config: PipelineConfig) -> Callable[[str], bool]:
    """The renderer's; without a renderer at hand nothing is too long."""
    try:
        return length_check(config)
    except ValueError as error:
        logger.warning("lengths are not checked: %s", error)
        return lambda text: True

"""Whether a text fits the renderer's text encoder, counted by the renderer's own tokenizer."""

from __future__ import annotations

import functools
from collections.abc import Callable

from ip2p.config import PipelineConfig


def length_check(config: PipelineConfig) -> Callable[[str], bool]:
    """Says of a text whether the renderer's text encoder takes it whole."""
    from ip2p import loading

    tokenizer = loading.load_tokenizer(config.rendering.model, revision=config.rendering.revision)
    limit = config.prompts.max_prompt_tokens or tokenizer.model_max_length

    @functools.cache
    def fits(text: str) -> bool:
        return len(tokenizer(text, verbose=False)["input_ids"]) <= limit

    return fits

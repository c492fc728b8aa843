"""The generation loop against a real model that was trained on the format in a few seconds."""

from __future__ import annotations

import itertools
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from ip2p.config import PromptsConfig
from ip2p.models.loading import LanguageModel, load_language_model
from ip2p.prompts.asking import Request
from ip2p.prompts.backends.transformers import CausalBackend, draw_tokens
from ip2p.prompts.format import STOP, format_prompt, parse_answer
from tests.trained_models import TRAINED_CAPTIONS

pytestmark = pytest.mark.xdist_group("trained_models")
CONFIG = PromptsConfig(temperature=1.0, max_new_tokens=60, seed=3, batch_size=5)
REQUESTS = [Request(caption, attempt) for caption in TRAINED_CAPTIONS for attempt in range(3)]


@pytest.fixture(scope="module")
def trained(trained_lm: Path) -> LanguageModel:
    return load_language_model(str(trained_lm), revision=None, device="cpu")


def run(model: LanguageModel, requests: list[Request] = REQUESTS, **changed: Any) -> list[str]:
    backend = CausalBackend(model, replace(CONFIG, **changed))
    return [answer.text for answer in backend.answer(requests, on_answer=lambda number: None)]


def test_the_trained_model_answers_in_the_format(trained: LanguageModel) -> None:
    answers = run(trained, temperature=0)
    assert all(parse_answer(answer) for answer in answers)


@pytest.mark.parametrize("batch_size", [1, 2, 12])
def test_answers_do_not_depend_on_the_batch_size(trained: LanguageModel, batch_size: int) -> None:
    assert run(trained, batch_size=batch_size) == run(trained)


def test_an_answer_does_not_depend_on_what_else_is_asked(trained: LanguageModel) -> None:
    assert run(trained, REQUESTS[::-2]) == run(trained)[::-2]


def test_attempts_and_seeds_give_different_answers(trained: LanguageModel) -> None:
    answers = run(trained)
    assert len(set(answers)) > len(TRAINED_CAPTIONS)
    assert answers != run(trained, seed=4)


def test_temperature_zero_equals_the_library_s_greedy_search(trained: LanguageModel) -> None:
    model: Any = trained.model
    for caption, answer in zip(
        TRAINED_CAPTIONS, run(trained, [Request(c, 0) for c in TRAINED_CAPTIONS], temperature=0), strict=True
    ):
        prompt = trained.tokenizer(format_prompt(caption), return_tensors="pt")
        out = model.generate(
            **prompt, do_sample=False, max_new_tokens=60, stop_strings=[STOP], tokenizer=trained.tokenizer
        )
        assert answer == trained.tokenizer.decode(out[0, prompt["input_ids"].shape[1] :], skip_special_tokens=True)


def test_an_answer_ends_at_its_stop_or_at_the_limit(trained: LanguageModel) -> None:
    assert all(answer.endswith(STOP) for answer in run(trained, temperature=0))
    for answer in run(trained, max_new_tokens=3):
        assert len(trained.tokenizer(answer)["input_ids"]) <= 3


def test_the_context_of_the_model_bounds_an_answer_and_a_prompt_that_fills_it_gets_none(trained: LanguageModel) -> None:
    long, longer = (Request(" ".join(["a red circle"] * times), 0) for times in (60, 200))
    short, bounded, none = run(trained, [REQUESTS[0], long, longer], max_new_tokens=10_000, temperature=0)
    prompt = trained.tokenizer(format_prompt(long.caption))["input_ids"]
    assert parse_answer(short)
    assert len(prompt) + len(trained.tokenizer(bounded)["input_ids"]) <= trained.model.config.max_position_embeddings
    assert none == ""


def test_draws_follow_the_distribution_of_the_logits() -> None:
    logits = torch.tensor([0.1, 0.6, 0.3]).log().expand(1000, 3)
    tokens = draw_tokens(logits, [(index + 0.5) / 1000 for index in range(1000)], temperature=1.0)
    assert tokens.bincount().tolist() == [100, 600, 300]


def test_nucleus_sampling_draws_from_the_fewest_tokens_that_hold_the_probability() -> None:
    uniforms = [(index + 0.5) / 1000 for index in range(1000)]
    logits = torch.tensor([0.1, 0.5, 0.15, 0.25]).log().expand(1000, 4)
    counts = {top_p: draw_tokens(logits, uniforms, 1.0, top_p).bincount(minlength=4) for top_p in (0.45, 0.7, 0.8, 1.0)}
    assert counts[0.45].tolist() == [0, 1000, 0, 0]
    assert counts[0.7].tolist() == [0, 667, 0, 333]
    assert [count > 0 for count in counts[0.8].tolist()] == [False, True, True, True]
    assert counts[1.0].tolist() == draw_tokens(logits, uniforms, 1.0).bincount().tolist() == [100, 500, 150, 250]


def test_low_temperature_sharpens_the_draws() -> None:
    logits = torch.tensor([0.0, 1.0]).expand(100, 2)
    uniforms = [(index + 0.5) / 100 for index in range(100)]
    shares = [draw_tokens(logits, uniforms, temperature).sum().item() for temperature in (10.0, 1.0, 0.1, 0.0)]
    assert all(left < right for left, right in itertools.pairwise(shares[:3])) and shares[-1] == 100

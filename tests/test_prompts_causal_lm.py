"""The generation loop against a real model that was taught the format in a few seconds."""

from __future__ import annotations

import itertools

import pytest
import torch

from ip2p.models.loading import LanguageModel
from ip2p.prompts.backends.transformers import Request, Sampling, draw_tokens, generate
from ip2p.prompts.format import STOP, format_prompt, parse_answer
from tests.taught import TAUGHT_CAPTIONS, teach_language_model

SAMPLING = Sampling(temperature=1.0, max_new_tokens=60, seed=3, batch_size=5)
REQUESTS = [Request(caption, attempt) for caption in TAUGHT_CAPTIONS for attempt in range(3)]


@pytest.fixture(scope="module")
def taught() -> LanguageModel:
    return teach_language_model()


def run(model: LanguageModel, requests: list[Request] = REQUESTS, **changed: object) -> list[str]:
    values = {name: getattr(SAMPLING, name) for name in ("temperature", "max_new_tokens", "seed", "batch_size")}
    sampling = Sampling(**{**values, **changed})  # type: ignore[arg-type]
    return generate(model, requests, sampling, on_answer=lambda number: None)


def test_the_taught_model_answers_in_the_format(taught: LanguageModel) -> None:
    answers = run(taught, temperature=0)
    assert all(parse_answer(answer) for answer in answers)


@pytest.mark.parametrize("batch_size", [1, 2, 12])
def test_answers_do_not_depend_on_the_batch_size(taught: LanguageModel, batch_size: int) -> None:
    assert run(taught, batch_size=batch_size) == run(taught)


def test_an_answer_does_not_depend_on_what_else_is_asked(taught: LanguageModel) -> None:
    assert run(taught, REQUESTS[::-2]) == run(taught)[::-2]


def test_attempts_and_seeds_give_different_answers(taught: LanguageModel) -> None:
    answers = run(taught)
    assert len(set(answers)) > len(TAUGHT_CAPTIONS)
    assert answers != run(taught, seed=4)


def test_temperature_zero_equals_the_library_s_greedy_search(taught: LanguageModel) -> None:
    for caption, answer in zip(
        TAUGHT_CAPTIONS, run(taught, [Request(c, 0) for c in TAUGHT_CAPTIONS], temperature=0), strict=True
    ):
        prompt = taught.tokenizer(format_prompt(caption), return_tensors="pt")
        out = taught.model.generate(
            **prompt, do_sample=False, max_new_tokens=60, stop_strings=[STOP], tokenizer=taught.tokenizer
        )
        assert answer == taught.tokenizer.decode(out[0, prompt["input_ids"].shape[1] :], skip_special_tokens=True)


def test_an_answer_ends_at_its_stop_or_at_the_limit(taught: LanguageModel) -> None:
    assert all(answer.endswith(STOP) for answer in run(taught, temperature=0))
    for answer in run(taught, max_new_tokens=3):
        assert len(taught.tokenizer(answer)["input_ids"]) <= 3


def test_the_context_of_the_model_bounds_an_answer_and_a_prompt_that_fills_it_gets_none(taught: LanguageModel) -> None:
    long, longer = (Request(" ".join(["a red circle"] * times), 0) for times in (60, 200))
    short, bounded, none = run(taught, [REQUESTS[0], long, longer], max_new_tokens=10_000, temperature=0)
    prompt = taught.tokenizer(format_prompt(long.caption))["input_ids"]
    assert parse_answer(short)
    assert len(prompt) + len(taught.tokenizer(bounded)["input_ids"]) <= taught.model.config.max_position_embeddings
    assert none == ""


def test_draws_follow_the_distribution_of_the_logits() -> None:
    logits = torch.tensor([0.1, 0.6, 0.3]).log().expand(1000, 3)
    tokens = draw_tokens(logits, [(index + 0.5) / 1000 for index in range(1000)], temperature=1.0)
    assert tokens.bincount().tolist() == [100, 600, 300]


def test_low_temperature_sharpens_the_draws() -> None:
    logits = torch.tensor([0.0, 1.0]).expand(100, 2)
    uniforms = [(index + 0.5) / 100 for index in range(100)]
    shares = [draw_tokens(logits, uniforms, temperature).sum().item() for temperature in (10.0, 1.0, 0.1, 0.0)]
    assert all(left < right for left, right in itertools.pairwise(shares[:3])) and shares[-1] == 100

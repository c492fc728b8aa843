"""Teaching a model the format: what is learned, what is held out, and that the result answers."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from ip2p.config import FinetuneConfig, PromptsConfig
from ip2p.models import loading
from ip2p.prompts.asking import Request
from ip2p.prompts.backends.transformers import CausalBackend
from ip2p.prompts.finetune import IGNORED, encode, finetune, held_out_loss, split_triplets
from ip2p.prompts.format import format_answer, format_prompt, parse_answer
from ip2p.records import EditTriplet

COLOURS = ("red", "green", "blue", "gold", "pink", "gray")
SHAPES = ("ring", "star", "cube", "cone")
TRIPLETS = [
    EditTriplet(original_prompt=f"a {old} {shape}", edit_prompt=f"make it {new}", edited_prompt=f"a {new} {shape}")
    for shape in SHAPES
    for old in COLOURS
    for new in COLOURS[:2]
    if old != new
]


@pytest.fixture
def config(tiny_lm: Path, tmp_path: Path) -> FinetuneConfig:
    path = tmp_path / "triplets.jsonl"
    names = ("original_prompt", "edit_prompt", "edited_prompt")
    path.write_text("\n".join(json.dumps({name: getattr(each, name) for name in names}) for each in TRIPLETS))
    return FinetuneConfig(
        model=str(tiny_lm),
        triplets=str(path),
        output=tmp_path / "taught",
        num_epochs=12,
        learning_rate=5e-3,
        device="cpu",
    )


def test_only_the_completion_and_its_end_are_learned(tiny_lm: Path) -> None:
    tokenizer = loading.load_language_model(str(tiny_lm), revision=None, device="cpu").tokenizer
    tokens, mask, labels = encode(tokenizer, TRIPLETS[:3])
    for row, triplet in enumerate(TRIPLETS[:3]):
        assert tokenizer.decode(tokens[row][mask[row] == 1], skip_special_tokens=True) == (
            format_prompt(triplet.original_prompt) + format_answer(triplet.edit_prompt, triplet.edited_prompt)
        )
        learned = labels[row][labels[row] != IGNORED]
        assert tokenizer.decode(learned[:-1]) == format_answer(triplet.edit_prompt, triplet.edited_prompt)
        assert learned[-1] == tokenizer.eos_token_id


def test_no_caption_is_on_both_sides_and_neither_side_is_empty() -> None:
    for fraction in (0.01, 0.3, 0.99):
        trained, held_out = split_triplets(TRIPLETS, fraction, seed=0)
        assert trained and held_out and len(trained) + len(held_out) == len(TRIPLETS)
        assert not {each.original_prompt for each in trained} & {each.original_prompt for each in held_out}
    with pytest.raises(ValueError, match="the same caption"):
        split_triplets(TRIPLETS[:1], 0.5, seed=0)


def test_the_taught_model_answers_in_the_format(config: FinetuneConfig) -> None:
    found = finetune(config)
    assert min(found.held_out) < 0.5 * found.held_out[0]
    taught = loading.load_language_model(str(config.output), revision=None, device="cpu")
    sampling = PromptsConfig(temperature=0.0, max_new_tokens=60, seed=0, batch_size=8)
    captions = sorted({each.original_prompt for each in TRIPLETS})
    requests = [Request(each, 0) for each in captions]
    answers = [each.text for each in CausalBackend(taught, sampling).answer(requests, on_answer=lambda num: None)]
    assert sum(parse_answer(answer) is not None for answer in answers) >= 0.8 * len(answers)
    told = json.loads((config.output / "finetune.json").read_text())
    assert told["held_out"] == found.held_out and told["num_held_out"] == found.num_held_out


def test_the_best_model_is_written_and_training_stops_when_it_gets_no_better(config: FinetuneConfig) -> None:
    hasty = replace(config, learning_rate=1.0, patience=2)
    found = finetune(hasty)
    assert found.best_epoch == 0 and len(found.held_out) == 3
    start, written = (
        loading.load_language_model(str(model), revision=None, device="cpu") for model in (hasty.model, hasty.output)
    )
    for one, other in zip(start.model.parameters(), written.model.parameters(), strict=True):
        assert torch.equal(one, other)


def test_low_rank_additions_are_merged_into_what_is_written(config: FinetuneConfig) -> None:
    pytest.importorskip("peft")
    found = finetune(replace(config, lora_rank=8, num_epochs=4, learning_rate=2e-2))
    assert min(found.held_out) < found.held_out[0]
    taught = loading.load_language_model(str(config.output), revision=None, device="cpu")
    _, held_out = split_triplets(TRIPLETS, config.held_out, config.seed)
    loss = held_out_loss(taught.model, taught.tokenizer, held_out, config)
    assert loss == pytest.approx(min(found.held_out), abs=1e-3)


def test_a_triplet_longer_than_the_model_s_context_is_left_out(
    config: FinetuneConfig, caplog: pytest.LogCaptureFixture
) -> None:
    long = {"original_prompt": "a long caption " * 40, "edit_prompt": "make it short", "edited_prompt": "a caption"}
    with Path(config.triplets).open("a") as file:
        file.write(f"\n{json.dumps(long)}")
    found = finetune(replace(config, num_epochs=1))
    assert found.num_trained + found.num_held_out == len(TRIPLETS)
    assert "1 of 41 triplets are longer than 512 tokens" in caplog.text


def test_a_file_without_triplets_is_a_mistake(config: FinetuneConfig) -> None:
    Path(config.triplets).write_text('{"original_prompt": "a cat"}\n')
    with pytest.raises(ValueError, match="holds 0 triplets, needs two or more"):
        finetune(config)

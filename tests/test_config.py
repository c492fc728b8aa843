"""The config: what a fingerprint ignores and what it does not, and what is refused with which words."""

from __future__ import annotations

import dataclasses
import inspect
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from ip2p.config import (
    DatasetConfig,
    EditTypeRendering,
    EndpointConfig,
    EvaluationConfig,
    FilteringConfig,
    PipelineConfig,
    PromptsConfig,
    RenderingConfig,
    RunnerConfig,
    ScoringConfig,
    Thresholds,
    TrainingConfig,
    fingerprint,
    to_dict,
)
from ip2p.config.fields import ANSWERS_FREE, RESULT_FREE, WEIGHTS_FREE, describe_fields, names_with
from ip2p.presets import PRESETS

SECTIONS = (
    PromptsConfig,
    RenderingConfig,
    ScoringConfig,
    FilteringConfig,
    DatasetConfig,
    TrainingConfig,
    EvaluationConfig,
    RunnerConfig,
)

HOW_NOT_WHAT: list[tuple[Any, dict[str, Any]]] = [
    (PromptsConfig(), {"batch_size": 3}),
    (RenderingConfig(), {"batch_size": 3, "device": "cuda:1"}),
    (ScoringConfig(), {"batch_size": 3, "device": "cpu"}),
    (TrainingConfig(), {"log_every": 3, "checkpoints_total_limit": None}),
    (EvaluationConfig(), {"batch_size": 3, "device": "cpu"}),
]

WHAT: list[tuple[Any, dict[str, Any]]] = [
    (PromptsConfig(), {"temperature": 0.0}),
    (PromptsConfig(), {"shard_size": 7}),
    (RenderingConfig(), {"p2p": (0.1, 0.8)}),
    (RenderingConfig(), {"seed": 1}),
    (RenderingConfig(), {"image_format": "webp"}),
    (ScoringConfig(), {"clip_model": "ViT-B-32"}),
    (FilteringConfig(), {"thresholds": Thresholds(image=0.71)}),
    (FilteringConfig(), {"per_edit_type": {"add": Thresholds()}}),
    (DatasetConfig(), {"test_fraction": 0.1}),
    (TrainingConfig(), {"train_batch_size": 3}),
    (EvaluationConfig(), {"image_guidance_scales": (1.0,)}),
]

REFUSED: list[tuple[type, dict[str, Any], str]] = [
    (PromptsConfig, {"shard_size": 0}, "shard_size must be positive, got 0"),
    (PromptsConfig, {"num_captions": -1}, "num_captions must be positive, got -1"),
    (PromptsConfig, {"temperature": -0.1}, "temperature must not be negative, got -0.1"),
    (RenderingConfig, {"num_inference_steps": 0}, "num_inference_steps must be positive, got 0"),
    (RenderingConfig, {"guidance_scale": (9.0, 3.0)}, "guidance_scale is a range"),
    (RenderingConfig, {"p2p": (0.5, 1.5)}, "p2p must lie in"),
    (EditTypeRendering, {"shared_steps": (0.6, 0.5)}, "shared_steps is a range"),
    (EditTypeRendering, {"num_candidates": 0}, "num_candidates must be positive"),
    (RenderingConfig, {"image_quality": 101}, "image_quality must lie in 1..100, got 101"),
    (ScoringConfig, {"batch_size": 0}, "batch_size must be positive, got 0"),
    (FilteringConfig, {"max_pairs_per_triplet": 0}, "max_pairs_per_triplet must be positive"),
    (DatasetConfig, {"test_fraction": 1.01}, "test_fraction must lie in"),
    (DatasetConfig, {"rows_per_shard": 0}, "rows_per_shard must be positive"),
    (TrainingConfig, {"learning_rate": 0.0}, "learning_rate must be positive, got 0.0"),
    (TrainingConfig, {"conditioning_dropout_prob": 0.34}, "must lie in [0, 1/3], got 0.34"),
    (TrainingConfig, {"max_train_steps": 0}, "max_train_steps must be positive"),
    (EvaluationConfig, {"num_edits": 0}, "num_edits must be positive"),
    (RunnerConfig, {"max_workers": 0}, "max_workers must be positive"),
]


@pytest.mark.parametrize(("section", "changes"), HOW_NOT_WHAT, ids=lambda value: type(value).__name__)
def test_how_a_stage_runs_leaves_its_fingerprint(section: Any, changes: dict[str, Any]) -> None:
    assert replace(section, **changes) != section
    assert fingerprint(replace(section, **changes)) == fingerprint(section)


@pytest.mark.parametrize(("section", "changes"), WHAT, ids=lambda value: type(value).__name__)
def test_what_a_stage_makes_changes_its_fingerprint(section: Any, changes: dict[str, Any]) -> None:
    assert fingerprint(replace(section, **changes)) != fingerprint(section)


def _other(value: Any, hint: str) -> Any:
    """Another value of a field's type."""
    if isinstance(value, EndpointConfig):
        return dataclasses.replace(value, timeout=1.0)
    return Path("elsewhere") if isinstance(value, Path) else (value or 0) + 1 if "int" in hint else "sdpa"


@pytest.mark.parametrize("section", [*SECTIONS, PipelineConfig])
def test_a_result_free_field_enters_no_fingerprint_and_every_other_field_does(section: type) -> None:
    config = section()
    free = names_with(section, RESULT_FREE)
    hashed = json.loads(json.dumps(to_dict(config)))
    for name in free:
        hint = str({field.name: field.type for field in dataclasses.fields(section)}[name])
        changed = replace(config, **{name: _other(getattr(config, name), hint)})
        assert changed != config and fingerprint(changed) == fingerprint(config), name
    assert fingerprint(config) == fingerprint({key: value for key, value in hashed.items() if key not in free})


def test_the_result_free_fields_are_those_that_saved_fingerprints_left_out() -> None:
    sections = {field.name: getattr(PipelineConfig(), field.name) for field in dataclasses.fields(PipelineConfig)}
    assert names_with(PipelineConfig, RESULT_FREE) == {"out"}
    free = {name: names_with(type(value), RESULT_FREE) for name, value in sections.items() if name != "out"}
    assert free == {
        "prompts": {"batch_size", "device"},
        "rendering": {"batch_size", "device", "attention_backend", "server"},
        "scoring": {"batch_size", "device"},
        "filtering": set(),
        "dataset": set(),
        "training": {"log_every", "checkpoints_total_limit", "latent_cache"},
        "evaluation": {"batch_size", "device"},
        "runner": set(),
    }
    assert names_with(PromptsConfig, ANSWERS_FREE) == {
        *("captions", "captions_column", "captions_split", "captions_revision", "num_captions", "cleaning"),
        *("shard_size", "server", "pictures", "pictures_column"),
    }
    assert names_with(TrainingConfig, WEIGHTS_FREE) == {
        *("pretrained_model_name_or_path", "checkpointing_steps", "report_to", "dataloader_num_workers", "streaming"),
        *("offload_ema", "launch_args", "num_validation_images", "num_validation_pairs", "validation_steps"),
        *("validation_epochs", "validation_file", "val_image_url_or_path", "validation_prompt"),
        "more_data",  # whose content enters
    }


@pytest.mark.parametrize("section", SECTIONS)
def test_a_field_s_text_says_whether_it_changes_the_result(section: type) -> None:
    texts = describe_fields(section)
    assert set(texts) == {field.name for field in dataclasses.fields(section)}
    saying = {name for name, text in texts.items() if text.endswith("Does not change the result.")}
    assert saying == names_with(section, RESULT_FREE)


def test_a_fingerprint_builds_on_those_before_it_in_order() -> None:
    section = DatasetConfig()
    made = {fingerprint(section), fingerprint(section, "a"), fingerprint("a", section), fingerprint(section, "b")}
    assert len(made) == 4


def test_a_fingerprint_does_not_depend_on_the_order_of_edit_types() -> None:
    rules = {"add": Thresholds(image=0.1), "remove": Thresholds(image=0.2)}
    turned = dict(reversed(rules.items()))
    assert fingerprint(FilteringConfig(per_edit_type=rules)) == fingerprint(FilteringConfig(per_edit_type=turned))


@pytest.mark.parametrize(("section", "values", "message"), REFUSED, ids=lambda value: str(value)[:40])
def test_a_value_out_of_range_is_refused_with_the_rule_and_what_was_got(
    section: type, values: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError) as error:
        section(**values)
    assert message in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("bounds", [(0.0, 1.0), (0.3, 0.3)])
def test_the_ends_of_a_range_may_be_the_limits_or_alike(bounds: tuple[float, float]) -> None:
    assert RenderingConfig(p2p=bounds).p2p == bounds


@pytest.mark.parametrize("section", SECTIONS)
def test_an_unknown_key_is_refused_by_name(section: type) -> None:
    with pytest.raises(TypeError, match="num_colours"):
        section(num_colours=3)


@pytest.mark.parametrize("name", sorted(PRESETS))
def test_a_preset_as_a_dict_is_plain_json_and_names_every_section(name: str) -> None:
    preset = PRESETS[name]()
    plain = to_dict(preset)
    assert json.loads(json.dumps(plain)) == plain
    assert set(plain) == {field.name for field in dataclasses.fields(PipelineConfig)}
    assert Path(plain["out"]) == preset.out
    assert TrainingConfig(**plain["training"]) == preset.training


@pytest.mark.parametrize("section", [*SECTIONS, Thresholds])
def test_every_knob_is_explained_by_a_line_under_it(section: type) -> None:
    lines = inspect.getsource(section).splitlines()
    for field in dataclasses.fields(section):
        (place,) = [number for number, line in enumerate(lines) if line.startswith(f"    {field.name}: ")]
        assert lines[place + 1].strip().startswith(('"""', "`")), field.name

"""Config files: what they change, and what they are told when they are wrong."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from ip2p.config import (
    PipelineConfig,
    PromptsConfig,
    ScreeningConfig,
    ServerConfig,
    Thresholds,
    VlmConfig,
    to_dict,
)
from ip2p.config.files import overlay, read_config
from ip2p.presets import shapes


def _file(folder: Path, values: Any, name: str = "config.json") -> Path:
    path = folder / name
    path.write_text(json.dumps(values))
    return path


def test_a_file_changes_only_what_it_names(tmp_path: Path) -> None:
    base = shapes()
    config = read_config(_file(tmp_path, {"rendering": {"num_inference_steps": 7}}), base)
    assert config.rendering.num_inference_steps == 7
    assert config.rendering.model == base.rendering.model
    assert config.training == base.training


def test_yaml_reads_as_json_does(tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    path.write_text("out: runs/x\nrendering:\n  p2p: [0.2, 0.4]\ntraining:\n  learning_rate: 1e-4\n")
    config = read_config(path)
    assert (config.out, config.rendering.p2p, config.training.learning_rate) == (Path("runs/x"), (0.2, 0.4), 1e-4)


def test_a_section_that_saved_configs_leave_out_while_unused_can_be_set_in_part(tmp_path: Path) -> None:
    asked = {"images_api": {"fields": {"quality": "low"}}, "server": {"timeout": 9}}
    config = read_config(_file(tmp_path, {"rendering": asked}), shapes())
    assert (config.rendering.images_api.fields, config.rendering.images_api.size) == ({"quality": "low"}, "")
    assert (config.rendering.server.timeout, config.rendering.server.max_retries) == (9, 8)
    assert read_config(_file(tmp_path, to_dict(config))) == config


def test_numbers_may_be_whole_written_as_text_or_empty(tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    path.write_text("rendering: {p2p: [1e-1, 1], height: null}\ntraining: {learning_rate: 1, snr_gamma: 5e0}\n")
    config = read_config(path)
    assert (config.rendering.p2p, config.training.learning_rate, config.training.snr_gamma) == ((0.1, 1.0), 1.0, 5.0)
    assert isinstance(config.training.learning_rate, float) and config.rendering.height is None


def test_thresholds_of_single_edit_types_come_from_a_file(tmp_path: Path) -> None:
    config = read_config(_file(tmp_path, {"filtering": {"per_edit_type": {"add": {"direction": 0.1}}}}))
    assert config.filtering.per_edit_type == {"add": Thresholds(direction=0.1)}


@pytest.mark.parametrize(
    ("values", "said"),
    [
        (
            {"rendering": {"num_inference_stps": 1}},
            r"unknown key rendering\.num_inference_stps\. Did you mean rendering\.num_inf",
        ),
        ({"trainning": {}}, r"unknown key trainning\. Did you mean training\?"),
        ({"rendering": {"num_inference_steps": "many"}}, r"rendering\.num_inference_steps takes int, got 'many'"),
        ({"rendering": {"num_inference_steps": True}}, r"rendering\.num_inference_steps takes int, got True"),
        ({"rendering": {"dtype": "float8"}}, r"rendering\.dtype is 'float8', expected one of: auto, float32"),
        ({"rendering": {"p2p": [0.1]}}, r"rendering\.p2p takes 2 values, got 1"),
        ({"rendering": {"p2p": [0.1, 0.2, 0.3], "seed": "x"}}, r"rendering\.p2p takes 2 values, got 3"),
        ({"rendering": {"p2p": [], "seed": "x"}}, r"rendering\.p2p takes 2 values, got 0"),
        ({"rendering": {"p2p": 0.1}}, r"rendering\.p2p takes a list, got 0\.1"),
        ({"rendering": {"blend_threshold": True}}, r"rendering\.blend_threshold takes float, got True"),
        ({"rendering": {"blend_threshold": "much"}}, r"rendering\.blend_threshold takes float, got 'much'"),
        ({"prompts": {"captions": 3}}, r"prompts\.captions takes text, got 3"),
        ({"filtering": {"per_edit_type": 3}}, r"filtering\.per_edit_type takes keys and values, got 3"),
        (
            {"filtering": {"per_edit_type": {"add": {"image": "x"}}}},
            r"filtering\.per_edit_type\.add\.image takes float",
        ),
        ({"rendering": {"num_inference_steps": 0}}, r"rendering\.num_inference_steps must be positive, got 0"),
        ({"rendering": 3}, r"rendering takes keys and values, got 3"),
        (
            {"filtering": {"per_edit_type": {"add": {"directon": 0.1}}}},
            r"unknown key filtering\.per_edit_type\.add\.directon",
        ),
        ([1], r"holds list, expected keys and values"),
    ],
)
def test_a_wrong_key_or_value_is_named(tmp_path: Path, values: Any, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        read_config(_file(tmp_path, values))


@pytest.mark.parametrize(("name", "text"), [("a.json", "{"), ("a.yaml", "a: [")])
def test_a_file_that_cannot_be_read_is_named_in_one_line(tmp_path: Path, name: str, text: str) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(ValueError, match=rf"{name} cannot be read") as caught:
        read_config(tmp_path / name)
    assert "\n" not in str(caught.value)


def test_the_environment_of_a_saved_run_is_not_a_setting(tmp_path: Path) -> None:
    saved = to_dict(PipelineConfig()) | {"environment": {"ip2p": "0"}}
    assert read_config(_file(tmp_path, saved)) == PipelineConfig()


def test_a_whole_config_survives_the_way_through_plain_values() -> None:
    assert overlay(PipelineConfig(), to_dict(shapes())) == shapes()


def test_a_section_that_was_saved_whole_takes_nothing_from_below(tmp_path: Path) -> None:
    below = replace(PipelineConfig(), prompts=PromptsConfig(top_p=0.5, screening=ScreeningConfig(check_reference=True)))
    saved, partial = tmp_path / "config.json", tmp_path / "partial.json"
    saved.write_text(json.dumps(to_dict(PipelineConfig())))
    assert read_config(saved, below) == PipelineConfig()
    partial.write_text('{"prompts": {"temperature": 0.1}}')
    assert read_config(partial, below).prompts == replace(below.prompts, temperature=0.1)


def test_a_section_that_is_left_out_while_it_has_its_defaults_is_read_in_part() -> None:
    base = PipelineConfig()
    assert "vlm" not in to_dict(base)["filtering"]
    url = "http://127.0.0.1:1/v1"
    read = overlay(base, {"filtering": {"vlm": {"model": "judge", "server": {"base_url": url}}}})
    assert read.filtering.vlm == VlmConfig(model="judge", server=ServerConfig(base_url=url))
    assert overlay(read, to_dict(read)) == read and overlay(base, to_dict(base)) == base

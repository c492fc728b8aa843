"""The presets are whole configs that the pipeline takes as they are."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from ip2p.config import PipelineConfig, to_dict
from ip2p.config.files import overlay
from ip2p.presets import PRESETS, data_folder, paper, shapes
from ip2p.store import RunFolder


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_survives_the_way_through_its_saved_config(name: str) -> None:
    config = PRESETS[name]()
    assert overlay(PipelineConfig(), to_dict(config)) == config


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_writes_to_a_folder_of_its_own_name(name: str) -> None:
    assert PRESETS[name]().out == Path("runs") / name


@pytest.mark.parametrize("name", [name for name in PRESETS if PRESETS[name]().rendering.backend == "p2p"])
def test_a_preset_trains_the_model_that_it_renders_with(name: str) -> None:
    config = PRESETS[name]()
    rendering, training = config.rendering, config.training
    assert (rendering.model, rendering.revision) == (training.pretrained_model_name_or_path, training.revision)


@pytest.mark.parametrize("name", ["sd15", "sdxl", "sd35", "flux", "kontext", "klein", "paper"])
def test_hub_models_are_pinned_to_a_commit(name: str) -> None:
    assert re.fullmatch("[0-9a-f]{40}", PRESETS[name]().rendering.revision or "")


@pytest.mark.parametrize("name", ["shapes", "shapes-quick", "shapes-dit"])
def test_an_embedded_preset_needs_nothing_from_outside_the_shipped_data(name: str) -> None:
    config = PRESETS[name]()
    named = (config.prompts.captions, config.prompts.model, config.rendering.model, config.scoring.clip_model)
    assert all(Path(name).is_relative_to(data_folder()) for name in named)


def test_pictures_are_edited_by_the_editor_of_another_preset_s_run() -> None:
    config = PRESETS["shapes-pictures"]()
    assert Path(config.rendering.model) == RunFolder(shapes().out).model
    assert config.rendering.backend == "editor" and config.evaluation.domain == shapes().evaluation.domain


@pytest.mark.parametrize("name", ["sd15", "sdxl", "sd35", "kontext", "klein"])
def test_photographs_are_written_about_by_a_chat_model_that_one_flag_changes(name: str) -> None:
    prompts = PRESETS[name]().prompts
    assert (prompts.backend, prompts.revision) == ("chat", None) and "Instruct" in prompts.model
    assert prompts.screening.near_duplicate is not None


def test_the_paper_takes_1024_pairs_a_step_on_its_eight_gpus() -> None:
    training = paper().training
    assert 8 * training.train_batch_size * training.gradient_accumulation_steps == 1024

"""Configs beyond what Prefect takes as parameters: the flows get them whole, Prefect gets a path."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest
from prefect.client.orchestration import get_client
from prefect.client.schemas.sorting import FlowRunSort

from flows.dataset import dataset_flow
from flows.deployments import DEPLOYMENTS, Form
from flows.forms import differences, fill_in
from flows.handover import MOST_BYTES, UseFlow, fits, form_of_any_size
from flows.runners import flow_of
from ip2p import uses
from ip2p.config import PipelineConfig, RunnerConfig, ScreeningConfig, to_dict
from ip2p.config.files import overlay, read_config, read_run
from ip2p.presets import shapes
from ip2p.store import RunFolder
from tests.flows.test_deployments import run_dataset

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("flows")]

WORDS = tuple(f"unwanted-word-{number:06d}" for number in range(50_000))
"""More than a mebibyte, and Prefect takes half of one."""


def with_words(config: PipelineConfig, words: tuple[str, ...] = WORDS) -> PipelineConfig:
    """The config with words to screen by, of which none is in a caption."""
    screening = ScreeningConfig(banned_words=words)
    return dataclasses.replace(config, prompts=dataclasses.replace(config.prompts, screening=screening))


def recorded_config(name: str) -> object:
    """What Prefect has as the config of the newest run of a flow."""
    with get_client(sync_client=True) as client:
        runs = client.read_flow_runs(sort=FlowRunSort.START_TIME_DESC, limit=20)
        flows = {run.id: client.read_flow(run.flow_id).name for run in runs}
        return next(run.parameters["config"] for run in runs if flows[run.id] == name)


@pytest.mark.parametrize("use", list(uses.USES))
def test_every_use_hands_its_config_over_whatever_the_runner(use: str) -> None:
    flow, config = flow_of(use, RunnerConfig()), with_words(PipelineConfig())
    assert isinstance(flow, UseFlow)
    assert len(json.dumps(to_dict(config))) > 1 << 20
    arguments = {argument.name: argument.choices or "somewhere" for argument in uses.USES[use].arguments}
    recorded = flow.serialize_parameters({"config": config, **arguments})
    assert fits(recorded) and recorded["config"] == str(config.out)


@pytest.fixture
def large_config(ready_config: PipelineConfig) -> PipelineConfig:
    """A run with more settings than Prefect takes."""
    config = with_words(ready_config)
    assert not fits(to_dict(config))
    return config


def test_a_flow_gets_a_config_that_prefect_would_refuse(large_config: PipelineConfig) -> None:
    assert uses.carry_out(large_config, "dataset", lambda: flow_of("dataset", large_config.runner)(large_config))
    assert recorded_config("dataset") == str(large_config.out)
    assert read_run(large_config.out) == large_config
    assert list((RunFolder(large_config.out).dataset / "data").glob("*.parquet"))


def test_a_config_that_fits_is_recorded_with_every_setting(ready_config: PipelineConfig) -> None:
    dataset_flow(ready_config)
    recorded = recorded_config("dataset")
    assert isinstance(recorded, dict) and overlay(PipelineConfig(), recorded) == ready_config


def test_a_deployment_runs_a_large_config_from_a_file(large_config: PipelineConfig, tmp_path: Path) -> None:
    path, out = tmp_path / "large.json", tmp_path / "out"
    path.write_text(json.dumps(to_dict(large_config)))
    state = run_dataset(config_file=str(path), out=str(out))
    assert state.is_completed() and state.message == f"The results are in {out}."
    assert read_run(out).prompts.screening.banned_words == WORDS
    assert recorded_config("dataset") == str(out)


@pytest.mark.parametrize("words", [WORDS[:10], WORDS])
def test_a_form_of_any_size_means_the_same_settings(words: tuple[str, ...], tmp_path: Path) -> None:
    base, config = shapes(), with_words(shapes(), words)
    filled = {"preset": "shapes", "settings": differences(config, base)}
    form = form_of_any_size(filled, DEPLOYMENTS["dataset"].parameters.properties, tmp_path)
    assert len(json.dumps(form)) <= MOST_BYTES and (form == filled) == (len(words) == 10)
    if file := form.get("config_file"):
        base = read_config(Path(file), base)
    assert fill_in(base, Form.model_validate(form["settings"] or {})) == config


def test_a_form_without_a_field_for_a_file_refuses_large_settings(tmp_path: Path) -> None:
    filled = {"settings": differences(with_words(shapes()), shapes())}
    with pytest.raises(ValueError, match="Name the other deployments"):
        form_of_any_size(filled, DEPLOYMENTS["ablate"].parameters.properties, tmp_path)

"""A use is an entry in one table and a flow: everything else follows from the two."""

from __future__ import annotations

import dataclasses
import importlib
import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from prefect import flow

import flows.deployments
from ip2p import uses
from ip2p.config import PipelineConfig, to_dict
from ip2p.store import RunFolder, read_json
from ip2p.uses import USES, Argument, Use, Work


@flow(name="captions")
def captions_flow(config: PipelineConfig, words: str) -> None:
    """Writes the captions in other words."""
    text = Path(config.prompts.captions).read_text().replace("a ", f"a {words} ")
    (config.out / "captions").mkdir()
    (config.out / "captions" / "captions.txt").write_text(text)


CAPTIONS = Use(
    name="captions",
    command="recaption",
    title="Writes captions in other words.",
    flow="tests.flows.test_uses:captions_flow",
    work=Work(
        checks=(uses.check_captions,),
        config_parts=("prompts",),
        inputs=("prompts.captions",),
        writes=("captions",),
    ),
    arguments=(Argument(name="words", help="Words to add."),),
)


@pytest.fixture
def recaption(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The table of uses with one more, and the deployments made from it."""
    monkeypatch.setitem(USES, "captions", CAPTIONS)
    importlib.reload(flows.deployments)
    yield CAPTIONS.command
    monkeypatch.undo()
    importlib.reload(flows.deployments)


@pytest.mark.slow
def test_a_new_use_is_a_deployment_that_runs_and_is_not_done_twice(
    recaption: str, tiny_config: PipelineConfig, tmp_path: Path
) -> None:
    deployment = flows.deployments.DEPLOYMENTS[recaption]
    assert flows.deployments.recaption is deployment  # type: ignore[attr-defined]
    assert deployment.name == "ip2p recaption" and deployment.description == CAPTIONS.title
    assert list(deployment.parameters.properties) == ["words", "preset", "out", "config_file", "settings"]
    file, out = tmp_path / "asked.json", tmp_path / "out"
    file.write_text(json.dumps(to_dict(tiny_config)))
    form = {"words": "very", "config_file": str(file), "out": str(out)}
    messages = [str(deployment(**form, return_state=True).message) for _ in range(2)]
    assert messages == [f"The results are in {out}.", f"Everything is done already in {out}."]
    assert "a very " in (out / "captions/captions.txt").read_text()
    config = dataclasses.replace(tiny_config, out=out)
    assert uses.is_complete(config, "captions", words="very")
    assert not uses.is_complete(config, "captions", words="other")
    Path(tiny_config.prompts.captions).write_text("a bird\n")
    assert not uses.is_complete(config, "captions", words="very")
    failed = deployment(**form, settings={"prompts": {"captions": "nowhere.txt"}}, return_state=True)
    assert failed.is_failed() and "captions file nowhere.txt does not exist" in str(failed.message)


def test_every_use_names_a_flow_of_its_config_and_arguments() -> None:
    for use in USES.values():
        module, _, name = use.flow.partition(":")
        parameters = getattr(importlib.import_module(module), name).parameters
        assert list(parameters.properties) == ["config", *(argument.name for argument in use.arguments)]
        required = [argument.name for argument in use.arguments if not argument.choices]
        assert parameters.required == ["config", *required]


def test_a_use_notes_the_settings_and_files_that_decide_it_and_no_others(tiny_config: PipelineConfig) -> None:
    uses.record_completion(tiny_config, "dataset")
    notes = read_json(tiny_config.out / "completed.json")
    assert set(notes) == {"dataset"} and set(notes["dataset"]) == {"asked", "inputs", "results"}
    trained = dataclasses.replace(tiny_config.training, max_train_steps=5)
    assert uses.is_complete(dataclasses.replace(tiny_config, training=trained), "dataset")
    seeded = dataclasses.replace(tiny_config.dataset, seed=5)
    assert not uses.is_complete(dataclasses.replace(tiny_config, dataset=seeded), "dataset")


def test_a_use_writes_only_folders_of_a_run(finished_run: PipelineConfig) -> None:
    written = {path.name for path in RunFolder(finished_run.out).root.iterdir() if path.is_dir()}
    assert written - {"report"} <= set(USES["pipeline"].work.writes)

"""What Prefect's page offers: a form with every knob, and runs that do what the command does."""

from __future__ import annotations

import dataclasses
import json
import typing
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import fsspec
import pytest
from prefect import State
from prefect.utilities.callables import parameter_schema
from pydantic import ValidationError

from flows.deployments import DEPLOYMENTS, Form
from flows.forms import differences, fill_in, form_of
from flows.tasks import Bar
from ip2p import ablation, uses
from ip2p.cli import serving
from ip2p.config import EditTypeRendering, EvaluationConfig, PipelineConfig, RenderingConfig, TrainingJob, to_dict
from ip2p.config.fields import describe_fields
from ip2p.config.files import read_run
from ip2p.presets import PRESETS, sdxl, shapes
from ip2p.store import RunFolder

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("flows")]


def _knobs(kind: Any) -> dict[str, Any]:
    """Dotted name of every knob and its section's dataclass."""
    found: dict[str, Any] = {}
    hints = typing.get_type_hints(kind)
    for field in dataclasses.fields(kind):
        if dataclasses.is_dataclass(hints[field.name]):
            found |= {f"{field.name}.{name}": each for name, each in _knobs(hints[field.name]).items()}
        else:
            found[field.name] = kind
    return found


def _schema_of(schema: dict[str, Any], name: str) -> dict[str, Any]:
    """The part of a form's schema that a dotted name leads to."""
    place: dict[str, Any] = schema["definitions"]["Settings"]
    for part in name.split("."):
        place = place["properties"][part]
        for each in place["anyOf"]:
            if "$ref" in each:
                place = schema["definitions"][each["$ref"].rpartition("/")[2]]
    return place


def test_every_command_that_makes_something_is_a_deployment_with_every_preset_and_variant() -> None:
    assert tuple(DEPLOYMENTS) == tuple(serving.DEPLOYMENTS)
    fields = {name: parameter_schema(flow).model_dump()["properties"] for name, flow in DEPLOYMENTS.items()}
    assert all(fields[name]["preset"]["enum"] == list(PRESETS) for name in ("run", "dataset", "train"))
    variants = fields["ablate"]["variants"]
    assert variants["items"]["enum"] == variants["default"] == list(ablation.VARIANTS)
    assert list(fields["train"]) == ["data", "preset", "out", "config_file", "settings"]
    assert list(fields["ablate"]) == ["run", "out", "variants", "settings"]


@pytest.mark.parametrize("name", list(DEPLOYMENTS))
def test_the_form_has_a_typed_field_for_every_knob_and_says_what_it_is(name: str) -> None:
    schema = parameter_schema(DEPLOYMENTS[name]).model_dump()
    assert all(field["description"] for field in schema["properties"].values())
    knobs = _knobs(PipelineConfig)
    assert len(knobs) > 150
    for knob, section in knobs.items():
        if knob == "out":
            continue
        found = _schema_of(schema, knob)
        assert found["default"] is None and {"type": "null"} in found["anyOf"]
        assert found["description"] == describe_fields(section)[knob.rpartition(".")[2]]
    whole = _schema_of(schema, "rendering.num_inference_steps")["anyOf"]
    assert whole[0] == {"type": "integer"}


def test_fields_are_described_by_the_lines_under_them_also_inherited_ones() -> None:
    told = describe_fields(TrainingJob)
    assert told["resolution"] and told["dataset_name"].startswith("Hub id of the pairs")
    assert set(told) == {field.name for field in dataclasses.fields(TrainingJob)}


def test_an_empty_form_changes_nothing_and_a_filled_field_changes_itself_alone() -> None:
    base = sdxl()
    assert fill_in(base, None) == fill_in(base, Form()) == base
    form = Form.model_validate({"rendering": {"p2p": [0.2, 0.3]}, "prompts": {"server": {"timeout": 7}}})
    changed = fill_in(base, form)
    assert changed.rendering == dataclasses.replace(base.rendering, p2p=(0.2, 0.3))
    assert changed.prompts.server.timeout == 7.0
    same = dataclasses.replace(changed, rendering=base.rendering, prompts=base.prompts)
    assert same == base


def test_what_differs_from_a_preset_fills_the_form_in_so_that_it_comes_out_again() -> None:
    base = shapes()
    rendering = dataclasses.replace(base.rendering, p2p=(0.1, 0.2), per_edit_type={"a": EditTypeRendering(p2p=(0, 0))})
    thresholds = dataclasses.replace(base.filtering.thresholds, max_nsfw=0.5)
    config = dataclasses.replace(
        base, rendering=rendering, filtering=dataclasses.replace(base.filtering, thresholds=thresholds)
    )
    told = json.loads(json.dumps(differences(config, base)))
    assert set(told) == {"rendering", "filtering"} and set(told["filtering"]) == {"thresholds"}
    assert to_dict(fill_in(base, Form.model_validate(told))) == to_dict(config)
    assert differences(base, base) == {}
    with pytest.raises(ValueError, match="domain is set in the preset and cannot be emptied"):
        differences(dataclasses.replace(base, evaluation=EvaluationConfig()), base)


def test_unknown_knobs_and_wrong_types_are_refused_by_the_form_itself() -> None:
    form = form_of(RenderingConfig)
    for wrong in ({"steps": 3}, {"num_inference_steps": "many"}, {"dtype": "float8"}, {"p2p": [0.1]}):
        with pytest.raises(ValidationError):
            form.model_validate(wrong)


def run_dataset(**fields: Any) -> State[Any]:
    """Runs the deployment of a dataset with the fields of its form."""
    deployed = cast("Callable[..., State[Any]]", DEPLOYMENTS["dataset"])
    return deployed(**fields, return_state=True)


def _asked(config: PipelineConfig, tmp_path: Path) -> str:
    path = tmp_path / "asked.json"
    path.write_text(json.dumps(to_dict(config)))
    return str(path)


def test_a_run_from_the_form_is_the_command_s_and_is_not_done_twice(
    ready_config: PipelineConfig, tmp_path: Path
) -> None:
    asked = {"config_file": _asked(ready_config, tmp_path), "out": str(tmp_path / "out")}
    state = run_dataset(**asked, settings={"dataset": {"seed": 5}})
    assert state.is_completed() and state.message == f"The results are in {tmp_path / 'out'}."
    made = read_run(tmp_path / "out")
    assert made.dataset.seed == 5 and uses.is_complete(made, "dataset")
    assert list(RunFolder(made.out).dataset.glob("data/*.parquet")) and (made.out / "run.log").exists()
    again = run_dataset(**asked, settings={"dataset": {"seed": 5}})
    assert again.message == f"Everything is done already in {tmp_path / 'out'}."


def test_a_mistake_is_a_failed_state_with_the_line_that_the_command_would_print(
    ready_config: PipelineConfig, tmp_path: Path
) -> None:
    file, out = _asked(ready_config, tmp_path), tmp_path / "out"
    for settings, said in (
        ({"rendering": {"num_inference_steps": 0}}, "rendering.num_inference_steps must be positive, got 0."),
        ({"prompts": {"captions": "nowhere.txt"}}, "captions file nowhere.txt does not exist."),
    ):
        state = run_dataset(config_file=file, out=str(out), settings=settings)
        assert state.is_failed() and str(state.message).startswith(said)
        assert not out.exists()


def test_a_run_folder_that_is_a_url_holds_what_was_made(
    ready_config: PipelineConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("IP2P_SCRATCH", str(tmp_path / "scratch"))
    url = "memory://form/run"
    state = run_dataset(config_file=_asked(ready_config, tmp_path), out=url)
    assert state.is_completed() and state.message == f"The results are in {url}."
    stored = {Path(name).name for name in fsspec.filesystem("memory").find("/form/run/dataset/data")}
    assert stored == {path.name for path in (tmp_path / "scratch").glob("ip2p-runs/*/dataset/data/*")} != set()


def test_progress_that_cannot_be_told_fails_nothing() -> None:
    Bar("outside of a run", "a key with spaces is refused by the server").show(0.5)

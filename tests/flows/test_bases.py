"""The whole pipeline on bases that are flow transformers, at tiny size."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from flows.pipeline import pipeline_flow
from ip2p.store import RunFolder, read_json
from tests import tiny_flow
from tests.flows.conftest import write_ready_config

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("flows")]

EDITORS = {
    "sd3": "StableDiffusion3InstructPix2PixPipeline",
    "flux": "FluxControlPipeline",
    "kontext": "FluxKontextPipeline",
    "klein": "Flux2KleinPipeline",
}


@pytest.mark.usefixtures("forked_training")
@pytest.mark.parametrize("name", EDITORS)
def test_pairs_are_rendered_an_editor_is_trained_and_all_are_evaluated(
    tmp_path: Path, tiny_clip: Path, tiny_lm: Path, name: str
) -> None:
    base = getattr(tiny_flow, f"write_tiny_{name}")(tmp_path / name)
    config = write_ready_config(tmp_path / "run", sd=base, clip=tiny_clip, lm=tiny_lm)
    options = {"p2p": (0.1, 0.6), "local_blend": (0.2, 0.5), "height": 64, "width": 64}
    rendering = dataclasses.replace(config.rendering, **options)  # type: ignore[arg-type]
    config = dataclasses.replace(config, rendering=rendering)
    pipeline_flow(config)
    folder = RunFolder(config.out)
    index = read_json(folder.model / "model_index.json")
    assert index["_class_name"] == EDITORS[name]
    figures = read_json(folder.evaluation / "figures.json")
    assert figures["n"] == 7
    assert {"copy", "untrained", "sdedit 0.5"} == figures["baselines"].keys()
    assert (folder.report / "index.html").stat().st_size > 10_000

"""Loads whole pipelines, once per process: text-to-image models and trained editors."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from diffusers import DiffusionPipeline

from ip2p.models.architecture import Architecture, pipeline_kind
from ip2p.models.components import INDEX, read_index
from ip2p.models.loading import check_model_source, from_source, load_once, resolve_device, resolve_dtype, weights_in


def load_text_to_image(
    model: str, *, revision: str | None, variant: str | None, dtype: str, device: str
) -> DiffusionPipeline:
    """Loads the text-to-image pipeline of a folder or hub id, without safety checker and progress bar."""
    place = resolve_device(device)
    precision = resolve_dtype(dtype, place)

    def load() -> DiffusionPipeline:
        source = check_model_source(model, what="rendering.model", marker=INDEX)
        index = read_index(source, revision)
        architecture, kind = pipeline_kind(index, what=f"rendering.model {source}")
        options: dict[str, Any] = {"revision": revision, "torch_dtype": getattr(torch, precision)}
        options |= architecture.load_options(index)
        pipeline = from_source(kind.from_pretrained, source, **options, **weights_in(Path(source), variant))
        if getattr(pipeline, "safety_checker", None) is not None:
            pipeline.safety_checker = None
        return _made_ready(pipeline, architecture, place)

    return load_once(("text-to-image", model, revision, variant, precision, place), load, files=[model])


def load_editor(
    path: str, device: str = "auto", revision: str | None = None, dtype: str = "float32"
) -> DiffusionPipeline:
    """Loads the editor of a folder or a hub id; again if the folder was written since.

    ValueError if the model is not an editor.
    """
    place = resolve_device(device)
    precision = resolve_dtype(dtype, place)
    key = ("editor", path, revision, place, precision)
    return load_once(key, lambda: _load(path, revision, place, getattr(torch, precision)), files=[path])


def _load(path: str, revision: str | None, device: str, dtype: torch.dtype) -> DiffusionPipeline:
    source = check_model_source(path, what="the editor", marker=INDEX)
    architecture, _ = pipeline_kind(read_index(source, revision), what=f"the editor {source}")
    pipeline = from_source(
        architecture.load_editor,
        source,
        what=f"the editor {path}",
        way_out="Give a finished run's model folder.",
        revision=revision,
        dtype=dtype,
        **weights_in(Path(source), None),
    )
    architecture.check_editor(pipeline, path)
    return _made_ready(pipeline, architecture, device)


def _made_ready(pipeline: DiffusionPipeline, architecture: Architecture, device: str) -> DiffusionPipeline:
    """Silences the pipeline and brings it to its device."""
    pipeline.set_progress_bar_config(disable=True)
    for part in (architecture.denoiser(pipeline), pipeline.vae):
        part.to(memory_format=torch.channels_last)  # faster convolutions on CPU and GPU
    return pipeline.to(device)

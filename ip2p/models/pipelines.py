"""Loads whole pipelines, once per process: text-to-image models and trained editors."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from diffusers import DiffusionPipeline

from ip2p.models.architecture import Architecture, architecture_named, architectures, class_name, pipeline_kind
from ip2p.models.components import INDEX, read_index
from ip2p.models.loading import check_model_source, from_source, load_once, resolve_device, resolve_dtype, weights_in


def load_text_to_image(
    model: str,
    *,
    revision: str | None,
    variant: str | None,
    dtype: str,
    device: str,
    check_base: Callable[[Architecture], None] | None = None,
) -> DiffusionPipeline:
    """Loads the text-to-image pipeline of a folder or hub id, without safety checker and progress bar.

    `check_base` may refuse the base by a ValueError, before the weights are read.
    """
    place = resolve_device(device)
    precision = resolve_dtype(dtype, place)

    def load() -> DiffusionPipeline:
        source, index = _source_and_index(model, revision)
        architecture, kind = pipeline_kind(index, what=f"rendering.model {source}")
        if check_base:
            check_base(architecture)
        options: dict[str, Any] = {"revision": revision, "torch_dtype": getattr(torch, precision)}
        options |= architecture.load_options(index)
        pipeline = from_source(kind.from_pretrained, source, **options, **weights_in(Path(source), variant))
        if getattr(pipeline, "safety_checker", None) is not None:
            pipeline.safety_checker = None
        return _made_ready(pipeline, architecture, place)

    return load_once(("text-to-image", model, revision, variant, precision, place), load, files=[model])


def text_to_image_base(model: str, revision: str | None) -> Architecture:
    """Returns the base of a text-to-image model by the class in its index. ValueError if it is not supported."""
    source, index = _source_and_index(model, revision)
    return architecture_named(class_name(index), what=f"rendering.model {source}")


def _source_and_index(model: str, revision: str | None) -> tuple[str, dict[str, Any]]:
    source = check_model_source(model, what="rendering.model", marker=INDEX)
    return source, read_index(source, revision)


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


def load_foreign_editor(
    path: str, device: str = "auto", revision: str | None = None, dtype: str = "float32"
) -> DiffusionPipeline | None:
    """Loads an editing pipeline of another base than ours, which is called as it is; None if the base is one of ours.

    ValueError if it does not take a picture and a prompt.
    """
    source = check_model_source(path, what="rendering.model", marker=INDEX)
    ours = {kind.__name__ for base in architectures() for kind in (base.text_to_image, base.editor) if kind}
    if class_name(read_index(source, revision)) in ours:
        return None
    place = resolve_device(device)
    precision = resolve_dtype(dtype, place)
    key = ("foreign editor", path, revision, place, precision)
    return load_once(key, lambda: _load_foreign(source, revision, place, getattr(torch, precision)), files=[path])


def _load_foreign(source: str, revision: str | None, device: str, dtype: torch.dtype) -> DiffusionPipeline:
    options = {"revision": revision, "torch_dtype": dtype, **weights_in(Path(source), None)}
    pipeline = from_source(DiffusionPipeline.from_pretrained, source, **options)
    if not {"image", "prompt"} <= inspect.signature(pipeline.__call__).parameters.keys():
        raise ValueError(
            f"rendering.model {source} is a {type(pipeline).__name__}, which does not edit: it takes no image with a "
            "prompt. Give an editing pipeline, or the model folder of a finished run."
        )
    if getattr(pipeline, "safety_checker", None) is not None:
        pipeline.safety_checker = None
    pipeline.set_progress_bar_config(disable=True)
    return pipeline.to(device)


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

"""Measures what the base models reach, by the oracle and the grammar, on draws that no training saw."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from ip2p.config import PipelineConfig, PromptsConfig, RenderingConfig
from ip2p.models.loading import load_clip, load_language_model
from ip2p.models.pipelines import load_text_to_image
from ip2p.prompts.asking import Request
from ip2p.prompts.backends.transformers import CausalBackend
from ip2p.prompts.format import parse_answer
from ip2p.records import Candidate, EditTriplet, RenderSpec, hash_to_seed
from ip2p.rendering import render_pairs
from ip2p.shapes.language import Attributes, Described, caption, describe, draw_caption, read_edit
from ip2p.shapes.oracle import read_scene
from ip2p.shapes.scene import BACKGROUNDS, COLOURS, SHAPES, SIZES, Scene, draw_scene, render


def says(scene: Scene | None, described: Described) -> bool:
    """Returns True if the scene has exactly the described background and objects, in any order."""
    if scene is None or scene.background != described.background:
        return False
    return sorted(thing.attributes for thing in scene.objects) == sorted(described.objects)


def oracle_accuracy(num: int = 1000, *, seed: int = 0) -> dict[str, float]:
    """Returns the shares of attributes and of whole scenes that the oracle reads right on fresh renders."""
    rng = random.Random(f"{seed} oracle figure")
    right = total = whole = 0
    for _ in range(num):
        scene = draw_scene(rng)
        read = read_scene(render(scene))
        total += 1 + 3 * len(scene.objects)
        whole += says(read, describe(scene))
        right += 0 if read is None else count_right(read, scene)
    return {"attributes": right / total, "scenes": whole / num, "n": num}


def count_right(read: Scene, scene: Scene) -> int:
    """Counts the attributes of `scene` that `read` has too, with the objects paired from left to right."""
    pairs = zip(read.objects, sorted(scene.objects, key=lambda thing: thing.x), strict=False)
    right = sum(a == b for one, other in pairs for a, b in zip(one.attributes, other.attributes, strict=True))
    return right + (read.background == scene.background)


def text_to_image_accuracy(
    folder: Path, rendering: RenderingConfig, *, num: int = 500, seed: int = 0
) -> dict[str, float]:
    """Returns the share of captions whose picture shows every attribute, at the middle of the run's guidance range."""
    rng = random.Random(f"{seed} text-to-image figure")
    scenes = [draw_scene(rng) for _ in range(num)]
    pipeline = load_text_to_image(str(folder), revision=None, variant=None, dtype="float32", device=rendering.device)
    guidance = sum(rendering.guidance_scale) / 2
    couples = list(zip(scenes[::2], scenes[1::2], strict=True))
    candidates = [_candidate(draw_caption(rng, one), draw_caption(rng, other), guidance) for one, other in couples]
    pairs = render_pairs(pipeline, candidates, rendering)
    images = [image for pair in pairs for image in (pair.original, pair.edited)]
    right = [says(read_scene(image), describe(scene)) for image, scene in zip(images, scenes, strict=True)]
    figures: dict[str, float] = {"scenes": float(np.mean(right)), "n": num}
    for count in (0, 1, 2):
        of_count = [ok for ok, scene in zip(right, scenes, strict=True) if len(scene.objects) == count]
        figures[f"scenes_with_{count}"] = float(np.mean(of_count)) if of_count else float("nan")
    return figures


def _candidate(one: str, other: str, guidance: float) -> Candidate:
    """Pairs two captions that share their noise and nothing else."""
    triplet = EditTriplet(original_prompt=one, edit_prompt="", edited_prompt=other)
    spec = RenderSpec(
        triplet_id=triplet.id, candidate=0, seed=hash_to_seed(triplet.id), guidance_scale=guidance, p2p=0.0
    )
    return Candidate(triplet=triplet, spec=spec)


def one_attribute_apart(described: Described) -> list[Described]:
    """Returns every description that differs in one attribute: 31 for a scene of two objects."""
    grounds = [replace(described, background=name) for name in BACKGROUNDS if name != described.background]
    things = [
        replace(described, objects=(*described.objects[:k], new, *described.objects[k + 1 :]))
        for k, old in enumerate(described.objects)
        for new in _variants(old)
    ]
    return grounds + things


def _variants(old: Attributes) -> Iterator[Attributes]:
    size, colour, shape = old
    yield from ((other, colour, shape) for other in SIZES if other != size)
    yield from ((size, other, shape) for other in COLOURS if other != colour)
    yield from ((size, colour, other) for other in SHAPES if other != shape)


@torch.inference_mode()
def clip_choice(folder: Path, *, num: int = 500, seed: int = 0) -> dict[str, float]:
    """Returns how often the right caption of a two-object scene wins over the 31 that differ in one attribute."""
    clip = load_clip(str(folder), None, device="auto")
    rng, right = random.Random(f"{seed} clip figure"), 0
    for _ in range(num):
        scene, phrasing = draw_scene(rng, num_objects=2), rng.randrange(12)
        described = describe(scene)
        texts = [caption(option, phrasing) for option in (described, *one_attribute_apart(described))]
        pixels = clip.preprocess(Image.fromarray(render(scene)))[None].to(clip.device)
        picture = clip.model.encode_image(pixels, normalize=True)
        right += int(
            (clip.model.encode_text(clip.tokenize(texts).to(clip.device), normalize=True) @ picture[0]).argmax() == 0
        )
    return {"right": right / num, "captions": float(len(texts)), "n": num}


def triplet_validity(folder: Path, *, num: int = 2000, seed: int = 1, sampling: PromptsConfig) -> dict[str, float]:
    """Returns the shares of answers that parse, and whose instruction fits the step between the two captions."""
    rng = random.Random(f"{seed} language figure")
    captions = [draw_caption(rng, draw_scene(rng)) for _ in range(num)]
    model = load_language_model(str(folder), revision=None, device="auto")
    sampling = replace(sampling, max_new_tokens=96, seed=seed, batch_size=64)
    requests = [Request(text, 0) for text in captions]
    answers = CausalBackend(model, sampling).answer(requests, on_answer=lambda _: None)
    parsed = [parse_answer(answer.text) for answer in answers]
    answered = zip(captions, parsed, strict=True)
    good = [answer is not None and read_edit(text, *answer) is not None for text, answer in answered]
    return {"consistent": float(np.mean(good)), "parsed": float(np.mean([p is not None for p in parsed])), "n": num}


def all_figures(models: Path, config: PipelineConfig) -> dict[str, Any]:
    """Returns every figure that `data/README.md` records, sampled as in the run of `config`."""
    return {
        "oracle": oracle_accuracy(),
        "language_model": triplet_validity(models / "language-model", sampling=config.prompts),
        "clip": clip_choice(models / "clip"),
        "judge": clip_choice(models / "judge"),
        "text_to_image": text_to_image_accuracy(models / "stable-diffusion", config.rendering),
    }

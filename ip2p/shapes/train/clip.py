"""Trains the CLIP that scores pairs: a picture tower against the text tower that was taught to read before.

The text tower stays as it is (only its projection moves), so that it is the denoiser's too. Besides matching captions,
a picture's embedding must let a linear head name its objects (the head is discarded), must fit no caption if the
picture is spoiled, and must be nearer to an edit in place than to one in which objects moved. Text similarity then
notices what a denoiser gets wrong, and image similarity what prompt-to-prompt failed to keep.
"""

from __future__ import annotations

import itertools
import json
import random
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import open_clip
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from ip2p.evaluation.cases import Pixels
from ip2p.shapes.language import EDIT_TYPES, draw_caption, draw_edit_of
from ip2p.shapes.scene import Scene, draw_moved, draw_scene, render
from ip2p.shapes.train.loop import LoopConfig, train
from ip2p.shapes.train.spoil import spoil
from ip2p.shapes.train.text import (
    CAPTION_CLASSES,
    CONTEXT_LENGTH,
    caption_answers,
    question_loss,
    tokenize,
    train_text_tower,
)
from ip2p.shapes.train.vae import to_pixels

EMBED_DIM, TEXT_WIDTH, TEXT_LAYERS, TEXT_HEADS = 128, 128, 3, 4
GROUPS, EDITS_PER_GROUP = 16, 2
LAYOUT_MARGIN = 0.2
"""Lead in cosine similarity that an edit in place should have over the same edit with objects moved."""
LAYOUT_WEIGHT = 0.5
MEAN = STD = (0.5, 0.5, 0.5)
RESNET = MappingProxyType({"image_size": 64, "layers": [1, 2, 2, 1], "width": 16})
"""The picture tower of the CLIP that filters."""
TEXT = MappingProxyType({"width": TEXT_WIDTH, "heads": TEXT_HEADS, "layers": TEXT_LAYERS})
"""The text tower that the denoisers share with the CLIP that filters."""
VIT = MappingProxyType({"image_size": 64, "patch_size": 8, "layers": 4, "width": 128, "head_width": 32})
"""The picture tower of the CLIP that judges: of another kind, so that it makes other mistakes."""


@dataclass(frozen=True, slots=True)
class ContrastBatch:
    """Pictures grouped as [originals, edited, moved] with their captions, and pictures without a caption."""

    pixels: Tensor
    """(N, 3, 64, 64) with captions."""
    captions: list[str]
    same: Tensor
    """(N, N) bool: pictures whose captions mean the same."""
    answers: Tensor
    """(N, questions) class numbers for the reading head."""
    spoiled: Tensor
    """(M, 3, 64, 64): failures to show one of the originals' or moved scenes."""
    moved_edits: Tensor
    """(GROUPS, 3, 64, 64): the first edit of each original with everything elsewhere."""


def model_config(vocab_size: int, vision: Mapping[str, Any] = RESNET, text: Mapping[str, int] = TEXT) -> dict[str, Any]:
    """Describes the architecture in open_clip's terms."""
    return {
        "embed_dim": EMBED_DIM,
        "vision_cfg": dict(vision),
        "text_cfg": {
            "context_length": CONTEXT_LENGTH,
            "vocab_size": vocab_size,
            **text,
            "hf_tokenizer_name": ".",
        },
    }


def new_clip(vocab_size: int, vision: Mapping[str, Any] = RESNET, text: Mapping[str, int] = TEXT) -> open_clip.CLIP:
    """Returns an untrained CLIP."""
    config = model_config(vocab_size, vision, text)
    text_config = {key: value for key, value in config["text_cfg"].items() if key != "hf_tokenizer_name"}
    return open_clip.CLIP(embed_dim=EMBED_DIM, vision_cfg=config["vision_cfg"], text_cfg=text_config)


def draw_batch(seed: str) -> ContrastBatch:
    """Draws groups of a scene, one-step edits of it and copies with every object elsewhere."""
    rng = random.Random(seed)
    originals = [draw_scene(rng) for _ in range(GROUPS)]
    edits = [draw_edit_of(rng, scene, rng.choice(EDIT_TYPES)) for scene in originals for _ in range(EDITS_PER_GROUP)]
    edited = [edit.edited for edit in edits]
    moved = [draw_moved(rng, scene) for scene in originals]
    scenes = [*originals, *edited, *moved]
    answers = torch.tensor([caption_answers(scene) for scene in scenes])
    return ContrastBatch(
        pixels=_pictures(render(scene) for scene in scenes),
        captions=[_draw_caption(rng, scene) for scene in scenes],
        same=(answers[:, None] == answers[None]).all(-1),
        answers=answers,
        spoiled=_pictures(spoil(rng, scene) for scene in (*originals, *moved)),
        moved_edits=_pictures(render(draw_moved(rng, scene)) for scene in edited[::EDITS_PER_GROUP]),
    )


def _pictures(images: Iterable[Pixels]) -> Tensor:
    return to_pixels(np.stack(list(images)))


def _draw_caption(rng: random.Random, scene: Scene) -> str:
    """Words the scene with a random phrasing that names the objects in either order."""
    objects = tuple(rng.sample(scene.objects, len(scene.objects)))
    return draw_caption(rng, replace(scene, objects=objects))


def roughen(pixels: Tensor) -> Tensor:
    """Blurs some pictures and adds faint noise, as the autoencoder and the denoiser do."""
    blurred = F.avg_pool2d(F.pad(pixels, (1, 1, 1, 1), mode="replicate"), 3, 1)
    amounts = torch.rand(len(pixels), 1, 1, 1) * (torch.rand(len(pixels), 1, 1, 1) < 0.4)
    mixed = torch.lerp(pixels, blurred, amounts.to(pixels.device))
    return mixed + torch.randn_like(mixed) * 0.06 * torch.rand(len(pixels), 1, 1, 1, device=pixels.device)


def contrast(left: Tensor, right: Tensor, scale: Tensor, same: Tensor, no_match: Tensor | None = None) -> Tensor:
    """Returns a symmetric InfoNCE over unit vectors; pairs that `same` marks off the diagonal are not negatives.

    `no_match` holds further vectors on the left side that fit nothing on the right.
    """
    off_diagonal = same & ~torch.eye(len(same), dtype=torch.bool, device=same.device)
    logits = (scale * left @ right.T).masked_fill(off_diagonal, -torch.inf)
    target = torch.arange(len(left), device=left.device)
    of_right = logits.T if no_match is None else torch.cat([logits.T, scale * right @ no_match.T], 1)
    return (F.cross_entropy(logits, target) + F.cross_entropy(of_right, target)) / 2


class PictureReader(nn.Module):
    """A CLIP with a linear head on its picture embedding."""

    def __init__(self, clip: open_clip.CLIP, tokenizer: CLIPTokenizer, layout_weight: float = LAYOUT_WEIGHT) -> None:
        super().__init__()
        self.clip = clip
        self.layout_weight = layout_weight
        self.head = nn.Linear(EMBED_DIM, sum(CAPTION_CLASSES))
        self.tokenizer = tokenizer
        for part in (clip.transformer, clip.token_embedding, clip.ln_final):
            part.requires_grad_(False)
        clip.positional_embedding.requires_grad_(False)

    def forward(self, batch: ContrastBatch) -> Tensor:
        """Returns the weighted sum of the contrast, reading, copy and layout losses."""
        device = self.head.weight.device
        pixels = torch.cat([batch.pixels, batch.pixels[:GROUPS], batch.spoiled, batch.moved_edits])
        embedded = F.normalize(self.clip.encode_image(roughen(pixels.to(device))), dim=-1)
        sizes = [len(batch.pixels), GROUPS, len(batch.spoiled), GROUPS]
        images, copies, spoiled, moved_edits = torch.split(embedded, sizes)
        captions = self.clip.encode_text(tokenize(self.tokenizer, batch.captions).to(device), normalize=True)
        scale = self.clip.logit_scale.exp().clamp(max=100)
        by_caption = contrast(images, captions, scale, batch.same.to(device), spoiled)
        by_reading = question_loss(self.head(12 * images), batch.answers.to(device), CAPTION_CLASSES)
        by_copy = F.cross_entropy(20.0 * copies @ images.T, torch.arange(GROUPS, device=device))
        edits = images[GROUPS : GROUPS + GROUPS * EDITS_PER_GROUP : EDITS_PER_GROUP]
        by_layout = keep_layout(images[:GROUPS], edits, moved_edits)
        return by_caption + 2.0 * by_reading + 0.1 * by_copy + self.layout_weight * by_layout


def keep_layout(originals: Tensor, edits: Tensor, moved_edits: Tensor) -> Tensor:
    """Penalises an edit in place that is not nearer to its original than the same edit with every object elsewhere."""
    lead = (originals * edits).sum(-1) - (originals * moved_edits).sum(-1)
    return F.softplus(-20.0 * (lead - LAYOUT_MARGIN)).mean()


def train_clip(
    folder: Path, clip: open_clip.CLIP, tokenizer: CLIPTokenizer, *, seed: int, num_steps: int, device: str = "cpu"
) -> None:
    """Trains the picture tower of `clip` in place."""
    torch.manual_seed(seed)
    config = LoopConfig(num_steps=num_steps, learning_rate=2e-3, warmup_steps=150, ema_decay=0.995, weight_decay=0.05)
    _train(PictureReader(clip, tokenizer).to(device), config, seed=seed, checkpoint=folder / "clip.pt")


def train_judge(folder: Path, tokenizer: CLIPTokenizer, *, seed: int, num_steps: int, device: str) -> open_clip.CLIP:
    """Trains the CLIP that judges edits: other draws, text tower and kind of picture tower, and no layout loss."""
    torch.manual_seed(seed)
    judge = new_clip(len(tokenizer), VIT).to(device)
    train_text_tower(folder, judge, tokenizer, seed=seed, num_steps=num_steps // 6, device=device)
    torch.manual_seed(seed)
    config = LoopConfig(num_steps=num_steps, learning_rate=1e-3, warmup_steps=300, ema_decay=0.995, weight_decay=0.05)
    reader = PictureReader(judge, tokenizer, layout_weight=0.0).to(device)
    _train(reader, config, seed=seed, checkpoint=folder / "judge.pt")
    return judge.cpu().eval()


def _train(reader: PictureReader, config: LoopConfig, *, seed: int, checkpoint: Path) -> None:
    def loss_at(step: int) -> Tensor:
        torch.manual_seed(hash((seed, step)))
        loss: Tensor = reader(draw_batch(f"{seed} clip {step}"))
        return loss

    train(reader, loss_at, config, checkpoint=checkpoint)


def write_clip(
    folder: Path, clip: open_clip.CLIP, tokenizer: CLIPTokenizer, vision: Mapping[str, Any] = RESNET
) -> None:
    """Writes the folder that `open_clip.create_model_and_transforms("local-dir:<folder>")` loads."""
    folder.mkdir(parents=True, exist_ok=True)
    preprocess = {"mean": MEAN, "std": STD, "interpolation": "bicubic", "resize_mode": "shortest"}
    config = {"model_cfg": model_config(len(tokenizer), vision), "preprocess_cfg": preprocess}
    (folder / "open_clip_config.json").write_text(json.dumps(config, indent=2) + "\n")
    weights = {name: value.contiguous() for name, value in clip.state_dict().items()}
    save_file(weights, folder / "open_clip_model.safetensors")
    tokenizer.save_pretrained(folder)


def text_encoder_of(clip: open_clip.CLIP, tokenizer: CLIPTokenizer) -> CLIPTextModel:
    """Converts CLIP's text tower to the transformers class that diffusers pipelines hold."""
    tower = clip.transformer
    config = CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=tower.width,
        intermediate_size=4 * tower.width,
        num_hidden_layers=tower.layers,
        num_attention_heads=tower.resblocks[0].attn.num_heads,
        max_position_embeddings=CONTEXT_LENGTH,
        hidden_act="gelu",
        projection_dim=EMBED_DIM,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    encoder = CLIPTextModel(config)
    encoder.requires_grad_(False)
    prefix = "text_model." if any(key.startswith("text_model.") for key in encoder.state_dict()) else ""
    weights = {prefix + key: value for key, value in _transformers_weights(clip.state_dict(), tower.layers).items()}
    missing, unexpected = encoder.load_state_dict(weights, strict=False)
    if unexpected or any("position_ids" not in key for key in missing):
        raise RuntimeError(
            f"CLIPTextModel does not have the weights that this expects: missing {missing}, unexpected {unexpected}. "
            "Install the version of transformers in requirements.lock."
        )
    return encoder


_LAYER_PARTS = {
    "attn.out_proj": "self_attn.out_proj",
    "ln_1": "layer_norm1",
    "ln_2": "layer_norm2",
    "mlp.c_fc": "mlp.fc1",
    "mlp.c_proj": "mlp.fc2",
}
"""Parts of a layer, from open_clip's names to transformers'."""


def _transformers_weights(source: Mapping[str, Tensor], num_layers: int) -> dict[str, Tensor]:
    """Renames the weights of open_clip's text tower; transformers keeps queries, keys and values apart."""
    target = {
        "embeddings.token_embedding.weight": source["token_embedding.weight"],
        "embeddings.position_embedding.weight": source["positional_embedding"],
        "final_layer_norm.weight": source["ln_final.weight"],
        "final_layer_norm.bias": source["ln_final.bias"],
    }
    for layer, kind in itertools.product(range(num_layers), ("weight", "bias")):
        old, new = f"transformer.resblocks.{layer}", f"encoder.layers.{layer}"
        for name, part in zip("qkv", source[f"{old}.attn.in_proj_{kind}"].chunk(3), strict=True):
            target[f"{new}.self_attn.{name}_proj.{kind}"] = part
        for old_part, new_part in _LAYER_PARTS.items():
            target[f"{new}.{new_part}.{kind}"] = source[f"{old}.{old_part}.{kind}"]
    return target

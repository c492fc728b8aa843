"""Sets up the place where the docs' commands run: their files and hub ids in miniature, presets and numbers reduced.

Every name in a page is in one of the tables here, so a new name needs a new line here or its test fails.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from transformers import ViTConfig, ViTImageProcessor, ViTModel

from ip2p.config import PipelineConfig, Thresholds
from ip2p.presets import PRESETS, data_folder
from tests import tiny
from tests.pages import Command

EVERYTHING = Thresholds(original=-1.0, edited=-1.0, direction=-1.0, image=-1.0)

SMALLER: Mapping[str, str] = {
    "--filtering.thresholds.vlm-followed": "0",
    "--filtering.thresholds.vlm-kept": "0",
    "-n 700": "14",
    "--rendering.num-inference-steps": "2",
    "--evaluation.num-inference-steps": "2",
    "--training.train-batch-size": "2",
    "--training.gradient-accumulation-steps": "1",
    "--training.rank": "2",
    "--training.resolution": "64",
    "--filtering.thresholds.direction": "-0.9",
    "--filtering.thresholds.image": "-0.9",
    "--filtering.thresholds.contrast": "-1",
    "--workers": "2",
    "--lora-rank": "2",
    "--resolution": "64",
    "--rank": "2",
    "--train_batch_size": "2",
    "--gradient_accumulation_steps": "1",
    "--validation_steps": "2",
    "--max_train_steps": "2",
    "--mixed_precision": "no",
    "--max_train_steps 20000": "3",
}
"""Values of flags at this size, by flag or by flag and value."""

LIMITS = ("original", "edited", "direction", "image")
MORE: Mapping[str, Sequence[str]] = {
    "ip2p plan": ("--sample", "2"),
    "ip2p benchmark": ("--evaluation.num-inference-steps", "2", "--num", "2", "--evaluation.batch-size", "4"),
    "ip2p dataset import": tuple(word for name in LIMITS for word in (f"--filtering.thresholds.{name}", "-1")),
    "ip2p prompts finetune": ("--num-epochs", "1", "--batch-size", "4"),
    "-m ip2p.training": ("--resolution", "64", "--train_batch_size", "2"),
    "ip2p ablate": ("--variants", "full,unfiltered,fixed-p"),  # a tenth of a dozen pairs may be none
}
"""Flags that a command which contains the key gets too, unless it has them already."""

SNIPPETS = {
    "(512, 512)": "(64, 64)",
    "num_inference_steps=20": "num_inference_steps=2",
    "image=picture, guidance_scale=7.0": "image=picture, num_inference_steps=2, guidance_scale=7.0",
}
"""Replacements in Python snippets."""


@dataclass(frozen=True)
class Models:
    """Folders of tiny models."""

    sd: Path
    xl: Path
    clip: Path
    dino: Path
    flows: Mapping[str, Path]
    """Flow transformers, by a part of the names of the models that they stand for."""

    def standing_for(self, name: str) -> Path:
        """Returns the folder of the model that a preset's is replaced by."""
        named = {**self.flows, "xl": self.xl}
        return next((folder for part, folder in named.items() if part in name), self.sd)


def write_dino(folder: Path) -> Path:
    """Writes a ViT of DINO's class."""
    shape = ViTConfig(
        image_size=32, patch_size=8, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32
    )
    ViTModel(shape, add_pooling_layer=False).save_pretrained(folder)
    ViTImageProcessor(size={"height": 32, "width": 32}).save_pretrained(folder)
    return folder


def tiny_presets(models: Models, captions: Path) -> dict[str, Callable[[], PipelineConfig]]:
    """Returns the presets with tiny models and sizes."""

    def smaller(preset: Callable[[], PipelineConfig]) -> Callable[[], PipelineConfig]:
        return lambda: shrink(preset(), models, captions)

    return {name: smaller(preset) for name, preset in PRESETS.items()}


def shrink(config: PipelineConfig, models: Models, captions: Path) -> PipelineConfig:
    """Makes a preset run in seconds: tiny models, rules for a language model, a filter that accepts everything."""
    sizes = tiny.write_tiny_config(captions.parent / "unused", sd=models.sd, clip=models.clip, lm=models.sd)
    model, edits_pictures = str(models.standing_for(config.rendering.model)), config.rendering.backend == "editor"
    return replace(
        config,
        prompts=replace(
            config.prompts,
            captions=config.prompts.captions and str(captions),
            num_captions=8 if edits_pictures else config.prompts.num_captions,
            backend="template",
            model="",
            num_triplets_per_caption=1,
            shard_size=4,
        ),
        rendering=replace(
            config.rendering,
            model=config.rendering.model if edits_pictures else model,
            revision=None,
            variant=None,
            dtype="float32",
            per_edit_type={},
            num_inference_steps=2,
            num_candidates=2,
            batch_size=4,
            scheduler=None,
            height=None,
            width=None,
        ),
        scoring=sizes.scoring,
        filtering=replace(config.filtering, thresholds=EVERYTHING, per_edit_type={}),
        dataset=sizes.dataset,
        training=replace(
            config.training,
            pretrained_model_name_or_path=model,
            revision=None,
            mixed_precision="no",
            random_flip=False,
            resolution=64,
            train_batch_size=2,
            gradient_accumulation_steps=1,
            max_train_steps=2,
            checkpointing_steps=1,
            lr_warmup_steps=0,
            quantization=None,
        ),
        evaluation=replace(
            sizes.evaluation,
            domain=config.evaluation.domain,
            guidance_scale=config.evaluation.guidance_scale,
            num_edits=4,
        ),
    )


@dataclass(frozen=True)
class Workplace:
    """Folders in which the pages run, and replacements for the names in them."""

    root: Path
    finished: Path
    """Folder that every page starts with a copy of."""
    models: Models
    hub: Mapping[str, Path]
    servers: Mapping[str, str]
    """Addresses of a language model, `chat`, of a vision-language `judge`, and of `images`, which edits pictures."""

    def enter(self, page: str) -> Path:
        """Returns the folder of a page, made on first use."""
        place = self.root / "pages" / Path(page).stem
        if not place.exists():
            shutil.copytree(self.finished, place)
        return place

    @property
    def names(self) -> dict[str, str]:
        """Returns the local replacement for each remote name."""
        elsewhere = {
            "stable-diffusion-v1-5/stable-diffusion-v1-5": self.models.sd,
            "stabilityai/stable-diffusion-xl-base-1.0": self.models.xl,
            "madebyollin/sdxl-vae-fp16-fix": self.models.xl / "vae",
            "timbrooks/instruct-pix2pix": self.finished / "runs" / "shapes" / "model",
            "Qwen/Qwen2.5-1.5B": data_folder() / "shapes" / "language-model",
            "owner/captions": Path("captions.parquet"),
            **self.hub,
        }
        stores = {f"s3://bucket/{name}": f"memory://bucket/{name}" for name in ("run", "latents")}
        return {name: str(path) for name, path in elsewhere.items()} | stores

    def words(self, command: Command) -> list[str]:
        """Returns a command at tiny size, with local names."""
        replaced: list[str] = []
        for word in _apart(command.words):
            before = replaced[-1] if replaced else ""
            if before.endswith("base-url"):
                server = "judge" if "vlm" in before else "images" if "rendering" in before else "chat"
                replaced.append(self.servers[server])
                continue
            replaced.append(SMALLER.get(f"{before} {word}") or SMALLER.get(before) or self.names.get(word, word))
        kind = next((key for key in MORE if key in command.text), "")
        more = MORE.get(kind, ())
        pairs = zip(more[::2], more[1::2], strict=True)
        added = [word for pair in pairs if pair[0] not in replaced for word in pair]
        return [*replaced, *added, *self._judges(kind)]

    def _judges(self, start: str) -> list[str]:
        clip = {"ip2p benchmark": "--clip-", "ip2p dataset import": "--scoring.clip-"}.get(start)
        if clip is None:
            return []
        words = [f"{clip}model", str(self.models.clip), f"{clip}pretrained", "None"]
        return [*words, *(["--dino-model", str(self.models.dino)] if start == "ip2p benchmark" else [])]

    def snippet(self, text: str) -> str:
        """Returns a Python snippet at tiny size, with local names."""
        for name, value in {**self.names, **SNIPPETS}.items():
            text = text.replace(name, value)
        return text

    def promised(self, words: Sequence[str]) -> list[Path]:
        """Lists the files that a command must leave behind."""
        flags = dict(zip(words, words[1:], strict=False))
        out = Path(flags.get("--out", ""))
        kind = " ".join(words[1:3])
        if "--help" in words or "://" in flags.get("--out", "") or words[1] in ("app", "doctor", "serve"):
            return []
        if "ip2p.training" in words:
            return [Path(flags.get("--output_dir", "instruct-pix2pix-model")) / "model_index.json"]
        if words[1] == "edit":
            return [Path(words[6])]
        by_kind = {
            "dataset import": [Path(words[4]) / "dataset" / "README.md"] if len(words) > 4 else [],
            "dataset judges": [Path(words[3]) / "judges.json"] if len(words) > 3 else [],
            "prompts export": [Path(words[4])] if len(words) > 4 else [],
            "dataset export": [out / "export.json"],
            "dataset invert": [Path(words[4]) / "dataset" / "README.md"] if len(words) > 4 else [],
            "dataset compose": [Path(words[4]) / "dataset" / "README.md"] if len(words) > 4 else [],
            "dataset sessions": [out / "export.json"],
            "prompts import": [Path(words[4])] if len(words) > 4 else [],
            "prompts finetune": [Path(flags.get("--output", "")) / "config.json"],
        }
        by_word = {
            "run": [_out_of(words) / "report" / "index.html", _out_of(words) / "model" / "model_index.json"],
            "train": [out / "report" / "index.html", out / "model" / "model_index.json"],
            "dataset": [out / "dataset" / "README.md"],
            "evaluate": [Path(words[2]) / "evaluation" / "figures.json"],
            "report": [Path(words[2]) / "report" / "index.html"],
            "refilter": [Path(words[2]) / "dataset" / "README.md"],
            "compare": [Path(flags.get("--output", ""))],
            "benchmark": [out / "figures.json"],
            "ablate": [Path(flags.get("--out", f"{words[2]}-ablation")) / "index.html"],
        }
        if kind in ("dataset inspect", "prompts inspect", "prompts try"):
            return []
        return by_kind.get(kind) or by_word.get(words[1], [])


def _apart(words: Sequence[str]) -> list[str]:
    """Splits each `--flag=value` into two words."""
    return [part for word in words for part in (word.split("=", 1) if word.startswith("--") else [word])]


def _out_of(words: Sequence[str]) -> Path:
    """Returns the folder of a new run: the named one, or its preset's."""
    return Path(words[words.index("--out") + 1] if "--out" in words else f"runs/{words[2]}")

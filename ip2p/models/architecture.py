"""Defines what the stages need to know of a base model, and finds the architecture of one.

A new base is one file of this folder: a subclass of `Architecture` and an instance of it named `ARCHITECTURE`. The
base's model_index.json chooses by the class of its pipeline. Rendering, training and editing never name a network's
class, its layers or its parts; they ask here.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from diffusers import DiffusionPipeline, ModelMixin, SchedulerMixin
from diffusers.models.attention_processor import Attention
from PIL import Image
from torch import Generator, Tensor, nn

from ip2p import models
from ip2p.config import EditTypeRendering, RenderingConfig, TrainingConfig
from ip2p.models.components import latent_shape, model_index, pixels_per_latent
from ip2p.models.latents import folding_side
from ip2p.models.noise import NoiseProcess, Sampler
from ip2p.models.texts import TextEncoders, Texts
from ip2p.plugins import modules_in


@dataclass(frozen=True, slots=True)
class AttentionLayers:
    """A denoiser's attention layers that paired rendering works on."""

    to_itself: Sequence[Attention] = ()
    """The layers in which an image attends to itself."""
    to_text: Sequence[Attention] = ()
    """The layers in which it attends to the text."""
    joint: Sequence[nn.Module] = ()
    """The layers in which image and text attend to both, under one softmax."""
    text_first: bool = False
    """Whether the text comes before the image in those."""
    watched: Sequence[nn.Module] = ()
    """Those of them whose maps say best where a word is drawn."""


def joint_layers(
    double: Sequence[Any], single: Sequence[Any] = (), *, best: Sequence[int] | None = None, **options: Any
) -> AttentionLayers:
    """Names the joint layers of blocks with two streams and with one.

    Words are watched in the blocks numbered `best` of those with two streams; if that is not known, in middle ones.
    """
    quarter = len(double) // 4
    chosen = range(quarter, max(quarter + 1, len(double) // 2)) if best is None else best
    watched = [double[number].attn for number in chosen]
    return AttentionLayers(joint=[block.attn for block in (*double, *single)], watched=watched, **options)


class Architecture(ABC):
    """One kind of base. It holds no weights: pipelines and networks are arguments."""

    title: ClassVar[str]
    """The name that errors give it."""
    text_to_image: ClassVar[type[DiffusionPipeline]]
    """Class of the pipeline that pairs are rendered with."""
    editor: ClassVar[type[DiffusionPipeline] | None] = None
    """Class of the pipeline that a training exports; None for a base that renders pairs and is not trained."""
    relatives: ClassVar[Sequence[type[DiffusionPipeline]]] = ()
    """Classes of other pipelines whose folders hold the same parts."""
    noise: ClassVar[type[NoiseProcess]]
    """How pictures become noise, and back."""
    part: ClassVar[str]
    """What pipelines and folders call the denoiser."""
    widened: ClassVar[str | None]
    """The layer that takes the image condition: new in an editor, and trained whole beside adapters.

    None if an editor has the base's layers, such as one that takes the image in its sequence.
    """
    edges: ClassVar[tuple[str, ...]]
    """The first and last layers."""
    adapted: ClassVar[tuple[str, ...]]
    """The layers that adapters are put on."""
    unshared: ClassVar[Mapping[str, tuple[float, float]]] = {}
    """Settings of the rendering that have no meaning here, with the ranges that leave them out."""
    blocks: ClassVar[tuple[str, ...]] = ("BasicTransformerBlock", "ResnetBlock2D")
    """Classes of the denoiser's blocks, which a training that splits the weights gathers one at a time."""
    patch: ClassVar[int] = 1
    """The side of the square of latents that is one position of the denoiser."""
    scales_condition: ClassVar[bool] = False
    """Whether an editor takes the image condition normalised, as it takes latents."""
    loading: ClassVar[str] = ""
    """Further arguments with which a model card loads the editor's pipeline."""
    example: ClassVar[str] = '"make it snowy", image=image, guidance_scale=7.5, image_guidance_scale=1.5'
    """Arguments with which a model card calls the editor's pipeline."""

    @property
    def pipelines(self) -> dict[str, type[DiffusionPipeline]]:
        """The pipelines by the class name that model_index.json gives."""
        kinds = (self.text_to_image, self.editor, *self.relatives)
        return {kind.__name__: kind for kind in kinds if kind is not None}

    def denoiser(self, pipeline: DiffusionPipeline) -> ModelMixin:
        """Returns a pipeline's denoiser."""
        return getattr(pipeline, self.part)

    def load_denoiser(self, config: TrainingConfig) -> ModelMixin:
        """Loads the base's denoiser in float32. ValueError for a kind that the trainer cannot feed."""
        raise self._not_trained()

    def widen(self, denoiser: ModelMixin, in_channels: int) -> ModelMixin:
        """Makes room for the image condition, in place, if a layer is `widened`; predictions stay as they were."""
        if self.widened is None:
            return denoiser
        raise self._not_trained()

    def in_channels(self, denoiser: ModelMixin) -> int:
        """Returns how many channels the denoiser takes, those of the image condition included."""
        raise self._not_trained()

    @abstractmethod
    def predict(
        self,
        denoiser: ModelMixin,
        latents: Tensor,
        timesteps: Tensor,
        texts: Texts,
        *,
        condition: Tensor | None = None,
        sizes: Tensor | None = None,
        guidance: Tensor | None = None,
    ) -> Tensor:
        """Calls the denoiser on N noised latents.

        `condition` are the latents of the images to edit. `sizes` are (N, 6) or (6,) integers for a base that takes
        them: original height and width, the crop's top and left, target height and width. `guidance` are (N,) scales
        for a base that `is_distilled`.
        """

    def is_distilled(self, denoiser: ModelMixin) -> bool:
        """Returns True if the denoiser takes the guidance scale as an input, so that it needs no half without text."""
        return False

    def has_one_half(self, pipeline: DiffusionPipeline) -> bool:
        """Returns True if a pipeline's denoiser was distilled with guidance, so that it needs no half without text."""
        return self.is_distilled(self.denoiser(pipeline))

    def takes_guidance(self, config: TrainingConfig) -> bool:
        """Returns True if the base's denoiser `is_distilled`, by its config."""
        return False

    def sampler(
        self,
        scheduler: SchedulerMixin,
        num_steps: int,
        shape: Sequence[int],
        device: torch.device,
        generators: Sequence[Generator],
    ) -> Sampler:
        """Starts a fresh scheduler for latents of `shape`, (C, h, w); each row draws from its own generator."""
        num_positions = (shape[1] // self.patch) * (shape[2] // self.patch)
        return self.noise.sampler(scheduler, num_steps, device, generators, num_positions)

    @abstractmethod
    def attention_layers(self, denoiser: ModelMixin) -> AttentionLayers:
        """Names the layers whose maps a pair shares."""

    @abstractmethod
    def text_encoders(self, pipeline: DiffusionPipeline, max_sequence_length: int | None = None) -> TextEncoders:
        """Returns a loaded pipeline's text encoders; a T5 among them reads `max_sequence_length` tokens."""

    def encode(
        self, pipeline: DiffusionPipeline, texts: Sequence[str], max_sequence_length: int | None = None
    ) -> Texts:
        """Encodes texts with a loaded pipeline, in its denoiser's precision."""
        dtype = self.denoiser(pipeline).dtype
        return self.text_encoders(pipeline, max_sequence_length).encode(texts).map(lambda values: values.to(dtype))

    def load_text_encoders(self, config: TrainingConfig, device: torch.device) -> TextEncoders:
        """Loads the base's text encoders, frozen, in float32."""
        raise self._not_trained()

    @abstractmethod
    def latent_shape(self, pipeline: DiffusionPipeline) -> tuple[int, int, int]:
        """Returns (C, h, w) of the latents of an image of the pipeline's own size."""

    def build_editor(self, denoiser: ModelMixin, config: TrainingConfig, device: torch.device) -> DiffusionPipeline:
        """Builds an editor's pipeline around a denoiser, the base's other parts in float32."""
        raise self._not_trained()

    def condition_is_scaled(self, pipeline: DiffusionPipeline) -> bool:
        """Returns True if an editor takes the image condition normalised."""
        return self.scales_condition

    def load_options(self, index: Mapping[str, Any]) -> dict[str, Any]:
        """Returns what the loader of a text-to-image pipeline with this model_index.json must be told."""
        return {}

    def load_editor(self, source: str, **options: Any) -> DiffusionPipeline:
        """Loads an editor's pipeline."""
        if self.editor is None:
            raise self._not_trained()
        return self.editor.from_pretrained(source, **options)

    def _not_trained(self) -> ValueError:
        return ValueError(
            f"{self.title} renders pairs, but no pipeline edits with it. Train another base on the pairs."
        )

    def call_options(self, picture: Image.Image, instruction: str) -> dict[str, Any]:
        """Returns the arguments that tell the editor's pipeline a picture, its size and an instruction."""
        return {"prompt": instruction, "image": picture}

    def name_adapter(self, weights: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        """Names the weights of a LoRA adapter, which come as peft names them, as files for this base name them."""
        return weights

    def check_rendering(self, config: RenderingConfig) -> None:
        """Raises ValueError for a setting of the rendering that has no meaning for this base."""
        settings: list[RenderingConfig | EditTypeRendering] = [config, *config.per_edit_type.values()]
        given = {name for name, value in self.unshared.items() for each in settings if _is_used(each, name, value)}
        if given:
            raise ValueError(
                f"rendering.{min(given)} cannot be used with {self.title}, whose image and text attend under one "
                "softmax. Leave it out; p2p, shared_steps and local_blend work."
            )

    def check_training(self, config: TrainingConfig) -> None:
        """Raises ValueError for a setting of the training that has no meaning for this base; loads no weights."""
        if config.learning_rate_conv_in is not None and self.widened is None:
            raise ValueError(
                f"training.learning_rate_conv_in is the rate of a widened layer, which {self.title} lacks, got "
                f"{config.learning_rate_conv_in}. Leave it out; learning_rate holds for all layers."
            )
        if config.guidance_scale is not None and not self.takes_guidance(config):
            raise ValueError(
                f"training.guidance_scale is told to a base that takes the scale as an input, and this {self.title} "
                f"takes none, got {config.guidance_scale}. Leave it out."
            )
        if self.patch > 1:
            self._check_resolution(config, f"whose patches are {self.patch} latents wide")

    def _check_resolution(self, config: TrainingConfig, why: str) -> None:
        """Raises ValueError, which says why, unless the resolution is a number of whole positions."""
        resolution, step = config.resolution, self.patch * pixels_per_latent(config)
        if resolution % step:
            raise ValueError(
                f"training.resolution must be a multiple of {step} for {self.title}, {why}, got {resolution}. "
                f"Set it to {max(1, round(resolution / step)) * step}."
            )

    def bucket_step(self, config: TrainingConfig) -> int:
        """Returns the pixels of which the sides of a bucket are multiples: diffusers' 16, and whole positions."""
        return math.lcm(16, self.patch * pixels_per_latent(config))

    def load_widened(self, config: TrainingConfig) -> ModelMixin:
        """Loads the base's denoiser and makes room for the image condition."""
        return self.widen(self.load_denoiser(config), self.channels_of_editor(latent_shape(config)[0]))

    def channels_of_editor(self, latent_channels: int) -> int:
        """Returns how many channels an editor's denoiser takes: latents, and their like where it is widened."""
        return latent_channels if self.widened is None else 2 * latent_channels

    def check_editor(self, pipeline: DiffusionPipeline, name: str) -> None:
        """Raises ValueError if the denoiser takes no image condition."""
        channels = self.in_channels(self.denoiser(pipeline))
        vae = pipeline.vae.config
        expected = self.channels_of_editor(vae.latent_channels * folding_side(vae) ** 2)
        if channels != expected:
            raise ValueError(
                f"the denoiser of {name} takes {channels} channels, expected {expected}. Train it as an editor."
            )

    def native_side(self, pipeline: DiffusionPipeline) -> int:
        """Returns the pixels on the short side of an image of the pipeline's own size."""
        return int(min(self.latent_shape(pipeline)[1:]) * latent_step(pipeline))


def architectures() -> list[Architecture]:
    """Returns the architectures of this folder, in the order of their files."""
    modules = modules_in(models.__name__, models.__path__)
    return [module.ARCHITECTURE for module in modules if hasattr(module, "ARCHITECTURE")]


WITHOUT_WORDS = {"cross_p2p": (0.0, 0.0), "reweight": (1.0, 1.0)}
"""What a base without layers of its own for the text cannot share or weight."""


def _is_used(settings: RenderingConfig | EditTypeRendering, name: str, unused: tuple[float, float]) -> bool:
    return getattr(settings, name) not in (None, unused, list(unused))


def latent_step(pipeline: DiffusionPipeline) -> int:
    """Returns the side in pixels of the square that a place of a pipeline's latents stands for."""
    return int(pipeline.vae_scale_factor) * folding_side(pipeline.vae.config)


def size_step(pipeline: DiffusionPipeline, base: Architecture) -> int:
    """Returns the pixels of which an image's sides are multiples."""
    return latent_step(pipeline) * base.patch


def architecture_named(name: str, *, what: str) -> Architecture:
    """Returns the architecture of a pipeline's class name. ValueError, which lists the known bases, if none has it."""
    present = architectures()
    for architecture in present:
        if name in architecture.pipelines:
            return architecture
    titles = ", ".join(architecture.title for architecture in present)
    raise ValueError(f"{what} is a {name}, which is not supported. Give one of: {titles}.")


def architecture_of(pipeline: DiffusionPipeline) -> Architecture:
    """Returns the architecture of a loaded pipeline. ValueError if it is not supported."""
    present = {name: architecture for architecture in architectures() for name in architecture.pipelines}
    own = [kind.__name__ for kind in type(pipeline).__mro__]
    match = next((name for name in own if name in present), None)
    return present[match] if match else architecture_named(own[0], what="the model")


def class_name(index: Mapping[str, Any]) -> str:
    """Returns the class of a pipeline by its model_index.json, in which one with code of its own names its file too."""
    name = index.get("_class_name")
    return str(name[-1] if isinstance(name, list | tuple) else name)


def base_architecture(config: TrainingConfig) -> Architecture:
    """Returns the architecture of the base that a training starts from."""
    what = f"training.pretrained_model_name_or_path {config.pretrained_model_name_or_path}"
    return architecture_named(class_name(model_index(config)), what=what)


def pipeline_kind(index: Mapping[str, Any], *, what: str) -> tuple[Architecture, type[DiffusionPipeline]]:
    """Returns the architecture of a pipeline's model_index.json, and the class of the pipeline."""
    name = class_name(index)
    architecture = architecture_named(name, what=what)
    return architecture, architecture.pipelines[name]

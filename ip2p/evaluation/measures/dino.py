"""Similarity of pictures by DINO, as MagicBrush and reimplementations of Emu Edit's protocol measure it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Self

from ip2p.config import fingerprint
from ip2p.evaluation.cases import EditCase, Pixels
from ip2p.evaluation.measures import Column, Measure, Setup, Values, as_images, targets_of
from ip2p.sources.content import Source, note

if TYPE_CHECKING:
    from PIL import Image
    from torch import Tensor


@dataclass(frozen=True)
class DinoMeasure(Measure):
    """Compares DINO's class token with those of the input and the target, on pictures prepared as by its authors.

    Both protocols take `facebook/dino-vits16`.
    """

    model: str
    device: str
    batch_size: int
    later: tuple[str, ...] = ()
    """The model's content, if it has changed since it was noted."""
    order = 60
    columns = (
        Column("dino_input", "DINO ↔ input", "higher", "mean", shown_in="runs"),
        Column("dino_target", "DINO ↔ target", "higher", "mean", shown_in="runs"),
    )

    @classmethod
    def from_setup(cls, setup: Setup) -> Self | None:
        """Makes the measure if a model is set."""
        if not setup.dino_model:
            return None
        later = note(setup.notes, [Source("dino_model", setup.dino_model)])
        return cls(setup.dino_model, setup.knobs.device, setup.knobs.batch_size, tuple(later))

    @property
    def identity(self) -> str:
        """Returns a hash of the model."""
        return fingerprint("dino", self.model, *self.later)

    def __call__(self, cases: Sequence[EditCase], before: Sequence[Pixels], after: Sequence[Pixels]) -> list[Values]:
        """Returns None as the similarity to the target if a case has none."""
        edited = self._embed(after)
        to_input = (self._embed(before) * edited).sum(-1).tolist()
        rows: list[Values] = [{"dino_input": value, "dino_target": None} for value in to_input]
        if targets := targets_of(cases):
            to_target = (self._embed(list(targets.values())) * edited[list(targets)]).sum(-1).tolist()
            for number, value in zip(targets, to_target, strict=True):
                rows[number]["dino_target"] = value
        return rows

    def _embed(self, images: Sequence[Pixels]) -> Tensor:
        """Returns (N, D) embeddings of length 1."""
        import torch

        from ip2p.models.loading import load_image_model

        loaded = load_image_model(self.model, device=self.device)
        prepare = dino_preparation(int(loaded.model.config.image_size))
        embeddings = []
        with torch.inference_mode():
            for start in range(0, len(images), self.batch_size):
                pixels = torch.stack([prepare(image) for image in as_images(images[start : start + self.batch_size])])
                output = loaded.model(pixels.to(loaded.device))
                embeddings.append(output.last_hidden_state[:, 0].float().cpu())
        return torch.nn.functional.normalize(torch.cat(embeddings), dim=-1)


def dino_preparation(size: int) -> Callable[[Image.Image], Tensor]:
    """Returns DINO's transform: short side to 256 for a model of 224, centre crop, ImageNet's mean and deviation."""
    from torchvision import transforms

    prepare: Callable[[Image.Image], Tensor] = transforms.Compose(
        [
            transforms.Resize(round(size * 256 / 224), interpolation=transforms.InterpolationMode.BICUBIC),
            transforms.CenterCrop(size),
            transforms.ToTensor(),
            transforms.Normalize((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
        ]
    )
    return prepare

"""Offers a trained editor as one object: `Editor("RUN/model")(image, "make it snowy")`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import repeat
from pathlib import Path

from PIL import Image

from ip2p.editing.apply import Resample, edit_images
from ip2p.images import check_size, fitted_size, open_picture
from ip2p.models.architecture import architecture_of
from ip2p.models.pipelines import load_editor
from ip2p.store import write_atomic

ImageSource = Image.Image | Path | str


@dataclass(frozen=True, slots=True, kw_only=True)
class Knobs:
    """How an edit is made."""

    num_inference_steps: int = 20
    """Denoising steps."""
    guidance_scale: float = 7.5
    """How closely the instruction is followed."""
    image_guidance_scale: float = 1.5
    """How closely the input is kept to; 1 leaves this guidance out."""
    resolution: int | None = None
    """Pixels on the short side during the edit; the model's own by default."""


class Editor:
    """An editor of a folder or a hub id, loaded once per process."""

    def __init__(
        self,
        model: str | Path,
        *,
        device: str = "auto",
        dtype: str = "float32",
        revision: str | None = None,
        knobs: Knobs | None = None,
    ) -> None:
        """Loads the model; `knobs` are a call's defaults. ValueError if the model is not an editor."""
        self.pipeline = load_editor(str(model), device, revision, dtype)
        self.knobs = knobs or Knobs()

    def __call__(
        self,
        image: ImageSource,
        instruction: str,
        *,
        seed: int = 0,
        knobs: Knobs | None = None,
        on_step: Callable[[], object] | None = None,
    ) -> Image.Image:
        """Returns the edited picture, as large as the input. ValueError if the input cannot be read."""
        return self.edit_all([image], [instruction], seeds=[seed], knobs=knobs, on_step=on_step)[0]

    def edit_all(
        self,
        images: Sequence[ImageSource],
        instructions: Sequence[str],
        *,
        seeds: Sequence[int],
        knobs: Knobs | None = None,
        batch_size: int = 8,
        on_batch: Callable[[int], object] | None = None,
        on_step: Callable[[], object] | None = None,
    ) -> list[Image.Image]:
        """Makes one edit per image, instruction and seed, equal sizes together; callbacks as in `edit_images`."""
        knobs = knobs or self.knobs
        pictures = [read_image(image) for image in images]
        edited = edit_images(
            self.pipeline,
            [self._fit(picture, knobs.resolution) for picture in pictures],
            instructions,
            num_inference_steps=knobs.num_inference_steps,
            guidance_scale=knobs.guidance_scale,
            image_guidance_scale=knobs.image_guidance_scale,
            seeds=seeds,
            batch_size=batch_size,
            on_batch=on_batch,
            on_step=on_step,
        )
        return [
            Image.fromarray(pixels).resize(picture.size, Resample)
            for picture, pixels in zip(pictures, edited, strict=True)
        ]

    def edit_grid(
        self,
        image: ImageSource,
        instruction: str,
        *,
        guidance_scales: Sequence[float],
        image_guidance_scales: Sequence[float],
        seed: int = 0,
        knobs: Knobs | None = None,
        on_step: Callable[[], object] | None = None,
    ) -> list[list[Image.Image]]:
        """Makes a row of edits per text guidance, with a column per image guidance."""
        knobs, picture = knobs or self.knobs, read_image(image)

        def edit(text: float, kept: float) -> Image.Image:
            scales = replace(knobs, guidance_scale=text, image_guidance_scale=kept)
            return self(picture, instruction, seed=seed, knobs=scales, on_step=on_step)

        return [list(map(edit, repeat(text), image_guidance_scales)) for text in guidance_scales]

    def _fit(self, picture: Image.Image, resolution: int | None) -> Image.Image:
        """Resizes the short side to the resolution of the edit. ValueError if the other becomes too long."""
        side = resolution or architecture_of(self.pipeline).native_side(self.pipeline)
        size = fitted_size(picture.size, side)
        check_size(size)
        return picture.resize(size, Resample)


def read_image(source: ImageSource) -> Image.Image:
    """Reads an RGB image, upright and on white. ValueError if it cannot be read or is too large."""
    try:
        return open_picture(source)
    except ValueError as error:
        reason = str(error).rstrip(".")
        raise ValueError(f"cannot read {source} as an image: {reason}. Give a picture file, such as a .png.") from error


def write_image(image: Image.Image, path: Path) -> None:
    """Writes a picture in the format of its name, whole or not at all. ValueError if the name has none."""
    kind = Image.registered_extensions().get(path.suffix.lower())
    way_out = "Give a name that ends in .png or .jpg."
    if kind not in Image.SAVE:
        raise ValueError(f"cannot write {path}: {path.suffix or 'no suffix'} names no format. {way_out}")
    try:
        write_atomic(path, lambda file: image.save(file, kind))
    except (OSError, ValueError) as error:
        if getattr(error, "errno", None):  # of the system, such as a full disk
            raise
        raise ValueError(f"cannot write {path}: {error}. {way_out}") from error

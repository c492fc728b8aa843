"""Editing: two guidances, batches that do not matter, files."""

from __future__ import annotations

import inspect
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import (
    EulerAncestralDiscreteScheduler,
    PNDMScheduler,
    StableDiffusionInstructPix2PixPipeline,
    StableDiffusionXLInstructPix2PixPipeline,
    StableDiffusionXLPipeline,
)
from PIL import Image

from ip2p.cli import main
from ip2p.editing import Editor, Knobs, edit_images, guidance_terms, load_editor, read_image, write_image
from ip2p.editing.apply import guided, stack_conditions
from ip2p.models.stable_diffusion import widen_conv_in
from ip2p.models.texts import Texts

INSTRUCTIONS = ["make the circle green", "remove the square", "make the background white"]


@pytest.fixture(scope="module")
def editor_folder(tiny_editor: Path) -> Path:
    """An editor with random weights in all its channels."""
    return tiny_editor


@pytest.fixture
def editor(editor_folder: Path) -> StableDiffusionInstructPix2PixPipeline:
    """The editor on the CPU."""
    return load_editor(str(editor_folder), "cpu")


def pictures(*sizes: tuple[int, int]) -> list[np.ndarray]:
    """Random images of these widths and heights."""
    rng = np.random.default_rng(0)
    return [rng.integers(0, 255, (height, width, 3), dtype=np.uint8) for width, height in sizes]


def distance(first: np.ndarray, second: np.ndarray) -> int:
    """Largest difference of a channel."""
    return int(np.abs(first.astype(int) - second.astype(int)).max())


@pytest.mark.parametrize("scheduler", [None, EulerAncestralDiscreteScheduler, PNDMScheduler])
def test_an_edit_is_what_diffusers_own_pipeline_gives(
    editor_folder: Path, scheduler: type[EulerAncestralDiscreteScheduler] | None
) -> None:
    pipeline = StableDiffusionInstructPix2PixPipeline.from_pretrained(editor_folder)
    if scheduler is not None:
        pipeline.scheduler = scheduler.from_config(pipeline.scheduler.config, rescale_betas_zero_snr=False)
    images = pictures((64, 64), (64, 64))
    knobs: dict[str, Any] = {"num_inference_steps": 6, "guidance_scale": 3.0, "image_guidance_scale": 1.5}
    ours = edit_images(pipeline, images, INSTRUCTIONS[:2], seeds=[5, 6], **knobs)
    theirs = pipeline(
        INSTRUCTIONS[:2],
        image=[Image.fromarray(image) for image in images],
        generator=[torch.Generator().manual_seed(seed) for seed in (5, 6)],
        **knobs,
    ).images
    for our, their in zip(ours, theirs, strict=True):
        assert distance(our, np.asarray(their)) <= 1


def write_xl_editor(base: Path, folder: Path, *, scaled: bool = False, overflows: bool = False) -> str:
    """An XL that sees its input; with `overflows` what its decoder computes is too large for float16."""
    parts = StableDiffusionXLPipeline.from_pretrained(base).components
    torch.manual_seed(0)
    parts["unet"] = widen_conv_in(parts["unet"], 8)
    torch.nn.init.normal_(parts["unet"].conv_in.weight, std=0.2)
    if overflows:
        parts["vae"].decoder.conv_in.weight.data *= 3e5
    parts |= {"image_encoder": None, "feature_extractor": None}
    names = inspect.signature(StableDiffusionXLInstructPix2PixPipeline.__init__).parameters
    wanted = {name: part for name, part in parts.items() if name in names}
    made = StableDiffusionXLInstructPix2PixPipeline(**wanted, add_watermarker=False, is_cosxl_edit=scaled)
    made.register_to_config(is_cosxl_edit=scaled)
    made.save_pretrained(folder)
    return str(folder)


@pytest.mark.slow
def test_an_xl_in_float16_does_not_turn_black(tiny_xl: Path, tmp_path: Path) -> None:
    folder = write_xl_editor(tiny_xl, tmp_path, overflows=True)
    picture = Image.fromarray(pictures((64, 64))[0])
    whole, half = (
        np.asarray(
            Editor(folder, device="cpu", dtype=dtype, knobs=Knobs(num_inference_steps=2))(picture, "make it red")
        )
        for dtype in ("float32", "float16")
    )
    assert half.std() > 1
    assert np.abs(whole.astype(float) - half).mean() < 3


@pytest.mark.parametrize("scaled", [False, True])
def test_an_edit_of_an_xl_is_what_diffusers_own_pipeline_gives(tiny_xl: Path, tmp_path: Path, scaled: bool) -> None:
    pipeline = load_editor(write_xl_editor(tiny_xl, tmp_path, scaled=scaled), "cpu")
    images = pictures((64, 64), (64, 64))
    knobs: dict[str, Any] = {"num_inference_steps": 5, "guidance_scale": 3.0, "image_guidance_scale": 1.5}
    ours = edit_images(pipeline, images, INSTRUCTIONS[:2], seeds=[5, 6], **knobs)
    for number, our in enumerate(ours):
        their = pipeline(
            INSTRUCTIONS[number],
            image=Image.fromarray(images[number]),
            generator=torch.Generator().manual_seed(5 + number),
            height=64,
            width=64,
            **knobs,
        ).images[0]
        assert distance(our, np.asarray(their)) <= 1


@pytest.mark.parametrize("scheduler", [None, EulerAncestralDiscreteScheduler])
def test_an_edit_does_not_depend_on_its_batch(
    editor_folder: Path, scheduler: type[EulerAncestralDiscreteScheduler] | None
) -> None:
    editor = StableDiffusionInstructPix2PixPipeline.from_pretrained(editor_folder)
    if scheduler is not None:
        editor.scheduler = scheduler.from_config(editor.scheduler.config, rescale_betas_zero_snr=False)
    images = pictures((64, 64), (32, 48), (64, 64))
    together = edit_images(editor, images, INSTRUCTIONS, num_inference_steps=4, seeds=[1, 2, 3], batch_size=8)
    alone = edit_images(editor, images, INSTRUCTIONS, num_inference_steps=4, seeds=[1, 2, 3], batch_size=1)
    backwards = edit_images(editor, images[::-1], INSTRUCTIONS[::-1], num_inference_steps=4, seeds=[3, 2, 1])[::-1]
    for first, second, third, image in zip(together, alone, backwards, images, strict=True):
        assert first.shape == image.shape
        assert max(distance(first, second), distance(first, third)) <= 1
    assert distance(together[0], together[2]) > 1


def test_images_of_a_batch_may_have_guidances_of_their_own(editor: StableDiffusionInstructPix2PixPipeline) -> None:
    images, scales = pictures((64, 64), (64, 64), (64, 64)), ([2.0, 2.0, 4.0], [1.5, 1.0, 1.0])
    edit: dict[str, Any] = {"num_inference_steps": 4}
    together = edit_images(
        editor, images, INSTRUCTIONS, guidance_scale=scales[0], image_guidance_scale=scales[1], seeds=[1, 2, 3], **edit
    )
    for number, image in enumerate(images):
        (alone,) = edit_images(
            editor,
            [image],
            INSTRUCTIONS[number : number + 1],
            guidance_scale=scales[0][number],
            image_guidance_scale=scales[1][number],
            seeds=[number + 1],
            **edit,
        )
        assert distance(together[number], alone) <= 1


def test_every_denoising_step_of_every_batch_is_reported(editor: StableDiffusionInstructPix2PixPipeline) -> None:
    steps: list[int] = []
    edit_images(
        editor,
        pictures((64, 64), (32, 48), (64, 64)),
        INSTRUCTIONS,
        num_inference_steps=2,
        seeds=[1, 2, 3],
        batch_size=8,
        on_step=lambda: steps.append(1),
    )
    assert len(steps) == 2 * 2  # two sizes, two steps


def test_another_seed_gives_another_image(editor: StableDiffusionInstructPix2PixPipeline) -> None:
    images = pictures((64, 64)) * 2
    first, second = edit_images(editor, images, INSTRUCTIONS[:1] * 2, num_inference_steps=4, seeds=[1, 2])
    assert distance(first, second) > 1


@pytest.mark.parametrize(
    ("guidance_scale", "image_guidance_scale", "num_terms"),
    [(7.5, 1.5, 3), (1.0, 1.0, 1), (3.0, 1.0, 2), (3.0, 0.5, 3)],
)
def test_guidance_is_the_papers_formula_at_the_least_cost(
    guidance_scale: float, image_guidance_scale: float, num_terms: int
) -> None:
    terms = guidance_terms(guidance_scale, image_guidance_scale)
    assert len(terms) == num_terms
    torch.manual_seed(0)
    latents, image, text, null = (
        torch.randn(2, 4, 8, 8),
        torch.randn(2, 4, 8, 8),
        torch.randn(2, 3, 5),
        torch.randn(1, 3, 5),
    )

    def predict(inputs: torch.Tensor, picture: torch.Tensor, texts: Texts) -> torch.Tensor:
        return inputs * texts.hidden.mean((1, 2))[:, None, None, None] + picture.square()

    none = Texts(null.expand(2, -1, -1))
    nothing, with_image = predict(latents, 0 * image, none), predict(latents, image, none)
    full = predict(latents, image, Texts(text))
    expected = nothing + image_guidance_scale * (with_image - nothing) + guidance_scale * (full - with_image)
    found = guided(predict, latents, stack_conditions(terms, image, Texts(torch.cat([null, text])), (64, 64)))
    assert torch.allclose(found, expected, atol=1e-4)


@pytest.mark.parametrize("size", [(64, 64), (131, 97), (20, 300)])
def test_an_edited_picture_has_the_size_of_its_input(editor_folder: Path, size: tuple[int, int]) -> None:
    editor = Editor(editor_folder, device="cpu", knobs=Knobs(num_inference_steps=2))
    edited = editor(Image.new("RGBA", size, (200, 10, 10, 128)), "make it blue")
    assert edited.size == size and edited.mode == "RGB"


def test_a_picture_is_turned_upright(editor_folder: Path, tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (96, 64), "red").save(tmp_path / "in.jpg", exif=exif)
    assert Editor(editor_folder, device="cpu", knobs=Knobs(num_inference_steps=1))(tmp_path / "in.jpg", "x").size == (
        64,
        96,
    )


def test_a_picture_is_read_on_white_and_not_blown_up_without_a_bound(editor_folder: Path, tmp_path: Path) -> None:
    Image.new("RGBA", (8, 8), (255, 0, 255, 0)).save(tmp_path / "clear.png")
    assert set(np.asarray(read_image(tmp_path / "clear.png")).ravel().tolist()) == {255}
    with pytest.raises(ValueError, match="image too large: 1280000 x 64 pixels"):
        Editor(editor_folder, device="cpu", knobs=Knobs(resolution=64))(Image.new("RGB", (40_000, 2)), "x")


def test_what_is_no_picture_is_a_one_line_error(editor_folder: Path, tmp_path: Path) -> None:
    editor = Editor(editor_folder, device="cpu")
    (tmp_path / "in.png").write_text("words")
    for name in ("in.png", "missing.png"):
        with pytest.raises(ValueError, match="cannot read"):
            editor(tmp_path / name, "x")
    with pytest.raises(ValueError, match="at most 67108864 are read"):
        editor(Image.new("1", (2**14, 2**13)), "x")
    with pytest.raises(ValueError, match="cannot write"):
        write_image(Image.new("RGB", (8, 8)), tmp_path / "out.nothing")


def test_a_grid_has_a_row_per_text_guidance_and_a_column_per_image_guidance(editor_folder: Path) -> None:
    editor = Editor(editor_folder, device="cpu", knobs=Knobs(num_inference_steps=2))
    (picture,) = (Image.fromarray(image) for image in pictures((64, 64)))
    grid = editor.edit_grid(picture, "make it red", guidance_scales=[1.0, 4.0], image_guidance_scales=[1.0, 1.5, 2.0])
    assert [len(row) for row in grid] == [3, 3]
    knobs = Knobs(num_inference_steps=2, guidance_scale=4.0, image_guidance_scale=1.5)
    assert np.array_equal(np.asarray(grid[1][1]), np.asarray(editor(picture, "make it red", knobs=knobs)))


def test_the_package_itself_names_the_editor(editor_folder: Path) -> None:
    import ip2p

    assert ip2p.Editor is Editor
    with pytest.raises(AttributeError, match="has no attribute 'Nothing'"):
        ip2p.Nothing  # noqa: B018


def edit(*words: str) -> int:
    return main(["edit", *words, "--num-inference-steps", "1", "--device", "cpu"])


def test_a_folder_is_edited_by_several_instructions_seeds_and_guidances(editor_folder: Path, tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    for name, image in zip("ab", pictures((64, 64), (96, 64)), strict=True):
        Image.fromarray(image).save(tmp_path / "in" / f"{name}.png")
    more = ["--also", "make it blue", "--seeds", "1", "2", "--image-guidance-scale", "1.2", "1.6"]
    words = ["--model", str(editor_folder), str(tmp_path / "in"), "make it red", str(tmp_path / "out"), *more]
    assert edit(*words) == 0
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == sorted(
        f"{name}-make-it-{colour}-seed{seed}-i{scale}.png"
        for name in "ab"
        for colour in ("red", "blue")
        for seed in (1, 2)
        for scale in ("1.2", "1.6")
    )
    assert Image.open(tmp_path / "out/b-make-it-red-seed1-i1.2.png").size == (96, 64)


def test_a_list_of_edits_names_its_outputs_and_nothing_is_overwritten(
    editor_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Image.new("RGB", (64, 64)).save(tmp_path / "a.png")
    rows: list[dict[str, Any]] = [{"image": "a.png", "edit_prompt": "make it red", "output": "first.png"}]
    rows.append({"image": "a.png", "edit_prompt": "make it blue", "seed": 3})
    (tmp_path / "edits.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    words = ["--model", str(editor_folder), str(tmp_path / "edits.jsonl"), "", str(tmp_path / "out")]
    assert edit(*words) == 0
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["a-make-it-blue.png", "first.png"]
    assert edit(*words) == 2
    assert "exists already" in capsys.readouterr().err
    assert edit(*words, "--overwrite") == 0


def test_edits_that_were_interrupted_resume_and_end_with_the_same_bytes(
    editor_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "in").mkdir()
    for number, image in enumerate(pictures(*[(64, 64), (96, 64)] * 3)):
        Image.fromarray(image).save(tmp_path / "in" / f"{number}.png")

    def edit_into(name: str, *more: str) -> int:
        words = [str(tmp_path / "in"), "make it red", str(tmp_path / name), "--batch-size", "3", *more]
        return edit("--model", str(editor_folder), *words)

    written: list[Path] = []

    def write_or_be_interrupted(image: Image.Image, path: Path) -> None:
        if len(written) == 4:
            raise KeyboardInterrupt
        write_image(image, path)
        written.append(path)

    assert edit_into("whole") == 0
    with monkeypatch.context() as patch:
        patch.setattr("ip2p.editing.write_image", write_or_be_interrupted)
        assert edit_into("cut") == 130
    written[0].write_bytes(written[0].read_bytes()[:-40])  # not whole, as other software may have left it
    assert edit_into("cut", "--skip-existing", "--overwrite") == edit_into("cut") == 2
    assert "--skip-existing" in capsys.readouterr().err
    assert edit_into("cut", "--skip-existing") == 0
    assert "6 pictures in" in (said := capsys.readouterr().out) and "3 skipped as they exist" in said
    files = {path.name: path.read_bytes() for path in (tmp_path / "whole").iterdir()}
    assert {path.name: path.read_bytes() for path in (tmp_path / "cut").iterdir()} == files
    times = [path.stat().st_mtime_ns for path in written]
    assert edit_into("cut", "--skip-existing", "--model", "is-not-loaded") == 0
    assert [path.stat().st_mtime_ns for path in written] == times


def test_a_picture_is_written_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    picture = Image.new("RGB", (8, 8), "red")
    write_image(picture, tmp_path / "out.png")
    before = (tmp_path / "out.png").read_bytes()
    monkeypatch.setattr("ip2p.store.shards.os.fsync", lambda _: (_ for _ in ()).throw(OSError(28, "the disk is full")))
    with pytest.raises(OSError, match="disk is full"):
        write_image(Image.new("RGB", (8, 8), "blue"), tmp_path / "out.png")
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == {"out.png": before}


def test_one_picture_goes_where_it_is_told(editor_folder: Path, tmp_path: Path) -> None:
    Image.new("RGB", (64, 64)).save(tmp_path / "a.png")
    assert edit("--model", str(editor_folder), str(tmp_path / "a.png"), "make it red", str(tmp_path / "new/b.jpg")) == 0
    assert Image.open(tmp_path / "new/b.jpg").size == (64, 64)


def test_edits_need_as_many_seeds_as_images(editor: StableDiffusionInstructPix2PixPipeline) -> None:
    with pytest.raises(ValueError, match="got 1 images, 1 instructions and 2 seeds"):
        edit_images(editor, pictures((64, 64)), ["x"], seeds=[1, 2])


def test_a_model_that_is_no_editor_is_refused(tiny_sd: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="takes 4 channels, expected 8"):
        load_editor(str(tiny_sd), "cpu")
    with pytest.raises(ValueError, match="does not exist"):
        load_editor("/does/not/exist", "cpu")
    with pytest.raises(ValueError, match=r"has no model_index\.json"):
        load_editor(str(tmp_path), "cpu")

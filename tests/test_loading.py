"""What `auto` stands for, which of a folder's weights are loaded, and what a user is told if they cannot be."""

from __future__ import annotations

import json
import logging
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from diffusers import DiffusionPipeline, StableDiffusionInstructPix2PixPipeline, StableDiffusionPipeline
from safetensors.torch import load_file

from ip2p.models.architecture import base_architecture
from ip2p.models.components import load_vae
from ip2p.models.loading import resolve_dtype
from ip2p.models.pipelines import load_editor, load_text_to_image
from ip2p.models.stable_diffusion import ClipTexts, widen_conv_in
from tests.test_training import tiny_training


@pytest.mark.parametrize(
    ("has_avx", "has_amx", "expected"),
    [(False, False, "float32"), (True, False, "bfloat16"), (False, True, "bfloat16")],
)
def test_auto_is_bfloat16_only_where_the_cpu_multiplies_it(
    monkeypatch: pytest.MonkeyPatch, has_avx: bool, has_amx: bool, expected: str
) -> None:
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: has_avx)
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: has_amx)
    assert resolve_dtype("auto", "cpu") == expected
    assert resolve_dtype("auto", "mps") == "float32"
    assert resolve_dtype("float16", "cpu") == "float16"


@pytest.mark.parametrize("native", [False, True])
def test_auto_asks_the_gpu_for_what_it_does_itself(monkeypatch: pytest.MonkeyPatch, native: bool) -> None:
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: native or including_emulation)
    assert resolve_dtype("auto", "cuda:0") == ("bfloat16" if native else "float32")


def to_bin(path: Path) -> None:
    name = "pytorch_model.bin" if path.name == "model.safetensors" else "diffusion_pytorch_model.bin"
    torch.save(load_file(path), path.with_name(name))
    path.unlink()


def to_fp16(path: Path) -> None:
    path.rename(path.with_suffix(".fp16.safetensors"))


def to_fp16_bin(path: Path) -> None:
    to_bin(path)
    (file,) = path.parent.glob("*.bin")
    file.rename(file.with_suffix(".fp16.bin"))


def with_weights(base: Path, folder: Path, change: Callable[[Path], object], part: str = "*") -> Path:
    """Copies a model and changes the files of its weights."""
    shutil.copytree(base, folder)
    for path in sorted(folder.glob(f"{part}/*.safetensors")):
        change(path)
    return folder


def load_base(folder: Path, variant: str | None = None) -> DiffusionPipeline:
    return load_text_to_image(str(folder), revision=None, variant=variant, dtype="float32", device="cpu")


def same_bits(one: torch.nn.Module, two: torch.nn.Module) -> bool:
    left, right = one.state_dict(), two.state_dict()
    return left.keys() == right.keys() and all(torch.equal(left[name], right[name]) for name in left)


@pytest.fixture(scope="module")
def tiny_editor(tiny_sd: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a random editor."""
    parts = StableDiffusionPipeline.from_pretrained(tiny_sd, safety_checker=None).components
    parts["unet"] = widen_conv_in(parts["unet"], 8)
    parts.pop("image_encoder")
    folder = tmp_path_factory.mktemp("editor")
    StableDiffusionInstructPix2PixPipeline(**parts, requires_safety_checker=False).save_pretrained(folder)
    return folder


@pytest.mark.parametrize("part", ["*", "text_encoder"])
@pytest.mark.parametrize("change", [to_bin, to_fp16, to_fp16_bin])
def test_other_files_of_the_same_weights_are_loaded_to_the_bit(
    tiny_sd: Path, tiny_editor: Path, tmp_path: Path, change: Callable[[Path], object], part: str
) -> None:
    base = with_weights(tiny_sd, tmp_path / "base", change, part)
    config, expected, found = tiny_training(base), load_base(tiny_sd), load_base(base)
    for name in ("unet", "vae", "text_encoder"):
        assert same_bits(getattr(found, name), getattr(expected, name))
    architecture = base_architecture(config)
    assert same_bits(architecture.load_denoiser(config), expected.unet)
    assert same_bits(load_vae(config, torch.device("cpu")), expected.vae)
    apart = tiny_training(tiny_sd, pretrained_vae_model_name_or_path=str(base / "vae"))
    assert same_bits(load_vae(apart, torch.device("cpu")), expected.vae)
    texts = architecture.load_text_encoders(config, torch.device("cpu"))
    assert isinstance(texts, ClipTexts) and same_bits(texts.encoders[0], expected.text_encoder)
    editor = with_weights(tiny_editor, tmp_path / "editor", change, part)
    assert same_bits(load_editor(str(editor), "cpu").unet, load_editor(str(tiny_editor), "cpu").unet)


def test_plain_weights_come_before_a_variant_and_one_that_is_asked_for_before_them(
    tiny_sd: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    def add_zeros(path: Path) -> None:
        zeros = {name: torch.zeros_like(value) for name, value in load_file(path).items()}
        torch.save(zeros, path.with_name("diffusion_pytorch_model.fp16.bin"))

    base = with_weights(tiny_sd, tmp_path / "base", add_zeros, "unet")
    caplog.set_level(logging.INFO)
    assert same_bits(load_base(base).unet, load_base(tiny_sd).unet) and "variant" not in caplog.text
    asked = load_base(base, "fp16")
    assert not any(value.any() for value in asked.unet.state_dict().values())
    assert same_bits(asked.vae, load_base(tiny_sd).vae)
    only = with_weights(tiny_sd, tmp_path / "only", to_fp16)
    load_base(only)
    assert f"{only} has no plain weights: loading the variant fp16" in caplog.text


def test_a_variant_that_is_missing_or_must_be_chosen_is_named_with_those_there_are(
    tiny_sd: Path, tmp_path: Path
) -> None:
    def to_two(path: Path) -> None:
        shutil.copy(path, path.with_suffix(".bf16.safetensors"))
        to_fp16(path)

    two = with_weights(tiny_sd, tmp_path / "two", to_two)
    with pytest.raises(ValueError, match="no plain weights; its variants are: bf16, fp16. Set variant to one"):
        load_base(two)
    with pytest.raises(ValueError, match="has no variant fp8; its variants are: bf16, fp16"):
        load_base(two, "fp8")
    with pytest.raises(ValueError, match="has no variant fp16; its variants are: none"):
        base_architecture(tiny_training(tiny_sd)).load_denoiser(tiny_training(tiny_sd, variant="fp16"))


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


class Code:
    """Unpickling it would run a function."""

    def __reduce__(self) -> tuple[Callable[[str], None], tuple[str]]:
        return pytest.fail, ("code of a file of weights was run",)


def to_code(path: Path) -> None:
    path.with_name("pytorch_model.bin").write_bytes(pickle.dumps(Code()))
    path.unlink()


DAMAGES: dict[str, tuple[str, Callable[[Path], object]]] = {
    "cut weights": ("text_encoder/model.safetensors", cut),
    "missing weights": ("unet/diffusion_pytorch_model.safetensors", Path.unlink),
    "weights that are code": ("text_encoder/model.safetensors", to_code),
    "half a config": ("vae/config.json", cut),
    "no config": ("text_encoder/config.json", Path.unlink),
    "no tokenizer": ("tokenizer", shutil.rmtree),
    "half an index": ("model_index.json", cut),
    "weights of another shape": ("vae/config.json", lambda path: narrow(path, latent_channels=3)),
}


def narrow(path: Path, **changes: int) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


@pytest.mark.parametrize("name", list(DAMAGES))
def test_a_model_that_cannot_be_loaded_is_one_line_that_names_it(name: str, tiny_sd: Path, tmp_path: Path) -> None:
    file, damage = DAMAGES[name]
    base = shutil.copytree(tiny_sd, tmp_path / "base")
    damage(base / file)
    config = tiny_training(base)

    def load_parts() -> None:
        architecture = base_architecture(config)
        architecture.load_text_encoders(config, torch.device("cpu"))
        architecture.build_editor(architecture.load_widened(config), config, torch.device("cpu"))

    for load in (lambda: load_base(base), load_parts):
        with pytest.raises(ValueError, match=r"^could not load .*base.*Give an existing model folder") as refused:
            load()
        assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    "name", ["runwayml/stable-diffusion-v1-5", "v1-5-pruned-emaonly.ckpt", "stable-diffusion-v1-5", "no/such/folder"]
)
def test_a_base_that_is_nowhere_is_one_line(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(ValueError, match=rf"{name}.*Give an existing model folder or a hub id") as refused:
        base_architecture(tiny_training(Path(name)))
    assert "\n" not in str(refused.value)


def test_a_checkpoint_of_one_file_is_told_how_to_become_a_folder(tmp_path: Path) -> None:
    path = tmp_path / "v1-5-pruned-emaonly.ckpt"
    path.write_bytes(b"weights")
    with pytest.raises(ValueError, match=r"is a single file, expected a model folder: diffusers' from_single_file"):
        base_architecture(tiny_training(path))

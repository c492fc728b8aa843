"""Editors trained from FLUX.1 and Kontext: against a plain loss, resumed, exported to diffusers' pipelines, by LoRA."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from diffusers import (
    DiffusionPipeline,
    FlowMatchEulerDiscreteScheduler,
    FluxControlPipeline,
    FluxKontextPipeline,
    FluxTransformer2DModel,
)
from diffusers.training_utils import compute_loss_weighting_for_sd3
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor, nn

from ip2p.config import TrainingConfig, fingerprint, to_dict
from ip2p.editing import edit_images, load_editor
from ip2p.models.architecture import base_architecture
from ip2p.models.stable_diffusion_3_instruct_pix2pix import StableDiffusion3InstructPix2PixPipeline
from ip2p.models.texts import Texts
from ip2p.training.__main__ import main
from ip2p.training.data import open_rows
from ip2p.training.decoding import decode_pair
from ip2p.training.filling import load_cache
from ip2p.training.loop import Interrupted, Stop
from ip2p.training.lora import LORA_FILE, load_lora, lora_files
from ip2p.training.run import new_trainer
from ip2p.training.trainer import Trainer
from ip2p.training.validation import fit_to_step
from tests.test_training import pair, png, tiny_training, write_pairs
from tests.test_training_run import _StopAfter, run, same_weights
from tests.tiny_flow import write_tiny_flux, write_tiny_kontext, write_tiny_sd3

pytestmark = pytest.mark.usefixtures("fresh_accelerator")
NUM_TEXTS = 16
WEIGHTS = "transformer/diffusion_pytorch_model.safetensors"
EDITORS = {"dev": FluxControlPipeline, "schnell": FluxControlPipeline, "kontext": FluxKontextPipeline}


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A random model like dev, one like schnell and a Kontext."""
    place = tmp_path_factory.mktemp("flux")
    return {
        "dev": write_tiny_flux(place / "dev"),
        "schnell": write_tiny_flux(place / "schnell", guidance_embeds=False),
        "kontext": write_tiny_kontext(place / "kontext"),
    }


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return write_pairs(tmp_path / "data", [pair(number) for number in range(7)])


def tiny(folder: Path, **changes: Any) -> TrainingConfig:
    fixed = {"lr_warmup_steps": 0, "max_sequence_length": NUM_TEXTS, "max_train_steps": 4}
    return tiny_training(folder, **(fixed | changes))


def trainer_of(config: TrainingConfig, data: Path, place: Path) -> Trainer:
    accelerator = Accelerator(cpu=True)
    return new_trainer(load_cache(place, open_rows(str(data), config), config, accelerator), config, accelerator)[0]


def train(base: Path, data: Path, output: Path, *flags: str) -> int:
    fixed = ["--original_image_column=original_image", "--resolution=64", "--train_batch_size=2", "--max_train_steps=2"]
    fixed += ["--lr_warmup_steps=0", "--conditioning_dropout_prob=0.1", f"--max_sequence_length={NUM_TEXTS}"]
    words = [f"--pretrained_model_name_or_path={base}", f"--train_data_dir={data}", f"--output_dir={output}"]
    return main([*words, *fixed, *flags])


class Reference:
    """The loss as diffusers' training examples compute it, with their pipelines' static methods."""

    def __init__(self, config: TrainingConfig, data: Path) -> None:
        self.config, self.rows = config, list(open_rows(str(data), config).read())
        self.pipeline: Any = DiffusionPipeline.from_pretrained(config.pretrained_model_name_or_path)
        self.scheduler = FlowMatchEulerDiscreteScheduler.from_config(self.pipeline.scheduler.config)
        self.transformer = self.pipeline.transformer
        self.is_kontext = isinstance(self.pipeline, FluxKontextPipeline)
        if not self.is_kontext:
            old = self.transformer.x_embedder
            wide = nn.Linear(2 * old.in_features, old.out_features)
            with torch.no_grad():
                wide.weight.zero_()
                wide.weight[:, : old.in_features] = old.weight
                wide.bias.copy_(old.bias)
            self.transformer.x_embedder = wide

    @torch.no_grad()
    def encoded(self, trainer: Trainer) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Returns latents, condition and texts under the trainer's draws."""
        draws, numbers = trainer.stream.draws(0), trainer.stream.samples(0)
        pixels = np.stack([decode_pair(self.rows[number], 64).pixels for number in numbers])
        original, edited = (torch.from_numpy(pixels[:, side]).permute(0, 3, 1, 2) / 127.5 - 1 for side in (0, 1))
        vae, p = self.pipeline.vae, self.config.conditioning_dropout_prob or 0.0
        posterior = vae.encode(edited).latent_dist
        latents = posterior.mean + posterior.std * draws.posterior
        condition = vae.encode(original).latent_dist.mode()
        latents, condition = ((z - vae.config.shift_factor) * vae.config.scaling_factor for z in (latents, condition))
        texts = [str(self.rows[number].edit_prompt) for number in numbers]
        for index, u in enumerate(draws.dropout.tolist()):
            texts[index] = "" if u < 2 * p else texts[index]
            if p <= u < 3 * p:
                condition[index] = 0
        hidden, pooled, _ = self.pipeline.encode_prompt(texts, max_sequence_length=NUM_TEXTS)
        return latents, condition, hidden, pooled

    def loss(self, trainer: Trainer) -> Tensor:
        latents, condition, hidden, pooled = self.encoded(trainer)
        draws, pipeline = trainer.stream.draws(0), self.pipeline
        index = len(self.scheduler.timesteps) - 1 - draws.timesteps
        timesteps, sigmas = self.scheduler.timesteps[index], self.scheduler.sigmas[index].view(-1, 1, 1, 1)
        noisy = (1 - sigmas) * latents + sigmas * draws.noise
        num, channels, height, width = latents.shape
        ids = pipeline._prepare_latent_image_ids(num, height // 2, width // 2, "cpu", torch.float32)
        if self.is_kontext:
            others = ids.clone()
            others[..., 0] = 1
            tokens = [pipeline._pack_latents(each, num, channels, height, width) for each in (noisy, condition)]
            inputs, ids = torch.cat(tokens, 1), torch.cat([ids, others])
        else:
            both = torch.cat([noisy, condition], 1)
            inputs = pipeline._pack_latents(both, num, 2 * channels, height, width)
        guidance = None
        if self.transformer.config.guidance_embeds:
            guidance = torch.full((num,), 1.0 if self.config.guidance_scale is None else self.config.guidance_scale)
        predicted = self.transformer(
            hidden_states=inputs,
            timestep=timesteps / 1000,
            guidance=guidance,
            pooled_projections=pooled,
            encoder_hidden_states=hidden,
            txt_ids=torch.zeros(NUM_TEXTS, 3),
            img_ids=ids,
        ).sample[:, : height * width // 4]
        factor = pipeline.vae_scale_factor
        predicted = pipeline._unpack_latents(predicted, height * factor, width * factor, factor)
        weights = compute_loss_weighting_for_sd3(self.config.weighting_scheme, sigmas)
        loss: Tensor = (weights * (predicted - (draws.noise - latents)) ** 2).mean()
        return loss


@pytest.mark.parametrize("model", ["dev", "schnell", "kontext"])
@pytest.mark.parametrize(
    "changes",
    [
        {"conditioning_dropout_prob": 0.0},
        {"conditioning_dropout_prob": 1 / 3, "train_batch_size": 8},
        {"weighting_scheme": "sigma_sqrt", "conditioning_dropout_prob": 0.0, "guidance_scale": 3.5},
    ],
)
def test_the_loss_and_its_gradient_are_those_of_diffusers_examples(
    tmp_path: Path, data: Path, folders: dict[str, Path], model: str, changes: dict[str, Any]
) -> None:
    if model == "schnell":
        changes = {name: value for name, value in changes.items() if name != "guidance_scale"}
    config = tiny(folders[model], **changes)
    trainer, reference = trainer_of(config, data, tmp_path / "cache"), Reference(config, data)
    if model != "kontext":
        with torch.no_grad():  # as if it had learnt to see the picture
            weight = trainer.trained.denoiser.x_embedder.weight
            weight[:, 16:] = weight[:, :16].flip(0)
            reference.transformer.x_embedder.weight.copy_(weight)
    found, expected = trainer.loss(0), reference.loss(trainer)
    assert found.item() == pytest.approx(expected.item(), rel=1e-5)
    found.backward(), expected.backward()  # type: ignore[no-untyped-call]
    gradients = zip(trainer.trained.denoiser.parameters(), reference.transformer.parameters(), strict=True)
    for one, other in gradients:
        torch.testing.assert_close(one.grad, other.grad, atol=1e-5 * float(other.grad.abs().max()) + 1e-7, rtol=1e-3)


@pytest.mark.parametrize("model", ["dev", "schnell", "kontext"])
def test_a_widened_base_predicts_what_it_did_whatever_the_image(folders: dict[str, Path], model: str) -> None:
    config = tiny(folders[model])
    base = base_architecture(config)
    plain, wide = base.load_denoiser(config), base.load_widened(config)
    chance = torch.Generator().manual_seed(0)
    latents, image = (torch.randn(2, 4, 16, 12, generator=chance) for _ in range(2))
    texts = Texts(torch.randn(2, 5, 48, generator=chance), torch.randn(2, 16, generator=chance))
    told = {"guidance": torch.tensor([3.5, 1.0])} if base.is_distilled(plain) else {}
    with torch.no_grad():
        before = base.predict(plain, latents, torch.tensor(500.0), texts, **told)
        after = base.predict(wide, latents, torch.tensor(500.0), texts, condition=image, **told)
    if model == "kontext":
        assert base.in_channels(wide) == 4 and (before - after).abs().max() > 0.01
        return
    torch.testing.assert_close(after, before, atol=1e-6, rtol=1e-6)
    assert (base.in_channels(plain), base.in_channels(wide)) == (4, 8)
    assert torch.equal(wide.x_embedder.bias, plain.x_embedder.bias) and not wide.x_embedder.weight[:, 16:].any()


def edit(pipeline: Any, picture: Image.Image) -> Image.Image:
    """An edit under the settings of a validation."""
    named = "image" if isinstance(pipeline, FluxKontextPipeline) else "control_image"
    own = {"max_area": 96 * 64, "_auto_resize": False} if named == "image" else {}
    found: Image.Image = pipeline(
        prompt="make it red",
        width=96,
        height=64,
        num_inference_steps=20,
        guidance_scale=7.0,
        max_sequence_length=NUM_TEXTS,
        generator=torch.Generator().manual_seed(0),
        **{named: picture},
        **own,
    ).images[0]
    return found


@pytest.mark.parametrize(("model", "flags"), [("dev", ["--guidance_scale=3.5"]), ("schnell", []), ("kontext", [])])
def test_a_trained_editor_loads_in_diffusers_own_pipeline(
    tmp_path: Path, data: Path, folders: dict[str, Path], model: str, flags: list[str]
) -> None:
    output = tmp_path / "out"
    png_file = tmp_path / "picture.png"
    png_file.write_bytes(png((96, 64))["bytes"])
    shown = [f"--val_image_url={png_file}", "--validation_prompt=make it red", "--num_validation_images=1"]
    assert train(folders[model], data, output, "--learning_rate=1e-2", *flags, *shown) == 0
    kind = EDITORS[model]
    assert json.loads((output / "model_index.json").read_text())["_class_name"] == kind.__name__
    assert f"{kind.__name__}.from_pretrained" in (card := (output / "README.md").read_text())
    assert "image_guidance_scale=" not in card and f"max_sequence_length={NUM_TEXTS})" in card
    pipeline, editor = kind.from_pretrained(output), load_editor(str(output), "cpu")
    (shown_image,) = (Image.open(path) for path in (output / "validation_images").glob("*.png"))
    assert np.abs(np.asarray(shown_image, int) - np.asarray(edit(pipeline, Image.open(png_file)), int)).max() <= 1
    assert pipeline.transformer.config.in_channels == (16 if model == "kontext" else 32)
    before, after = load_file(folders[model] / WEIGHTS), load_file(output / WEIGHTS)
    assert all(not torch.equal(before[name], after[name]) for name in before if name.endswith("to_q.weight"))
    base = base_architecture(tiny(output))
    chance = torch.Generator().manual_seed(0)
    latents, image = (torch.randn(1, 4, 16, 16, generator=chance) for _ in range(2))
    told = {} if model == "schnell" else {"guidance": torch.tensor([2.5])}
    with torch.no_grad():
        texts = base.encode(editor, ["make it red"])
        assert texts.hidden.shape[1] == NUM_TEXTS  # as in training
        found = base.predict(editor.transformer, latents, torch.tensor(300.0), texts, condition=image, **told)
        hidden, pooled, text_ids = pipeline.encode_prompt("make it red", max_sequence_length=NUM_TEXTS)
        ids = pipeline._prepare_latent_image_ids(1, 8, 8, "cpu", torch.float32)
        tokens = [pipeline._pack_latents(each, 1, 4, 16, 16) for each in (latents, image)]
        is_kontext = model == "kontext"
        places = torch.cat([ids, ids + torch.tensor([1.0, 0, 0])]) if is_kontext else ids
        expected = pipeline.transformer(
            hidden_states=torch.cat(tokens, 1 if is_kontext else 2),
            timestep=torch.tensor([0.3]),
            encoder_hidden_states=hidden,
            pooled_projections=pooled,
            txt_ids=text_ids,
            img_ids=places,
            **told,
        ).sample[:, :64]
    factor = pipeline.vae_scale_factor
    torch.testing.assert_close(found, pipeline._unpack_latents(expected, 64, 64, factor), atol=1e-5, rtol=1e-5)
    picture = np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8)
    (edited,) = edit_images(editor, [picture], ["make it red"], num_inference_steps=2, seeds=[1])
    assert edited.shape == (64, 64, 3) and edited.std() > 0


@pytest.mark.parametrize("model", ["dev", "kontext"])
def test_an_editor_trained_in_mixed_precision_edits_in_bfloat16_as_its_card_says(
    tmp_path: Path, data: Path, folders: dict[str, Path], model: str
) -> None:
    output = tmp_path / "out"
    assert train(folders[model], data, output, "--mixed_precision=bf16", "--gradient_checkpointing") == 0
    kind = EDITORS[model]
    assert f'{kind.__name__}.from_pretrained("out", torch_dtype=torch.bfloat16)' in (output / "README.md").read_text()
    pipeline = kind.from_pretrained(output, dtype=torch.bfloat16)
    assert pipeline.transformer.dtype == pipeline.text_encoder_2.dtype == torch.bfloat16
    assert np.asarray(edit(pipeline, Image.new("RGB", (96, 64)))).std() > 0


@pytest.mark.parametrize("model", ["dev", "kontext"])
@pytest.mark.parametrize("changes", [{}, {"use_lora": True, "lora_dropout": 0.3, "lora_alpha": 8.0}])
@pytest.mark.slow
def test_a_training_that_is_resumed_ends_in_the_same_bits(
    tmp_path: Path, data: Path, folders: dict[str, Path], model: str, changes: dict[str, Any]
) -> None:
    config = tiny(folders[model], checkpointing_steps=2, conditioning_dropout_prob=0.1, **changes)
    run(config, str(data), tmp_path / "whole", tmp_path / "whole-model", Stop())
    with pytest.raises(Interrupted):
        run(config, str(data), tmp_path / "cut", tmp_path / "cut-model", _StopAfter(3))
    run(config, str(data), tmp_path / "cut", tmp_path / "cut-model", Stop())
    file = "trained.safetensors" if changes else "diffusion_pytorch_model.safetensors"
    for name in ("unet", "unet_ema"):
        path = f"checkpoint-4/{name}/{file}"
        assert same_weights(tmp_path / "whole" / path, tmp_path / "cut" / path)
    assert same_weights(tmp_path / "whole-model" / WEIGHTS, tmp_path / "cut-model" / WEIGHTS)
    assert not same_weights(tmp_path / "whole-model" / WEIGHTS, folders[model] / WEIGHTS)


LORA = ["--use_lora", "--rank=4", "--learning_rate=1e-2", "--conditioning_dropout_prob=0.1"]


def predicted(transformer: Any) -> Tensor:
    """What a transformer that is not widened says."""
    chance = torch.Generator().manual_seed(0)
    features = int(transformer.config.in_channels)
    with torch.no_grad():
        found: Tensor = transformer(
            hidden_states=torch.randn(1, 9, features, generator=chance),
            timestep=torch.tensor([0.4]),
            guidance=torch.tensor([2.5]),
            encoder_hidden_states=torch.randn(1, 5, 48, generator=chance),
            pooled_projections=torch.randn(1, 16, generator=chance),
            txt_ids=torch.zeros(5, 3),
            img_ids=torch.randn(9, 3, generator=chance),
        ).sample
    return found


@pytest.mark.parametrize("flags", [[], ["--lora_alpha=12", "--lora_dropout=0.2"], ["--lora_layers=to_q, proj_mlp"]])
def test_kontexts_adapter_loads_in_a_fresh_pipeline_by_itself(
    tmp_path: Path, data: Path, folders: dict[str, Path], flags: list[str]
) -> None:
    output = tmp_path / "out"
    assert train(folders["kontext"], data, output, *LORA, *flags) == 0
    assert not list(output.glob("x_embedder*"))
    adapter, before, after = (
        load_file(path) for path in (output / LORA_FILE, folders["kontext"] / WEIGHTS, output / WEIGHTS)
    )
    ends = {"to_q", "proj_mlp"} if "--lora_layers=to_q, proj_mlp" in flags else None
    adapted = {name.removeprefix("transformer.").removesuffix(".lora_A.weight") for name in adapter if "lora_A" in name}
    moved = {name.removesuffix(".weight") for name in before if not torch.equal(before[name], after[name])}
    assert moved == adapted and any(name.startswith("single_transformer_blocks.") for name in adapted)
    assert ends is None or {name.split(".")[-1] for name in adapted} == ends
    pipeline = FluxKontextPipeline.from_pretrained(folders["kontext"])
    plain = predicted(pipeline.transformer)
    pipeline.load_lora_weights(str(output))
    merged = predicted(FluxKontextPipeline.from_pretrained(output).transformer)
    torch.testing.assert_close(predicted(pipeline.transformer), merged, atol=1e-5, rtol=1e-4)
    assert (plain - merged).abs().max() > 1e-3


def test_a_widened_flux_is_adapted_with_its_whole_first_layer(
    tmp_path: Path, data: Path, folders: dict[str, Path]
) -> None:
    output = tmp_path / "out"
    assert train(folders["dev"], data, output, *LORA, "--lora_alpha=2") == 0
    assert load_file(output / "x_embedder.safetensors")["weight"].shape[1] == 32
    fresh = FluxControlPipeline.from_pretrained(folders["dev"])
    merged = FluxControlPipeline.from_pretrained(output)
    torch.testing.assert_close(
        predicted(load_lora(fresh, output).transformer), predicted(merged.transformer), atol=1e-5, rtol=1e-4
    )
    (output / "x_embedder.safetensors").unlink()
    with pytest.raises(ValueError, match="holds no x_embedder.safetensors"):
        load_lora(FluxControlPipeline.from_pretrained(folders["dev"]), output)


@pytest.mark.parametrize("model", ["dev", "kontext"])
def test_adapters_on_a_base_in_8_bits_are_exported_on_its_whole_weights(
    tmp_path: Path, data: Path, folders: dict[str, Path], model: str
) -> None:
    pytest.importorskip("torchao")
    config = tiny(folders[model], quantization="torchao_int8", use_lora=True)
    transformer: Any = base_architecture(config).load_denoiser(config)
    assert type(transformer.transformer_blocks[0].attn.to_q.weight.data) is not Tensor  # torchao's, of 8 bits
    assert type(transformer.x_embedder.weight.data) is Tensor
    output = tmp_path / "out"
    assert train(folders[model], data, output, *LORA, "--lora_alpha=8", "--quantization=torchao_int8") == 0
    before, after = load_file(folders[model] / WEIGHTS), load_file(output / WEIGHTS)
    name = "single_transformer_blocks.0.proj_mlp.weight"  # which no adapter touches
    assert torch.equal(after[name], before[name])
    fresh, merged = EDITORS[model].from_pretrained(folders[model]), EDITORS[model].from_pretrained(output)
    found, expected = predicted(load_lora(fresh, output).transformer), predicted(merged.transformer)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-4)


def test_a_stable_diffusion_3s_adapter_has_all_its_layers(tmp_path: Path, data: Path) -> None:
    base, output = write_tiny_sd3(tmp_path / "sd3"), tmp_path / "out"
    assert train(base, data, output, *LORA) == 0
    kind = StableDiffusion3InstructPix2PixPipeline
    adapted, merged = load_lora(kind.from_pretrained(base), output), kind.from_pretrained(output)
    adapted.fuse_lora(components=["transformer"])
    adapted.unload_lora_weights()
    expected = merged.transformer.state_dict()
    found = adapted.transformer.state_dict()
    assert found.keys() == expected.keys()
    for name, weights in found.items():
        torch.testing.assert_close(weights, expected[name], atol=1e-6, rtol=1e-5)


def test_a_picture_is_shown_at_a_size_that_patches_divide() -> None:
    assert fit_to_step(Image.new("RGB", (264, 40)), 16).size == (256, 32)
    assert fit_to_step(picture := Image.new("RGB", (64, 32)), 16) is picture


@pytest.mark.parametrize(
    ("model", "flags", "message"),
    [
        (
            "kontext",
            ["--learning_rate_conv_in=0.01"],
            "learning_rate_conv_in is the rate of a widened layer, which FLUX",
        ),
        ("schnell", ["--guidance_scale=3.5"], "guidance_scale is told to a base that takes the scale as an input"),
        ("kontext", ["--use_lora", "--lora_layers=to_x"], "lora_layers must name layers of the base, got to_x"),
        ("dev", ["--use_lora", "--lora_layers=x_embedder"], "got x_embedder, which fits x_embedder, trained whole"),
        ("dev", ["--use_lora", "--lora_layers=,"], "lora_layers must name layers of the base, got ','"),
        (
            "dev",
            ["--resolution=68"],
            "resolution must be a multiple of 8 for FLUX.1, whose patches are 2 latents wide, got",
        ),
        ("kontext", ["--max_sequence_length=513"], "max_sequence_length must be at most 512 for FLUX.1 Kontext"),
        ("dev", ["--snr_gamma=5"], "snr_gamma has no meaning for a base that is trained by flow matching"),
    ],
)
def test_a_setting_that_does_not_fit_is_refused_in_one_line(
    tmp_path: Path,
    data: Path,
    folders: dict[str, Path],
    capsys: pytest.CaptureFixture[str],
    model: str,
    flags: list[str],
    message: str,
) -> None:
    assert train(folders[model], data, tmp_path / "out", *flags) == 2
    told = capsys.readouterr().out.splitlines()[-1]
    assert told.startswith("error: ") and message in told
    if "lora_layers" not in " ".join(flags) and "snr" not in message:
        assert not (tmp_path / "out/cache").exists()  # before the pairs are encoded


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("lora_dropout", 1.0, r"lora_dropout must lie in \[0, 1\), got 1.0"),
        ("lora_alpha", 0.0, "lora_alpha must be positive, got 0"),
        ("guidance_scale", -1.0, "guidance_scale must not be negative, got -1.0"),
    ],
)
def test_a_setting_out_of_bounds_is_refused(name: str, value: float, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        TrainingConfig(**{name: value})  # type: ignore[arg-type]


def test_a_stable_diffusion_takes_no_guidance_scale(tmp_path: Path, data: Path, tiny_sd: Path) -> None:
    config = tiny(tiny_sd, guidance_scale=2.0)
    with pytest.raises(ValueError, match=r"this Stable Diffusion 1.x or 2.x takes none, got 2.0. Leave it out"):
        base_architecture(config).check_training(config)


def test_new_settings_leave_old_fingerprints_as_they_were(folders: dict[str, Path]) -> None:
    names = ("guidance_scale", "lora_alpha", "lora_dropout", "lora_layers")
    plain = TrainingConfig()
    assert not set(names) & set(to_dict(plain))
    for name, value in zip(names, (3.5, 8.0, 0.1, "to_q"), strict=True):
        changed = TrainingConfig(**{name: value})  # type: ignore[arg-type]
        assert to_dict(changed)[name] == value and fingerprint(changed) != fingerprint(plain)


def test_only_a_widened_base_has_a_second_file_of_adapters(folders: dict[str, Path]) -> None:
    files = {name: lora_files(base_architecture(tiny(folder))) for name, folder in folders.items()}
    assert files["kontext"] == (LORA_FILE,)
    assert files["dev"] == files["schnell"] == (LORA_FILE, "x_embedder.safetensors")


def test_the_index_of_a_wrong_class_is_refused(folders: dict[str, Path], tmp_path: Path) -> None:
    (tmp_path / "model_index.json").write_text(json.dumps({"_class_name": "FluxFillPipeline"}))
    with pytest.raises(
        ValueError, match=r"is a FluxFillPipeline, which is not supported. Give one of: FLUX.1, .*FLUX.1 K"
    ):
        base_architecture(tiny(tmp_path))
    assert isinstance(
        base_architecture(tiny(folders["dev"])).load_denoiser(tiny(folders["dev"])), FluxTransformer2DModel
    )

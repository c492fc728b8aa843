"""Stable Diffusion 3 and 3.5: rendered, trained and edited as diffusers and the definitions say."""

from __future__ import annotations

import json
import re
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from diffusers import DiffusionPipeline, SD3Transformer2DModel, StableDiffusion3Pipeline
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor, nn

from ip2p.config import EditTypeRendering, RenderingConfig, TrainingConfig
from ip2p.editing import edit_images, load_editor
from ip2p.models.architecture import architecture_of, base_architecture
from ip2p.models.pipelines import load_text_to_image
from ip2p.p2p.sampler import check_renderable, fits_encoders, render_pairs, sample_latents
from ip2p.training.__main__ import main
from ip2p.training.data import open_rows
from ip2p.training.decoding import decode_pair
from ip2p.training.filling import load_cache
from ip2p.training.loop import Interrupted, Stop
from ip2p.training.lora import load_lora
from ip2p.training.run import new_trainer
from ip2p.training.trainer import Trainer
from tests.explicit_joint import ExplicitJointPair
from tests.test_rendering_exact import BOTH, CIRCLE, SQUARE, candidate, distance
from tests.test_training import pair, tiny_training, write_pairs
from tests.test_training_run import _StopAfter, run, same_weights

pytestmark = pytest.mark.usefixtures("fresh_accelerator")
CONFIG = RenderingConfig(num_inference_steps=5)
CPU = torch.device("cpu")
TOLERANCE = 2e-4
WEIGHTS = "transformer/diffusion_pytorch_model.safetensors"
OPERATORS: dict[str, dict[str, Any]] = {
    "nothing": {},
    "image": {"p2p": 0.6},
    "first steps": {"shared_steps": 0.5},
    "blend": {"local_blend": 0.7, "blend_threshold": 0.97},
    "all": {"p2p": 0.7, "shared_steps": 0.3, "local_blend": 0.6, "blend_threshold": 0.97},
}


def load(folder: Path, dtype: str = "float32") -> Any:
    return load_text_to_image(str(folder), revision=None, variant=None, dtype=dtype, device="cpu")


@pytest.fixture(scope="module", params=["tiny_sd3", "tiny_sd3_without_t5"])
def folder(request: pytest.FixtureRequest) -> Path:
    """A version 3.5 with T5, and a version 3 without."""
    path: Path = request.getfixturevalue(request.param)
    return path


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Seven pairs, so that batches run over the ends of epochs."""
    return write_pairs(tmp_path / "data", [pair(number) for number in range(7)])


def test_texts_are_encoded_as_the_pipeline_encodes_them(folder: Path) -> None:
    base = base_architecture(config := TrainingConfig(pretrained_model_name_or_path=str(folder)))
    pipeline = load(folder)
    encoders = base.text_encoders(pipeline), base.load_text_encoders(config, CPU)
    with torch.inference_mode():
        one, other = (encoder.encode(["", CIRCLE, SQUARE]) for encoder in encoders)
        hidden, none, pooled, no_pooled = pipeline.encode_prompt([CIRCLE, SQUARE], None, None)
    assert one.pooled is not None and other.pooled is not None
    assert torch.equal(one.hidden, other.hidden) and torch.equal(one.pooled, other.pooled)
    torch.testing.assert_close(one.hidden, torch.cat([none[:1], hidden]))
    torch.testing.assert_close(one.pooled, torch.cat([no_pooled[:1], pooled]))


@pytest.mark.parametrize("length", [0, 12])
def test_t5_reads_as_many_tokens_as_it_is_told(folder: Path, length: int) -> None:
    pipeline = load(folder)
    with torch.inference_mode():
        texts = architecture_of(pipeline).encode(pipeline, [CIRCLE], length)
        hidden = pipeline.encode_prompt([CIRCLE], None, None, max_sequence_length=length)[0] if length else None
    assert texts.hidden.shape[1] == pipeline.tokenizer.model_max_length + length
    assert hidden is None or torch.equal(texts.hidden, hidden)


@pytest.mark.parametrize("guidance_scale", [0.0, 5.0])
def test_without_sharing_each_side_is_what_diffusers_own_pipeline_draws(folder: Path, guidance_scale: float) -> None:
    pipeline, own = load(folder), candidate(CIRCLE, SQUARE, guidance_scale, 11)
    with torch.inference_mode():
        latents = sample_latents(pipeline, [own], CONFIG)
    for prompt, side in zip((CIRCLE, SQUARE), latents, strict=True):
        options = {"num_inference_steps": 5, "guidance_scale": guidance_scale, "output_type": "latent"}
        expected = pipeline(prompt, **options, generator=torch.Generator().manual_seed(11)).images
        assert distance(side[None], expected) < TOLERANCE
    assert distance(latents[1], latents[0]) > 100 * TOLERANCE


def with_operator(operator: dict[str, Any]) -> tuple[RenderingConfig, list[Any]]:
    """Three pairs with an operator, and one without any in their midst."""
    shares = {name: value for name, value in operator.items() if name != "blend_threshold"}
    batch = [
        candidate(CIRCLE, SQUARE, 4.0, 1, **shares),
        candidate(SQUARE, BOTH, 3.0, 3),
        candidate(BOTH, CIRCLE, 1.0, 4, **shares),
        candidate(CIRCLE, BOTH, 6.0, 2, **shares),
    ]
    return replace(CONFIG, blend_threshold=operator.get("blend_threshold", 0.3)), batch


@pytest.mark.parametrize("name", OPERATORS)
@pytest.mark.slow
def test_a_batch_on_fused_kernels_equals_pairs_with_explicit_maps(folder: Path, name: str) -> None:
    pipeline = load(folder)
    config, batch = with_operator(OPERATORS[name])
    with torch.inference_mode():
        together = torch.unflatten(sample_latents(pipeline, batch, config), 0, (2, -1))
        without = torch.unflatten(sample_latents(pipeline, with_operator({})[1], config), 0, (2, -1))
        expected = [ExplicitJointPair(pipeline, each, config).sample() for each in batch]
    moved = []
    for number, (original, edited) in enumerate(expected):
        assert distance(together[0, number], original) < TOLERANCE
        assert distance(together[1, number], edited) < TOLERANCE
        moved.append(distance(without[1, number], edited))
    assert moved[1] < TOLERANCE
    assert name == "nothing" or max(moved) > 20 * TOLERANCE


@pytest.mark.slow
def test_bfloat16_differs_from_explicit_maps_by_its_rounding_alone(folder: Path) -> None:
    """One step from the same noise, so that rounding has no time to grow."""
    config, batch = with_operator({"p2p": 0.6})
    config = replace(config, num_inference_steps=1)
    low, high = load(folder, "bfloat16"), load(folder)
    with torch.inference_mode():
        rounded = torch.unflatten(sample_latents(low, batch, config), 0, (2, -1))
        exact = torch.unflatten(sample_latents(high, batch, config), 0, (2, -1))
        expected = [ExplicitJointPair(low, each, config).sample() for each in batch]
    for number, sides in enumerate(expected):
        for side in range(2):
            rounding = distance(sides[side], exact[side, number])
            assert distance(rounded[side, number], exact[side, number]) < max(2 * rounding, 0.02)
            assert 0 < rounding < 0.1


def test_a_pair_depends_neither_on_its_batch_nor_on_what_was_rendered_before(folder: Path) -> None:
    pipeline = load(folder)
    config, batch = with_operator(OPERATORS["all"])
    processors = dict(pipeline.transformer.attn_processors)
    with torch.inference_mode():
        together = torch.unflatten(sample_latents(pipeline, batch, config), 0, (2, -1))
        for number, each in enumerate(batch):
            alone = sample_latents(pipeline, [each], config)
            torch.testing.assert_close(together[:, number], alone, atol=1e-4, rtol=0)
    assert dict(pipeline.transformer.attn_processors) == processors
    (first, *_) = render_pairs(pipeline, batch, config)
    assert first.original.shape == (64, 64, 3)


def test_what_a_base_cannot_share_is_refused_before_it_is_loaded(folder: Path) -> None:
    pipeline = load(folder)
    for config in (
        RenderingConfig(cross_p2p=(0.2, 0.4)),
        RenderingConfig(per_edit_type={"add": EditTypeRendering(cross_p2p=(0.2, 0.2))}),
    ):
        with pytest.raises(ValueError, match=r"^rendering.cross_p2p cannot be used with Stable Diffusion 3 or 3.5"):
            check_renderable(pipeline, config)
    with pytest.raises(ValueError, match=r"rendering.reweight cannot be used"):
        architecture_of(pipeline).check_rendering(RenderingConfig(reweight=(2.0, 2.0)))


def test_a_size_that_patches_do_not_divide_is_refused(folder: Path) -> None:
    with pytest.raises(ValueError, match=r"rendering.height must be a multiple of 8 for this model, got 68"):
        check_renderable(load(folder), RenderingConfig(height=68))


def test_a_caption_must_be_read_whole_by_t5_or_else_by_both_clips(tiny_sd3: Path, tiny_sd3_without_t5: Path) -> None:
    long = candidate(CIRCLE, "red " * 40, 1.0, 0)
    fits = [
        fits_encoders(architecture_of(pipeline).text_encoders(pipeline, length), long)
        for pipeline, length in ((load(tiny_sd3), None), (load(tiny_sd3), 20), (load(tiny_sd3_without_t5), None))
    ]
    assert fits == [True, False, False]


def test_a_widened_transformer_predicts_what_its_base_does_whatever_the_image(folder: Path) -> None:
    base = base_architecture(config := TrainingConfig(pretrained_model_name_or_path=str(folder)))
    plain, wide = base.load_denoiser(config), base.load_widened(config)
    generator = torch.Generator().manual_seed(0)
    latents, image = torch.randn((2, 2, 4, 16, 16), generator=generator)
    texts = base.load_text_encoders(config, CPU).encode([CIRCLE, SQUARE])
    told = torch.tensor([300.0, 800.0])
    before = base.predict(plain, latents, told, texts)
    torch.testing.assert_close(base.predict(wide, latents, told, texts, condition=image), before)
    assert base.in_channels(wide) == 8 and wide.config.out_channels == 4
    assert torch.equal(wide.pos_embed.proj.bias, plain.pos_embed.proj.bias)


class Reference:
    """What a reader of diffusers' training script for Stable Diffusion 3 would write for edits."""

    def __init__(self, config: TrainingConfig, data: Path) -> None:
        folder = Path(config.pretrained_model_name_or_path)
        lacking = {name: None for name in ("text_encoder_3", "tokenizer_3") if not (folder / name).exists()}
        self.pipeline = StableDiffusion3Pipeline.from_pretrained(folder, **lacking)
        self.rows = list(open_rows(str(data), config).read())
        network = self.pipeline.transformer
        wide = nn.Conv2d(8, network.pos_embed.proj.out_channels, 2, stride=2)
        with torch.no_grad():
            wide.weight[:] = torch.cat([network.pos_embed.proj.weight, torch.zeros_like(wide.weight[:, 4:])], 1)
            assert wide.bias is not None
            wide.bias[:] = network.pos_embed.proj.bias
        network.pos_embed.proj = wide
        self.optimizer = torch.optim.AdamW(network.parameters(), lr=config.learning_rate)

    def step(self, trainer: Trainer, step: int) -> float:
        """One step under the trainer's own draws; returns the loss."""
        draws, numbers = trainer.stream.draws(step), trainer.stream.samples(step)
        pairs = [decode_pair(self.rows[number], 64).pixels for number in numbers]
        original, edited = torch.from_numpy(np.stack(pairs, 1)).permute(0, 1, 4, 2, 3) / 127.5 - 1
        vae, scheduler = self.pipeline.vae, self.pipeline.scheduler
        with torch.no_grad():
            posterior = vae.encode(edited).latent_dist
            latents = posterior.mean + posterior.std * draws.posterior
            condition = vae.encode(original).latent_dist.mode()
            latents, condition = ((each - 0.06) * vae.config.scaling_factor for each in (latents, condition))
            texts = [str(self.rows[number].edit_prompt) for number in numbers]
            hidden, _, pooled, _ = self.pipeline.encode_prompt(texts, None, None)
        timesteps = scheduler.timesteps[999 - draws.timesteps]
        sigmas = (timesteps / 1000).view(-1, 1, 1, 1)
        noisy = (1 - sigmas) * latents + sigmas * draws.noise
        inputs = torch.cat([noisy, condition], 1)
        prediction = self.pipeline.transformer(inputs, hidden, pooled, timesteps, return_dict=False)[0]
        loss = (prediction - (draws.noise - latents)).square().mean()
        self.optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(self.pipeline.transformer.parameters(), 1.0)
        self.optimizer.step()
        return float(loss.item())


def tiny(folder: Path, **changes: Any) -> TrainingConfig:
    options = {"lr_warmup_steps": 0, "learning_rate": 1e-3, "max_train_steps": 4, "use_ema": False}
    return tiny_training(folder, **(options | changes))


@pytest.mark.slow
def test_the_losses_are_those_of_a_plain_loop(folder: Path, tmp_path: Path, data: Path) -> None:
    config = tiny(folder, conditioning_dropout_prob=0.0)
    accelerator = Accelerator(cpu=True)
    source = load_cache(tmp_path / "cache", open_rows(str(data), config), config, accelerator)
    trainer, _ = new_trainer(source, config, accelerator)
    reference = Reference(config, data)
    for step in range(4):
        assert trainer.step(step)[0].item() == pytest.approx(reference.step(trainer, step), rel=2e-4), step


def test_a_training_that_is_stopped_ends_in_the_same_weights(tiny_sd3: Path, tmp_path: Path, data: Path) -> None:
    config = tiny(tiny_sd3, max_train_steps=5, checkpointing_steps=2, use_ema=True, weighting_scheme="mode")
    run(config, str(data), tmp_path / "whole", tmp_path / "whole-model", Stop())
    with pytest.raises(Interrupted):
        run(config, str(data), tmp_path / "cut", tmp_path / "cut-model", _StopAfter(3))
    run(config, str(data), tmp_path / "cut", tmp_path / "cut-model", Stop())
    assert same_weights(tmp_path / "whole-model" / WEIGHTS, tmp_path / "cut-model" / WEIGHTS)


def train(folder: Path, data: Path, output: Path, *flags: str) -> Path:
    """Trains an editor for three large steps."""
    words = [f"--pretrained_model_name_or_path={folder}", f"--train_data_dir={data}", f"--output_dir={output}"]
    fixed = ["--original_image_column=original_image", "--resolution=64", "--train_batch_size=2", "--max_train_steps=3"]
    assert main([*words, *fixed, "--lr_warmup_steps=0", "--learning_rate=0.02", *flags]) == 0
    return output


def picture(seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 255, (64, 64, 3), dtype=np.uint8)


@pytest.mark.parametrize("flags", [(), ("--use_lora", "--rank=2"), ("--optim=muon", "--max_sequence_length=7")])
def test_an_exported_editor_edits_alike_here_and_in_its_pipeline(
    folder: Path, data: Path, tmp_path: Path, flags: tuple[str, ...]
) -> None:
    model = train(folder, data, tmp_path / "out", *flags)
    assert load_file(model / WEIGHTS)["pos_embed.proj.weight"][:, 4:].abs().max() > 0
    card = (model / "README.md").read_text()
    assert "DiffusionPipeline.from_pretrained(" in card and "custom_pipeline=" in card
    pipeline = DiffusionPipeline.from_pretrained(model, custom_pipeline=str(model), trust_remote_code=True)
    assert type(pipeline).__module__.startswith("diffusers_modules")
    knobs: dict[str, Any] = {"num_inference_steps": 3, "guidance_scale": 4.0, "image_guidance_scale": 1.6}
    ours = edit_images(load_editor(str(model), "cpu"), [picture(), picture(1)], ["red", "blue"], seeds=[1, 2], **knobs)
    images, chances = [Image.fromarray(picture(seed)) for seed in (0, 1)], [1, 2]
    generators = [torch.Generator().manual_seed(seed) for seed in chances]
    theirs = pipeline(["red", "blue"], image=images, generator=generators, **knobs).images
    for our, their in zip(ours, theirs, strict=True):
        assert np.abs(our.astype(int) - np.asarray(their).astype(int)).max() <= 1
    assert pipeline.config.max_sequence_length == (7 if len(flags) and "max_sequence" in flags[-1] else 256)
    copied = tmp_path / "copy"
    pipeline.save_pretrained(copied)
    assert (copied / "pipeline.py").read_text() == (model / "pipeline.py").read_text()


def test_adapters_load_into_the_pipeline_of_the_base(tiny_sd3: Path, data: Path, tmp_path: Path) -> None:
    model = train(tiny_sd3, data, tmp_path / "out", "--use_lora", "--rank=2")
    base = base_architecture(config := TrainingConfig(pretrained_model_name_or_path=str(tiny_sd3)))
    fresh = base.build_editor(base.load_denoiser(config), config, CPU)
    merged, adapted = load_editor(str(model), "cpu"), load_lora(fresh, model)
    images = [
        edit_images(each, [picture()], ["red"], num_inference_steps=2, seeds=[1])[0] for each in (merged, adapted)
    ]
    assert np.abs(images[0].astype(int) - images[1].astype(int)).max() <= 1
    keys = load_file(model / "pytorch_lora_weights.safetensors")
    assert all(name.startswith("transformer.transformer_blocks.") for name in keys)
    assert {".".join(name.split(".")[-2:]) for name in keys} == {"lora_A.weight", "lora_B.weight"}  # as web UIs read


def test_dropped_conditions_are_zeros_for_the_image_and_the_empty_text(
    tiny_sd3: Path, data: Path, tmp_path: Path
) -> None:
    config = tiny(tiny_sd3, conditioning_dropout_prob=1 / 3)  # drops something of every sample
    accelerator = Accelerator(cpu=True)
    source = load_cache(tmp_path / "cache", open_rows(str(data), config), config, accelerator)
    trainer, _ = new_trainer(source, config, accelerator)
    given: list[tuple[Tensor, Tensor]] = []

    def look(module: nn.Module, arguments: Any, options: Any) -> None:
        given.append((arguments[0][:, 4:], options["encoder_hidden_states"]))

    trainer.network.register_forward_pre_hook(look, with_kwargs=True)
    for step in range(4):
        trainer.step(step)
    none = base_architecture(config).load_text_encoders(config, CPU).encode([""]).hidden[0]
    condition, texts = (torch.cat(parts) for parts in zip(*given, strict=True))
    drawn = torch.cat([trainer.stream.draws(step).dropout for step in range(4)])
    without_text = torch.tensor([bool(torch.allclose(text, none, atol=1e-2)) for text in texts])
    assert torch.equal(without_text, drawn < 2 / 3)
    assert torch.equal(condition.flatten(1).abs().amax(1) == 0, drawn >= 1 / 3)


def test_a_base_whose_t5_is_missing_from_its_folder_is_named(tiny_sd3: Path, tmp_path: Path) -> None:
    broken = tmp_path / "broken"
    shutil.copytree(tiny_sd3, broken)
    shutil.rmtree(broken / "text_encoder_3")
    assert json.loads((broken / "model_index.json").read_text())["text_encoder_3"][0]
    config = TrainingConfig(pretrained_model_name_or_path=str(broken))
    with pytest.raises(ValueError, match="could not load text_encoder_3 of") as caught:
        base_architecture(config).load_text_encoders(config, CPU)
    assert "\n" not in str(caught.value)


def test_a_transformer_keeps_its_output_channels_when_it_is_saved(tiny_sd3: Path, data: Path, tmp_path: Path) -> None:
    model = train(tiny_sd3, data, tmp_path / "out")
    network = SD3Transformer2DModel.from_pretrained(model / "transformer")
    assert (network.config.in_channels, network.out_channels) == (8, 4)


def test_adapters_on_a_base_in_8_bits_are_exported_on_its_whole_weights(
    tiny_sd3: Path, data: Path, tmp_path: Path
) -> None:
    pytest.importorskip("torchao")
    flags = ("--use_lora", "--rank=2", "--learning_rate=0.01", "--checkpointing_steps=2")
    whole, eighth = (
        train(tiny_sd3, data, tmp_path / name, *flags, *more)
        for name, more in (("whole", ()), ("eighth", ("--quantization=torchao_int8",)))
    )
    before = load_file(tiny_sd3 / WEIGHTS)
    one, other = load_file(whole / WEIGHTS), load_file(eighth / WEIGHTS)
    name = "transformer_blocks.0.ff.net.0.proj.weight"  # which no adapter touches
    assert torch.equal(other[name], before[name]) and torch.equal(one[name], before[name])
    name = "transformer_blocks.1.attn.to_q.weight"
    moved, gap = (one[name] - before[name]).norm(), (one[name] - other[name]).norm()
    assert 0 < gap < 0.3 * moved  # 8 bits change what is learnt a little
    assert (
        len(edit_images(load_editor(str(eighth), "cpu"), [picture()], ["red"], num_inference_steps=2, seeds=[1])) == 1
    )


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--quantization=torchao_int8",), "freezes the base, so adapters must be trained. Set training.use_lora"),
        (("--quantization=bnb_nf4", "--use_lora"), "(needs bitsandbytes, which is not installed|needs an NVIDIA GPU)"),
    ],
)
def test_a_quantiser_that_cannot_run_is_refused_before_anything_is_loaded(
    tmp_path: Path, data: Path, capsys: pytest.CaptureFixture[str], flags: tuple[str, ...], message: str
) -> None:
    words = ["--pretrained_model_name_or_path=nowhere/at-all", f"--train_data_dir={data}", f"--output_dir={tmp_path}"]
    assert main([*words, *flags]) == 2
    (line,) = [each for each in capsys.readouterr().out.splitlines() if each.startswith("error")]
    assert re.search(message, line)

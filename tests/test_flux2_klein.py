"""FLUX.2 klein: rendering, training and editing against diffusers' pipeline, explicit maps and a plain loss."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from diffusers import FlowMatchEulerDiscreteScheduler, Flux2KleinPipeline
from diffusers.pipelines.flux2.pipeline_flux2 import compute_empirical_mu
from diffusers.training_utils import compute_loss_weighting_for_sd3
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor

from ip2p.config import RenderingConfig, TrainingConfig
from ip2p.editing import edit_images, load_editor
from ip2p.models.architecture import architecture_of, base_architecture
from ip2p.models.flux2_klein import places_of, places_of_text, tokens_of
from ip2p.models.latents import Folding, LatentSpace, decode_images, encode_posterior
from ip2p.models.noise.flow import FlowNoise
from ip2p.models.pipelines import load_text_to_image
from ip2p.p2p.alignment import map_tokens, split_words
from ip2p.p2p.sampler import check_renderable, fits_encoders, sample_latents
from ip2p.records import Candidate, EditTriplet, RenderSpec
from ip2p.training.__main__ import main
from ip2p.training.data import open_rows
from ip2p.training.decoding import decode_pair
from ip2p.training.filling import load_cache
from ip2p.training.loop import Interrupted, Stop
from ip2p.training.lora import LORA_FILE
from ip2p.training.run import new_trainer
from ip2p.training.trainer import Trainer
from tests.explicit_flux2 import KleinPair
from tests.test_training import pair, tiny_training, write_pairs
from tests.test_training_run import _StopAfter, run, same_weights
from tests.tiny_flow import write_tiny_klein

pytestmark = pytest.mark.usefixtures("fresh_accelerator")
CIRCLE, SQUARE, BOTH = (
    "a small red circle on a white background",
    "a small blue square on a white background",
    "a small red circle and a large green star on a white background",
)
NUM_TEXTS = 40
CONFIG = RenderingConfig(num_inference_steps=5, height=64, width=64, max_sequence_length=NUM_TEXTS)
TOLERANCE = 2e-5
WEIGHTS = "transformer/diffusion_pytorch_model.safetensors"
OPERATORS: dict[str, dict[str, Any]] = {
    "nothing": {},
    "self": {"p2p": 0.6},
    "self under a cap that all exceed": {"p2p": 0.6, "p2p_max_positions": 32},
    "all": {"p2p": 0.5, "local_blend": 0.8, "blend_threshold": 0.99, "shared_steps": 0.3},
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_klein(tmp_path_factory.mktemp("klein") / "base")


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return write_pairs(tmp_path / "data", [pair(number) for number in range(7)])


def load(folder: Path) -> Any:
    return load_text_to_image(str(folder), revision=None, variant=None, dtype="float32", device="cpu")


def candidate(original: str, edited: str, guidance_scale: float, seed: int, **shares: float) -> Candidate:
    triplet = EditTriplet(original_prompt=original, edit_prompt="-", edited_prompt=edited)
    spec = RenderSpec(
        triplet_id=triplet.id, candidate=0, seed=seed, guidance_scale=guidance_scale, **{"p2p": 0.0, **shares}
    )
    return Candidate(triplet=triplet, spec=spec)


def with_operator(operator: dict[str, Any]) -> tuple[RenderingConfig, list[Candidate]]:
    """Three pairs with an operator, and one without any in their midst."""
    settings = {name: value for name, value in operator.items() if not hasattr(RenderSpec, name)}
    shares = {name: value for name, value in operator.items() if hasattr(RenderSpec, name)}
    batch = [
        candidate(CIRCLE, SQUARE, 4.0, 1, **shares),
        candidate(CIRCLE, BOTH, 1.0, 2, **shares),
        candidate(SQUARE, BOTH, 6.0, 3),
        candidate(BOTH, CIRCLE, 3.0, 4, **shares),
    ]
    return replace(CONFIG, **settings), batch


def distance(one: Tensor, other: Tensor) -> float:
    return float((one - other).abs().max() / other.abs().max())


def picture(width: int = 64, height: int = 64, seed: int = 0) -> Image.Image:
    pixels = np.random.default_rng(seed).integers(0, 255, (height // 8, width // 8, 3), dtype=np.uint8)
    return Image.fromarray(pixels).resize((width, height), Image.Resampling.BICUBIC)


def test_the_class_in_the_index_chooses_klein(folder: Path) -> None:
    config = TrainingConfig(pretrained_model_name_or_path=str(folder), resolution=64)
    base = base_architecture(config)
    assert base.title == architecture_of(load(folder)).title == "FLUX.2 klein"
    assert not base.takes_guidance(config) and not base.has_one_half(load(folder))
    assert base.channels_of_editor(16) == base.in_channels(load(folder).transformer) == 16


def test_latents_are_folded_normalised_and_placed_as_the_pipeline_does(folder: Path) -> None:
    pipeline = load(folder)
    pixels = torch.rand(2, 3, 64, 48, generator=torch.Generator().manual_seed(0)) * 2 - 1
    with torch.no_grad():
        expected = pipeline._encode_vae_image(pixels, generator=None)
        mean, deviation = encode_posterior(pipeline.vae, pixels)
        posterior = pipeline.vae.encode(pixels).latent_dist
    torch.testing.assert_close(mean, expected, atol=1e-5, rtol=1e-5)
    folding = Folding.of(pipeline.vae)
    assert folding is not None
    draws = torch.randn(mean.shape, generator=torch.Generator().manual_seed(1))
    unfolded = pipeline._unpatchify_latents(draws)
    torch.testing.assert_close(
        folding.decoded_form(mean + deviation * draws), posterior.mean + posterior.std * unfolded, atol=1e-5, rtol=1e-5
    )
    assert LatentSpace.of(pipeline.vae.config) == LatentSpace(1.0)
    assert torch.equal(tokens_of(mean), pipeline._pack_latents(mean))
    assert torch.equal(places_of(8, 6), pipeline._prepare_latent_ids(mean)[0])
    assert torch.equal(places_of(8, 6, time=10), pipeline._prepare_image_ids([mean[:1]])[0])
    assert torch.equal(places_of_text(7), pipeline._prepare_text_ids(torch.zeros(1, 7, 2))[0])


@pytest.mark.parametrize("length", [None, NUM_TEXTS])
def test_texts_are_those_of_the_pipeline(folder: Path, length: int | None) -> None:
    pipeline = load(folder)
    config = TrainingConfig(pretrained_model_name_or_path=str(folder), max_sequence_length=length)
    base, texts = architecture_of(pipeline), ["", CIRCLE, BOTH]
    with torch.no_grad():
        expected, _ = pipeline.encode_prompt(texts, max_sequence_length=length or 512)
    assert distance(expected[1], expected[2]) > 0.1
    for encoders in (base.text_encoders(pipeline, length), base.load_text_encoders(config, torch.device("cpu"))):
        found = encoders.encode(texts)
        assert torch.equal(found.hidden, expected) and found.pooled is None


def test_words_are_found_among_the_tokens_of_the_chat(folder: Path) -> None:
    pipeline = load(folder)
    encoders, tokenizer = architecture_of(pipeline).text_encoders(pipeline, NUM_TEXTS), pipeline.tokenizer
    message = [{"role": "user", "content": BOTH}]
    options = {"tokenize": False, "add_generation_prompt": True, "enable_thinking": False}
    ids = tokenizer(tokenizer.apply_chat_template(message, **options)).input_ids
    words = split_words(tokenizer, BOTH)
    flat = [token for word in words for token in word]
    assert len(words) == len(BOTH.split())
    assert ids[encoders.offset : encoders.offset + len(flat)] == flat
    assert encoders.lengths == [NUM_TEXTS - len(ids) + len(flat)]
    length = encoders.lengths[0]
    assert fits_encoders(encoders, candidate(CIRCLE, " ".join(["red"] * length), 3.0, 1))
    assert not fits_encoders(encoders, candidate(CIRCLE, " ".join(["red"] * (length + 1)), 3.0, 1))
    full = map_tokens(tokenizer, CIRCLE, " ".join(["red"] * length), "refine", length)
    assert full.new.sum() == length - 1 and full.new.shape == (length,)


@pytest.mark.parametrize("guidance_scale", [1.0, 4.0])
def test_without_sharing_each_side_equals_diffusers_own_pipeline(folder: Path, guidance_scale: float) -> None:
    pipeline = load(folder)
    with torch.inference_mode():
        found = sample_latents(pipeline, [candidate(CIRCLE, SQUARE, guidance_scale, 11)], CONFIG)
    folding = Folding.of(pipeline.vae)
    assert folding is not None and found.shape == (2, 16, 8, 8)
    options: dict[str, Any] = {"height": 64, "width": 64, "num_inference_steps": 5, "max_sequence_length": NUM_TEXTS}
    for prompt, latents in zip((CIRCLE, SQUARE), found, strict=True):
        for kind in ("latent", "np"):
            seed = torch.Generator().manual_seed(11)
            expected = pipeline(
                prompt=prompt, generator=seed, guidance_scale=guidance_scale, output_type=kind, **options
            ).images
            if kind == "latent":
                assert distance(folding.decoded_form(latents[None]), expected) < TOLERANCE
            else:
                pixels = decode_images(pipeline.vae, latents[None])
                assert np.abs(pixels / 255 - expected).max() < 0.51 / 255 + 1e-4
    assert distance(found[0], found[1]) > 0.01


@pytest.mark.parametrize("name", OPERATORS)
def test_a_batch_on_fused_kernels_equals_pairs_with_explicit_maps(folder: Path, name: str) -> None:
    pipeline = load(folder)
    watched = list(architecture_of(pipeline).attention_layers(pipeline.transformer).watched)
    config, batch = with_operator(OPERATORS[name])
    plain = with_operator({})[1]
    with torch.inference_mode():
        found = torch.unflatten(sample_latents(pipeline, batch, config), 0, (2, -1))
        without = torch.unflatten(sample_latents(pipeline, plain, config), 0, (2, -1))
        expected = [KleinPair(pipeline, each, config, watched).sample() for each in batch]
    moved = []
    for index, (original, edited) in enumerate(expected):
        assert distance(found[0, index], original) < TOLERANCE
        assert distance(found[1, index], edited) < TOLERANCE
        moved.append(distance(without[1, index], edited))
    assert moved[2] < TOLERANCE
    assert name in ("nothing", "self under a cap that all exceed") or min(moved[0], moved[3]) > 1e-3
    if "local_blend" in OPERATORS[name]:
        same = (found[0] == found[1]).all(1).float().mean((1, 2))
        assert 0 < same[0] < 1 and 0 < same[3] < 1


def test_half_precision_differs_from_explicit_maps_by_its_rounding_alone(folder: Path) -> None:
    """One step from the same noise, so that rounding has no time to grow."""
    config, batch = with_operator({"p2p": 1.0})
    config = replace(config, num_inference_steps=1)
    low = load_text_to_image(str(folder), revision=None, variant=None, dtype="bfloat16", device="cpu")
    with torch.inference_mode():
        found = torch.unflatten(sample_latents(low, batch, config), 0, (2, -1))
        exact = torch.unflatten(sample_latents(load(folder), batch, config), 0, (2, -1))
        expected = [KleinPair(low, each, config, ()).sample() for each in batch]
    for index, pair_of_latents in enumerate(expected):
        for side in range(2):
            rounding = distance(pair_of_latents[side], exact[side, index])
            assert distance(found[side, index], exact[side, index]) < max(2 * rounding, 0.02)
            assert 0 < rounding < 0.2


@pytest.mark.parametrize("kind", ["transformer_blocks", "single_transformer_blocks"])
def test_both_kinds_of_blocks_share(folder: Path, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    pipeline, (config, batch) = load(folder), with_operator({"p2p": 1.0})
    base, plain = architecture_of(pipeline), with_operator({})[1]
    layers = base.attention_layers(pipeline.transformer)
    some = replace(layers, joint=[block.attn for block in getattr(pipeline.transformer, kind)], watched=())
    with torch.inference_mode():
        without = sample_latents(pipeline, plain, config)
        monkeypatch.setattr(type(base), "attention_layers", lambda *_: some)
        found = sample_latents(pipeline, batch, config)
    assert distance(found[4], without[4]) > 1e-3 and distance(found[0], without[0]) < TOLERANCE


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"height": 68}, "rendering.height must be a multiple of 8 for this model, got 68"),
        ({"cross_p2p": (0.5, 0.5)}, "rendering.cross_p2p cannot be used with FLUX.2 klein"),
    ],
)
def test_what_cannot_be_rendered_is_refused_in_one_line(folder: Path, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        check_renderable(load(folder), replace(CONFIG, **settings))
    assert "\n" not in str(caught.value)


def test_the_shift_grows_with_places_and_falls_with_steps_as_in_the_pipeline(folder: Path) -> None:
    pipeline = load(folder)
    base = architecture_of(pipeline)
    for size, num_steps in ((64, 5), (64, 50), (128, 20)):
        scheduler = base.noise.new_scheduler(pipeline.scheduler, None)
        ours = base.sampler(scheduler, num_steps, (16, size, size), torch.device("cpu"), [])
        pixels = 8 * size
        theirs = FlowMatchEulerDiscreteScheduler.from_config(pipeline.scheduler.config)
        sigmas = np.linspace(1.0, 1 / num_steps, num_steps)
        theirs.set_timesteps(sigmas=sigmas, mu=compute_empirical_mu(pixels**2 // 64, num_steps))
        assert torch.equal(ours.timesteps, theirs.timesteps)


def test_a_distilled_klein_renders_and_edits_in_one_half(tmp_path: Path) -> None:
    place = write_tiny_klein(tmp_path / "distilled", is_distilled=True)
    pipeline = load(place)
    assert architecture_of(pipeline).has_one_half(pipeline)
    with torch.inference_mode():
        low, high = (sample_latents(pipeline, [candidate(CIRCLE, SQUARE, scale, 3)], CONFIG) for scale in (1.0, 5.0))
    assert torch.equal(low, high)


@pytest.mark.parametrize(("size", "guidance_scale"), [((64, 64), 4.0), ((96, 64), 1.0)])
def test_an_edit_is_that_of_the_pipeline(folder: Path, size: tuple[int, int], guidance_scale: float) -> None:
    editor = load_editor(str(folder), "cpu")
    knobs: dict[str, Any] = {"num_inference_steps": 4, "guidance_scale": guidance_scale}
    # the pipeline guides from no text with the picture: an image scale of 1
    (ours,) = edit_images(editor, [picture(*size)], [SQUARE], seeds=[5], image_guidance_scale=1.0, **knobs)
    pipeline = Flux2KleinPipeline.from_pretrained(folder)
    theirs = pipeline(
        **architecture_of(editor).call_options(picture(*size), SQUARE),
        generator=torch.Generator().manual_seed(5),
        output_type="np",
        **knobs,
    ).images[0]
    assert ours.shape == theirs.shape == (size[1], size[0], 3)
    assert np.abs(ours / 255 - theirs).max() < 0.51 / 255 + 1e-3
    (other,) = edit_images(editor, [picture(*size, seed=1)], [SQUARE], seeds=[5], image_guidance_scale=1.0, **knobs)
    assert np.abs(other.astype(int) - ours).max() > 5


def test_without_image_guidance_the_picture_is_left_out(folder: Path) -> None:
    editor = load_editor(str(folder), "cpu")
    knobs: dict[str, Any] = {"num_inference_steps": 2, "guidance_scale": 0.0, "image_guidance_scale": 0.0}
    pictures = [picture(), picture(seed=1)]
    one, other = edit_images(editor, pictures, [SQUARE] * 2, seeds=[3, 3], **knobs)
    assert np.array_equal(one, other)


def _pixels(image: Image.Image) -> Tensor:
    return torch.from_numpy(np.asarray(image).copy()).permute(2, 0, 1) / 127.5 - 1


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
    """The loss computed plainly, with the pipeline's own methods."""

    def __init__(self, config: TrainingConfig, data: Path) -> None:
        self.config, self.rows = config, list(open_rows(str(data), config).read())
        self.pipeline: Any = Flux2KleinPipeline.from_pretrained(config.pretrained_model_name_or_path)
        self.scheduler = FlowMatchEulerDiscreteScheduler.from_config(self.pipeline.scheduler.config)

    @torch.no_grad()
    def encoded(self, trainer: Trainer) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Returns latents, condition, texts and their ids under the trainer's draws."""
        draws, numbers, pipeline = trainer.stream.draws(0), trainer.stream.samples(0), self.pipeline
        pixels = np.stack([decode_pair(self.rows[number], 64).pixels for number in numbers])
        original, edited = (torch.from_numpy(pixels[:, side]).permute(0, 3, 1, 2) / 127.5 - 1 for side in (0, 1))
        vae, p = pipeline.vae, self.config.conditioning_dropout_prob or 0.0
        posterior = vae.encode(edited).latent_dist
        raw = posterior.mean + posterior.std * pipeline._unpatchify_latents(draws.posterior)
        deviation = torch.sqrt(vae.bn.running_var + vae.config.batch_norm_eps).view(1, -1, 1, 1)
        latents = (pipeline._patchify_latents(raw) - vae.bn.running_mean.view(1, -1, 1, 1)) / deviation
        condition = pipeline._encode_vae_image(original, generator=None)
        texts = [str(self.rows[number].edit_prompt) for number in numbers]
        for index, u in enumerate(draws.dropout.tolist()):
            texts[index] = "" if u < 2 * p else texts[index]
            if p <= u < 3 * p:
                condition[index] = 0
        return latents, condition, *pipeline.encode_prompt(texts, max_sequence_length=NUM_TEXTS)

    def loss(self, trainer: Trainer) -> Tensor:
        latents, condition, hidden, text_ids = self.encoded(trainer)
        draws, pipeline = trainer.stream.draws(0), self.pipeline
        index = len(self.scheduler.timesteps) - 1 - draws.timesteps
        timesteps, sigmas = self.scheduler.timesteps[index], self.scheduler.sigmas[index].view(-1, 1, 1, 1)
        noisy = (1 - sigmas) * latents + sigmas * draws.noise
        ids = pipeline._prepare_latent_ids(noisy)
        others = pipeline._prepare_image_ids([condition[:1]]).expand(len(ids), -1, -1)
        predicted = pipeline.transformer(
            hidden_states=torch.cat([pipeline._pack_latents(each) for each in (noisy, condition)], 1),
            timestep=timesteps / 1000,
            encoder_hidden_states=hidden,
            txt_ids=text_ids,
            img_ids=torch.cat([ids, others], 1),
        ).sample[:, : ids.shape[1]]
        predicted = pipeline._unpack_latents_with_ids(predicted, ids)
        weights = compute_loss_weighting_for_sd3(self.config.weighting_scheme, sigmas)
        loss: Tensor = (weights * (predicted - (draws.noise - latents)) ** 2).mean()
        return loss


@pytest.mark.parametrize(
    "changes",
    [
        {"conditioning_dropout_prob": 0.0, "weighting_scheme": "sigma_sqrt"},
        {"conditioning_dropout_prob": 1 / 3, "train_batch_size": 8},
    ],
)
def test_the_loss_and_its_gradient_are_those_of_a_plain_computation(
    tmp_path: Path, data: Path, folder: Path, changes: dict[str, Any]
) -> None:
    config = tiny(folder, **changes)
    trainer, reference = trainer_of(config, data, tmp_path / "cache"), Reference(config, data)
    assert isinstance(trainer.noise, FlowNoise) and trainer.stream.latent_shape == (16, 8, 8)
    found, expected = trainer.loss(0), reference.loss(trainer)
    assert found.item() == pytest.approx(expected.item(), rel=1e-5)
    found.backward(), expected.backward()  # type: ignore[no-untyped-call]
    pairs = zip(trainer.trained.denoiser.parameters(), reference.pipeline.transformer.parameters(), strict=True)
    for one, other in pairs:
        torch.testing.assert_close(one.grad, other.grad, atol=1e-5 * float(other.grad.abs().max()) + 1e-7, rtol=1e-3)


def predicted(transformer: Any) -> Tensor:
    """What a transformer says."""
    chance = torch.Generator().manual_seed(0)
    with torch.no_grad():
        found: Tensor = transformer(
            hidden_states=torch.randn(1, 9, 16, generator=chance),
            timestep=torch.tensor([0.4]),
            encoder_hidden_states=torch.randn(1, 5, 48, generator=chance),
            txt_ids=places_of_text(5),
            img_ids=places_of(3, 3),
        ).sample
    return found


def test_a_lora_training_exports_what_diffusers_loads(tmp_path: Path, data: Path, folder: Path) -> None:
    output = tmp_path / "out"
    flags = ["--use_lora", "--rank=4", "--lora_alpha=8", "--learning_rate=1e-2"]
    assert train(folder, data, output, *flags) == 0
    assert json.loads((output / "model_index.json").read_text())["_class_name"] == "Flux2KleinPipeline"
    assert "Flux2KleinPipeline.from_pretrained" in (output / "README.md").read_text()
    merged, fresh = Flux2KleinPipeline.from_pretrained(output), Flux2KleinPipeline.from_pretrained(folder)
    plain = predicted(fresh.transformer)
    fresh.load_lora_weights(str(output))
    torch.testing.assert_close(predicted(fresh.transformer), predicted(merged.transformer), atol=1e-5, rtol=1e-4)
    assert (plain - predicted(merged.transformer)).abs().max() > 1e-3
    adapter, before, after = (load_file(path) for path in (output / LORA_FILE, folder / WEIGHTS, output / WEIGHTS))
    adapted = {name.removeprefix("transformer.").removesuffix(".lora_A.weight") for name in adapter if "lora_A" in name}
    assert {name.removesuffix(".weight") for name in before if not torch.equal(before[name], after[name])} == adapted
    assert "single_transformer_blocks.1.attn.to_qkv_mlp_proj" in adapted
    options: dict[str, Any] = {"num_inference_steps": 3, "guidance_scale": 3.0}
    (ours,) = edit_images(
        load_editor(str(output), "cpu"), [picture()], [SQUARE], seeds=[2], image_guidance_scale=1.0, **options
    )
    theirs = merged(
        prompt=SQUARE,
        image=picture(),
        generator=torch.Generator().manual_seed(2),
        max_sequence_length=NUM_TEXTS,  # as in training, and as the editor knows
        output_type="np",
        **options,
    ).images[0]
    assert np.abs(ours / 255 - theirs).max() < 0.51 / 255 + 1e-3


def test_adapters_on_a_base_in_8_bits_are_exported_on_its_whole_weights(
    tmp_path: Path, data: Path, folder: Path
) -> None:
    pytest.importorskip("torchao")
    config = tiny(folder, quantization="torchao_int8", use_lora=True)
    transformer: Any = base_architecture(config).load_denoiser(config)
    assert type(transformer.single_transformer_blocks[0].attn.to_qkv_mlp_proj.weight.data) is not Tensor
    assert type(transformer.x_embedder.weight.data) is type(transformer.proj_out.weight.data) is Tensor
    output = tmp_path / "out"
    flags = ["--use_lora", "--rank=4", "--learning_rate=1e-2", "--quantization=torchao_int8"]
    assert train(folder, data, output, *flags) == 0
    before, after = load_file(folder / WEIGHTS), load_file(output / WEIGHTS)
    name = "single_transformer_blocks.0.attn.to_out.weight"  # which no adapter touches
    assert torch.equal(after[name], before[name])
    fresh, merged = (Flux2KleinPipeline.from_pretrained(place) for place in (folder, output))
    fresh.load_lora_weights(str(output))
    torch.testing.assert_close(predicted(fresh.transformer), predicted(merged.transformer), atol=1e-5, rtol=1e-4)


def test_all_weights_are_trained_and_validated(tmp_path: Path, data: Path, folder: Path) -> None:
    output, shown = tmp_path / "out", tmp_path / "picture.png"
    picture(96, 64).save(shown)
    flags = ["--learning_rate=1e-2", "--use_ema", f"--val_image_url={shown}", "--validation_prompt=make it red"]
    assert train(folder, data, output, *flags, "--num_validation_images=1", "--no-cache") == 0
    (image,) = (Image.open(path) for path in (output / "validation_images").glob("*.png"))
    assert image.size == (96, 64)
    before, after = load_file(folder / WEIGHTS), load_file(output / WEIGHTS)
    assert all(not torch.equal(before[name], after[name]) for name in before if name.endswith("to_q.weight"))
    assert same_weights(
        folder / "vae/diffusion_pytorch_model.safetensors", output / "vae/diffusion_pytorch_model.safetensors"
    )


def test_a_training_that_is_resumed_ends_in_the_same_bits(tmp_path: Path, data: Path, folder: Path) -> None:
    changes = {"use_lora": True, "lora_dropout": 0.3, "lora_alpha": 8.0}
    config = tiny(folder, checkpointing_steps=2, conditioning_dropout_prob=0.1, **changes)
    run(config, str(data), tmp_path / "whole", tmp_path / "whole-model", Stop())
    with pytest.raises(Interrupted):
        run(config, str(data), tmp_path / "cut", tmp_path / "cut-model", _StopAfter(3))
    run(config, str(data), tmp_path / "cut", tmp_path / "cut-model", Stop())
    path = "checkpoint-4/unet/trained.safetensors"
    assert same_weights(tmp_path / "whole" / path, tmp_path / "cut" / path)
    assert same_weights(tmp_path / "whole-model" / WEIGHTS, tmp_path / "cut-model" / WEIGHTS)
    assert not same_weights(tmp_path / "whole-model" / WEIGHTS, folder / WEIGHTS)


@pytest.mark.parametrize(
    ("flag", "message"),
    [
        ("--resolution=68", "resolution must be a multiple of 8 for FLUX.2 klein, whose tokens are as wide, got 68"),
        ("--max_sequence_length=8", "for FLUX.2 klein, whose chat takes as many tokens by itself, got 8. Raise"),
        ("--learning_rate_conv_in=0.01", "learning_rate_conv_in is the rate of a widened layer, which FLUX.2 klein"),
        ("--guidance_scale=3.5", "guidance_scale is told to a base that takes the scale as an input"),
    ],
)
def test_a_setting_that_does_not_fit_is_refused_in_one_line(
    tmp_path: Path, data: Path, folder: Path, capsys: pytest.CaptureFixture[str], flag: str, message: str
) -> None:
    assert train(folder, data, tmp_path / "out", flag) == 2
    told = capsys.readouterr().out.splitlines()[-1]
    assert told.startswith("error: ") and message in told
    assert not (tmp_path / "out/cache").exists()  # before the pairs are encoded

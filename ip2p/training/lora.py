"""Low-rank adapters (Hu et al., 2021) of an editor's attention, trained together with its whole widened layer.

That layer is what takes the image condition, so an adapter without it edits nothing. It lies beside the adapter's file:
`load_lora` puts both into a pipeline whose base is a text-to-image model. A base that is not widened has the adapter
alone, which its pipeline loads by itself.
"""

from __future__ import annotations

from pathlib import Path

import torch
from diffusers import DiffusionPipeline, ModelMixin
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from ip2p.config import TrainingConfig
from ip2p.models.architecture import Architecture, architecture_of

LORA_FILE = "pytorch_lora_weights.safetensors"


def lora_files(base: Architecture) -> tuple[str, ...]:
    """Names the adapter's file and, if the base has a widened layer, that layer's."""
    return (LORA_FILE,) if base.widened is None else (LORA_FILE, f"{base.widened}.safetensors")


def add_lora(denoiser: ModelMixin, base: Architecture, config: TrainingConfig) -> ModelMixin:
    """Freezes all but the widened layer and new adapters; in place. ValueError for names that fit no layer."""
    from peft import LoraConfig

    denoiser.requires_grad_(False)
    adapter = LoraConfig(
        r=config.rank,
        lora_alpha=config.rank if config.lora_alpha is None else config.lora_alpha,  # type: ignore[arg-type]
        lora_dropout=config.lora_dropout,
        init_lora_weights="gaussian",
        target_modules=_adapted_layers(denoiser, base, config.lora_layers),
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        denoiser.add_adapter(adapter)
    if base.widened is not None:
        denoiser.get_submodule(base.widened).requires_grad_(True)
    return denoiser


def _adapted_layers(denoiser: nn.Module, base: Architecture, given: str | None) -> list[str]:
    """Returns the ends of names that are given, or the base's. ValueError for one that fits no layer for an adapter."""
    if given is None:
        return list(base.adapted)
    ends = [end.strip() for end in given.split(",") if end.strip()]
    layers = [name for name, layer in denoiser.named_modules() if isinstance(layer, nn.Linear | nn.Conv2d)]
    way_out = f"Give ends of names, such as {', '.join(base.adapted[:3])}."
    for end in ends:
        matches = [name for name in layers if name == end or name.endswith(f".{end}")]
        if not matches:
            raise ValueError(
                f"training.lora_layers must name layers of the base, got {end}, which fits none. {way_out}"
            )
        if base.widened in matches:
            raise ValueError(f"training.lora_layers got {end}, which fits {base.widened}, trained whole. {way_out}")
    if not ends:
        raise ValueError(f"training.lora_layers must name layers of the base, got {given!r}. {way_out}")
    return ends


def trained_weights(network: nn.Module, like: nn.Module) -> dict[str, Tensor]:
    """Returns the parameters of `network` that are trained in `like`, by name."""
    names = {name for name, parameter in like.named_parameters() if parameter.requires_grad}
    return {name: value.detach() for name, value in network.named_parameters() if name in names}


def write_lora(denoiser: ModelMixin, base: Architecture, folder: Path) -> None:
    """Writes the adapter as diffusers' and peft's users know it, and the widened layer beside it.

    Adapters are scaled by alpha over rank. That goes into the weights, so that readers that know no alpha read it too.
    """
    from peft.utils import get_peft_model_state_dict

    folder.mkdir(parents=True, exist_ok=True)
    config = denoiser.peft_config["default"]
    adapter = {
        name: value * (config.lora_alpha / config.r) if ".lora_B." in name else value
        for name, value in get_peft_model_state_dict(denoiser).items()
    }
    named = base.name_adapter(adapter)
    _save({f"{base.part}.{name}": value for name, value in named.items()}, folder / LORA_FILE)
    for name in lora_files(base)[1:]:
        _save(denoiser.get_submodule(base.widened).state_dict(), folder / name)


def _save(weights: dict[str, Tensor], path: Path) -> None:
    save_file({name: value.contiguous().cpu() for name, value in weights.items()}, path)


def load_lora(pipeline: DiffusionPipeline, folder: Path | str) -> DiffusionPipeline:
    """Puts an adapter and its widened layer, if it has one, into an editor's pipeline of the base; returns it.

    ValueError if the folder does not hold them.
    """
    place = Path(folder).expanduser()
    if not (place / LORA_FILE).exists():
        raise ValueError(f"{folder} holds no {LORA_FILE}. Give a folder of a LoRA training.")
    base = architecture_of(pipeline)
    for name in lora_files(base)[1:]:
        if not (place / name).exists():
            raise ValueError(f"{folder} holds no {name}. Give a folder of a LoRA training of this base.")
        channels = base.channels_of_editor(pipeline.vae.config.latent_channels)
        denoiser = base.widen(base.denoiser(pipeline), channels)
        denoiser.get_submodule(base.widened).load_state_dict(load_file(place / name))
    pipeline.load_lora_weights(str(place), weight_name=LORA_FILE)
    return pipeline


def merge_adapters(denoiser: ModelMixin) -> ModelMixin:
    """Merges the adapters into the weights, in place."""
    denoiser.fuse_lora()
    denoiser.unload_lora()
    return denoiser

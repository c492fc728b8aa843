"""Low-rank adapters (Hu et al., 2021) of an editor's attention, trained together with its whole widened layer.

That layer is what takes the image condition, so an adapter without it edits nothing. It lies beside the adapter's file:
`load_lora` puts both into a pipeline whose base is a text-to-image model.
"""

from __future__ import annotations

import copy
from pathlib import Path

import torch
from diffusers import DiffusionPipeline, ModelMixin
from diffusers.utils import convert_state_dict_to_diffusers
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from ip2p.models.architecture import Architecture, architecture_of

LORA_FILE = "pytorch_lora_weights.safetensors"


def widened_file(base: Architecture) -> str:
    """Names the file of the widened layer."""
    return f"{base.widened}.safetensors"


def add_lora(denoiser: ModelMixin, base: Architecture, rank: int, seed: int) -> ModelMixin:
    """Freezes all but the widened layer and new adapters; in place."""
    from peft import LoraConfig

    denoiser.requires_grad_(False)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        layers = list(base.adapted)
        denoiser.add_adapter(LoraConfig(r=rank, lora_alpha=rank, init_lora_weights="gaussian", target_modules=layers))
    denoiser.get_submodule(base.widened).requires_grad_(True)
    return denoiser


def trained_weights(network: nn.Module, like: nn.Module) -> dict[str, Tensor]:
    """Returns the parameters of `network` that are trained in `like`, by name."""
    names = {name for name, parameter in like.named_parameters() if parameter.requires_grad}
    return {name: value.detach() for name, value in network.named_parameters() if name in names}


def write_lora(denoiser: ModelMixin, base: Architecture, folder: Path) -> None:
    """Writes the adapter as diffusers' and peft's users know it, and the widened layer beside it."""
    from peft.utils import get_peft_model_state_dict

    folder.mkdir(parents=True, exist_ok=True)
    adapter = get_peft_model_state_dict(denoiser)
    if base.part == "unet":  # whose readers know older names
        adapter = convert_state_dict_to_diffusers(adapter)
    _save({f"{base.part}.{name}": value for name, value in adapter.items()}, folder / LORA_FILE)
    _save(denoiser.get_submodule(base.widened).state_dict(), folder / widened_file(base))


def _save(weights: dict[str, Tensor], path: Path) -> None:
    save_file({name: value.contiguous().cpu() for name, value in weights.items()}, path)


def load_lora(pipeline: DiffusionPipeline, folder: Path | str) -> DiffusionPipeline:
    """Puts an adapter and its widened layer into an InstructPix2Pix pipeline of the base; returns the pipeline.

    ValueError if the folder does not hold both.
    """
    place = Path(folder).expanduser()
    if not (place / LORA_FILE).exists():
        raise ValueError(f"{folder} holds no {LORA_FILE}. Give a folder of a LoRA training.")
    base = architecture_of(pipeline)
    if not (place / widened_file(base)).exists():
        raise ValueError(f"{folder} holds no {widened_file(base)}. Give a folder of a LoRA training of this base.")
    weights = load_file(place / widened_file(base))
    denoiser = base.widen(base.denoiser(pipeline), weights["weight"].shape[1])
    denoiser.get_submodule(base.widened).load_state_dict(weights)
    pipeline.load_lora_weights(str(place), weight_name=LORA_FILE)
    return pipeline


def without_adapters(denoiser: ModelMixin, *, is_fresh: bool = False) -> ModelMixin:
    """Returns a copy whose weights have the adapters merged; a fresh denoiser is merged in place."""
    plain = denoiser if is_fresh else copy.deepcopy(denoiser)
    plain.fuse_lora()
    plain.unload_lora()
    return plain

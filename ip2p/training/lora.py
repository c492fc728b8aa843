"""Low-rank adapters (Hu et al., 2021) of an editor's attention, trained together with its whole first convolution.

The first convolution is what takes the image condition, so an adapter without it edits nothing. It lies beside the
adapter's file: `load_lora` puts both into a pipeline whose base is a text-to-image model.
"""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import torch
from diffusers import UNet2DConditionModel
from diffusers.utils import convert_state_dict_to_diffusers
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from ip2p.models.components import widen_conv_in

LAYERS = ("to_k", "to_q", "to_v", "to_out.0")
LORA_FILE = "pytorch_lora_weights.safetensors"
CONV_IN_FILE = "conv_in.safetensors"


def add_lora(unet: UNet2DConditionModel, rank: int, seed: int) -> UNet2DConditionModel:
    """Freezes all but the first convolution and new adapters; in place."""
    from peft import LoraConfig

    unet.requires_grad_(False)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        options: dict[str, Any] = {"r": rank, "lora_alpha": rank, "init_lora_weights": "gaussian"}
        unet.add_adapter(LoraConfig(target_modules=list(LAYERS), **options))
    unet.conv_in.requires_grad_(True)
    return unet


def trained_weights(network: nn.Module, like: nn.Module) -> dict[str, Tensor]:
    """The parameters of `network` that are trained in `like`, by name."""
    names = {name for name, parameter in like.named_parameters() if parameter.requires_grad}
    return {name: value.detach() for name, value in network.named_parameters() if name in names}


def write_lora(unet: UNet2DConditionModel, folder: Path) -> None:
    """Writes the adapter as diffusers' and peft's users know it, and the first convolution beside it."""
    from peft.utils import get_peft_model_state_dict

    folder.mkdir(parents=True, exist_ok=True)
    adapter = convert_state_dict_to_diffusers(get_peft_model_state_dict(unet))
    save_file({f"unet.{name}": value.contiguous().cpu() for name, value in adapter.items()}, folder / LORA_FILE)
    convolution = {name: value.contiguous().cpu() for name, value in unet.conv_in.state_dict().items()}
    save_file(convolution, folder / CONV_IN_FILE)


def load_lora(pipeline: Any, folder: Path | str) -> Any:
    """Puts an adapter and its first convolution into an InstructPix2Pix pipeline of the base; returns the pipeline.

    ValueError where the folder holds none.
    """
    place = Path(folder).expanduser()
    if not (place / LORA_FILE).exists() or not (place / CONV_IN_FILE).exists():
        raise ValueError(f"{folder} holds no {LORA_FILE} with {CONV_IN_FILE}. Give a folder of a LoRA training.")
    weights = load_file(place / CONV_IN_FILE)
    widen_conv_in(pipeline.unet, weights["weight"].shape[1])
    pipeline.unet.conv_in.load_state_dict(weights)
    pipeline.load_lora_weights(str(place), weight_name=LORA_FILE)
    return pipeline


def without_adapters(unet: UNet2DConditionModel) -> UNet2DConditionModel:
    """A copy whose weights have taken the adapters in."""
    plain = copy.deepcopy(unet)
    plain.fuse_lora()
    plain.unload_lora()
    return plain

"""Weights that are split over the processes (FSDP, version 2): which settings they allow, and how they become whole.

accelerate splits the UNet with torch's `fully_shard`: each process keeps its part of every parameter, and of the
optimizer's states. The average keeps the same parts as plain tensors, so that a step gathers nothing for it. Whole
tensors are met one at a time, where something is written or read: in a checkpoint of one layout for all launches, in
the export and at a validation.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedType
from diffusers import UNet2DConditionModel
from torch import Tensor, nn
from torch.distributed.fsdp import CPUOffloadPolicy
from torch.distributed.tensor import DTensor, distribute_tensor

from ip2p.config import TrainingConfig

WHOLE_WEIGHTS = (DistributedType.NO, DistributedType.MULTI_CPU, DistributedType.MULTI_GPU)


def is_sharded(accelerator: Accelerator) -> bool:
    """Whether the launch splits the weights."""
    return bool(accelerator.distributed_type == DistributedType.FSDP)


def check_launch(config: TrainingConfig, accelerator: Accelerator) -> None:
    """ValueError for a strategy that the trainer does not know, and for settings that split weights do not allow."""
    if accelerator.distributed_type in WHOLE_WEIGHTS:
        return
    if not is_sharded(accelerator):
        raise ValueError(
            f"the trainer runs on whole weights or under FSDP, got {accelerator.distributed_type.value}. "
            "Launch with --multi_gpu, or split the weights with ip2p/training/launch_configs/fsdp.yaml."
        )
    plugin = accelerator.state.fsdp_plugin
    if plugin.fsdp_version != 2:
        raise ValueError(f"FSDP must be of version 2, got {plugin.fsdp_version}. Set fsdp_version: 2 in its config.")
    if plugin.activation_checkpointing:
        raise ValueError(
            "fsdp_activation_checkpointing renames the layers that checkpoints name. Set it to false and give "
            "--gradient_checkpointing, which saves the same memory."
        )
    if isinstance(plugin.cpu_offload, CPUOffloadPolicy):
        raise ValueError("FSDP must leave weights on the device. Set fsdp_offload_params: false; see --offload_ema.")
    if config.optim == "muon":
        raise ValueError("muon needs whole matrices, and FSDP splits them. Train with optim adamw, or without FSDP.")
    if config.use_8bit_adam:
        raise ValueError("AdamW of 8 bits cannot step split weights. Leave use_8bit_adam out, or train without FSDP.")


def skeleton_of(unet: UNet2DConditionModel) -> UNet2DConditionModel:
    """The same modules without memory, to be filled with whole weights later."""
    return copy.deepcopy(unet).to("meta")


def local(tensor: Tensor) -> Tensor:
    """This process's part, which shares its memory with the tensor."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def whole(tensor: Tensor) -> Tensor:
    """All of it; every process has to take part."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def new_average(skeleton: UNet2DConditionModel, unet: nn.Module) -> UNet2DConditionModel:
    """A copy of this process's part of the weights; it holds them, and cannot be run."""
    average = copy.deepcopy(skeleton)
    for name, parameter in unet.named_parameters():
        owner, _, leaf = name.rpartition(".")
        setattr(average.get_submodule(owner), leaf, nn.Parameter(local(parameter).detach().clone()))
    return average


def whole_network(
    network: nn.Module, unet: nn.Module, skeleton: UNet2DConditionModel, *, is_main: bool
) -> UNet2DConditionModel | None:
    """The network in the CPU's memory of the main process; every process has to take part.

    `unet` is the one that is trained: its parameters say how those of `network`, itself or its average, are split.
    """
    filled = copy.deepcopy(skeleton).to_empty(device="cpu") if is_main else None
    parts = dict(network.named_parameters())
    targets = dict(filled.named_parameters()) if filled is not None else {}
    for name, like in unet.named_parameters():
        found = _whole(local(parts[name]).detach(), like)
        if name in targets:
            targets[name].data.copy_(found)
    return filled


def _whole(part: Tensor, like: Tensor) -> Tensor:
    """The tensor of which every process has a part, as `like` is split."""
    if not isinstance(like, DTensor):
        return part
    mesh = like.device_mesh
    there = part.to(mesh.device_type)
    return DTensor.from_local(there, mesh, like.placements, shape=like.shape, stride=like.stride()).full_tensor()


def _part(whole: Tensor, like: Tensor) -> Tensor:
    """This process's part of a tensor that every process has whole, as `like` is split."""
    if not isinstance(like, DTensor):
        return whole
    mesh = like.device_mesh
    return local(distribute_tensor(whole.to(mesh.device_type), mesh, like.placements, src_data_rank=None))


@torch.no_grad()
def put_weights(network: nn.Module, weights: Mapping[str, Tensor], unet: nn.Module) -> None:
    """Copies each process's part of whole weights into a network, which is split as `unet` is."""
    likes = dict(unet.named_parameters())
    for name, parameter in network.named_parameters():
        if name in weights:
            local(parameter).copy_(_part(weights[name], likes[name]))


def whole_states(optimizer: torch.optim.Optimizer, *, is_main: bool) -> dict[str, Any] | None:
    """The optimizer's state as one process would have it, in the main process; every process has to take part."""
    found = optimizer.state_dict()
    states: dict[int, dict[str, Any]] = {}
    for number, state in found["state"].items():
        gathered = {name: _whole(local(value), value) for name, value in state.items()}
        if is_main:
            states[number] = {name: value.cpu() for name, value in gathered.items()}
    return found | {"state": states} if is_main else None


def states_like(states: dict[str, Any], optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """An optimizer's state with each tensor split, and laid out in memory, as its parameter is here."""
    likes = dict(enumerate(parameter for group in optimizer.param_groups for parameter in group["params"]))
    found = {
        number: {name: _state_like(value, likes.get(number)) for name, value in state.items()}
        for number, state in states["state"].items()
    }
    return states | {"state": found}


def _state_like(value: Any, like: Tensor | None) -> Any:
    if like is None or not isinstance(value, Tensor) or value.shape != like.shape:  # such as the count of steps
        return value
    if isinstance(like, DTensor):
        there = value.contiguous().to(like.device_mesh.device_type)
        return distribute_tensor(there, like.device_mesh, like.placements, src_data_rank=None)
    # A fused step walks through memory, and the launch that wrote the state may have kept it in another order.
    return torch.empty_like(like, dtype=value.dtype, device=value.device).copy_(value)

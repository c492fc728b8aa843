"""Weights that are split over the processes, and how they become whole; here those of FSDP, version 2.

accelerate splits the UNet with torch's `fully_shard`: each process keeps its part of every parameter, and of the
optimizer's states. The average keeps the same parts as plain tensors, so that a step gathers nothing for it. Whole
tensors are met one at a time, where something is written or read: in a checkpoint of one layout for all launches, in
the export and at a validation.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from diffusers import UNet2DConditionModel
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, distribute_tensor


class Parts(Protocol):
    """How weights are split over the processes. All processes have to take part in what returns something whole."""

    @property
    def skeleton(self) -> UNet2DConditionModel:
        """The UNet without memory."""
        ...

    def masters(self) -> list[Tensor]:
        """This process's parts of the weights in float32, which share the memory that the optimizer writes to."""
        ...

    def whole(self, parts: Sequence[Tensor], *, is_main: bool) -> UNet2DConditionModel | None:
        """Parts like the masters, put together in the CPU's memory of the main process."""
        ...

    def put(self, parts: Sequence[Tensor], weights: Mapping[str, Tensor]) -> None:
        """Copies whole weights, which fit the skeleton, into parts like the masters."""
        ...

    def whole_states(self, *, is_main: bool) -> dict[str, Any] | None:
        """The optimizer's state as one process would have it, in the main process."""
        ...

    def put_states(self, states: dict[str, Any]) -> None:
        """Copies such a state into the optimizer."""
        ...


def new_average(parts: Parts) -> nn.ParameterList:
    """A copy of this process's part of the weights."""
    return nn.ParameterList([nn.Parameter(part.clone(), requires_grad=False) for part in parts.masters()])


def skeleton_of(unet: UNet2DConditionModel) -> UNet2DConditionModel:
    """The same modules without memory, to be filled with whole weights later."""
    return copy.deepcopy(unet).to("meta")


def local(tensor: Tensor) -> Tensor:
    """This process's part, which shares its memory with the tensor."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def whole(tensor: Tensor) -> Tensor:
    """All of it; every process has to take part."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def check_fits(skeleton: UNet2DConditionModel, weights: Mapping[str, Tensor], *, strict: bool) -> list[str]:
    """The names that the UNet does not have; RuntimeError where others lack or a shape differs."""
    there = {name: value.to("meta") for name, value in weights.items()}  # where nothing is copied
    found: list[str] = skeleton.load_state_dict(there, strict=strict).unexpected_keys
    return found


def fill(skeleton: UNet2DConditionModel, tensors: Iterable[Tensor], *, is_main: bool) -> UNet2DConditionModel | None:
    """The UNet with these parameters, each taken when its turn comes, in the main process alone."""
    filled = copy.deepcopy(skeleton).to_empty(device="cpu") if is_main else None
    targets = list(filled.parameters()) if filled is not None else None
    for number, tensor in enumerate(tensors):
        if targets is not None:
            targets[number].data.copy_(tensor)
    return filled


@dataclass(frozen=True, slots=True)
class FsdpParts:
    """Of every parameter some rows, as torch's `fully_shard` divides them."""

    skeleton: UNet2DConditionModel
    unet: nn.Module
    optimizer: torch.optim.Optimizer

    def masters(self) -> list[Tensor]:
        return [local(parameter).detach() for parameter in self.unet.parameters()]

    def whole(self, parts: Sequence[Tensor], *, is_main: bool) -> UNet2DConditionModel | None:
        both = zip(parts, self.unet.parameters(), strict=True)
        return fill(self.skeleton, (_whole(part.detach(), like) for part, like in both), is_main=is_main)

    @torch.no_grad()
    def put(self, parts: Sequence[Tensor], weights: Mapping[str, Tensor]) -> None:
        for part, (name, like) in zip(parts, self.unet.named_parameters(), strict=True):
            if name in weights:
                part.copy_(_part(weights[name], like))

    def whole_states(self, *, is_main: bool) -> dict[str, Any] | None:
        found = self.optimizer.state_dict()
        states: dict[int, dict[str, Any]] = {}
        for number, state in found["state"].items():
            gathered = {name: _whole(local(value), value) for name, value in state.items()}
            if is_main:
                states[number] = {name: value.cpu() for name, value in gathered.items()}
        return found | {"state": states} if is_main else None

    def put_states(self, states: dict[str, Any]) -> None:
        self.optimizer.load_state_dict(states_like(states, self.optimizer))


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

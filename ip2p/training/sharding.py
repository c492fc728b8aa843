"""Splits weights over the processes and puts them together again: with FSDP, version 2, or DeepSpeed's ZeRO.

Under FSDP accelerate splits the denoiser with torch's `fully_shard`: each process keeps its part of every parameter,
and of the optimizer's states. Under ZeRO, at stages 1 and 2, every process has the weights whole, while their float32
masters, which the optimizer steps, lie end to end in one long tensor per group, of which each process holds a slice.

The average keeps the same parts as plain tensors, so that a step gathers nothing for it. Whole tensors exist one at a
time, when something is written or read: in checkpoints, which all launches can load, in the export and at a validation.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedType
from diffusers import ModelMixin
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.optim.optimizer import StateDict


class Parts(Protocol):
    """How weights are split over the processes. All processes have to take part in what returns something whole."""

    @property
    def skeleton(self) -> ModelMixin:
        """The denoiser, whose parameters have no memory."""
        ...

    def masters(self) -> list[Tensor]:
        """Returns this process's parts of the weights in float32, in the memory that the optimizer writes to."""
        ...

    def whole(self, parts: Sequence[Tensor], *, is_main: bool) -> ModelMixin | None:
        """Puts parts like the masters together, in the CPU's memory of the main process."""
        ...

    def put(self, parts: Sequence[Tensor], weights: Mapping[str, Tensor]) -> None:
        """Copies whole weights, which fit the skeleton, into parts like the masters."""
        ...

    def whole_states(self, *, is_main: bool) -> StateDict | None:
        """Returns the optimizer's state as one process would have it, in the main process."""
        ...

    def put_states(self, states: StateDict) -> None:
        """Copies such a state into the optimizer."""
        ...


def local(tensor: Tensor) -> Tensor:
    """Returns this process's part, which shares its memory with the tensor."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def whole(tensor: Tensor) -> Tensor:
    """Returns all of it; every process has to take part."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def skeleton_of(denoiser: ModelMixin) -> ModelMixin:
    """Returns a copy without memory for its parameters; buffers, such as tables of positions, are kept."""
    skeleton = copy.deepcopy(denoiser).to("meta")
    for module, own in zip(skeleton.modules(), denoiser.modules(), strict=True):
        for name, buffer in own.named_buffers(recurse=False):
            setattr(module, name, buffer.detach().cpu().clone())
    return skeleton


def fill(skeleton: ModelMixin, tensors: Iterable[Tensor], *, is_main: bool) -> ModelMixin | None:
    """Builds the denoiser with these parameters, taken one at a time, in the main process alone."""
    filled = copy.deepcopy(skeleton).to_empty(device="cpu") if is_main else None
    targets = list(filled.parameters()) if filled is not None else None
    if filled is not None:
        for buffer, kept in zip(filled.buffers(), skeleton.buffers(), strict=True):
            buffer.copy_(kept)
    for number, tensor in enumerate(tensors):
        if targets is not None:
            targets[number].data.copy_(tensor)
    return filled


@dataclass(frozen=True, slots=True)
class FsdpParts:
    """Holds some rows of every parameter, as torch's `fully_shard` divides them."""

    skeleton: ModelMixin
    denoiser: nn.Module
    optimizer: torch.optim.Optimizer

    def masters(self) -> list[Tensor]:
        return [local(parameter).detach() for parameter in self.denoiser.parameters()]

    def whole(self, parts: Sequence[Tensor], *, is_main: bool) -> ModelMixin | None:
        both = zip(parts, self.denoiser.parameters(), strict=True)
        return fill(self.skeleton, (_whole(part.detach(), like) for part, like in both), is_main=is_main)

    @torch.no_grad()
    def put(self, parts: Sequence[Tensor], weights: Mapping[str, Tensor]) -> None:
        for part, (name, like) in zip(parts, self.denoiser.named_parameters(), strict=True):
            if name in weights:
                part.copy_(local(_split(weights[name], like)))

    def whole_states(self, *, is_main: bool) -> StateDict | None:
        state_dict = self.optimizer.state_dict()
        states: dict[int, StateDict] = {}
        for number, state in state_dict["state"].items():
            gathered = {name: _whole(local(value), value) for name, value in state.items()}
            if is_main:
                states[number] = {name: value.cpu() for name, value in gathered.items()}
        return state_dict | {"state": states} if is_main else None

    def put_states(self, states: StateDict) -> None:
        self.optimizer.load_state_dict(states_like(states, self.optimizer))


def _whole(part: Tensor, like: Tensor) -> Tensor:
    """Gathers the tensor of which every process has a part, as `like` is split."""
    if not isinstance(like, DTensor):
        return part
    mesh = like.device_mesh
    local_part = part.to(mesh.device_type)
    return DTensor.from_local(local_part, mesh, like.placements, shape=like.shape, stride=like.stride()).full_tensor()


def _split(whole: Tensor, like: Tensor) -> Tensor:
    """Splits a tensor that every process has whole, as `like` is split."""
    if not isinstance(like, DTensor):
        return whole
    values = whole.contiguous().to(like.device_mesh.device_type)
    return distribute_tensor(values, like.device_mesh, like.placements, src_data_rank=None)


def states_like(states: StateDict, optimizer: torch.optim.Optimizer) -> StateDict:
    """Returns an optimizer's state with each tensor split, and laid out in memory, as its parameter is here."""
    likes = dict(enumerate(parameter for group in optimizer.param_groups for parameter in group["params"]))
    split = {
        number: {name: _state_like(value, likes.get(number)) for name, value in state.items()}
        for number, state in states["state"].items()
    }
    return states | {"state": split}


def _state_like(value: object, like: Tensor | None) -> object:
    if like is None or not isinstance(value, Tensor) or value.shape != like.shape:  # such as the count of steps
        return value
    if isinstance(like, DTensor):
        return _split(value, like)
    # A fused step walks through memory, and the launch that wrote the state may have kept it in another order.
    return torch.empty_like(like, dtype=value.dtype, device=value.device).copy_(value)


def is_fsdp(accelerator: Accelerator) -> bool:
    """Tells whether torch splits weights, gradients and the optimizer's states."""
    return bool(accelerator.distributed_type == DistributedType.FSDP)


def is_zero(accelerator: Accelerator) -> bool:
    """Tells whether DeepSpeed splits the optimizer's states, and from stage 2 on the gradients."""
    return bool(accelerator.distributed_type == DistributedType.DEEPSPEED)


@dataclass(frozen=True, slots=True)
class ZeroParts:
    """Holds one contiguous slice of each parameter group.

    Two functions of DeepSpeed put one parameter into the masters and take one out. Averages and optimizer states go
    through them too: they take the masters' place meanwhile.
    """

    skeleton: ModelMixin
    denoiser: nn.Module
    optimizer: Any
    """DeepSpeed's own, around torch's."""
    groups: Sequence[Sequence[nn.Parameter]]
    """The parameters in the order of torch's optimizer."""

    def masters(self) -> list[Tensor]:
        return [own_slice.detach() for own_slice in self.optimizer.single_partition_of_fp32_groups]

    def whole(self, parts: Sequence[Tensor], *, is_main: bool) -> ModelMixin | None:
        return fill(self.skeleton, self._taken(parts, self.denoiser.parameters()), is_main=is_main)

    @torch.no_grad()
    def put(self, parts: Sequence[Tensor], weights: Mapping[str, Tensor]) -> None:
        values = [(parameter, weights[name]) for name, parameter in self.denoiser.named_parameters()]
        for part, filled in zip(parts, self._put(values), strict=True):
            part.copy_(filled)
        if parts[0].data_ptr() == self.masters()[0].data_ptr():  # not the average, whose weights no process has whole
            for parameter, value in values:
                parameter.data.copy_(value)

    def whole_states(self, *, is_main: bool) -> StateDict | None:
        inner = self.optimizer.optimizer
        slices = [inner.state[own_slice] for own_slice in self.optimizer.single_partition_of_fp32_groups]
        counts = {name: value.cpu() for name, value in slices[0].items() if not value.ndim}
        states = [{name: value.clone() for name, value in counts.items()} for _ in self._ordered()]
        for name in (name for name, value in slices[0].items() if value.ndim):
            parts = [state[name] for state in slices]
            for number, value in enumerate(self._taken(parts, self._ordered())):
                if is_main:
                    states[number][name] = value.cpu()
        numbers = iter(range(len(states)))  # those that the parameters have without DeepSpeed
        groups = [
            group | {"params": [next(numbers) for _ in parameters]}
            for group, parameters in zip(inner.param_groups, self.groups, strict=True)
        ]
        return {"state": dict(enumerate(states)), "param_groups": groups} if is_main else None

    def put_states(self, states: StateDict) -> None:
        inner = self.optimizer.optimizer
        per_group: list[dict[str, Tensor]] = [{} for _ in self.groups]
        for name, value in states["state"][0].items():
            if value.ndim:
                values = [(p, states["state"][number][name]) for number, p in enumerate(self._ordered())]
                for state, part in zip(per_group, self._put(values), strict=True):
                    state[name] = part
            else:
                for state in per_group:
                    state[name] = value.to(self.masters()[0].device, copy=True)
        for own_slice, state in zip(self.optimizer.single_partition_of_fp32_groups, per_group, strict=True):
            inner.state[own_slice] = state
        for group, saved in zip(inner.param_groups, states["param_groups"], strict=True):
            group.update({name: value for name, value in saved.items() if name != "params"})

    def _ordered(self) -> list[nn.Parameter]:
        return [parameter for group in self.groups for parameter in group]

    def _taken(self, parts: Sequence[Tensor], parameters: Iterable[nn.Parameter]) -> Iterator[Tensor]:
        """Yields each parameter whole, with the values of `parts`."""
        from deepspeed.utils import safe_get_full_fp32_param

        with self._masters_kept():
            for master, part in zip(self.masters(), parts, strict=True):
                master.copy_(part)
            for parameter in parameters:
                yield safe_get_full_fp32_param(parameter)

    def _put(self, values: Iterable[tuple[nn.Parameter, Tensor]]) -> list[Tensor]:
        """Returns parts that have these values."""
        from deepspeed.utils import safe_set_full_fp32_param

        with self._masters_kept():
            for parameter, value in values:
                safe_set_full_fp32_param(parameter, value.contiguous().to(parameter.device))
            return [master.clone() for master in self.masters()]

    @contextmanager
    def _masters_kept(self) -> Iterator[None]:
        before = [master.clone() for master in self.masters()]
        try:
            yield
        finally:
            for master, values in zip(self.masters(), before, strict=True):
                master.copy_(values)

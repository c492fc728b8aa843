"""Splits weights over the processes and puts them together again; here with FSDP, version 2.

accelerate splits the denoiser with torch's `fully_shard`: each process keeps its part of every parameter, and of the
optimizer's states. The average keeps the same parts as plain tensors, so that a step gathers nothing for it. Whole
tensors are met one at a time, when something is written or read: in a checkpoint of one layout for all launches, in
the export and at a validation.
"""

from __future__ import annotations

import copy
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedType, str_to_bool
from torch import Tensor, nn
from torch.distributed.fsdp import CPUOffloadPolicy
from torch.distributed.tensor import DTensor, distribute_tensor

from ip2p.config import TrainingConfig
from ip2p.models.loading import resolve_device, resolve_dtype


class Parts(Protocol):
    """How weights are split over the processes. All processes have to take part in what returns something whole."""

    @property
    def skeleton(self) -> Any:
        """The denoiser without memory."""
        ...

    def masters(self) -> list[Tensor]:
        """Returns this process's parts of the weights in float32, in the memory that the optimizer writes to."""
        ...

    def whole(self, parts: Sequence[Tensor], *, is_main: bool) -> Any | None:
        """Puts parts like the masters together, in the CPU's memory of the main process."""
        ...

    def put(self, parts: Sequence[Tensor], weights: Mapping[str, Tensor]) -> None:
        """Copies whole weights, which fit the skeleton, into parts like the masters."""
        ...

    def whole_states(self, *, is_main: bool) -> dict[str, Any] | None:
        """Returns the optimizer's state as one process would have it, in the main process."""
        ...

    def put_states(self, states: dict[str, Any]) -> None:
        """Copies such a state into the optimizer."""
        ...


def new_average(parts: Parts) -> nn.ParameterList:
    """Copies this process's part of the weights."""
    return nn.ParameterList([nn.Parameter(part.clone(), requires_grad=False) for part in parts.masters()])


def skeleton_of(denoiser: Any) -> Any:
    """Copies the modules without memory, to be filled with whole weights later."""
    return copy.deepcopy(denoiser).to("meta")


def local(tensor: Tensor) -> Tensor:
    """Returns this process's part, which shares its memory with the tensor."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def whole(tensor: Tensor) -> Tensor:
    """Returns all of it; every process has to take part."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def check_fits(skeleton: Any, weights: Mapping[str, Tensor], *, strict: bool) -> list[str]:
    """Returns the names that the denoiser does not have; RuntimeError if others lack or a shape differs."""
    shapes = {name: value.to("meta") for name, value in weights.items()}  # without copying
    unexpected: list[str] = skeleton.load_state_dict(shapes, strict=strict).unexpected_keys
    return unexpected


def fill(skeleton: Any, tensors: Iterable[Tensor], *, is_main: bool) -> Any | None:
    """Builds the denoiser with these parameters, taken one at a time, in the main process alone."""
    filled = copy.deepcopy(skeleton).to_empty(device="cpu") if is_main else None
    targets = list(filled.parameters()) if filled is not None else None
    for number, tensor in enumerate(tensors):
        if targets is not None:
            targets[number].data.copy_(tensor)
    return filled


@dataclass(frozen=True, slots=True)
class FsdpParts:
    """Some rows of every parameter, as torch's `fully_shard` divides them."""

    skeleton: Any
    denoiser: nn.Module
    optimizer: torch.optim.Optimizer

    def masters(self) -> list[Tensor]:
        return [local(parameter).detach() for parameter in self.denoiser.parameters()]

    def whole(self, parts: Sequence[Tensor], *, is_main: bool) -> Any | None:
        both = zip(parts, self.denoiser.parameters(), strict=True)
        return fill(self.skeleton, (_whole(part.detach(), like) for part, like in both), is_main=is_main)

    @torch.no_grad()
    def put(self, parts: Sequence[Tensor], weights: Mapping[str, Tensor]) -> None:
        for part, (name, like) in zip(parts, self.denoiser.named_parameters(), strict=True):
            if name in weights:
                part.copy_(_part(weights[name], like))

    def whole_states(self, *, is_main: bool) -> dict[str, Any] | None:
        state_dict = self.optimizer.state_dict()
        states: dict[int, dict[str, Any]] = {}
        for number, state in state_dict["state"].items():
            gathered = {name: _whole(local(value), value) for name, value in state.items()}
            if is_main:
                states[number] = {name: value.cpu() for name, value in gathered.items()}
        return state_dict | {"state": states} if is_main else None

    def put_states(self, states: dict[str, Any]) -> None:
        self.optimizer.load_state_dict(states_like(states, self.optimizer))


def _whole(part: Tensor, like: Tensor) -> Tensor:
    """Gathers the tensor of which every process has a part, as `like` is split."""
    if not isinstance(like, DTensor):
        return part
    mesh = like.device_mesh
    local_part = part.to(mesh.device_type)
    return DTensor.from_local(local_part, mesh, like.placements, shape=like.shape, stride=like.stride()).full_tensor()


def _part(whole: Tensor, like: Tensor) -> Tensor:
    """Returns this process's part of a tensor that every process has whole, as `like` is split."""
    if not isinstance(like, DTensor):
        return whole
    mesh = like.device_mesh
    return local(distribute_tensor(whole.to(mesh.device_type), mesh, like.placements, src_data_rank=None))


def states_like(states: dict[str, Any], optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """Returns an optimizer's state with each tensor split, and laid out in memory, as its parameter is here."""
    likes = dict(enumerate(parameter for group in optimizer.param_groups for parameter in group["params"]))
    split = {
        number: {name: _state_like(value, likes.get(number)) for name, value in state.items()}
        for number, state in states["state"].items()
    }
    return states | {"state": split}


def _state_like(value: Any, like: Tensor | None) -> Any:
    if like is None or not isinstance(value, Tensor) or value.shape != like.shape:  # such as the count of steps
        return value
    if isinstance(like, DTensor):
        contiguous = value.contiguous().to(like.device_mesh.device_type)
        return distribute_tensor(contiguous, like.device_mesh, like.placements, src_data_rank=None)
    # A fused step walks through memory, and the launch that wrote the state may have kept it in another order.
    return torch.empty_like(like, dtype=value.dtype, device=value.device).copy_(value)


WHOLE_WEIGHTS = (DistributedType.NO, DistributedType.MULTI_CPU, DistributedType.MULTI_GPU)


def is_fsdp(accelerator: Accelerator) -> bool:
    """Tells whether torch splits weights, gradients and the optimizer's states."""
    return bool(accelerator.distributed_type == DistributedType.FSDP)


def is_zero(accelerator: Accelerator) -> bool:
    """Tells whether DeepSpeed splits the optimizer's states, and from stage 2 on the gradients."""
    return bool(accelerator.distributed_type == DistributedType.DEEPSPEED)


def precision_of(config: TrainingConfig) -> str | None:
    """Returns the accelerator's precision. ValueError for fp16 without a GPU."""
    precision = _configured_precision(config)
    if precision == "fp16" and not torch.cuda.is_available():
        raise ValueError("mixed_precision fp16 wants a GPU, got a CPU. Set training.mixed_precision to bf16 or no.")
    return "no" if _is_launched_by_deepspeed() else precision  # DeepSpeed would round the weights that every step reads


def _configured_precision(config: TrainingConfig) -> str | None:
    if config.mixed_precision != "auto":
        return config.mixed_precision
    return "bf16" if resolve_dtype("auto", resolve_device("auto")) == "bfloat16" else "no"


def _is_launched_by_deepspeed() -> bool:
    return bool(str_to_bool(os.environ.get("ACCELERATE_USE_DEEPSPEED", "false")))


def check_launch(config: TrainingConfig, accelerator: Accelerator) -> None:
    """Raises ValueError for a strategy that the trainer lacks, and for settings that split weights do not allow."""
    if accelerator.distributed_type in WHOLE_WEIGHTS:
        return
    if not is_fsdp(accelerator) and not is_zero(accelerator):
        raise ValueError(
            f"the trainer supports whole weights, FSDP and DeepSpeed, got {accelerator.distributed_type.value}. "
            "Launch with --multi_gpu, or split the weights with ip2p/training/launch_configs/fsdp.yaml."
        )
    if config.optim == "muon":
        raise ValueError("muon needs whole matrices, and this launch splits them. Train with optim adamw.")
    if config.use_8bit_adam:
        raise ValueError("AdamW of 8 bits cannot step split weights. Leave use_8bit_adam out.")
    if is_fsdp(accelerator):
        _check_fsdp(accelerator)
    else:
        _set_up_zero(config, accelerator)


def _check_fsdp(accelerator: Accelerator) -> None:
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


def _set_up_zero(config: TrainingConfig, accelerator: Accelerator) -> None:
    """Copies the training's settings into DeepSpeed's. ValueError for those that it was not tried with."""
    plugin = accelerator.state.deepspeed_plugin
    offload = plugin.deepspeed_config["zero_optimization"].get("offload_optimizer", {}).get("device", "none")
    if plugin.zero_stage not in (1, 2) or offload != "none":
        raise ValueError(
            f"DeepSpeed must split at stage 1 or 2 without offload, got stage {plugin.zero_stage} and offload to "
            f"{offload}. To split the weights too, launch with ip2p/training/launch_configs/fsdp.yaml."
        )
    if config.use_lora:
        raise ValueError("adapters have small states, which DeepSpeed need not split. Launch with --multi_gpu.")
    precision = _configured_precision(config) or os.environ.get("ACCELERATE_MIXED_PRECISION", "no")
    if precision == "fp16":
        raise ValueError("under DeepSpeed mixed_precision must be bf16 or no, got fp16. Set it to bf16.")
    settings = plugin.deepspeed_config
    settings["train_micro_batch_size_per_gpu"] = config.train_batch_size
    settings["gradient_accumulation_steps"] = 1  # the trainer marks the last micro-step itself
    settings["gradient_clipping"] = config.max_grad_norm
    settings["torch_autocast"] = {"enabled": precision == "bf16", "dtype": "bfloat16"}

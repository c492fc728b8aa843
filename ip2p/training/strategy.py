"""How `accelerate launch` divides the work, and which settings of a training that allows."""

from __future__ import annotations

import os

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedType, str_to_bool
from torch.distributed.fsdp import CPUOffloadPolicy

from ip2p.config import TrainingConfig
from ip2p.loading import resolve_device, resolve_dtype

WHOLE_WEIGHTS = (DistributedType.NO, DistributedType.MULTI_CPU, DistributedType.MULTI_GPU)


def is_fsdp(accelerator: Accelerator) -> bool:
    """Whether torch splits weights, gradients and the optimizer's states."""
    return bool(accelerator.distributed_type == DistributedType.FSDP)


def is_zero(accelerator: Accelerator) -> bool:
    """Whether DeepSpeed splits the optimizer's states, and from stage 2 on the gradients."""
    return bool(accelerator.distributed_type == DistributedType.DEEPSPEED)


def precision_of(config: TrainingConfig) -> str | None:
    """What the accelerator is told. ValueError for fp16 without a GPU."""
    precision = _wanted_precision(config)
    if precision == "fp16" and not torch.cuda.is_available():
        raise ValueError("mixed_precision fp16 wants a GPU, got a CPU. Set training.mixed_precision to bf16 or no.")
    return "no" if _is_launched_by_deepspeed() else precision  # DeepSpeed would round the weights that every step reads


def _wanted_precision(config: TrainingConfig) -> str | None:
    if config.mixed_precision != "auto":
        return config.mixed_precision
    return "bf16" if resolve_dtype("auto", resolve_device("auto")) == "bfloat16" else "no"


def _is_launched_by_deepspeed() -> bool:
    return bool(str_to_bool(os.environ.get("ACCELERATE_USE_DEEPSPEED", "false")))


def check_launch(config: TrainingConfig, accelerator: Accelerator) -> None:
    """ValueError for a strategy that the trainer does not know, and for settings that split weights do not allow."""
    if accelerator.distributed_type in WHOLE_WEIGHTS:
        return
    if not is_fsdp(accelerator) and not is_zero(accelerator):
        raise ValueError(
            f"the trainer knows whole weights, FSDP and DeepSpeed, got {accelerator.distributed_type.value}. "
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
    """Writes into DeepSpeed's settings what the training's say. ValueError for those that it was not tried with."""
    plugin = accelerator.state.deepspeed_plugin
    offload = plugin.deepspeed_config["zero_optimization"].get("offload_optimizer", {}).get("device", "none")
    if plugin.zero_stage not in (1, 2) or offload != "none":
        raise ValueError(
            f"DeepSpeed must split at stage 1 or 2 without offload, got stage {plugin.zero_stage} and offload to "
            f"{offload}. To split the weights too, launch with ip2p/training/launch_configs/fsdp.yaml."
        )
    if config.use_lora:
        raise ValueError("adapters have small states, which DeepSpeed need not split. Launch with --multi_gpu.")
    precision = _wanted_precision(config) or os.environ.get("ACCELERATE_MIXED_PRECISION", "no")
    if precision == "fp16":
        raise ValueError("under DeepSpeed mixed_precision must be bf16 or no, got fp16. Set it to bf16.")
    settings = plugin.deepspeed_config
    settings["train_micro_batch_size_per_gpu"] = config.train_batch_size
    settings["gradient_accumulation_steps"] = 1  # the trainer says itself which micro-step is the last
    settings["gradient_clipping"] = config.max_grad_norm
    settings["torch_autocast"] = {"enabled": precision == "bf16", "dtype": "bfloat16"}

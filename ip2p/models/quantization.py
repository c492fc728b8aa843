"""Loads a base's denoiser with its frozen weights in few bits, for adapters that are trained in float32 beside them.

diffusers quantises as it loads, with torchao or bitsandbytes. The first and last layers, which are few and delicate,
stay as they are, and so does the widened layer, which is trained.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from typing import Any

from ip2p.config import TrainingConfig

PACKAGES = {"torchao_int8": "torchao", "bnb_int8": "bitsandbytes", "bnb_nf4": "bitsandbytes"}
"""The package of each way of quantising."""
NEED_CUDA = ("bnb_int8", "bnb_nf4")
"""Those that diffusers runs on GPUs alone."""


def check_quantization(config: TrainingConfig) -> None:
    """Raises ValueError, before anything is loaded, if the base cannot be quantised as the training says."""
    name = config.quantization
    if name is None:
        return
    if not config.use_lora:
        raise ValueError(
            f"training.quantization {name} freezes the base, so adapters must be trained. Set training.use_lora."
        )
    package = PACKAGES[name]
    if importlib.util.find_spec(package) is None:
        raise ValueError(
            f"training.quantization {name} needs {package}, which is not installed. Run: pip install {package}"
        )
    if name in NEED_CUDA:
        import torch

        if not torch.cuda.is_available():
            raise ValueError(f"training.quantization {name} needs an NVIDIA GPU. Use torchao_int8, or none.")


def quantization_options(config: TrainingConfig, edges: Sequence[str]) -> dict[str, Any]:
    """Returns the options with which diffusers loads a quantised denoiser; `edges` are the layers to leave alone."""
    if config.quantization is None:
        return {}
    import torch
    from diffusers import BitsAndBytesConfig, TorchAoConfig

    check_quantization(config)
    kept = [name.rstrip(".") for name in edges]
    if config.quantization == "torchao_int8":
        from torchao.quantization import Int8WeightOnlyConfig

        settings: Any = TorchAoConfig(Int8WeightOnlyConfig(), modules_to_not_convert=kept)
    elif config.quantization == "bnb_int8":
        settings = BitsAndBytesConfig(load_in_8bit=True, llm_int8_skip_modules=kept)
    else:
        settings = BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_compute_dtype=torch.bfloat16,
            llm_int8_skip_modules=kept,
        )
    return {"quantization_config": settings}

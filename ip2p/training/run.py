"""Runs one training from its job to the exported pipeline."""

from __future__ import annotations

import itertools
import logging
import math
import os
import sys
import threading
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator, InitProcessGroupKwargs
from accelerate.utils import DistributedType, ProjectConfiguration, str_to_bool
from torch.distributed.fsdp import CPUOffloadPolicy

from ip2p.config import TrainingConfig, TrainingJob
from ip2p.models.architecture import base_architecture
from ip2p.models.components import load_latent_space
from ip2p.models.loading import resolve_device, resolve_dtype, return_freed_memory
from ip2p.models.quantization import check_quantization
from ip2p.sources.content import later_contents, note
from ip2p.store import write_json
from ip2p.store.journal import RecordFile
from ip2p.training import export
from ip2p.training.cache import FILLED, LatentCache, cache_key, join_caches
from ip2p.training.checkpoint import Progress, resume
from ip2p.training.data import ParquetRows, Rows, SourceRows, find_test_files
from ip2p.training.decoding import is_square
from ip2p.training.draws import EncodedPairs
from ip2p.training.filling import cache_pays, load_cache
from ip2p.training.fingerprints import resume_fingerprint, sources_of_training, training_fingerprint
from ip2p.training.joining import JoinedRows, data_sources, open_all_rows, open_all_tables
from ip2p.training.launching import FINISHED
from ip2p.training.loop import Stop, mean_of_last, train
from ip2p.training.mixing import new_stream
from ip2p.training.online import OnlinePairs
from ip2p.training.optimizer import check_optimizer
from ip2p.training.sharding import is_fsdp, is_zero
from ip2p.training.trackers import check_trackers, start_trackers
from ip2p.training.trainer import Trainer, new_trained, pairs_per_step
from ip2p.training.validation import Validation, read_pictures

logger = logging.getLogger("ip2p.training")

_kept: list[object] = []
"""The networks of trainings on several processes, which hold torch's process group.

Freed right after the last exchange, the group may wait for its thread while that waits for the interpreter's lock.
"""
PLAIN: dict[str, Any] = {
    "balance_column": None,
    "balance_weights": (),
    "mask_column": None,
    "region_weight": None,
    "aspect_ratio_buckets": False,
    "bucket_resolutions": (),
    "cache_window": None,
}
"""Settings that a held-out loss is measured without, so that it compares between trainings."""
PROBE_ROWS = 256
"""The number of rows whose shapes decide whether random crops have a choice."""


def run(job: TrainingJob, stop: Stop) -> dict[str, float]:
    """Caches, trains and exports; returns the figures, which are also in `output_dir/finished.json`."""
    output = Path(job.output_dir)
    output.mkdir(parents=True, exist_ok=True)
    check_quantization(job)
    check_optimizer(job)
    export.check_may_upload(job)
    base_architecture(job).check_training(job)
    rows, pictures = open_all_rows(job), read_pictures(job)
    accelerator = new_accelerator(job)
    with accelerator.main_process_first():
        note(output, sources_of_training(job, job.data))
    pairs = open_pairs(rows, job, accelerator, output, stop.requested if accelerator.num_processes == 1 else None)
    trainer, num_steps = new_trainer(pairs, job, accelerator, rows)
    if accelerator.num_processes > 1:
        _kept.append(trainer.network)
    start_trackers(accelerator, job)
    fresh = Progress(fingerprint=resume_fingerprint(job, job.data, output), num_processes=accelerator.num_processes)
    with accelerator.main_process_first():  # which removes the checkpoints of other settings
        progress = resume(output, trainer.trained, fresh, num_steps, job.resume_from_checkpoint)
    logger.info("training on %d pairs, %d steps on %s", len(pairs), num_steps, accelerator.device)
    per_epoch = math.ceil(len(pairs) / pairs_per_step(job, accelerator.num_processes))
    every = job.validation_steps or (job.validation_epochs and job.validation_epochs * per_epoch) or per_epoch
    held_out = _held_out(job, accelerator, output)
    validation = Validation(output, every, num_steps, pictures, held_out)
    with stop.deferred():
        progress = train(trainer, output, progress, num_steps, stop, validation)
    summary: dict[str, float] = {
        "steps": progress.step,
        "seconds": round(progress.seconds, 1),
        "seconds_caching": pairs.seconds if isinstance(pairs, LatentCache) else 0.0,
        "loss": round(mean_of_last(RecordFile(output / "loss.jsonl").read()), 6),
        "samples": len(pairs),
        "dropped": len(rows) - len(pairs),
    }
    base, folder = trainer.base, Path(job.export_dir or job.output_dir)
    return_freed_memory()  # before the models that are exported too are loaded
    with trainer.trained.averaged():
        editor = trainer.trained.editor(is_main=accelerator.is_main_process)
        if editor is not None:
            export.write_editor(editor, base, job, folder)
    if editor is not None:
        export.write_card(job, base, folder, summary)
        write_json(output / FINISHED, {"fingerprint": training_fingerprint(job, job.data, output), "summary": summary})
        logger.info("wrote %s", folder)
        if job.push_to_hub:
            export.upload(job, base, folder)
    accelerator.end_training()
    return summary


def new_trainer(
    pairs: EncodedPairs, config: TrainingConfig, accelerator: Accelerator, rows: Rows | None = None
) -> tuple[Trainer, int]:
    """Sets up all that a step needs; also returns how many steps there are.

    `rows` are those of the pairs, if a column of them decides which are shown how often.
    """
    base = base_architecture(config)
    num_steps = config.max_train_steps
    if num_steps is None:
        num_steps = config.num_train_epochs * math.ceil(len(pairs) / pairs_per_step(config, accelerator.num_processes))
    noise = base.noise.load(config)
    stream = new_stream(pairs, config, noise.timestep_chances(config), accelerator, rows)
    denoiser = base.widen(base.load_denoiser(config), base.channels_of_editor(pairs.latent_shape[0]))
    trained, network = new_trained(denoiser, base, config, accelerator, num_steps)
    noise, latents = noise.to(accelerator.device), load_latent_space(config)
    none = pairs.none.map(lambda values: values.to(accelerator.device))
    return Trainer(config, base, pairs, noise, latents, accelerator, network, trained, stream, none), num_steps


def open_pairs(
    rows: SourceRows | JoinedRows,
    job: TrainingJob,
    accelerator: Accelerator,
    output: Path,
    stop_requested: threading.Event | None = None,
) -> EncodedPairs:
    """Opens the pairs through a latent cache if there is one or it pays, else encoded at every step.

    `stop_requested` asks what waits for a part of the cache to stop.
    """
    if job.cache:
        first_rows = itertools.islice(rows.read(), PROBE_ROWS)
        if not (job.center_crop or job.aspect_ratio_buckets or all(is_square(pair.original) for pair in first_rows)):
            logger.warning("images that are not square are cropped anew at every step, so there is no latent cache")
        elif (pairs := _open_cache(rows, job, accelerator, output / "cache", stop_requested)) is not None:
            return pairs
    if job.cache_window is not None:
        raise ValueError("cache_window is of a cache, which random crops rule out. Leave it out, or add --center_crop.")
    if job.streaming:
        raise ValueError(
            "streamed rows can be read in order only, for a cache. Leave --streaming out, or add --center_crop."
        )
    with accelerator.main_process_first():
        table = open_all_tables(job)
    return OnlinePairs(table, job, accelerator)


def _open_cache(
    rows: SourceRows | JoinedRows,
    job: TrainingJob,
    accelerator: Accelerator,
    root: Path,
    stop_requested: threading.Event | None,
) -> LatentCache | None:
    """Opens the cache of each source, which is the one that it has alone; None if they are to be filled in vain."""
    parts, named = (rows.parts, rows.sources) if isinstance(rows, JoinedRows) else ([rows], data_sources(job.data, job))
    sources = [
        (part, each.config, _later_contents(each.config, each.data, root.parent))
        for part, each in zip(parts, named, strict=True)
    ]
    keys = {cache_key(*source) for source in sources}
    are_there = all((root / key / FILLED).exists() for key in keys)
    if not are_there and not cache_pays(job, len(rows), accelerator.num_processes):
        return None
    caches = [
        load_cache(root, part, config, accelerator, later, keys, stop_requested) for part, config, later in sources
    ]
    return join_caches(caches, [len(part) for part in parts]) if len(caches) > 1 else caches[0]


def _later_contents(config: TrainingConfig, data: str, output: Path) -> list[str]:
    """Returns the contents of what the cache of some data knows by name, if they have changed."""
    return later_contents(output, sources_of_training(config, data))


def _held_out(job: TrainingJob, accelerator: Accelerator, output: Path) -> LatentCache | None:
    """Loads some pairs of the data's test split; None if the data are not local files or have none."""
    files = find_test_files(job.data)
    if not files or not job.num_validation_pairs:
        return None
    config = replace(job, max_train_samples=job.num_validation_pairs, random_flip=False, **PLAIN)
    try:
        alone = replace(job, more_data=(), data_weights=())
        rows, later = ParquetRows(files, config), _later_contents(alone, job.data, output)
        return load_cache(output / "cache" / "held-out", rows, config, accelerator, later)
    except ValueError as error:
        logger.warning("the test split is not used for a held-out loss: %s", error)
        return None


def new_accelerator(job: TrainingJob) -> Accelerator:
    """Sets up an accelerator with the job's precision and trackers, and a long timeout."""
    patient = InitProcessGroupKwargs(timeout=timedelta(days=1))  # the cache is built inside
    output = Path(job.output_dir)
    project = ProjectConfiguration(project_dir=str(output), logging_dir=str(output / job.logging_dir))
    trackers: Any = check_trackers(job.report_to, can_ask=sys.stdin.isatty())
    accelerator = Accelerator(
        mixed_precision=precision_of(job), kwargs_handlers=[patient], log_with=trackers or None, project_config=project
    )
    check_launch(job, accelerator)
    return accelerator


WHOLE_WEIGHTS = (DistributedType.NO, DistributedType.MULTI_CPU, DistributedType.MULTI_GPU)


def precision_of(config: TrainingConfig) -> str | None:
    """Returns the accelerator's precision. ValueError for fp16 without a GPU."""
    precision = _configured_precision(config)
    if precision == "fp16" and not torch.cuda.is_available():
        raise ValueError("mixed_precision fp16 needs a GPU, got a CPU. Set training.mixed_precision to bf16 or no.")
    under_deepspeed = str_to_bool(os.environ.get("ACCELERATE_USE_DEEPSPEED", "false"))
    return "no" if under_deepspeed else precision  # DeepSpeed would round the weights that every step reads


def _configured_precision(config: TrainingConfig) -> str | None:
    if config.mixed_precision != "auto":
        return config.mixed_precision
    return "bf16" if resolve_dtype("auto", resolve_device("auto")) == "bfloat16" else "no"


def check_launch(config: TrainingConfig, accelerator: Accelerator) -> None:
    """Raises ValueError for a strategy that the trainer lacks, and for settings that split weights do not allow."""
    if accelerator.distributed_type in WHOLE_WEIGHTS:
        return
    if not is_fsdp(accelerator) and not is_zero(accelerator):
        raise ValueError(
            f"the trainer supports whole weights, FSDP and DeepSpeed, got {accelerator.distributed_type.value}. "
            "Launch with --multi_gpu, or split the weights with ip2p/training/launch_configs/fsdp.yaml."
        )
    if config.optim != "adamw":
        raise ValueError(f"{config.optim} needs whole matrices, and this launch splits them. Train with optim adamw.")
    if config.use_8bit_adam:
        raise ValueError("AdamW of 8 bits cannot step split weights. Leave use_8bit_adam out.")
    if is_fsdp(accelerator):
        _set_up_fsdp(config, accelerator)
    else:
        _set_up_zero(config, accelerator)


def _set_up_fsdp(config: TrainingConfig, accelerator: Accelerator) -> None:
    """Has the base's blocks gathered one at a time if the launch names none. ValueError for untested settings."""
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
    if not plugin.transformer_cls_names_to_wrap:
        plugin.transformer_cls_names_to_wrap = list(base_architecture(config).blocks)


def _set_up_zero(config: TrainingConfig, accelerator: Accelerator) -> None:
    """Copies the training's settings into DeepSpeed's. ValueError for untested combinations."""
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

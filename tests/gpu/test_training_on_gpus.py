"""What makes a GPU's training fast changes nothing of what it computes."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from accelerate.state import AcceleratorState

from ip2p.store.journal import RecordFile
from ip2p.training.launching import LAUNCH_CONFIGS
from tests.test_training_sharding import trainer_of, words

pytestmark = [pytest.mark.gpu, pytest.mark.usefixtures("fresh_accelerator")]


def losses_of(data: Path, model: Path, folder: Path, **changes: Any) -> list[float]:
    """Of four steps; accelerate's state is left as it was found."""
    trainer = trainer_of(data, model, folder, **changes)
    found = [float(trainer.step(number)[0]) for number in range(4)]
    AcceleratorState._reset_state(reset_partial_state=True)
    return found


@pytest.mark.parametrize(
    ("changes", "tolerance"),
    [
        ({"mixed_precision": "bf16"}, 2e-2),
        ({"mixed_precision": "fp16"}, 2e-2),
        ({"compile": True}, 1e-3),
        ({"compile": True, "mixed_precision": "bf16"}, 2e-2),
        ({"gradient_checkpointing": True}, 1e-4),
    ],
)
def test_a_faster_training_has_the_losses_of_a_plain_one(
    tmp_path: Path, data: Path, tiny_sd: Path, changes: dict[str, Any], tolerance: float
) -> None:
    plain = losses_of(data, tiny_sd, tmp_path / "plain")
    np.testing.assert_allclose(losses_of(data, tiny_sd, tmp_path / "fast", **changes), plain, rtol=tolerance)


def test_xformers_trains_as_torchs_attention_does(
    tmp_path: Path, data: Path, tiny_sd: Path, caplog: pytest.LogCaptureFixture
) -> None:
    pytest.importorskip("xformers.ops")
    plain = losses_of(data, tiny_sd, tmp_path / "plain", mixed_precision="bf16")
    with caplog.at_level(logging.WARNING):
        change = {"enable_xformers_memory_efficient_attention": True}
        found = losses_of(data, tiny_sd, tmp_path / "other", mixed_precision="bf16", **change)
    assert "torch's own is used" not in caplog.text
    np.testing.assert_allclose(found, plain, rtol=2e-2)


@contextmanager
def no_host_sync() -> Iterator[None]:
    """Raises where the processor waits for the GPU."""
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("changes", [{}, {"gradient_accumulation_steps": 2, "snr_gamma": 5.0, "random_flip": True}])
def test_a_step_never_waits_for_the_gpu(tmp_path: Path, data: Path, tiny_sd: Path, changes: dict[str, Any]) -> None:
    trainer = trainer_of(data, tiny_sd, tmp_path, mixed_precision="bf16", **changes)
    with trainer.reading_ahead(4) as reading:
        reading.step(0)  # the optimizer makes its states
        with no_host_sync():
            for number in range(1, 4):
                reading.step(number)


@pytest.mark.parametrize(("name", "num"), [("fsdp", 1), ("fsdp", 2), ("multi_gpu", 2)])
def test_a_launch_on_several_gpus_trains_as_one_process(
    tmp_path: Path, data: Path, tiny_sd: Path, name: str, num: int
) -> None:
    if torch.cuda.device_count() < num:
        pytest.skip(f"there are not {num} CUDA devices")
    launcher = [
        sys.executable,
        "-m",
        "accelerate.commands.launch",
        "--config_file",
        str(LAUNCH_CONFIGS / f"{name}.yaml"),
    ]
    command = [*launcher, "--num_processes", str(num), "--main_process_port", "0", "-m", "ip2p.training"]
    for output, start, size in (("1", [sys.executable, "-m", "ip2p.training"], 4), ("2", command, 4 // num)):
        config = words(tiny_sd, data, tmp_path / output, f"--train_batch_size={size}")
        environment = os.environ | {"CUDA_VISIBLE_DEVICES": ",".join(map(str, range(num)))}
        done = subprocess.run([*start, *config], env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    losses = [[entry["loss"] for entry in RecordFile(tmp_path / output / "loss.jsonl").read()] for output in ("1", "2")]
    np.testing.assert_allclose(losses[1], losses[0], rtol=1e-3)

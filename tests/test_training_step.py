"""A step's chance and its inputs: each sample's own, made ahead on a thread, and given over without a wait."""

from __future__ import annotations

import json
import os
import signal
import threading
import traceback
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from accelerate import Accelerator, PartialState
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from ip2p.config import TrainingConfig
from ip2p.training.ahead import Ahead
from ip2p.training.checkpoint import Progress, load_checkpoint, read_checkpoint
from ip2p.training.data import open_rows, open_table
from ip2p.training.draws import Drawing, SampleStream, StepDraws
from ip2p.training.filling import load_cache
from ip2p.training.loop import Interrupted, SharedStop, Stop
from ip2p.training.online import OnlinePairs
from ip2p.training.run import new_trainer
from ip2p.training.trainer import Trainer
from tests import processes
from tests.test_training import pair, tiny_training, write_pairs
from tests.test_training_run import WEIGHTS, _StopAfter, run, same_weights, trainer_on

pytestmark = pytest.mark.usefixtures("fresh_accelerator")
CPU, META = torch.device("cpu"), torch.device("meta")
LATENTS = torch.Size((4, 8, 8))


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Five pairs."""
    return write_pairs(tmp_path / "data", [pair(number) for number in range(5)])


def stream_of(size: int, rank: int = 0, num: int = 1, drawing: Drawing = "by_sample", **options: Any) -> SampleStream:
    """What one process of several sees, of batches of so many samples each."""
    config = TrainingConfig(train_batch_size=size, seed=3, **options)
    return SampleStream(config, 100, LATENTS, torch.ones(1000), rank, num, drawing=drawing)


def same_draws(first: StepDraws, second: StepDraws) -> bool:
    return all(torch.equal(getattr(first, field.name), getattr(second, field.name)) for field in fields(StepDraws))


# --- chance -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("drawing", ["by_sample", "by_batch"])
@pytest.mark.parametrize("stratified", [False, True])
@pytest.mark.parametrize("num", [2, 4])
def test_several_processes_draw_what_one_does(num: int, stratified: bool, drawing: Drawing) -> None:
    options: dict[str, Any] = {"stratified_timesteps": stratified, "gradient_accumulation_steps": 2}
    alone = stream_of(8, drawing=drawing, **options)
    parts = [stream_of(8 // num, rank, num, drawing, **options) for rank in range(num)]
    for micro_step in (0, 7):
        expected = alone.draws(micro_step)
        for rank, part in enumerate(parts):
            assert same_draws(part.draws(micro_step), expected.part(rank * 8 // num, 8 // num))


def test_what_a_process_draws_does_not_grow_with_their_number() -> None:
    class Counting(TorchDispatchMode):
        numbers = 0

        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            found = func(*args, **(kwargs or {}))
            if torch.Tag.nondeterministic_seeded in func.tags:
                self.numbers += found.numel()
            return found

    counts = []
    for num in (1, 64):
        with Counting() as counting:
            stream_of(4, num - 1, num).draws(0)
        counts.append(counting.numbers)
    assert counts == [4 * (2 * LATENTS.numel() + 4 + 5)] * 2


def test_numbers_have_their_distributions_and_samples_and_steps_their_own() -> None:
    chances = torch.arange(10.0)
    stream = replace(stream_of(500), timestep_chances=chances)
    draws = stream.draws(2)
    for normal in (draws.noise, draws.posterior, draws.offset):
        assert abs(float(normal.mean())) < 0.1 and abs(float(normal.std()) - 1) < 0.1
        assert len(set(normal.flatten(1)[:, 0].tolist())) == 500
    for uniform in (draws.dropout, draws.crop):
        assert abs(float(uniform.mean()) - 0.5) < 0.05 and 0 <= float(uniform.min()) < float(uniform.max()) < 1
    assert abs(float(draws.mirrored.float().mean()) - 0.5) < 0.08
    np.testing.assert_allclose(np.bincount(draws.timesteps, minlength=10) / 500, chances / chances.sum(), atol=0.05)
    everything = torch.stack([draws.noise, draws.posterior]).flatten(1)
    assert abs(float(torch.corrcoef(everything)[0, 1])) < 0.02
    assert not torch.equal(draws.noise, stream.draws(3).noise)
    other_seed = replace(stream, config=replace(stream.config, seed=4))
    assert not torch.equal(draws.noise, other_seed.draws(2).noise)


def test_the_draws_of_earlier_versions_are_what_they_were() -> None:
    draws = stream_of(2, 1, 2, "by_batch").draws(5)
    assert draws.timesteps.tolist() == [476, 204]
    found = [float(values[0].flatten()[-1]) for values in (draws.posterior, draws.noise, draws.dropout, draws.offset)]
    assert found == pytest.approx([-0.952263, -1.022877, 0.332828, 0.048779], abs=1e-5)
    assert draws.mirrored.tolist() == [False, True]


@pytest.mark.slow
def test_a_checkpoint_without_a_note_of_how_it_drew_goes_on_as_earlier_versions_did(
    tmp_path: Path, data: Path, tiny_sd: Path
) -> None:
    config = tiny_training(tiny_sd, max_train_steps=2, lr_scheduler="constant", checkpointing_steps=2, use_ema=False)
    run(config, str(data), tmp_path / "out", tmp_path / "model", Stop())
    state = tmp_path / "out" / "checkpoint-2" / "state.json"
    noted = json.loads(state.read_text())
    assert noted.pop("drawing") == "by_sample"
    state.write_text(json.dumps(noted))
    trainer = trainer_on(data, tmp_path, config)
    load_checkpoint(read_checkpoint(state.parent), trainer.trained)
    trainer = replace(trainer, stream=replace(trainer.stream, drawing="by_batch"))
    for step in (2, 3):
        trainer.step(step)
    trainer.trained.denoiser.save_pretrained(tmp_path / "expected" / "unet")
    run(replace(config, max_train_steps=4), str(data), tmp_path / "out", tmp_path / "model", Stop())
    assert same_weights(tmp_path / "model" / WEIGHTS, tmp_path / "expected" / WEIGHTS)
    assert read_checkpoint(tmp_path / "out" / "checkpoint-4").progress.drawing == "by_batch"


def test_a_way_of_drawing_that_is_not_known_is_refused() -> None:
    with pytest.raises(ValueError, match="drawing must be by_sample or by_batch, got 'by_dice'"):
        Progress(drawing="by_dice")  # type: ignore[arg-type]


# --- inputs ahead of the step -----------------------------------------------------------------------------------------


def threads() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("ahead")]


def test_numbers_are_made_ahead_each_once_and_none_beyond_the_end() -> None:
    made: list[int] = []
    reached = {number: threading.Event() for number in range(5)}

    def make(number: int) -> str:
        made.append(number)
        reached[number].set()
        return threading.current_thread().name

    with Ahead(make, 5, CPU) as ahead:
        names = {ahead.take(0)}
        assert reached[2].wait(60)  # without being asked for
        names |= {ahead.take(number) for number in range(1, 5)}
    assert made == [0, 1, 2, 3, 4]
    assert len(names) == 1 and names != {threading.current_thread().name}
    assert not threads()


def test_an_error_of_the_thread_is_raised_where_its_number_is_taken() -> None:
    def make(number: int) -> int:
        return 1 // (1 - number)

    with pytest.raises(ZeroDivisionError) as raised, Ahead(make, 9, CPU) as ahead:
        assert ahead.take(0) == 1
        ahead.take(1)
    assert "return 1 // (1 - number)" in "".join(traceback.format_exception(raised.value))
    assert not threads()


def steps_of(trainer: Trainer) -> list[tuple[float, float]]:
    """Losses and norms of four steps, each with the loop's seed."""
    found = []
    for step in range(4):
        torch.manual_seed(step)
        found.append(trainer.step(step))
    return [(float(loss), float(norm)) for loss, norm in found]


VARIANTS: list[dict[str, Any]] = [
    {"random_flip": True, "gradient_accumulation_steps": 2},
    {"stratified_timesteps": True, "use_lora": True, "lora_dropout": 0.5},
]


@pytest.mark.parametrize("changes", VARIANTS)
def test_steps_see_the_same_with_inputs_made_ahead(
    tmp_path: Path, data: Path, tiny_sd: Path, changes: dict[str, Any]
) -> None:
    config = tiny_training(tiny_sd, train_batch_size=2, use_ema=False, lr_warmup_steps=0, **changes)
    plain = steps_of(trainer_on(data, tmp_path, config))
    with trainer_on(data, tmp_path, config).reading_ahead(4) as reading:
        assert steps_of(reading) == plain
        assert len(threads()) == 1
    assert not threads()


def test_making_inputs_leaves_the_global_generator_alone(tmp_path: Path, data: Path, tiny_sd: Path) -> None:
    config = tiny_training(tiny_sd, train_batch_size=2, random_flip=True, dataloader_num_workers=0)
    cached = trainer_on(data, tmp_path, config)
    online = replace(cached, pairs=OnlinePairs(open_table(str(data), config), config, Accelerator(cpu=True)))
    for trainer in (cached, online):
        before = torch.get_rng_state()
        trainer.inputs(3)
        assert torch.equal(torch.get_rng_state(), before)
    with online.reading_ahead(4) as reading:  # its encoders and workers are the step's own
        assert reading is online


def test_the_thread_ends_with_a_training_that_is_stopped(tmp_path: Path, data: Path, tiny_sd: Path) -> None:
    config = tiny_training(tiny_sd, max_train_steps=9, train_batch_size=2, use_ema=False)
    with pytest.raises(Interrupted):
        run(config, str(data), tmp_path / "out", tmp_path / "model", _StopAfter(2))
    assert not threads()


# --- nothing waits ----------------------------------------------------------------------------------------------------

READS = ("aten::_local_scalar_dense", "aten::nonzero", "aten::masked_select", "aten::_unique2", "aten::equal")
"""Operations whose results the processor needs before it can go on."""


def is_on_device(value: object) -> bool:
    return isinstance(value, Tensor) and value.device == META


class Waits(TorchDispatchMode):
    """Notes where the processor reads from the device, or copies between them and waits for the copy."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name, options = func.name().partition(".")[0], kwargs or {}
        reads = name in READS and any(map(is_on_device, args))
        moves = name == "aten::_to_copy" and options.get("device", args[0].device) != args[0].device
        copies = name == "aten::copy_" and args[0].device != args[1].device
        if reads or copies or (moves and (is_on_device(args[0]) or not options.get("non_blocking"))):
            self.found.append("".join(traceback.format_stack(limit=8)))
        return func(*args, **options)


class Literals(TorchFunctionMode):
    """Notes where numbers of the processor are made a tensor on the device, which is a copy that is waited for."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        literal = func in (torch.tensor, Tensor.new_tensor) or (func is torch.as_tensor and made is not args[0])
        if literal and is_on_device(made):
            self.found.append("".join(traceback.format_stack(limit=8)))
        return made


DDPM, FLOW = {"snr_gamma": 5.0, "noise_offset": 0.1}, {"weighting_scheme": "cosmap"}


@pytest.mark.parametrize(
    ("model", "changes"),
    [
        ("tiny_sd", {}),
        ("tiny_sd", {"gradient_accumulation_steps": 2, "region_weight": "log2"} | DDPM),
        ("tiny_xl", {"region_weight": 4.0, "random_flip": True} | DDPM),
        ("tiny_sd3", {"gradient_accumulation_steps": 2, "region_weight": "log2"} | FLOW),
    ],
)
def test_a_step_waits_for_nothing_on_the_device(
    tmp_path: Path, data: Path, request: pytest.FixtureRequest, model: str, changes: dict[str, Any]
) -> None:
    """The device is torch's `meta`, which has shapes but no values, so that whatever needs one shows."""
    config = tiny_training(request.getfixturevalue(model), train_batch_size=2, **changes)
    accelerator = Accelerator(cpu=True)
    cache = load_cache(tmp_path / "cache", open_rows(str(data), config), config, accelerator)
    for state in (PartialState(), accelerator.state):
        state.device = META
    trainer, _ = new_trainer(cache, config, accelerator)
    trainer.step(0)  # the optimizer makes its states
    with trainer.reading_ahead(3) as reading, Literals() as literals, Waits() as waits:
        loss, norm = reading.step(1)
    assert loss.device == norm.device == META
    assert not waits.found + literals.found, "\n\n".join(waits.found + literals.found)


def ask(words: list[str]) -> int:
    """Takes five steps of no work; only process 1 is asked to stop, before its third, and it starts late."""
    folder, accelerator, stop = Path(words[0]), Accelerator(cpu=True), Stop()
    rank, shared, answers = accelerator.process_index, SharedStop(stop, accelerator), list[bool]()
    if rank == 1:
        processes.wait_until((folder / "0-has-asked").exists)
    for step in range(5):
        if (rank, step) == (1, 2):
            stop.requested.set()
        answers.append(shared.after_step(is_last=step == 4))
        (folder / f"{rank}-has-asked").touch()
        if answers[-1]:
            break
    (folder / f"{rank}.json").write_text(json.dumps(answers))
    accelerator.end_training()
    return 0


ON_CPU = os.environ | {"ACCELERATE_USE_CPU": "1", "OMP_NUM_THREADS": "1"}


@pytest.mark.slow
def test_all_processes_stop_after_the_same_step_and_none_waits_for_the_others_to_ask(tmp_path: Path) -> None:
    processes.run_ranks(ask, [str(tmp_path)], tmp_path / "log", ON_CPU)
    assert [json.loads((tmp_path / f"{rank}.json").read_text()) for rank in (0, 1)] == [[False] * 3 + [True]] * 2


@pytest.mark.slow
def test_two_processes_of_which_one_is_told_to_stop_leave_one_checkpoint_and_end_in_the_same_weights(
    tmp_path: Path, data: Path, tiny_sd: Path
) -> None:
    words = [f"--pretrained_model_name_or_path={tiny_sd}", f"--train_data_dir={data}", "--resolution=64"]
    words += ["--original_image_column=original_image", "--train_batch_size=2", "--max_train_steps=40"]
    words += ["--checkpointing_steps=3", "--checkpoints_total_limit=1", "--resume_from_checkpoint=latest"]
    whole, cut = ([*words, f"--output_dir={tmp_path / name}"] for name in ("whole", "cut"))
    with processes.ranks(processes.training, cut, tmp_path / "log", ON_CPU) as children:
        processes.wait_until(lambda: list((tmp_path / "cut").glob("checkpoint-*")), children[0])
        os.kill(children[1].pid or 0, signal.SIGTERM)
        for child in children:
            child.join()
    assert [child.exitcode for child in children] == [130, 130], (tmp_path / "log").read_text()[-3000:]
    (checkpoint,) = (tmp_path / "cut").glob("checkpoint-*")
    assert read_checkpoint(checkpoint).progress.step < 40
    for each in (cut, whole):
        processes.run_ranks(processes.training, each, tmp_path / "log", ON_CPU)
    assert same_weights(tmp_path / "whole" / WEIGHTS, tmp_path / "cut" / WEIGHTS)

"""What the kit measures, part by part: each is a function of the sizes and of what was found before it.

A part imports what it needs when it runs: a library that a machine lacks is the error of the parts that use it alone.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

NEEDS_A_CARD = "needs a CUDA device"
NO_SCRIPT = "no script given"
RENDERING_GUIDANCE = 7.5


@dataclass(frozen=True)
class Sizes:
    """How large models, pictures and batches are; on a card as in the work that people do."""

    width: float = 1.0
    """Share of the channels of every model."""
    flow_depth: int = 12
    """Blocks of the flow transformer, of 24."""
    pixels: int = 256
    """On a side of the pictures that are trained on."""
    pairs: int = 256
    batch_size: int = 64
    flow_batch_size: int = 32
    steps: int = 20
    """That are timed."""
    script_steps: int = 40
    """Of the trainings beside the script."""
    rendered_pixels: int = 512
    rendered_pairs: int = 32
    rendering_steps: int = 10
    matrix: int = 8192
    """Rows and columns of the product that tells the card's rate."""


@dataclass(frozen=True)
class Kit:
    """Where the kit runs and what it has found so far."""

    folder: Path
    """For the table and the logs."""
    scratch: Path
    """For models, pairs and trainings."""
    device: str
    sizes: Sizes = field(default_factory=Sizes)
    script: str = ""
    known: dict[str, float] = field(default_factory=dict)
    """By `PART: FIGURE`."""

    @property
    def precision(self) -> str:
        """Of training: bf16 on a card."""
        return "bf16" if self.device == "cuda" else "no"

    @property
    def dtype(self) -> str:
        """Of rendering, and of the product that tells the rate."""
        return "bfloat16" if self.device == "cuda" else "float32"

    def share_of_rate(self, operations: float) -> Figure:
        """Operations a second as a share of the card's; without its rate the figure is missing."""
        rate = self.known.get("card: matrix rate")
        if rate is None:
            return Figure(SHARE, note="the matrix rate was not measured")
        return Figure(SHARE, operations / 1e12 / rate * 100, "%")

    def ratio(self, what: str, value: float, other: str) -> Figure:
        """A value over a figure that was found before."""
        before = self.known.get(other)
        return Figure(what, value / before, "×") if before else Figure(what, note=f"{other} was not measured")


@dataclass(frozen=True)
class Figure:
    """What a part has found."""

    what: str
    value: float | None = None
    unit: str = ""
    note: str = ""


@dataclass(frozen=True)
class Part:
    """One thing that the kit measures."""

    name: str
    seconds: float
    """That it may take."""
    run: Callable[[Kit], list[Figure]]
    promises: tuple[tuple[str, float | None], ...]
    """The figures, with the least that is wanted; they are the rows also where the part fails."""
    needs_card: bool = False
    needs_script: bool = False
    comes_first: bool = False
    """Whether the others use what it makes."""

    def obstacle(self, kit: Kit) -> str:
        """Why it cannot run; empty if it can."""
        if self.needs_card and kit.device != "cuda":
            return NEEDS_A_CARD
        return NO_SCRIPT if self.needs_script and not kit.script else ""


PAIRS, SHARE, DENOISER, MEMORY = "pairs a second", "of the matrix rate", "denoiser's share of the step", "peak memory"
RATIO, SDPA = "to the original's way", "to torch's attention"


def measure_card(kit: Kit) -> list[Figure]:
    """The card's name, and its rate."""
    import torch

    from tests.benchmarks.flops import matrix_rate

    name = torch.cuda.get_device_name() if kit.device == "cuda" else f"{torch.get_num_threads()} threads of a CPU"
    rate = matrix_rate(kit.device, getattr(torch, kit.dtype), kit.sizes.matrix)
    named = [Figure("card", note=name), Figure("torch", note=torch.__version__)]
    return [*named, Figure("matrix rate", rate / 1e12, f"TFLOP/s, {kit.dtype}")]


def write_models(kit: Kit) -> list[Figure]:
    """The pairs and the model that the other parts use."""
    from tests.benchmarks.architectures import Shape, write_model
    from tests.benchmarks.drawn_pairs import write_drawn_pairs

    sizes = kit.sizes
    write_drawn_pairs(kit.scratch / "pairs", sizes.pairs, sizes.pixels)
    unet = write_model("sd15", kit.scratch / "sd15", Shape(sizes.width, size=sizes.rendered_pixels)).unet
    return [Figure("Stable Diffusion 1.5", unet.num_parameters() / 1e6, "million parameters")]


def _step(kit: Kit, model: str, batch_size: int, **settings: Any) -> Any:
    from ip2p.models.loading import keep_freed_memory
    from tests.benchmarks.step import measure

    keep_freed_memory()
    fixed = {
        "resolution": kit.sizes.pixels,
        "train_batch_size": batch_size,
        "mixed_precision": kit.precision,
        "random_flip": True,
    }
    place = kit.scratch / f"step-{model}"
    return measure(kit.scratch / "pairs", str(kit.scratch / model), place, kit.sizes.steps, **fixed | settings)


def _of_step(kit: Kit, found: Any) -> list[Figure]:
    return [
        Figure(PAIRS, found.pairs),
        kit.share_of_rate(found.rate),
        Figure(DENOISER, found.share * 100, "%"),
        Figure(MEMORY, found.memory / 2**30, "GiB"),
    ]


def train(kit: Kit) -> list[Figure]:
    """Steps of Stable Diffusion 1.5 on torch's attention."""
    return _of_step(kit, _step(kit, "sd15", kit.sizes.batch_size))


def train_flow(kit: Kit) -> list[Figure]:
    """Steps of a flow transformer, whose folder no other part needs."""
    from tests.benchmarks.architectures import Shape, write_model

    write_model("sd3", kit.scratch / "sd3", Shape(kit.sizes.width, kit.sizes.flow_depth))
    return _of_step(kit, _step(kit, "sd3", kit.sizes.flow_batch_size))


def train_on_xformers(kit: Kit) -> list[Figure]:
    """The same steps as `train`; ImportError without xformers, of which the trainer would only warn."""
    from xformers import ops  # noqa: F401

    found = _step(kit, "sd15", kit.sizes.batch_size, enable_xformers_memory_efficient_attention=True)
    return [Figure(PAIRS, found.pairs), kit.ratio(SDPA, found.pairs, f"training: {PAIRS}")]


def train_compiled(kit: Kit) -> list[Figure]:
    """The same steps as `train`."""
    found = _step(kit, "sd15", kit.sizes.batch_size, compile=True)
    return [Figure(PAIRS, found.pairs), kit.ratio("to the same without", found.pairs, f"training: {PAIRS}")]


def train_beside_the_script(kit: Kit) -> list[Figure]:
    """Whole trainings, ours and the script's."""
    answer, sizes = kit.scratch / "script.json", kit.sizes
    command = [sys.executable, "-m", "tests.benchmarks.training", "--script", kit.script, "--rounds", "1"]
    command += ["--model", str(kit.scratch / "sd15"), "--data", str(kit.scratch / "pairs"), "--json", str(answer)]
    command += ["--resolution", str(sizes.pixels), "--batch-size", str(sizes.batch_size), "--steps"]
    command += [str(sizes.script_steps), "--precision", kit.precision, *(["--gpu"] if kit.device == "cuda" else [])]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(done.stderr)
    script, ours = json.loads(answer.read_text())
    return [
        Figure("the script's pairs a second", script["rate"]),
        Figure("ours", ours["rate"]),
        Figure("ratio in the steps", ours["rate"] / script["rate"], "×"),
        Figure("ratio from start to end", script["total"] / ours["total"], "×", f"{sizes.script_steps} steps"),
        Figure("peak memory of ours to the script's", ours["memory"] / script["memory"], "×"),
    ]


def _rendered(kit: Kit, way: str, guidance: float = RENDERING_GUIDANCE) -> dict[str, float]:
    from tests.benchmarks.rendering import measure, parser

    sizes = kit.sizes
    words = ["--way", way, "--model", str(kit.scratch / "sd15"), "--dtype", kit.dtype, "--guidance", str(guidance)]
    words += ["--steps", str(sizes.rendering_steps), "--pairs", str(sizes.rendered_pairs), "--batch-size", "16"]
    return measure(parser().parse_args(words))


def render(kit: Kit) -> list[Figure]:
    """Ours, on torch's attention."""
    found = _rendered(kit, "ours")
    share = kit.share_of_rate(found["operations"] * found["rate"])
    return [Figure(PAIRS, found["rate"]), share, Figure(MEMORY, found["memory"] / 2**30, "GiB")]


def render_on_xformers(kit: Kit) -> list[Figure]:
    """Ours, on xformers' attention; ImportError without it."""
    from xformers import ops  # noqa: F401

    found = _rendered(kit, "ours, xformers")
    return [Figure(PAIRS, found["rate"]), kit.ratio(SDPA, found["rate"], f"rendering: {PAIRS}")]


def render_the_originals_way(kit: Kit) -> list[Figure]:
    """One pair at a time, with explicit maps; ours over it."""
    found = _rendered(kit, "explicit maps")
    ours = kit.known.get(f"rendering: {PAIRS}")
    ratio = Figure(RATIO, ours / found["rate"], "×") if ours else Figure(RATIO, note="ours was not measured")
    return [Figure("the original's pairs a second", found["rate"]), ratio]


def run_tests(kit: Kit) -> list[Figure]:
    """The tests that need a card."""
    command = [sys.executable, "-m", "pytest", "-q", "-m", "gpu", "-p", "no:cacheprovider", "tests/gpu"]
    done = subprocess.run(command, capture_output=True, text=True)
    print(done.stdout, done.stderr, flush=True)
    counts = {word: int(num) for num, word in re.findall(r"(\d+) (passed|failed|skipped|error)", done.stdout)}
    if not counts:
        raise RuntimeError(done.stdout + done.stderr)
    note = ", ".join(f"{num} {word}" for word, num in counts.items() if word != "passed")
    return [Figure("passed", counts.get("passed", 0), note=note)]


_OF_STEP = ((PAIRS, None), (SHARE, 45.0), (DENOISER, None), (MEMORY, None))
PARTS: dict[str, Part] = {
    part.name: part
    for part in (
        Part("card", 40, measure_card, (("matrix rate", None),), comes_first=True),
        Part("models", 60, write_models, (("Stable Diffusion 1.5", None),), comes_first=True),
        Part("training", 60, train, _OF_STEP),
        Part(
            "beside the script",
            180,
            train_beside_the_script,
            (
                ("the script's pairs a second", None),
                ("ours", None),
                ("ratio in the steps", 3.0),
                ("ratio from start to end", 1.0),
                ("peak memory of ours to the script's", None),
            ),
            needs_script=True,
        ),
        Part("rendering", 60, render, ((PAIRS, None), (SHARE, 40.0), (MEMORY, None))),
        Part(
            "the original's rendering",
            60,
            render_the_originals_way,
            (("the original's pairs a second", None), (RATIO, 5.0)),
        ),
        Part("flow transformer", 90, train_flow, ((PAIRS, None), (SHARE, None), (DENOISER, None), (MEMORY, None))),
        Part("compile", 90, train_compiled, ((PAIRS, None), ("to the same without", None)), needs_card=True),
        Part("xformers, training", 60, train_on_xformers, ((PAIRS, None), (SDPA, None)), needs_card=True),
        Part("xformers, rendering", 60, render_on_xformers, ((PAIRS, None), (SDPA, None)), needs_card=True),
        Part("tests", 120, run_tests, (("passed", None),), needs_card=True),
    )
}
"""In the order in which they run, what matters most first."""

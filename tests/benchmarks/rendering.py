"""How fast pairs are rendered, and how many: `python -m tests.benchmarks.rendering`.

A table of the same pairs of the same model, steps, guidance and precision, each way in a process of its own, in turns:
one pair at a time with explicit maps on diffusers' model as it loads, which is how the original software does it, the
unconditional half included at any guidance; with `--community FILE` diffusers' community prompt-to-prompt pipeline;
ours. The table tells the share of the time in the denoiser too. `--model FOLDER --size PIXELS --once` compares them on
a large model: one round, without one to warm up. Options add how many renders an accepted pair takes, what memory many
triplets take, and what a second worker process brings. The last line is ours over the first way, in pairs per second.
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from ip2p import store
from ip2p.config import PipelineConfig, RenderingConfig
from ip2p.presets import shapes
from ip2p.records import Candidate, EditTriplet
from tests.benchmarks.flops import count_operations, peak_memory, seconds_of, synchronise

ROUNDS = 3
COMMAND = "import sys; from ip2p.cli import main; sys.exit(main())"
FIXED_CANDIDATES, PAIRS_EACH = 100, 4
"""What the original renders of a triplet and keeps of it at most."""


def compared(options: argparse.Namespace) -> RenderingConfig:
    """The original's draws of p."""
    model = options.model or shapes().rendering.model
    return RenderingConfig(
        model=model,
        dtype=options.dtype,
        num_inference_steps=options.steps,
        guidance_scale=(options.guidance, options.guidance),
        p2p=(0.1, 0.9),
        num_candidates=1,
        batch_size=options.batch_size,
        attention_backend="xformers" if options.way == "ours, xformers" else "sdpa",
        height=options.size,
        width=options.size,
    )


def draw_triplets(num: int, seed: int = 0) -> list[EditTriplet]:
    """Edits of drawn scenes."""
    from ip2p.shapes.domain import ShapesDomain

    return [case.triplet for case in ShapesDomain().draw_cases(num, seed=seed)]


def explicit_maps(pipeline: Any, candidates: list[Candidate], config: RenderingConfig) -> None:
    """One pair at a time, every map made."""
    import torch

    from ip2p.p2p.sampler import decode_latents
    from tests.explicit_attention import ExplicitPair

    with torch.inference_mode():
        for candidate in candidates:
            decode_latents(
                pipeline, torch.stack(ExplicitPair(pipeline, candidate, config, always_guided=True).sample())
            )


def community(pipeline: Any, candidates: list[Candidate], config: RenderingConfig) -> None:
    """diffusers' community pipeline with its self-attention share; it renders one pair a call."""
    import torch

    for candidate in candidates:
        captions = [candidate.triplet.original_prompt, candidate.triplet.edited_prompt]
        shares = {"n_cross_replace": 0.0, "n_self_replace": candidate.spec.p2p}
        pipeline(
            captions,
            num_inference_steps=config.num_inference_steps,
            guidance_scale=candidate.spec.guidance_scale,
            generator=torch.Generator().manual_seed(candidate.spec.seed),
            height=config.height,
            width=config.width,
            cross_attention_kwargs={"edit_type": "refine", **shares},
        )


def ours(pipeline: Any, candidates: list[Candidate], config: RenderingConfig) -> None:
    """Fused kernels, many pairs a batch."""
    from ip2p.rendering import render_pairs

    list(render_pairs(pipeline, candidates, config))


class Stopwatch:
    """Adds up the seconds in which a network is at work."""

    def __init__(self, network: Any, device: str) -> None:
        self.seconds, self._device = 0.0, device
        network.register_forward_pre_hook(lambda *_: self._add(-1))
        network.register_forward_hook(lambda *_: self._add(1))

    def _add(self, sign: int) -> None:
        synchronise(self._device)
        self.seconds += sign * time.perf_counter()


def measure(options: argparse.Namespace) -> dict[str, float]:
    """Pairs per second, peak memory, the denoiser's share of the time and a pair's operations, in this process."""
    import torch
    from diffusers import DiffusionPipeline

    from ip2p.models.architecture import architecture_of
    from ip2p.models.loading import resolve_device
    from ip2p.models.pipelines import load_text_to_image
    from ip2p.rendering import draw_candidates

    config, device = compared(options), resolve_device("auto")
    if options.way.startswith("ours"):
        pipeline = load_text_to_image(config.model, revision=None, variant=None, dtype=config.dtype, device=device)
    else:
        custom = {"custom_pipeline": options.community, "trust_remote_code": True} if options.way == "community" else {}
        dtype = getattr(torch, config.dtype)
        pipeline = DiffusionPipeline.from_pretrained(config.model, torch_dtype=dtype, safety_checker=None, **custom)
        pipeline.to(device).set_progress_bar_config(disable=True)
    way: Callable[[Any, list[Candidate], RenderingConfig], None] = {
        "explicit maps": explicit_maps,
        "community": community,
    }.get(options.way, ours)
    num = options.pairs if way is ours else max(1, options.pairs // 8)
    candidates = [draw_candidates(config, triplet)[0] for triplet in draw_triplets(num)]
    found: dict[str, float] = {}
    if not options.once:
        first = candidates[: config.batch_size if way is ours else 2]
        operations = count_operations(lambda: way(pipeline, first, config)) / len(first)
        if config.attention_backend == "sdpa":  # xformers' kernels are not counted
            found["operations"] = operations
    watch = Stopwatch(architecture_of(pipeline).denoiser(pipeline), device)
    seconds = seconds_of(lambda: way(pipeline, candidates, config), device)
    found |= {"rate": num / seconds, "memory": float(peak_memory(device)), "share": watch.seconds / seconds}
    return found


def in_a_process_of_its_own(*arguments: str) -> dict[str, Any]:
    """What this script prints as its last line there."""
    command = [sys.executable, "-m", "tests.benchmarks.rendering", *sys.argv[1:], *arguments]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{' '.join(arguments)}: {done.stderr.strip().splitlines()[-1]}")
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def table(options: argparse.Namespace) -> float:
    """Prints the comparison; returns ours over explicit maps."""
    import torch

    ways = ["explicit maps", *(["community"] if options.community else []), "ours"]
    ways += ["ours, xformers"] if torch.cuda.is_available() else []
    found: dict[str, list[dict[str, float]]] = {way: [] for way in ways}
    for _ in range(1 if options.once else ROUNDS):
        for way, results in found.items():
            try:
                results.append(in_a_process_of_its_own("--way", way))
            except RuntimeError as error:
                if way == "ours":
                    raise
                print(f"left out: {error}")
    found = {way: results for way, results in found.items() if results}
    rates = {way: statistics.median(each["rate"] for each in results) for way, results in found.items()}
    print(
        f"{options.steps} steps, {options.dtype}, guidance {options.guidance:g}, p2p 0.1 to 0.9, {options.pairs} pairs"
    )
    print(
        "| way | pairs a second | to explicit maps | peak memory, MiB | time in the denoiser |\n|---|---|---|---|---|"
    )
    for way, rate in rates.items():
        memory = max(each["memory"] for each in found[way]) / 2**20
        share = statistics.median(each["share"] for each in found[way])
        print(f"| {way} | {rate:.3g} | {rate / rates['explicit maps']:.2f} | {memory:.0f} | {share:.0%} |")
    return rates["ours"] / rates["explicit maps"]


def make_run(folder: Path, num_triplets: int, **rendering: Any) -> PipelineConfig:
    """A run whose triplets are written, in shards of 100, ready to be rendered."""
    from ip2p.prompts import write_shard

    triplets = folder / "triplets.jsonl"
    with triplets.open("w") as file:
        for triplet in draw_triplets(num_triplets):
            names = ("original_prompt", "edit_prompt", "edited_prompt", "edit_type")
            file.write(json.dumps({name: getattr(triplet, name) for name in names}) + "\n")
    config = shapes()
    prompts = replace(config.prompts, captions=str(triplets), shard_size=100)
    config = replace(config, out=folder, prompts=prompts, rendering=replace(config.rendering, **rendering))
    for number in range(-(-num_triplets // 100)):
        write_shard(config, number)
    return config


def needed(options: argparse.Namespace) -> None:
    """Renders per accepted pair: a fixed number of candidates, or one after another until enough are accepted."""
    from ip2p.rendering import write_shard

    print(f"\nat most {FIXED_CANDIDATES} candidates a triplet, {PAIRS_EACH} pairs kept, {options.needed} triplets")
    for selection in ("best", "first"):
        with tempfile.TemporaryDirectory() as name:
            own = {
                kind: replace(settings, num_candidates=FIXED_CANDIDATES)
                for kind, settings in shapes().rendering.per_edit_type.items()
            }
            config = make_run(Path(name), options.needed, num_candidates=FIXED_CANDIDATES, per_edit_type=own)
            filtering = replace(config.filtering, selection=selection, max_pairs_per_triplet=PAIRS_EACH)
            config = replace(config, filtering=filtering)
            for number in range(-(-options.needed // 100)):
                write_shard(config, number)
            counts = store.summarise_shards(config.out, "candidates")
        renders, accepted = counts["candidates"], counts["accepted"]
        print(f"{selection}: {renders} renders, {accepted} accepted, {renders / accepted:.2f} renders a pair")


def memory(options: argparse.Namespace) -> None:
    """Peak memory over few and many triplets, one candidate of few steps each."""
    print()
    for num in (100, 100 * options.memory):
        found = in_a_process_of_its_own("--peak-of", str(num))
        print(f"{num} triplets: peak memory {found['memory'] / 2**20:.0f} MiB")


def peak_of(num: int) -> dict[str, float]:
    """Peak memory of this process after rendering so many triplets."""
    from ip2p.rendering import write_shard

    with tempfile.TemporaryDirectory() as name:
        config = make_run(Path(name), num, num_candidates=1, per_edit_type={}, num_inference_steps=1)
        for number in range(-(-num // 100)):
            write_shard(config, number)
    return {"memory": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024}


def workers() -> None:
    """The rendering stage of the default on two worker processes against one."""
    print()
    rates = {}
    for num in (1, 2):
        with tempfile.TemporaryDirectory() as name:
            config = make_run(Path(name), 800, num_candidates=1, per_edit_type={})
            triplets = str(Path(name) / "triplets.jsonl")
            command = [sys.executable, "-c", COMMAND, "dataset", "shapes", "--out", str(config.out)]
            command += ["--prompts.captions", triplets, "--prompts.shard-size", "100"]
            command += ["--runner.kind", "processes", "--runner.max-workers", str(num)]
            started = time.perf_counter()
            done = subprocess.run(command, capture_output=True, text=True)
            if done.returncode:
                raise SystemExit(done.stderr[-2000:])
            rates[num] = 800 / (time.perf_counter() - started)
        print(
            f"{num} worker processes: {rates[num]:.2f} triplets a second, start of the server and the workers included"
        )
    print(f"two over one: {rates[2] / rates[1]:.2f}")


def parser() -> argparse.ArgumentParser:
    """What can be asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="", help="folder of a Stable Diffusion; the shapes domain's by default")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--guidance", type=float, default=1.0, help="at 1, the shapes model's own, ours skips a half")
    parser.add_argument("--pairs", type=int, default=64)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--size", type=int, default=None, metavar="PIXELS", help="side of the images; the model's own")
    parser.add_argument("--once", action="store_true", help="one round, without one to warm up, for a large model")
    parser.add_argument("--community", default="", help="diffusers' examples/community/pipeline_prompt2prompt.py")
    parser.add_argument("--needed", type=int, default=0, metavar="TRIPLETS", help="count renders per accepted pair")
    parser.add_argument("--memory", type=int, default=0, metavar="TIMES", help="peak memory at 100 and TIMES x 100")
    parser.add_argument("--workers", action="store_true", help="two worker processes against one")
    parser.add_argument("--way", default="", help=argparse.SUPPRESS)
    parser.add_argument("--peak-of", type=int, default=0, help=argparse.SUPPRESS)
    return parser


def main() -> None:
    """Runs what is asked for."""
    options = parser().parse_args()
    if options.way:
        print(json.dumps(measure(options)))
    elif options.peak_of:
        print(json.dumps(peak_of(options.peak_of)))
    else:
        ratio = table(options)
        if options.needed:
            needed(options)
        if options.memory:
            memory(options)
        if options.workers:
            workers()
        print(f"\nratio: {ratio:.2f}")


if __name__ == "__main__":
    main()

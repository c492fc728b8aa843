"""`ip2p dataset import`, `ip2p dataset inspect` and `ip2p plan`: what goes on before and after a dataset is made."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Callable
from pathlib import Path

from ip2p.cli.arguments import parse, parse_new_run, take_option, take_run_folder, take_whole, wants_help
from ip2p.cli.results import describe_results
from ip2p.config import FinetuneConfig, PipelineConfig
from ip2p.config.files import read_run
from ip2p.console import end_on_signals

logger = logging.getLogger(__name__)

IMPORT_USAGE = (
    "ip2p dataset import SOURCE OUT [--columns ours=theirs,…] [--split train] [--revision R] [--score yes] "
    "[--stage.knob VALUE …]. SOURCE is a folder of the original software, an image folder, parquet files or a hub id."
)


def enter(config: PipelineConfig) -> None:
    """From here on the command works inside the run folder, and no other does."""
    from ip2p import uses

    uses.enter(config)
    end_on_signals()


def import_pairs(words: list[str]) -> None:
    """Other people's pairs to a run folder and a dataset of ours."""
    columns, split = take_option(words, "columns"), take_option(words, "split") or "train"
    revision, score = take_option(words, "revision"), take_option(words, "score")
    places = [words.pop(0) for _ in range(2) if words and not words[0].startswith("-")]
    if len(places) < 2 and not wants_help(words):
        raise ValueError(f"`ip2p dataset import` needs a source and a folder. Write: {IMPORT_USAGE}")
    base = PipelineConfig()
    rendering = dataclasses.replace(base.rendering, num_candidates=1, keep_rejected_images=True)
    base = dataclasses.replace(base, rendering=rendering, out=Path(places[1] if places else "runs/imported"))
    config = parse(PipelineConfig, words, prog="ip2p dataset import", description=IMPORT_USAGE, default=base)
    from ip2p import dataset, uses
    from ip2p import rendering as rendering_stage
    from ip2p.dataset.importing import import_rows
    from ip2p.sources.rows import read_source

    enter(config)
    rows = read_source(places[0], read_mapping(columns), split=split, revision=revision)
    scorer = None
    if score in ("yes", "true", "1"):
        from ip2p.scoring import load_scorer

        scorer = load_scorer(config.scoring)
    uses.write_config(config, places[0])
    name = Path(places[0]).name if Path(places[0]).expanduser().exists() else places[0]
    counts = import_rows(config, rows, name, scorer)
    logger.info("imported %s", ", ".join(f"{count} {what}" for what, count in counts.items()))
    rendering_stage.summarise(config)
    dataset.write_dataset(config)
    print(describe_results(config))


def read_mapping(text: str | None) -> dict[str, str] | None:
    """`original_image=a,edited_image=b` to a mapping. ValueError where a part has no `=` or is no column of ours."""
    if text is None:
        return None
    from ip2p.sources.columns import NEEDED, OPTIONAL

    found = dict(part.split("=", 1) for part in text.split(",") if "=" in part)
    wrong = [part for part in text.split(",") if "=" not in part] + [name for name in found if name not in KNOWN]
    missing = [name for name in NEEDED if name not in found]
    if wrong or missing:
        raise ValueError(
            f"--columns takes ours=theirs,… with {', '.join(NEEDED)} and, where there are, {', '.join(OPTIONAL)}; "
            f"got {text}."
        )
    return found


KNOWN = ("original_image", "edited_image", "original_prompt", "edit_prompt", "edited_prompt", "edit_type", "group")
"""Columns that an import takes."""


def inspect(words: list[str]) -> None:
    """The funnel, the scores, the draws, the duplicates and examples of a run, in the terminal."""
    folder = take_run_folder(words, "dataset inspect")
    if folder is None:
        print("ip2p dataset inspect RUN")
        return
    if words:
        raise ValueError(f"`ip2p dataset inspect` takes a run folder alone, got {words[0]} too.")
    from ip2p.config.files import read_run
    from ip2p.dataset.inspection import describe

    print(describe(read_run(folder)))


def plan_costs(words: list[str]) -> None:
    """Renders a few candidates, measures, and says what the whole dataset takes."""
    triplets, sample, devices = (take_whole(words, name) for name in ("triplets", "sample", "devices"))
    config = parse_new_run(words, "plan", options=" [--triplets N] [--sample CAPTIONS] [--devices K]")
    from ip2p import plan, uses

    uses.check_inputs(config, "dataset")
    measured = plan.measure_sample(config, sample or 20)
    found = plan.forecast(measured, config, triplets)
    print(plan.describe(measured, found, config, devices or 1))


USAGES = {
    "inspect": "ip2p prompts inspect RUN",
    "try": "ip2p prompts try CAPTION [-n N] [PRESET] [--config FILE] [--stage.knob VALUE …]",
    "export": "ip2p prompts export RUN OUT.jsonl [--rejected yes]",
    "import": "ip2p prompts import SOURCE OUT.jsonl [--columns ours=theirs,…] [--split train] [--num-rows N]",
    "finetune": "ip2p prompts finetune --model M --triplets F.jsonl --output D [--knob VALUE …]",
}


def prompts(words: list[str]) -> None:
    """The prompt stage by hand: inspect a run, try a caption, export, import, finetune a language model."""
    kind = words.pop(0) if words else ""
    commands: dict[str, Callable[[list[str]], None]] = {
        "inspect": inspect_prompts,
        "try": try_caption,
        "export": export,
        "import": import_triplets,
        "finetune": finetune,
    }
    if kind in ("-h", "--help"):
        print("\n".join(USAGES.values()))
    elif kind not in commands:
        raise ValueError(f"`ip2p prompts` takes {', '.join(commands)}; got {kind or 'nothing'}.")
    elif wants_help(words) and kind not in ("try", "finetune"):
        print(USAGES[kind])
    else:
        commands[kind](words)


def inspect_prompts(words: list[str]) -> None:
    """Counts by edit type and reason, words, lengths and samples of a run, in the terminal."""
    folder = take_run_folder(words, "prompts inspect")
    _check_nothing_left(words, "inspect")
    from ip2p.prompts.inspection import describe

    if folder is not None:
        print(describe(read_run(folder)))


def try_caption(words: list[str]) -> None:
    """Triplets about one caption, as a run would write and judge them."""
    num = _whole(take_option(words, "n") or _take_short(words) or "1")
    caption = words.pop(0) if words and not words[0].startswith("-") else ""
    if not caption and not wants_help(words):
        raise ValueError(f"`ip2p prompts try` needs a caption. Write: {USAGES['try']}")
    if not words or words[0].startswith("-"):
        words.insert(0, "sd15")
    config = parse_new_run(words, "prompts try CAPTION", options=" [-n N]")
    from ip2p.prompts.shards import try_caption as write

    for found in write(config, caption, num):
        triplet = found.triplet
        told = f"[{triplet.edit_type}] {triplet.edit_prompt} | {triplet.edited_prompt}" if triplet else repr(found.text)
        print(f"{found.reason or 'kept'}: {told}")


def export(words: list[str]) -> None:
    """A run's triplets to a jsonl file."""
    rejected = take_option(words, "rejected") in ("yes", "true", "1")
    folder, out = _two_places(words, "export")
    from ip2p.prompts.exchange import export_triplets

    print(f"{out}: {export_triplets(read_run(Path(folder)), Path(out), rejected=rejected)} lines")


def import_triplets(words: list[str]) -> None:
    """Other people's triplets to a jsonl file of ours."""
    columns, split = _read_mapping(take_option(words, "columns")), take_option(words, "split") or "train"
    num_rows, revision = take_option(words, "num-rows"), take_option(words, "revision")
    source, out = _two_places(words, "import")
    from ip2p.prompts.exchange import import_triplets as read

    options = {"captions_split": split, "captions_revision": revision}
    counts = read(source, Path(out), columns, **options, num_captions=_whole(num_rows) if num_rows else None)
    print(f"{out}: {', '.join(f'{num} {what}' for what, num in counts.items())}")
    print(f"Use it with --prompts.captions {out}")


def finetune(words: list[str]) -> None:
    """Teaches a causal language model the original's format from triplets."""
    config = parse(FinetuneConfig, words, prog="ip2p prompts finetune", description=USAGES["finetune"])
    from ip2p.prompts.finetune import finetune as teach

    found = teach(config)
    print(
        f"{config.output}: held-out loss {found.held_out[0]:.3f} before, {min(found.held_out):.3f} after "
        f"{found.best_epoch} epochs ({found.num_trained} triplets, {found.num_held_out} held out)"
    )
    print(f"Use it with --prompts.backend causal_lm --prompts.model {config.output}")


def _two_places(words: list[str], kind: str) -> tuple[str, str]:
    places = [words.pop(0) for _ in range(2) if words and not words[0].startswith("-")]
    if len(places) < 2:
        raise ValueError(f"`ip2p prompts {kind}` needs two places. Write: {USAGES[kind]}")
    _check_nothing_left(words, kind)
    return places[0], places[1]


def _check_nothing_left(words: list[str], kind: str) -> None:
    if words:
        raise ValueError(f"{words[0]!r} was not expected. Write: {USAGES[kind]}")


def _take_short(words: list[str]) -> str | None:
    """Removes `-n N` and returns N."""
    if "-n" not in words:
        return None
    place = words.index("-n")
    found = words[place : place + 2]
    del words[place : place + 2]
    return found[1] if len(found) == 2 else ""


def _whole(text: str) -> int:
    if not text.isdigit() or int(text) < 1:
        raise ValueError(f"a number takes whole values from 1 on, got {text or 'nothing'}.")
    return int(text)


def _read_mapping(text: str | None) -> dict[str, str] | None:
    """`original_prompt=a,edit_prompt=b,edited_prompt=c` to a mapping. ValueError where a text has no column."""
    if text is None:
        return None
    from ip2p.prompts.captions import ALIASES

    found = dict(part.split("=", 1) for part in text.split(",") if "=" in part)
    unknown = [name for name in found if name not in (*ALIASES, "edit_type")]
    if unknown or any(name not in found for name in ALIASES) or text.count("=") != len(text.split(",")):
        raise ValueError(f"--columns takes ours=theirs,… with {', '.join(ALIASES)} and perhaps edit_type; got {text}.")
    return found

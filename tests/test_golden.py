"""Holds what a run makes, its fingerprints, the flags and the saved configs to the values in golden.json.

`python -m tests.test_golden --write` writes them again, which is right only if a change of behaviour is intended.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import PIL
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from ip2p import __version__
from ip2p.cli import main
from ip2p.config import (
    BenchmarkConfig,
    EvaluationConfig,
    FinetuneConfig,
    PipelineConfig,
    PromptsConfig,
    ServerConfig,
    TrainingConfig,
    TrainingJob,
    fingerprint,
    to_dict,
)

# The only inner places that golden values are read through; whoever moves one changes it here.
from ip2p.config.fields import OMIT_IF_EMPTY
from ip2p.config.files import read_config
from ip2p.presets import PRESETS
from ip2p.prompts.answers import _fingerprint as answers_fingerprint
from ip2p.prompts.shards import _fingerprint as triplets_fingerprint
from ip2p.records import content_hash
from ip2p.training import training_fingerprint
from ip2p.training.flags import parse as parse_training
from tests import golden

FILE = Path(__file__).with_name("golden.json")
SHAPES = "data/shapes"
RUN_WORDS = f"""
--prompts.captions {SHAPES}/captions.txt --prompts.model {SHAPES}/language-model --prompts.dtype float32
--prompts.num-captions 24 --prompts.shard-size 12 --prompts.num-triplets-per-caption 2
--rendering.model {SHAPES}/stable-diffusion --rendering.dtype float32 --scoring.clip-model {SHAPES}/clip
--dataset.test-fraction 0.5
--training.pretrained-model-name-or-path {SHAPES}/stable-diffusion --training.mixed-precision no
--training.max-train-steps 8 --training.lr-warmup-steps 2 --training.checkpointing-steps 4 --training.log-every 1
--evaluation.judge-clip-model {SHAPES}/judge --evaluation.num-edits 7 --evaluation.num-sweep-edits 3
--evaluation.image-guidance-scales 1.0 2.0 --evaluation.sdedit-strengths 0.5
--evaluation.num-grid-edits 1 --evaluation.grid-guidance-scales 2.0 --evaluation.grid-image-guidance-scales 1.5
""".split()
"""The default at a small size, on models named by relative paths, so that no fingerprint depends on the machine."""

SCORE, COLOUR, LOSS, FIGURE = 1e-3, 1.0, 2e-3, 0.01
"""How far scores, mean colours (of 255), losses and figures may differ between processors."""


@functools.cache
def load() -> dict[str, Any]:
    """All golden values."""
    values: dict[str, Any] = json.loads(FILE.read_text())
    return values


def same_libraries() -> bool:
    """Whether the libraries that write files are those the golden bytes were written with."""
    return bool(load()["libraries"] == libraries())


def libraries() -> dict[str, str]:
    return {"pyarrow": pa.__version__, "pillow": PIL.__version__}


def check(found: Any, part: str, tolerance: float = 0.0, *, more: bool = False) -> None:
    """Fails with every place where a value is not the golden one of a part such as `run/tree`."""
    expected = functools.reduce(lambda value, name: value[name], part.split("/"), load())
    plain = json.loads(json.dumps(found))
    lines = golden.mismatches(plain, expected, tolerance, part, more=more)
    assert not lines, f"{len(lines)} places differ:\n" + "\n".join(lines[:20])


# --- a run of the default -------------------------------------------------------------------------------------------


def make_run(folder: Path, threads: int = 1) -> Path:
    """A run by the command, in a process of its own."""
    free = {name: value for name, value in os.environ.items() if not name.startswith("PREFECT_")}
    environment = free | {"OMP_NUM_THREADS": str(threads), "XDG_CACHE_HOME": str(folder / "cache")}
    code = "import sys; from ip2p.cli import main; sys.exit(main())"
    words = [sys.executable, "-c", code, "run", "shapes", *RUN_WORDS, "--out", str(folder / "run")]
    done = subprocess.run(words, cwd=golden.ROOT, env=environment, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stderr[-4000:]
    return folder / "run"


def observe_run(run: Path) -> dict[str, Any]:
    """All that is held of a run."""
    triplets, candidates, pairs = (golden.rows(run, stage) for stage in ("triplets", "candidates", "pairs"))
    figures = golden.timeless(json.loads((run / "evaluation" / "figures.json").read_text()))
    summary = golden.timeless(json.loads((run / "summary.json").read_text()))
    page = (run / "report" / "index.html").read_text()
    return {
        "tree": golden.tree(run),
        "schemas": golden.schemas(run),
        "answers": golden.rows(run, "answers"),
        "triplets": triplets,
        "candidates": candidates,
        "pairs": [{name: row[name] for name in ("triplet_id", "candidate", *golden.IMAGES)} for row in pairs],
        "dataset": [(row["triplet_id"], row["candidate"]) for row in golden.rows(run, "dataset/data")],
        "edits": observe_edits(run),
        "loss": [golden.timeless(row) for row in golden.json_lines(run / "training" / "loss.jsonl")],
        "validation": [golden.timeless(row) for row in golden.json_lines(run / "training" / "validation.jsonl")],
        "figures": figures,
        "summary": {name: value for name, value in summary.items() if name != "evaluation"},
        "summarised_figures": figures == summary["evaluation"],
        "json": observe_json(run),
        "sidecars": observe_sidecars(run),
        "report_sections": re.findall(r'<section id="([^"]+)"', page),
        "config": observe_config(run),
    }


def observe_edits(run: Path) -> dict[str, Any]:
    """The pictures of every part of the evaluation, and their measures."""
    found = {}
    for path in sorted((run / "evaluation" / "edits").glob("*.parquet")):
        edits = [golden.plain(row) for row in pq.read_table(path).to_pylist()]
        measures = pq.read_table(run / "evaluation" / "parts" / path.name)
        found[path.stem] = {
            "edits": [{name: row[name] for name in ("case", "seed", "edited_image")} for row in edits],
            "measures": measures.column_names,
        }
    return found


def observe_json(run: Path) -> dict[str, Any]:
    """Keys of the JSON files that say what is done."""
    names = ("completed.json", "dataset/manifest.json", "training/finished.json", "training/checkpoint-8/state.json")
    return {name: keys_of(json.loads((run / name).read_text())) for name in names}


def keys_of(value: Any) -> Any:
    """Keys of nested mappings; of a list those of its first item."""
    if isinstance(value, dict):
        return {key: keys_of(one) for key, one in value.items()}
    if isinstance(value, list):
        return [keys_of(value[0])] if value else []
    return None


def observe_sidecars(run: Path) -> dict[str, Any]:
    """Rows and counts of every shard; the fingerprints of those that no processor has a say in."""
    found = {}
    for stage in ("answers", "triplets", "candidates", "pairs", "evaluation/edits", "evaluation/parts"):
        for path, sidecar in golden.sidecars(run, stage):
            value = {"keys": sorted(sidecar), "rows": sidecar["rows"], "counts": sidecar["counts"]}
            if stage in ("answers", "triplets"):
                value["fingerprint"] = sidecar["fingerprint"]
            if stage == "evaluation/edits" and not path.name.startswith("model-"):
                value["fingerprint"] = sidecar["fingerprint"]
            found[f"{stage}/{path.name}"] = value
    return found


def observe_config(run: Path) -> dict[str, Any]:
    """The run's settings and the training's, and what they say of the surroundings."""
    settings, job = (json.loads((run / name).read_text()) for name in ("config.json", "training/config.json"))
    environment = settings.pop("environment")
    values = {"settings": settings, "job": job, "environment": keys_of(environment)}
    return dict(golden.without_paths(values, {"RUN": run}))


@pytest.fixture(scope="session")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of the default at a small size."""
    return make_run(tmp_path_factory.mktemp("golden"))


@pytest.fixture(scope="session")
def observed(run: Path) -> dict[str, Any]:
    """What is held of it."""
    return observe_run(run)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("part", "tolerance"),
    [
        ("tree", 0.0),
        ("schemas", 0.0),
        ("answers", 0.0),
        ("triplets", 0.0),
        ("candidates", SCORE),
        ("pairs", COLOUR),
        ("dataset", 0.0),
        ("edits", COLOUR),
        ("loss", LOSS),
        ("validation", LOSS),
        ("figures", FIGURE),
        ("summary", FIGURE),
        ("summarised_figures", 0.0),
        ("json", 0.0),
        ("sidecars", 0.0),
        ("report_sections", 0.0),
        ("config", 0.0),
    ],
)
def test_a_run_makes_what_it_made_before(observed: dict[str, Any], part: str, tolerance: float) -> None:
    check(observed[part], f"run/{part}", tolerance)


@pytest.mark.slow
def test_fingerprints_of_a_run_are_hashes_of_what_they_always_were(run: Path) -> None:
    """Rebuilds each from the files beside it: so a run folder made before is still done."""
    config = read_config(run / "config.json")
    assert found_fingerprints(run) == expected_fingerprints(run, config)


def found_fingerprints(run: Path) -> dict[str, str]:
    """Those that the run's files name."""
    found = {}
    for stage in ("candidates", "pairs"):
        for path, sidecar in golden.sidecars(run, stage):
            found[f"{stage}/{path.name}"] = sidecar["fingerprint"]
            found[f"{stage}/{path.name} scores"] = sidecar["extra"]["scores_from"]
    for stage in ("evaluation/parts", "evaluation/oracle"):
        found |= {f"{stage}/{path.name}": sidecar["fingerprint"] for path, sidecar in golden.sidecars(run, stage)}
    found["scores"] = json.loads((run / "evaluation" / "scores.parquet.json").read_text())["fingerprint"]
    found["dataset"] = json.loads((run / "dataset" / "manifest.json").read_text())["fingerprint"]
    found["training"] = json.loads((run / "training" / "finished.json").read_text())["fingerprint"]
    found["checkpoint"] = json.loads((run / "training" / "checkpoint-8" / "state.json").read_text())["fingerprint"]
    (cache,) = (path.name for path in (run / "training" / "cache").iterdir() if path.name != "held-out")
    completed = json.loads((run / "completed.json").read_text())["pipeline"]
    return found | {"cache": cache, **{f"completed {name}": value for name, value in completed.items()}}


def expected_fingerprints(run: Path, config: PipelineConfig) -> dict[str, str]:
    """The same by the rules that they were made by from the first."""
    digests = {stage: [each["sha256"] for _, each in golden.sidecars(run, stage)] for stage in STAGES}
    expected = {}
    for number, triplets in enumerate(digests["triplets"]):
        for stage in ("candidates", "pairs"):
            name = f"{stage}/part-{number:05d}.parquet.json"
            expected[name], expected[f"{name} scores"] = candidates_fingerprints(config, triplets)
        judged = fingerprint(config.evaluation.domain, digests["pairs"][number])
        expected[f"evaluation/oracle/part-{number:05d}.parquet.json"] = judged
    for path, edits in golden.sidecars(run, "evaluation/edits"):
        expected[f"evaluation/parts/{path.name}"] = fingerprint(edits["sha256"], measure_identities(config))
    names = json.loads((run / "evaluation" / "scores.parquet.json").read_text())
    assert names["rows"] == sum(each["rows"] for _, each in golden.sidecars(run, "evaluation/parts"))
    expected["scores"] = fingerprint([(name, digest_of_part(run, name)) for name in parts_in_order(run)])
    expected["dataset"] = dataset_fingerprint(config, [digests[stage] for stage in STAGES])
    data = sorted((run / "dataset" / "data").glob("train-*.parquet"))
    base = golden.model_files_fingerprint(golden.ROOT / config.training.pretrained_model_name_or_path)
    pairs = golden.files_fingerprint(data)
    expected["checkpoint"] = fingerprint(training_knobs(config.training), base, pairs)
    expected["training"] = fingerprint(expected["checkpoint"], config.training.max_train_steps)
    columns = ["original_image", "edited_image", "edit_prompt"]
    content = fingerprint(pairs, columns, sum(pq.read_metadata(path).num_rows for path in data))
    views = (config.training.resolution, config.training.random_flip, "torch.float32", 2)
    vae = (config.training.pretrained_vae_model_name_or_path, config.training.vae_precision)
    balanced = ["row numbers"] if config.training.balance_column else []
    expected["cache"] = fingerprint(content, base, *vae, *views, *balanced)
    expected["completed asked"] = asked(config, __version__)["pipeline"]
    expected["completed inputs"] = content_hash(*inputs_of(config))
    return expected | {"completed results": content_hash(*results_of(run))}


STAGES = ("triplets", "candidates", "pairs")
FREE_OF_TRAINING = (
    *("pretrained_model_name_or_path", "checkpointing_steps", "checkpoints_total_limit", "log_every", "report_to"),
    *("dataloader_num_workers", "streaming", "offload_ema", "launch_args", "num_validation_images"),
    *("validation_steps", "validation_epochs", "validation_file", "val_image_url_or_path", "validation_prompt"),
    "num_validation_pairs",
)


def candidates_fingerprints(config: PipelineConfig, triplets: str) -> tuple[str, str]:
    scores = fingerprint(triplets, replace(config.rendering, keep_rejected_images=False), config.scoring)
    return fingerprint(scores, config.filtering, config.rendering.keep_rejected_images), scores


def dataset_fingerprint(config: PipelineConfig, digests: Sequence[Sequence[str]]) -> str:
    return fingerprint("dataset", 1, config.dataset, config.rendering, config.filtering, digests)


def measure_identities(config: PipelineConfig) -> list[str]:
    knobs = config.evaluation
    judge = fingerprint("clip", knobs.judge_clip_model, knobs.judge_clip_pretrained)
    return [fingerprint("oracle", knobs.domain), judge, fingerprint("change", 12, 0.1), fingerprint("truth")]


def parts_in_order(run: Path) -> list[str]:
    """The parts of an evaluation in the order of its table of scores."""
    table = pq.read_table(run / "evaluation" / "scores.parquet", columns=["model", "kind", *SETTING]).to_pylist()
    return list(dict.fromkeys(part_name(row) for row in table))


SETTING = ("guidance_scale", "image_guidance_scale", "strength")


def part_name(row: dict[str, Any]) -> str:
    """A part's file after its setting; all are of one slice here."""
    setting = f"t{row['guidance_scale']:g}-i{row['image_guidance_scale']:g}"
    setting = setting if row["strength"] is None else f"s{row['strength']:g}"
    return f"{row['model']}-{row['kind']}-{setting}-00000"


def digest_of_part(run: Path, name: str) -> str:
    return str(json.loads((run / "evaluation" / "parts" / f"{name}.parquet.json").read_text())["sha256"])


def training_knobs(config: TrainingConfig) -> dict[str, Any]:
    later = [each for each in fields(TrainingConfig) if OMIT_IF_EMPTY.items() <= each.metadata.items()]
    unset = [each.name for each in later if getattr(config, each.name) == each.default]
    free = {*FREE_OF_TRAINING, *unset, *(["max_train_steps"] if config.lr_scheduler.startswith("constant") else [])}
    return {each.name: getattr(config, each.name) for each in fields(TrainingConfig) if each.name not in free}


def asked(config: PipelineConfig, version: str, data: str | None = None) -> dict[str, str]:
    """What `completed.json` compares of each of the three uses."""
    made = (
        config.prompts,
        config.rendering,
        config.scoring,
        config.filtering,
        config.dataset,
        config.evaluation.domain,
    )
    trained = (config.training, config.evaluation, config.scoring)
    uses = {"dataset": made, "training": trained, "pipeline": (*made, *trained)}
    return {use: fingerprint(version, *parts, data) for use, parts in uses.items()}


def inputs_of(config: PipelineConfig) -> list[object]:
    """The files that a run reads, relative to where it was started."""
    prompts, scoring, evaluation = config.prompts, config.scoring, config.evaluation
    names: list[str | None] = [
        prompts.captions,
        prompts.examples,
        prompts.model,
        config.rendering.model,
        scoring.clip_model,
    ]
    names += [config.training.pretrained_model_name_or_path, scoring.clip_model, evaluation.judge_clip_model]
    paths = [Path(name) for name in (*names, evaluation.data) if name]
    files = [one for path in paths for one in (sorted(path.rglob("*")) if path.is_dir() else [path])]
    return signature(files)


def results_of(run: Path) -> list[object]:
    free = [run / name for name in ("config.json", "summary.json", "completed.json", "run.log", "made_from.json")]
    return signature([path for path in sorted(run.rglob("*")) if path not in free])


def signature(paths: Sequence[Path]) -> list[object]:
    stats = [(path, path.stat()) for path in paths if path.is_file()]
    return [one for path, stat in stats for one in (path, stat.st_size, stat.st_mtime_ns)]


# --- an import ------------------------------------------------------------------------------------------------------


def make_import(folder: Path) -> Path:
    """Twelve drawn pairs, imported."""
    lines = []
    for number in range(12):
        images = {
            name: {"bytes": golden.drawn_png(2 * number + side), "path": None}
            for side, name in enumerate(golden.IMAGES)
        }
        original, edited = f"a scene {number // 2}", f"another scene {number}"
        lines.append(
            {"original_prompt": original, "edit_prompt": f"make it {number}", "edited_prompt": edited, **images}
        )
    (folder / "source").mkdir(parents=True)
    pq.write_table(pa.Table.from_pylist(lines), folder / "source" / "train.parquet")
    words = ["--dataset.test-fraction", "0.3", "--dataset.rows-per-shard", "5"]
    assert main(["dataset", "import", str(folder / "source"), str(folder / "run"), *words]) == 0
    return folder / "run"


def observe_import(run: Path) -> dict[str, Any]:
    """The dataset's content, layout and bytes, and the fingerprints on the way to it."""
    files = sorted((run / "dataset" / "data").glob("*.parquet"))
    manifest = json.loads((run / "dataset" / "manifest.json").read_text())
    return {
        "rows": {path.name: [exact(row) for row in pq.read_table(path).to_pylist()] for path in files},
        "layout": {path.name: layout(path) for path in files},
        "schemas": golden.schemas(run),
        "tree": golden.tree(run),
        "counts": golden.timeless(manifest["counts"]),
        "card": card_keys(run / "dataset" / "README.md"),
        "sidecars": {
            f"{stage}/{path.name}": {"rows": each["rows"], "counts": each["counts"]}
            for stage in STAGES
            for path, each in golden.sidecars(run, stage)
        },
        "bytes": {
            **{str(path.relative_to(run)): golden.sha256(path.read_bytes()) for path in files},
            **{
                f"{stage} fingerprint": each["fingerprint"]
                for stage in STAGES
                for _, each in golden.sidecars(run, stage)
            },
            "dataset fingerprint": manifest["fingerprint"],
        },
    }


def exact(row: dict[str, Any]) -> dict[str, Any]:
    images = {name: {**row[name], "bytes": golden.sha256(row[name]["bytes"])} for name in golden.IMAGES}
    return row | images


def layout(path: Path) -> dict[str, Any]:
    """How a parquet file is laid out, and what its metadata says."""
    with pq.ParquetFile(path) as file:
        metadata = {key.decode(): value.decode() for key, value in (file.schema_arrow.metadata or {}).items()}
        more = sorted(key.decode() for key in file.metadata.metadata or {})
        group = file.metadata.row_group(0)
        columns = [group.column(number) for number in range(group.num_columns)]
        return {
            "metadata": metadata,
            "file_metadata": more,
            "row_groups": file.num_row_groups,
            "compression": {one.path_in_schema: one.compression for one in columns},
        }


def card_keys(path: Path) -> Any:
    """What the front matter of a dataset card says."""
    import yaml

    front: Any = yaml.safe_load(path.read_text().split("---\n")[1])
    for split in front["dataset_info"]["splits"]:
        split.pop("num_bytes")
    return {**front, "dataset_info": {**front["dataset_info"], "download_size": None, "dataset_size": None}}


@pytest.fixture(scope="session")
def imported(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What is held of an import."""
    return observe_import(make_import(tmp_path_factory.mktemp("golden")))


@pytest.mark.parametrize("part", ["rows", "layout", "schemas", "tree", "counts", "card", "sidecars", "bytes"])
def test_a_dataset_of_drawn_pictures_is_written_as_it_was(part: str, imported: dict[str, Any]) -> None:
    if part == "bytes" and not same_libraries():
        pytest.skip("other libraries write other bytes")
    check(imported[part], f"import/{part}")


# --- fingerprints of configs ----------------------------------------------------------------------------------------

CAPTIONS = ("a red circle", "two blue squares on a table")
SERVER = ServerConfig(base_url="http://127.0.0.1:1/v1", response_format="json_schema")


def config_variants(base: PipelineConfig) -> dict[str, PipelineConfig]:
    """A preset and what a setting or two make of it."""
    prompts, training = base.prompts, base.training
    screening = replace(prompts.screening, near_duplicate=0.8, language=None)  # type: ignore[arg-type]
    return {
        "as it is": base,
        "server": replace(base, prompts=replace(prompts, backend="server", server=SERVER)),
        "template": replace(base, prompts=replace(prompts, backend="template", screening=screening)),
        "pruned": replace(
            base,
            rendering=replace(base.rendering, first_look_steps=4, keep_rejected_images=False, batch_size=1),
            training=replace(training, lr_scheduler="constant", use_lora=True),
        ),
    }


def observe_fingerprints(preset: dict[str, Any]) -> dict[str, Any]:
    """Every hash that depends on settings alone, of a preset whose data folder has no path."""
    return {name: config_fingerprints(one) for name, one in config_variants(read_values(preset)).items()}


def config_fingerprints(config: PipelineConfig) -> dict[str, Any]:
    sections = {each.name: fingerprint(getattr(config, each.name)) for each in fields(config) if each.name != "out"}
    candidates, scores = candidates_fingerprints(config, "0" * 64)
    return {
        "sections": sections,
        "answers": answers_fingerprint(config, CAPTIONS),
        "triplets": triplets_fingerprint(config, CAPTIONS, []),
        "triplets after others": triplets_fingerprint(config, CAPTIONS, [(Path("part-00000.parquet"), "1" * 64)]),
        "candidates": candidates,
        "scores": scores,
        "dataset": dataset_fingerprint(config, [["a"], ["b"], ["c"]]),
        "training": training_fingerprint(config.training, "owner/pairs"),
        "asked": asked(config, "0.1.0"),
        "asked of data": asked(config, "0.1.0", "owner/pairs"),
    }


def read_values(values: dict[str, Any]) -> PipelineConfig:
    """A saved config, read back."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "config.json"
        path.write_text(json.dumps(values))
        return read_config(path)


@pytest.mark.parametrize("name", list(PRESETS))
def test_fingerprints_of_a_preset_are_those_of_its_earlier_runs(name: str) -> None:
    check(observe_fingerprints(golden.preset_dict(PRESETS[name]())), f"fingerprints/{name}")


def test_training_without_a_fixed_length_may_be_made_longer_under_the_same_checkpoint() -> None:
    config = config_variants(PRESETS["sd15"]())["pruned"]
    longer = replace(config.training, max_train_steps=(config.training.max_train_steps or 0) + 1)
    assert training_knobs(config.training) == training_knobs(longer)
    assert training_fingerprint(config.training, "owner/pairs") != training_fingerprint(longer, "owner/pairs")


# --- saved configs --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", list(PRESETS))
def test_a_preset_is_what_it_was_and_reads_back_equal(name: str) -> None:
    preset = PRESETS[name]()
    check(golden.preset_dict(preset), f"configs/{name}", more=True)
    assert read_values(to_dict(preset)) == preset


def test_presets_have_their_names() -> None:
    assert set(load()["configs"]) - {"saved by an earlier version"} <= set(PRESETS)


def test_a_config_that_an_earlier_version_saved_means_the_same() -> None:
    saved = load()["configs"]["saved by an earlier version"]
    settings = {name: value for name, value in saved.items() if name != "environment"}
    assert not golden.mismatches(to_dict(read_values(saved)), settings, more=True)
    assert read_values(saved) == read_values(settings)


# --- the command line -----------------------------------------------------------------------------------------------

UNKNOWN = "--certainly-no-flag"


def observe_settings() -> dict[str, Any]:
    """The settings and their defaults: each is a flag."""
    job = parse_training(["--train_data_dir", "PAIRS"])
    return {
        "PipelineConfig": to_dict(PipelineConfig()),
        "BenchmarkConfig": to_dict(BenchmarkConfig(source="SOURCE", models=("M",))),
        "FinetuneConfig": to_dict(FinetuneConfig(model="M", triplets="T", output=Path("O"))),
        "EvaluationConfig": to_dict(EvaluationConfig()),
        "PromptsConfig": to_dict(PromptsConfig()),
        "TrainingConfig": to_dict(TrainingConfig()),
        "TrainingJob": to_dict(TrainingJob(train_data_dir="PAIRS")),
        "python -m ip2p.training": to_dict(job),
    }


def test_settings_and_their_defaults_are_what_they_were() -> None:
    check(observe_settings(), "commands/settings", more=True)


def flags_of(config: Any, where: str = "", *, ours: str = "-") -> list[str]:
    """A command line that gives every setting of a config at the value it has."""
    words: list[str] = []
    for each in dataclasses.fields(config):
        value, name = getattr(config, each.name), f"{where}{each.name.replace('_', ours)}"
        if dataclasses.is_dataclass(value):
            words += flags_of(value, f"{name}.", ours=ours)
        elif isinstance(value, bool):
            words.append(f"--{name}" if value else f"--{where}no-{each.name.replace('_', ours)}")
        elif isinstance(value, tuple):
            words += [f"--{name}", *(str(one) for one in value)] if plain_tuple(value) else []
        elif not isinstance(value, dict):
            words += [f"--{name}", str(value)]
    return words


def plain_tuple(value: tuple[Any, ...]) -> bool:
    return bool(value) and not any(isinstance(one, tuple) for one in value)


NEW_RUN = ["--runner", "threads", "--workers", "1", "--ray-address", "None"]
"""Short forms that every command takes that starts from a preset."""
ACCEPTED: dict[str, tuple[list[str], list[str]]] = {
    "run": (["run", "shapes"], NEW_RUN),
    "run from a file": (["run", "--config", "CONFIG"], NEW_RUN),
    "dataset": (["dataset", "shapes"], [*NEW_RUN, "--push-to-hub", "owner/name"]),
    "train": (["train", "shapes"], [*NEW_RUN, "--data", "owner/pairs"]),
    "plan": (["plan", "shapes"], [*NEW_RUN, "--triplets", "1,000", "--sample", "5", "--devices", "2"]),
    "evaluate": (["evaluate", "RUN"], ["--data", "owner/pairs"]),
    "refilter": (["refilter", "RUN"], []),
    "report": (["report", "RUN"], []),
    "ablate": (["ablate", "RUN"], ["--variants", "full,tenth"]),
    "serve": (
        ["serve", "shapes"],
        [
            *(*NEW_RUN, "--deployment", "run,dataset", "--cron", "0 3 * * *", "--timezone", "Europe/Berlin"),
            *("--limit", "2", "--port", "4201", "--data", "owner/pairs", "--run", "runs/x"),
        ],
    ),
    "dataset import": (
        ["dataset", "import", "SOURCE", "OUT"],
        ["--columns", "original_image=a", "--split", "train", "--revision", "main", "--score", "yes"],
    ),
    "prompts try": (["prompts", "try", "a red circle", "shapes"], [*NEW_RUN, "-n", "2"]),
}
"""Commands over all settings: how they begin, and the flags of their own."""

OWN: dict[str, list[str]] = {
    "compare RUN RUN": ["--output"],
    "prompts import SOURCE OUT": ["--columns", "--split", "--num-rows", "--revision"],
    "prompts try CAPTION": ["--n"],
}
"""Commands without settings: their flags, each of which takes a value."""

EDIT = (
    "edit in.png instruction out.png --model M --revision main --also a b --seeds 0 1 --guidance-scale 7.5 3 "
    "--image-guidance-scale 1.5 1.2 --num-inference-steps 20 --resolution 64 --batch-size 8 --device auto "
    "--dtype float32 --overwrite"
)
APP = "app --runs runs --model M --device auto --port 7860 --share"
BENCHMARK = "benchmark SOURCE"
FINETUNE = "prompts finetune"
EXPORT = "prompts export RUN OUT --rejected yes"
"""A switch now, which still takes the value that it once needed."""


def error_of(capsys: pytest.CaptureFixture[str], words: Sequence[str]) -> str:
    """The last line of a command that is refused."""
    capsys.readouterr()
    assert main(list(words)) == 2, words
    return capsys.readouterr().err.strip().splitlines()[-1]


def assert_all_known(capsys: pytest.CaptureFixture[str], words: Sequence[str]) -> None:
    """One unknown flag at the end is the only thing that is refused, so that all before it are known."""
    said = error_of(capsys, [*words, UNKNOWN])
    assert UNKNOWN in said, f"{' '.join(words[:3])} …: {said}"


@pytest.fixture
def places(tmp_path: Path) -> dict[str, str]:
    """A run folder that holds a config alone, and the config."""
    run = tmp_path / "run"
    run.mkdir()
    (run / "config.json").write_text(json.dumps(to_dict(PipelineConfig(out=run))))
    names = {name: str(tmp_path / name.lower()) for name in ("SOURCE", "OUT")}
    return {"RUN": str(run), "CONFIG": str(run / "config.json"), **names}


@pytest.mark.parametrize("command", list(ACCEPTED))
def test_a_command_takes_every_setting_and_its_own_flags(
    command: str, places: dict[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    begin, own = ACCEPTED[command]
    settings = flags_of(read_values(load()["commands"]["settings"]["PipelineConfig"]))
    assert len(settings) > 200
    assert_all_known(capsys, [places.get(word, word) for word in begin] + settings + own)


@pytest.mark.parametrize(
    ("words", "kind", "given"),
    [
        (BENCHMARK, "BenchmarkConfig", {"source": "SOURCE", "models": ("M",)}),
        (FINETUNE, "FinetuneConfig", {"model": "M", "triplets": "T", "output": Path("O")}),
    ],
)
def test_other_configs_are_flags_too(
    words: str, kind: str, given: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    config = {"BenchmarkConfig": BenchmarkConfig, "FinetuneConfig": FinetuneConfig}[kind](**given)
    names = {each.name for each in fields(config)}
    assert names >= load()["commands"]["settings"][kind].keys()
    flags = flags_of(config)
    if kind == "BenchmarkConfig":  # its source is the positional alone, without which the flag never worked
        assert flags[:2] == ["--source", "SOURCE"]
        flags = flags[2:]
    assert_all_known(capsys, [*words.split(), *flags])


@pytest.mark.parametrize("words", [EDIT, APP, EXPORT])
def test_edit_app_and_export_take_their_flags(words: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert_all_known(capsys, words.split())


@pytest.mark.parametrize("command", list(OWN))
def test_a_flag_of_a_command_without_settings_asks_for_its_value(
    command: str, capsys: pytest.CaptureFixture[str]
) -> None:
    for flag in OWN[command]:
        said = error_of(capsys, [*command.split(), flag])
        assert flag in said and "unknown" not in said and "not expected" not in said, said


def observe_help() -> dict[str, dict[str, str]]:
    """The defaults that the help of commands with flags of their own tells."""
    return {command: help_defaults(command) for command in ("edit", "app")}


def help_defaults(command: str) -> dict[str, str]:
    """What a command's help says of each flag's default, in a process of its own: help ends one."""
    code = f"from ip2p.cli import main; main(['{command}', '--help'])"
    environment = os.environ | {"COLUMNS": "400"}
    shown = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    found: dict[str, str] = {}
    for part in re.split(r"(?=^\W*--[a-z])", shown.stdout, flags=re.MULTILINE)[1:]:
        flag = re.findall(r"--[a-z-]+", part)[0]
        said = re.findall(r"\((default: [^)]*|required)\)", part)
        found[flag] = said[0] if said else ""
    return found


def test_help_tells_the_defaults_of_edit_and_app() -> None:
    check(observe_help(), "commands/help", more=True)


@pytest.mark.parametrize("word", ["run", "dataset", "prompts", "plan", "train", "evaluate", "benchmark", "refilter"])
def test_every_command_is_there(word: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert "unknown command" not in error_of(capsys, [word])


def test_the_overview_names_all_commands(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == 0
    said = capsys.readouterr().out
    assert all(re.search(rf"^ *{name}\b", said, re.MULTILINE) for name in load()["commands"]["names"])
    assert main(["--version"]) == 0
    assert capsys.readouterr().out.strip() == f"ip2p {__version__}"


@pytest.mark.parametrize("ours", ["-", "_"])
def test_a_training_takes_every_field_as_a_flag_in_both_spellings(ours: str) -> None:
    values = load()["commands"]["settings"]["python -m ip2p.training"]
    job = parse_training(["--train_data_dir", "PAIRS"])
    assert values.keys() <= {each.name for each in fields(job)}
    assert parse_training(flags_of(job, ours=ours)) == job


def test_a_training_takes_the_flags_that_are_no_setting(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "before")
    config = tmp_path / "config.json"
    config.write_text(json.dumps(to_dict(PipelineConfig(training=TrainingConfig(seed=7)))))
    words = ["--config", str(config), "--dataset_name=owner/pairs", "--hub_token", "x", "--local_rank", "0"]
    job = parse_training([*words, "--val_image_url", "picture.png"])
    assert (job.seed, job.data, job.val_image_url_or_path) == (7, "owner/pairs", "picture.png")
    assert os.environ["HF_TOKEN"] == "x"


# --- writing --------------------------------------------------------------------------------------------------------

NAMES = (
    *("run", "dataset", "prompts", "plan", "train", "evaluate", "benchmark"),
    *("refilter", "report", "compare", "ablate", "edit", "app", "serve"),
)


def write(folder: Path) -> None:
    """Writes golden.json from what the present code does."""
    run = observe_run(make_run(folder))
    presets = {name: golden.preset_dict(make()) for name, make in PRESETS.items()}
    saved = golden.without_paths(
        json.loads((folder / "run" / "config.json").read_text()), {"RUNS": folder, "CHECKOUT": golden.ROOT}
    )
    values = {
        "libraries": libraries(),
        "run": run,
        "import": observe_import(make_import(folder / "import")),
        "fingerprints": {name: observe_fingerprints(preset) for name, preset in presets.items()},
        "configs": presets | {"saved by an earlier version": saved},
        "commands": {"names": NAMES, "settings": observe_settings(), "help": observe_help()},
    }
    FILE.write_text(json.dumps(values, indent=1, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    if sys.argv[1:] != ["--write"]:
        sys.exit("python -m tests.test_golden --write writes tests/golden.json anew.")
    with tempfile.TemporaryDirectory() as name:
        write(Path(name))

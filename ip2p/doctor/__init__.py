"""Says in one page what would go wrong before hours are spent: with the machine, a run, data or a model.

The doctor owns no rule. It asks what the stages would ask, without starting anything, and reads headers and a sample.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

from ip2p import store, uses
from ip2p.config import PipelineConfig
from ip2p.config.files import read_run, read_run_data
from ip2p.dataset.write import damaged_files
from ip2p.doctor.findings import Finding, Section, look, size_of
from ip2p.doctor.inputs import cached_model, denoiser_weights, examine_data, examine_model, is_model, native_side
from ip2p.doctor.machine import examine_machine, free_disk, free_memory
from ip2p.explain import explain
from ip2p.plan import disk_for_pairs, disk_for_training, memory_for_training
from ip2p.presets import PRESETS
from ip2p.sources.content import models_of
from ip2p.sources.location import locate
from ip2p.training.data import find_test_files
from ip2p.training.trackers import check_trackers

__all__ = ["Finding", "Section", "examine"]

DEFAULT_PRESET = "shapes"
WAY_OUT = "Give a run folder, a preset, a model folder, parquet, .jsonl or .csv data, or a hub id."


def examine(word: str | None, *, prefect: Callable[[], str], checksums: bool = False) -> list[Section]:
    """Returns what to say about a run folder, a preset, a model or data; about the machine and a preset by default.

    `prefect` names the Prefect server or raises ValueError. With `checksums`, all files of a run folder are read.
    ValueError if the word names nothing.
    """
    if word is None or (word in PRESETS and not Path(word).exists()):
        config = PRESETS[word or DEFAULT_PRESET]()
        return [
            Section("machine", examine_machine(prefect)),
            Section(f"preset {word or DEFAULT_PRESET}", _examine_settings(config, "pipeline", None)),
            *_model_sections(config, "pipeline"),
        ]
    folder = Path(word).expanduser()
    if is_model(folder):
        return [Section(f"model {word}", examine_model(word))]
    if (folder / "config.json").is_file():
        files = [Section("files", _compare_checksums(folder))] if checksums else []
        return [Section("machine", examine_machine(prefect)), *_run_sections(folder), *files]
    location = locate(word, way_out=WAY_OUT)
    if location.kind == "hub" and cached_model(word):
        return [Section(f"model {word}", examine_model(word))]
    return [Section(f"data {word}", examine_data(word))]


def _run_sections(folder: Path) -> list[Section]:
    config, data = read_run(folder), read_run_data(folder)
    if data and not config.training.pretrained_model_name_or_path:  # an import
        return [Section(f"dataset of {folder}", examine_data(str(folder)))]
    use = "training" if data else "pipeline" if config.training.pretrained_model_name_or_path else "dataset"
    sections = [Section(f"run {folder}", _examine_settings(config, use, data)), *_model_sections(config, use)]
    if data:
        sections.append(Section(f"data {data}", examine_data(data, config.training)))
    elif (folder / "dataset").is_dir():
        sections.append(Section(f"dataset of {folder}", examine_data(str(folder), config.training)))
    if use != "dataset":
        for each in config.training.more_data:
            findings = examine_data(each, config.training, is_further=True)
            sections.append(Section(f"training.more_data {each}", findings))
    return [*sections, Section("resuming", _resume(config, use, data))]


def _model_sections(config: PipelineConfig, use: str) -> list[Section]:
    """Returns a section for each model that the use loads, under the first setting that names it."""
    settings: dict[tuple[str, str | None, str | None], str] = {}
    for source in (source for stage in uses.USES[use].work.stages for source in models_of(config, stage)):
        is_place = Path(source.name).expanduser().is_dir() or "/" in source.name  # not a name of open_clip's
        if is_place and not source.part:
            section = getattr(config, source.setting.partition(".")[0])
            settings.setdefault((source.name, getattr(section, "variant", None), source.revision), source.setting)
    return [
        Section(f"{setting} {name}", examine_model(name, variant=variant, revision=revision))
        for (name, variant, revision), setting in settings.items()
    ]


def _examine_settings(config: PipelineConfig, use: str, data: str | None) -> Iterator[Finding]:
    """Yields what the checks of a use say before its start, and what it needs of the disk and of the device."""
    yield from _check(config, use, data)
    if (config.out / "config.json").is_file():
        yield _compare_versions(config.out)
    weights = 0
    if use != "dataset":
        base = config.training
        weights = denoiser_weights(base.pretrained_model_name_or_path, base.revision)
        yield look("trackers", partial(check_trackers, base.report_to))
        if weights:
            yield _memory(config, weights)
        if not (config.evaluation.domain or config.evaluation.data) and data and not find_test_files(data):
            way_out = "Set evaluation.data to held-out pairs."
            yield Finding("warning", "evaluation", f"{data} has no test split, so there is no evaluation. {way_out}")
    need = disk_for_training(config.training, weights)
    if use != "training":
        try:
            need += disk_for_pairs(config, native_side(config.rendering.model, config.rendering.revision) ** 2)
        except ValueError:  # which the checks have said
            return
    yield free_disk(config.out, need)


def _check(config: PipelineConfig, use: str, data: str | None) -> Iterator[Finding]:
    """Yields what each check of a use refuses. Captions elsewhere are not read, since that would copy them."""
    checks = uses.USES[use].work.checks
    if _are_elsewhere(config.prompts.pictures or config.prompts.captions):
        checks = tuple(check for check in checks if check is not uses.check_captions)
    refused = False
    for check in checks:
        finding = look("settings", partial(check, config, {"data": data}))
        if finding.status != "ok":
            refused = True
            yield finding
    if not refused:
        yield Finding("ok", "settings", f"all that `ip2p {uses.USES[use].command}` checks before its start is there")


def _are_elsewhere(captions: str) -> bool:
    try:
        return not locate(captions).is_local
    except ValueError:
        return False


def _compare_versions(folder: Path) -> Finding:
    """Compares the versions of libraries with those that a run was made with."""
    environments = store.read_environments(folder)
    libraries = environments[-1].get("libraries") if environments else None
    now = store.describe_environment()["libraries"]
    if not isinstance(libraries, dict) or not isinstance(now, dict):
        return Finding("ok", "versions", "the run does not say which versions it was made with")
    changed = [f"{name} {old}, now {now.get(name)}" for name, old in libraries.items() if now.get(name) != old]
    if not changed:
        return Finding("ok", "versions", "those that the run was made with")
    way_out = "Resuming mixes them: install the earlier ones, or start in another folder, to compare results."
    return Finding("warning", "versions", f"made with {'; '.join(changed)}. {way_out}")


def _memory(config: PipelineConfig, weights: int) -> Finding:
    import torch

    need, is_gpu = memory_for_training(config.training, weights), torch.cuda.is_available()
    present = torch.cuda.mem_get_info()[1] if is_gpu else free_memory()
    text = (
        f"training takes {size_of(need)} before activations, of {size_of(present)} {'on the GPU' if is_gpu else 'free'}"
    )
    if need <= present or config.training.launch_args:
        return Finding("ok", "memory", text)
    way_out = "Set training.use_lora or training.offload_ema, or shard it: training.launch_args '--config_file fsdp'."
    return Finding("problem", "memory", f"{text}. {way_out}")


def _compare_checksums(folder: Path) -> Iterator[Finding]:
    """Reads every shard and every file of the dataset."""
    shards = [path for path in sorted(folder.rglob("*.parquet")) if store.sidecar_path(path).exists()]
    damaged = [path for path in shards if store.is_damaged(path)] + damaged_files(folder / "dataset")
    for path in damaged:
        way_out = "Remove it and run the same command again, which makes it anew."
        yield Finding("problem", "checksum", f"{path} is not the file that was written. {way_out}")
    if not damaged:
        yield Finding("ok", "checksums", f"{len(shards)} shards and the dataset are as they were written")


def _resume(config: PipelineConfig, use: str, data: str | None) -> Iterator[Finding]:
    """Yields the state of each stage: what the same command would do again, and why."""
    for each in explain(config, use, **({"data": data} if data else {})):
        text = "; ".join((each.state, *each.reasons))
        if each.state == "outdated":
            yield Finding(
                "warning", each.stage, f"{text}. It is made again; to keep it, give another folder with --out."
            )
        else:
            yield Finding("ok", each.stage, text)

"""What results are made from enters their fingerprints by content: one weight of each model is changed in place."""

from __future__ import annotations

import functools
import json
import shutil
from dataclasses import dataclass, replace
from pathlib import Path

import pyarrow as pa
import pytest
import torch
from huggingface_hub import constants
from safetensors.torch import load_file, save_file

from ip2p import prompts, rendering, store, uses
from ip2p.config import PipelineConfig, VlmConfig
from ip2p.dataset import write_dataset
from ip2p.evaluation.measures import Setup, set_up_measures
from ip2p.evaluation.measures.clip import judge_of
from ip2p.evaluation.run import run_editors
from ip2p.explain import StageState, explain
from ip2p.prompts.answers import _fingerprint as answers_fingerprint
from ip2p.prompts.answers import entries_of
from ip2p.prompts.shards import _fingerprint as triplets_fingerprint
from ip2p.rendering.shards import _shard
from ip2p.sources import content
from ip2p.sources.content import NOTE, Source, content_of, digest_of, hub_commit, later_contents, note
from ip2p.training.fingerprints import models_of, training_fingerprint
from tests.golden import drawn_png


@pytest.fixture(autouse=True)
def empty_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A user's cache without a digest."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    forget_digests()
    return tmp_path / "cache"


def forget_digests() -> None:
    """Starts as a new process does."""
    content._digest.cache_clear()
    content._kept_digests.cache_clear()


def change_a_weight(file: Path) -> None:
    """Doubles and shifts one number of a file of weights, in place."""
    weights = load_file(file)
    name = next(name for name, weight in sorted(weights.items()) if weight.is_floating_point() and weight.ndim > 1)
    weights[name].view(-1)[0] = 2 * weights[name].view(-1)[0] + 1
    save_file(weights, file, metadata={"format": "pt"})


def write_weights(file: Path) -> Path:
    """Weights of a model that is not loaded here."""
    file.parent.mkdir(parents=True, exist_ok=True)
    save_file({"0.weight": torch.zeros(2, 2)}, file)
    return file


@dataclass(frozen=True)
class Folder:
    """A run in which each model is a folder of its own, with the training's data."""

    config: PipelineConfig
    data: Path

    @functools.cached_property
    def captions(self) -> Path:
        return Path(self.config.prompts.captions)

    def of(self, setting: str) -> Path:
        section, _, name = setting.rpartition(".")
        value = functools.reduce(getattr, section.split("."), self.config)
        return Path(str(getattr(value, name)))


@pytest.fixture
def folder(tmp_path: Path, tiny_config: PipelineConfig, tiny_sd: Path, tiny_clip: Path, tiny_lm: Path) -> Folder:
    def copy(source: Path, name: str) -> str:
        return str(shutil.copytree(source, tmp_path / "models" / name))

    def invent(name: str, *, file: str = "model.safetensors") -> str:
        return str(write_weights(tmp_path / "models" / name / file).parent)

    config = tiny_config
    config = replace(
        config,
        prompts=replace(config.prompts, model=copy(tiny_lm, "lm")),
        rendering=replace(config.rendering, model=copy(tiny_sd, "sd")),
        scoring=replace(
            config.scoring,
            clip_model=copy(tiny_clip, "clip"),
            dino_model=invent("dino"),
            nsfw_head=f"{invent('nsfw')}/model.safetensors",
        ),
        training=replace(
            config.training,
            pretrained_model_name_or_path=copy(tiny_sd, "base"),
            pretrained_vae_model_name_or_path=copy(tiny_sd / "vae", "vae"),
        ),
        evaluation=replace(
            config.evaluation,
            judge_clip_model=copy(tiny_clip, "judge"),
            vlm=VlmConfig(model=invent("vlm"), backend="local"),
        ),
    )
    data = tmp_path / "pictures"
    data.mkdir()
    (data / "a.png").write_bytes(drawn_png(1))
    (data / "metadata.jsonl").write_text(
        json.dumps({"file_name": "a.png", "edited_image": "a.png", "edit_prompt": "b"})
    )
    return Folder(config, data)


def fingerprints(folder: Folder) -> dict[str, str]:
    """What each result is compared by."""
    config, output = folder.config, store.RunFolder(folder.config.out).training
    triplets = store.RunFolder(config.out).shard("triplets", 0)
    store.write_shard(triplets, pa.table({"triplet_id": ["a"]}), fingerprint="", seconds=0.0)
    entries = entries_of(config, 0)
    editors = run_editors(config)
    setup = Setup(
        knobs=config.evaluation,
        clip=judge_of(config.evaluation, config.scoring),
        folder=config.out,
        notes=config.out,
        dino_model=config.scoring.dino_model,
    )
    measures = {type(measure).__name__: measure.identity for measure in set_up_measures(setup)}
    return {
        "answers": answers_fingerprint(config, [str(entry) for entry in entries]),
        "triplets": triplets_fingerprint(config, entries, []),
        "pairs": _shard(config, 0).fingerprint,
        "training": training_fingerprint(config.training, str(folder.data), output),
        **{name: editors[name].identity for name in ("untrained", "sdedit")},
        **measures,
    }


def note_all(folder: Folder) -> None:
    """Notes the contents as a start does."""
    config = folder.config
    uses.note_models(config, "pipeline")
    note(config.out, content.models_of(config, "prompts"))
    note(store.RunFolder(config.out).training, models_of(config.training))


PROMPTS, PAIRS = {"answers", "triplets"}, {"pairs"}
EDITOR = {"training", "untrained"}
WEIGHTS: dict[str, tuple[str, str, set[str]]] = {
    "language model": ("prompts.model", "model.safetensors", PROMPTS),
    "denoiser": ("rendering.model", "unet/diffusion_pytorch_model.safetensors", PAIRS),
    "autoencoder": ("rendering.model", "vae/diffusion_pytorch_model.safetensors", PAIRS),
    "text encoder": ("rendering.model", "text_encoder/model.safetensors", PAIRS),
    "filter": ("scoring.clip_model", "open_clip_model.safetensors", PAIRS),
    "DINO": ("scoring.dino_model", "model.safetensors", PAIRS | {"DinoMeasure"}),
    "NSFW head": ("scoring.nsfw_head", "", PAIRS),
    "base": ("training.pretrained_model_name_or_path", "unet/diffusion_pytorch_model.safetensors", EDITOR | {"sdedit"}),
    "separate autoencoder": (
        "training.pretrained_vae_model_name_or_path",
        "diffusion_pytorch_model.safetensors",
        EDITOR,
    ),
    "judge": ("evaluation.judge_clip_model", "open_clip_model.safetensors", {"ClipMeasure"}),
    "vision-language judge": ("evaluation.vlm.model", "model.safetensors", {"VlmMeasure"}),
}
"""Each model: its setting, the file that is changed and the results that depend on it."""


@pytest.mark.parametrize("model", WEIGHTS)
def test_one_weight_in_place_changes_the_fingerprints_of_what_is_made_with_it_and_no_others(
    folder: Folder, model: str
) -> None:
    setting, file, dependent = WEIGHTS[model]
    path = folder.of(setting) / file
    before, kept = fingerprints(folder), path.read_bytes()
    note_all(folder)
    assert fingerprints(folder) == before
    change_a_weight(path)
    after = fingerprints(folder)
    assert {name for name in before if after[name] != before[name]} == dependent
    path.write_bytes(kept)
    assert fingerprints(folder) == before


def test_other_captions_change_the_fingerprints_of_what_is_written_about_them(folder: Folder) -> None:
    before = fingerprints(folder)
    folder.captions.write_text(folder.captions.read_text().replace("red", "pink"))
    after = fingerprints(folder)
    assert {name for name in before if after[name] != before[name]} == PROMPTS


def test_pictures_to_train_on_are_told_by_size_and_time(folder: Folder) -> None:
    config, output = folder.config, folder.config.out / "training"
    data = str(folder.data)
    before = training_fingerprint(config.training, data, output)
    note(output, [Source("data", data, is_data=True)])
    assert training_fingerprint(config.training, data, output) == before
    (folder.data / "a.png").write_bytes(drawn_png(2, side=8))
    assert training_fingerprint(config.training, data, output) != before


def make_dataset(config: PipelineConfig) -> None:
    """The stages of `ip2p dataset`, without a server."""
    uses.note_models(config, "dataset")
    uses.write_config(config)
    for number in range(prompts.num_shards(config)):
        prompts.write_shard(config, number)
        rendering.write_shard(config, number)
    write_dataset(config)


@pytest.fixture
def ready(folder: Folder) -> PipelineConfig:
    """A run over ready triplets that needs no model that was invented."""
    lines = [
        {"input": f"a {word} cat", "edit": "make it blue", "output": "a blue cat"} for word in ["red", "big", "old"]
    ]
    triplets = folder.captions.with_suffix(".jsonl")
    triplets.write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    config = folder.config
    return replace(
        config,
        prompts=replace(config.prompts, captions=str(triplets)),
        scoring=replace(config.scoring, dino_model=None, nsfw_head=None),
        evaluation=replace(config.evaluation, vlm=VlmConfig()),
    )


def written(out: Path) -> dict[str, tuple[int, bytes]]:
    """The files of the stages, with when they were written."""
    files = out.rglob("*.parquet*")
    return {str(path.relative_to(out)): (path.stat().st_mtime_ns, path.read_bytes()) for path in files}


def changed(before: dict[str, tuple[int, bytes]], after: dict[str, tuple[int, bytes]]) -> set[str]:
    """The stages with a file that was written again."""
    return {name.split("/")[0] for name in before | after if before.get(name) != after.get(name)}


def test_a_run_renders_again_with_a_changed_denoiser_and_again_as_at_first_with_the_first_one(
    ready: PipelineConfig,
) -> None:
    make_dataset(ready)
    first = written(ready.out)
    make_dataset(ready)
    assert changed(first, written(ready.out)) == set()
    weights = Path(ready.rendering.model) / "unet/diffusion_pytorch_model.safetensors"
    kept = weights.read_bytes()
    change_a_weight(weights)
    make_dataset(ready)
    second = written(ready.out)
    assert changed(first, second) == {"candidates", "pairs", "dataset"}
    assert second["pairs/part-00000.parquet"][1] != first["pairs/part-00000.parquet"][1]
    weights.write_bytes(kept)
    make_dataset(ready)
    third = written(ready.out)
    shards = [name for name in first if name.endswith(".parquet")]
    assert [third[name][1] for name in shards] == [first[name][1] for name in shards]


def test_a_folder_that_noted_nothing_keeps_its_results_and_notes_what_it_meets(ready: PipelineConfig) -> None:
    make_dataset(ready)
    first = written(ready.out)
    (ready.out / NOTE).unlink()
    make_dataset(ready)
    assert changed(first, written(ready.out)) == set()
    noted = store.read_json(ready.out / NOTE)
    model = ready.rendering.model
    assert noted[model] == [content_of(Source("rendering.model", model))]
    assert f"{model}/tokenizer" in noted


def test_a_finished_use_is_not_complete_with_another_model(ready: PipelineConfig) -> None:
    make_dataset(ready)
    uses.record_completion(ready, "dataset")
    assert uses.is_complete(ready, "dataset")
    change_a_weight(Path(ready.rendering.model) / "vae/diffusion_pytorch_model.safetensors")
    assert not uses.is_complete(ready, "dataset")


def test_what_a_start_would_do_is_said_with_the_reasons_and_nothing_is_written(ready: PipelineConfig) -> None:
    stages = ["prompts", "rendering", "dataset"]
    assert explain(ready, "dataset") == [StageState(stage, "missing", ("nothing yet",)) for stage in stages]
    make_dataset(ready)
    before = {path: path.stat().st_mtime_ns for path in ready.out.rglob("*")}
    assert explain(ready, "dataset") == [StageState(stage, "done") for stage in stages]
    slower = replace(ready, rendering=replace(ready.rendering, num_inference_steps=3, device="auto"))
    assert explain(slower, "dataset") == [
        StageState("prompts", "done"),
        StageState("rendering", "outdated", ("num_inference_steps 2 → 3", "0 of 2 shards are done")),
        StageState("dataset", "outdated", ("depends on rendering",)),
    ]
    change_a_weight(Path(ready.prompts.model) / "model.safetensors")
    written_again, *others = explain(ready, "dataset")
    assert written_again.state == "outdated" and written_again.reasons[0] == "the content of prompts.model changed"
    assert [(each.state, each.reasons) for each in others] == [
        ("outdated", ("depends on prompts",)),
        ("outdated", ("depends on rendering",)),
    ]
    assert {path: path.stat().st_mtime_ns for path in ready.out.rglob("*")} == before


def test_a_killed_run_is_unfinished(ready: PipelineConfig) -> None:
    make_dataset(ready)
    store.sidecar_path(store.RunFolder(ready.out).shard("candidates", 1)).unlink()
    states = {each.stage: (each.state, each.reasons) for each in explain(ready, "pipeline")}
    assert states["rendering"] == ("unfinished", ("1 of 2 shards are done",))
    assert states["training"] == states["evaluation"] == ("missing", ("nothing yet",))


def test_a_version_of_a_file_is_read_once_on_a_machine(tmp_path: Path, empty_cache: Path) -> None:
    file = tmp_path / "a.safetensors"
    save_file({"0.weight": torch.zeros(1024, 256)}, file)
    digest = digest_of(file)
    (kept,) = empty_cache.rglob("digests.jsonl")
    kept.write_text(kept.read_text().replace(digest, "kept"))
    forget_digests()
    assert digest_of(file) == "kept"
    change_a_weight(file)
    assert digest_of(file) == store.sha256_of(file)


def test_only_files_that_are_loaded_count(tmp_path: Path) -> None:
    model, source = tmp_path / "m", Source("", str(tmp_path / "m"))
    (model / "old").mkdir(parents=True)
    for name in ("config.json", "vocab.txt", "old/pytorch_model.bin"):
        (model / name).write_text(name)
    write_weights(model / "model.safetensors")
    before = content_of(source)
    for name in ("README.md", "model.bin", ".DS_Store"):
        (model / name).write_text("not loaded")
    assert content_of(source) == before
    (model / "old/pytorch_model.bin").write_text("other")
    assert content_of(source) != before
    later = content_of(source)
    (model / "config.json").write_text("{}")
    assert content_of(source) not in (before, later)


def test_a_hub_model_is_known_by_its_commit_offline_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    reference = tmp_path / "models--owner--name/refs/main"
    reference.parent.mkdir(parents=True)
    model, first = Source("rendering.model", "owner/name"), "a" * 40
    for commit in (first, "b" * 40):
        reference.write_text(commit)
        hub_commit.cache_clear()
        assert content_of(model) == commit
        later = note(tmp_path, [model])
    assert later == later_contents(tmp_path, [model]) == ["b" * 40]
    assert store.read_json(tmp_path / NOTE) == {"owner/name": [first, "b" * 40]}
    assert content_of(replace(model, revision=first)) == first
    for unknown in (Source("", "owner/other"), Source("", "ViT-L-14"), replace(model, part="tokenizer")):
        assert content_of(unknown) is None


def test_a_finished_use_is_not_complete_once_the_hub_has_another_commit(
    tiny_config: PipelineConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    config = replace(tiny_config, rendering=replace(tiny_config.rendering, model="owner/name"))
    reference = tmp_path / "models--owner--name/refs/main"
    reference.parent.mkdir(parents=True)
    reference.write_text("a" * 40)
    hub_commit.cache_clear()
    uses.record_completion(config, "dataset")
    assert uses.is_complete(config, "dataset")
    reference.write_text("b" * 40)
    hub_commit.cache_clear()
    for _ in range(2):  # also once it was noted by a start that was killed
        assert not uses.is_complete(config, "dataset")
        uses.note_models(config, "dataset")


def test_versions_of_earlier_starts_stay_in_the_config(tmp_path: Path) -> None:
    store.write_run_config(tmp_path, {}, None)
    (now,) = store.read_environments(tmp_path)
    assert "earlier" not in now
    older = json.loads(json.dumps(now))
    older["libraries"]["torch"] = "1.0"
    store.write_json(tmp_path / "config.json", {"environment": older})
    for _ in range(2):
        store.write_run_config(tmp_path, {}, None)
        environments = store.read_environments(tmp_path)
        assert [store.versions_of(each)["torch"] for each in environments] == ["1.0", now["libraries"]["torch"]]

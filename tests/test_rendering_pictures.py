"""Pairs from real pictures: what is stored is what is edited, and every guarantee of rendered pairs holds."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from diffusers import StableDiffusionImg2ImgPipeline, StableDiffusionPipeline
from PIL import Image

from ip2p import dataset, prompts, rendering, uses
from ip2p.config import FilteringConfig, PipelineConfig, RenderingConfig, Thresholds, fingerprint, to_dict
from ip2p.config.files import read_config
from ip2p.editing import edit_images, load_editor
from ip2p.images import fit_picture, open_picture, open_pixels
from ip2p.prompts.pictures import read_pictures, target_size
from ip2p.prompts.shards import read_triplets
from ip2p.records import Candidate, EditTriplet, content_hash, hash_picture
from ip2p.rendering.backends import Failure, MakesPairs, backend_of, backends
from ip2p.rendering.candidates import draw_candidates
from ip2p.rendering.table import DrawnPair, EncodedPair, from_row
from ip2p.store import RunFolder, read_sidecar, write_json
from tests.processes import fork, kill, wait_until
from tests.tiny import CAPTIONS

EVERYTHING = Thresholds(original=-1.0, edited=-1.0, direction=-1.0, image=-1.0)


def write_folder(folder: Path, captions: Sequence[str] = CAPTIONS[:3], *, size: tuple[int, int] = (80, 64)) -> Path:
    """Writes noise as pictures, each with its caption beside it."""
    folder.mkdir(exist_ok=True)
    rng = np.random.default_rng(0)
    for number, caption in enumerate(captions):
        Image.fromarray(rng.integers(0, 255, (size[1], size[0], 3), dtype=np.uint8)).save(folder / f"{number}.png")
        if caption:
            (folder / f"{number}.txt").write_text(caption)
    return folder


def as_pictures(config: PipelineConfig, folder: Path, editor: Path, **settings: Any) -> PipelineConfig:
    asked = replace(config.prompts, pictures=str(folder), backend="template", shard_size=3)
    made = replace(config.rendering, backend="editor", model=str(editor), keep_rejected_images=True, **settings)
    return replace(config, prompts=asked, rendering=made)


@pytest.fixture
def config(tiny_config: PipelineConfig, tiny_editor: Path, tmp_path: Path) -> PipelineConfig:
    return as_pictures(tiny_config, write_folder(tmp_path / "pictures"), tiny_editor)


def write(config: PipelineConfig, number: int = 0) -> PipelineConfig:
    prompts.write_shard(config, number)
    rendering.write_shard(config, number)
    return config


def rows_of(config: PipelineConfig, stage: str, number: int = 0) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = pq.read_table(RunFolder(config.out).shard(stage, number)).to_pylist()
    return rows


def test_the_id_of_a_triplet_without_a_picture_is_that_of_its_texts() -> None:
    texts = {"original_prompt": "a", "edit_prompt": "b", "edited_prompt": "c"}
    assert EditTriplet(**texts).id == content_hash("a", "b", "c")
    assert len({EditTriplet(**texts, picture=picture).id for picture in ("", "1", "2")}) == 3


def test_settings_without_pictures_have_the_fingerprint_that_they_always_had() -> None:
    later = {"backend", "image_guidance_scale", "strength"}
    assert not later & to_dict(RenderingConfig()).keys()
    assert "pictures" not in to_dict(PipelineConfig().prompts)
    assert fingerprint(RenderingConfig(backend="editor")) != fingerprint(RenderingConfig())


def test_tables_without_pictures_have_the_columns_that_they_always_had(tiny_config: PipelineConfig) -> None:
    config = write(replace(tiny_config, prompts=replace(tiny_config.prompts, backend="template")))
    later = {"picture", "image_guidance_scale", "strength", "failure"}
    for stage in ("triplets", "candidates", "pairs", "answers"):
        assert not later & set(rows_of(config, stage)[0])
    assert from_row(rows_of(config, "candidates")[0]).candidate.triplet.picture == ""


def test_a_stored_picture_is_the_source_cropped_to_the_maker_s_size(config: PipelineConfig, tmp_path: Path) -> None:
    write(config)
    stored = read_pictures(config.out, 0)
    size = target_size(config.rendering)
    assert size == (64, 64)
    expected = [fit_picture(open_picture(tmp_path / "pictures" / f"{number}.png"), size) for number in range(3)]
    assert [hash_picture(content) for content in stored.values()] == list(stored)
    for content, picture in zip(stored.values(), expected, strict=True):
        assert np.array_equal(open_pixels(content), np.asarray(picture))


def test_the_original_of_a_pair_is_the_stored_file_and_the_edit_is_the_editor_s(config: PipelineConfig) -> None:
    config = write(replace(config, rendering=replace(config.rendering, image_guidance_scale=(1.0, 2.0))))
    stored, pairs = read_pictures(config.out, 0), rows_of(config, "pairs")
    assert len(pairs) == 6
    editor = load_editor(config.rendering.model, "cpu")
    for row in pairs:
        assert row["original_image"]["bytes"] == stored[row["picture"]]
        assert 1.0 <= row["image_guidance_scale"] <= 2.0 and row["p2p"] == 0
        (alone,) = edit_images(
            editor,
            [open_pixels(stored[row["picture"]])],
            [row["edit_prompt"]],
            num_inference_steps=2,
            guidance_scale=row["guidance_scale"],
            image_guidance_scale=row["image_guidance_scale"],
            seeds=[row["seed"]],
        )
        assert np.abs(open_pixels(row["edited_image"]["bytes"]).astype(int) - alone).max() <= 1


def test_an_edit_does_not_depend_on_batch_or_order(config: PipelineConfig) -> None:
    write(config)
    triplets, stored = read_triplets(RunFolder(config.out).shard("triplets", 0)), read_pictures(config.out, 0)
    candidates = [each for triplet in triplets for each in draw_candidates(config.rendering, triplet)]
    backend = backend_of(config.rendering)

    def edits(candidates: Sequence[Candidate], size: int) -> list[np.ndarray]:
        made = backend.make_pairs(replace(config.rendering, batch_size=size), candidates, stored)
        return [pair.edited.astype(int) for pair in made if isinstance(pair, DrawnPair)]

    together, alone, backwards = edits(candidates, 8), edits(candidates, 1), edits(candidates[::-1], 4)[::-1]
    for one, two, three in zip(together, alone, backwards, strict=True):
        assert max(np.abs(one - two).max(), np.abs(one - three).max()) <= 1


def test_any_editing_pipeline_of_diffusers_can_make_pairs(
    config: PipelineConfig, tiny_sd: Path, tmp_path: Path
) -> None:
    parts = StableDiffusionPipeline.from_pretrained(tiny_sd, safety_checker=None).components
    StableDiffusionImg2ImgPipeline(**parts, requires_safety_checker=False).save_pretrained(tmp_path / "foreign")
    config = replace(config, rendering=replace(config.rendering, model=str(tmp_path / "foreign")))
    write(config)
    pipeline = StableDiffusionImg2ImgPipeline.from_pretrained(tmp_path / "foreign")
    for row in rows_of(config, "pairs"):
        with torch.inference_mode():
            expected = pipeline(
                image=open_picture(row["original_image"]["bytes"]),
                prompt=row["edit_prompt"],
                num_inference_steps=2,
                guidance_scale=row["guidance_scale"],
                generator=torch.Generator().manual_seed(row["seed"]),
            ).images[0]
        assert np.array_equal(open_pixels(row["edited_image"]["bytes"]), np.asarray(expected))


def files_of(config: PipelineConfig) -> dict[str, bytes]:
    """Returns the tables of all shards."""
    paths = sorted(config.out.rglob("part-*.parquet"))
    return {str(path.relative_to(config.out)): path.read_bytes() for path in paths}


@pytest.mark.parametrize("lost", ["pictures", "triplets", "candidates", "pairs"])
def test_a_lost_or_damaged_shard_is_made_again_to_the_bit(config: PipelineConfig, lost: str) -> None:
    before = files_of(write(config))
    path = RunFolder(config.out).shard(lost, 0)
    path.write_bytes(path.read_bytes()[:-8])
    assert files_of(write(config)) == before


def make_shards(words: list[str]) -> int:
    """A program that makes all shards of a saved config."""
    config = read_config(Path(words[0]))
    for number in range(prompts.num_shards(config)):
        write(config, number)
    return 0


@pytest.mark.slow
def test_a_run_that_was_killed_ends_as_one_that_was_not(config: PipelineConfig, tmp_path: Path) -> None:
    config = replace(config, prompts=replace(config.prompts, shard_size=1, num_triplets_per_caption=2))
    saved, untouched = tmp_path / "saved.json", replace(config, out=tmp_path / "untouched")
    write_json(saved, to_dict(config))
    child = fork(make_shards, [str(saved)], tmp_path / "log")
    wait_until(lambda: read_sidecar(RunFolder(config.out).shard("candidates", 0)), child)
    kill(child)
    left = files_of(config)
    for each in (config, untouched):
        for number in range(prompts.num_shards(each)):
            write(each, number)
    assert files_of(config) == files_of(untouched) and len(left) < len(files_of(config))


def test_pictures_that_only_were_touched_are_not_asked_about_again(config: PipelineConfig, tmp_path: Path) -> None:
    before = files_of(write(config))
    answers = RunFolder(config.out).shard("answers", 0).stat().st_mtime_ns
    (tmp_path / "pictures" / "0.png").touch()
    assert files_of(write(config)) == before
    assert RunFolder(config.out).shard("answers", 0).stat().st_mtime_ns == answers


def test_another_size_makes_other_pictures_and_pairs(config: PipelineConfig) -> None:
    write(config)
    write(replace(config, rendering=replace(config.rendering, height=32, width=48)))
    assert {open_picture(row["edited_image"]["bytes"]).size for row in rows_of(config, "pairs")} == {(48, 32)}


def test_bad_pictures_cost_only_themselves(
    config: PipelineConfig, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = write_folder(tmp_path / "bad", [*CAPTIONS[:3], CAPTIONS[0], ""])
    (folder / "1.png").write_bytes(b"not a picture")
    (folder / "3.png").write_bytes((folder / "0.png").read_bytes())
    config = replace(config, prompts=replace(config.prompts, pictures=str(folder), shard_size=5))
    with caplog.at_level(logging.WARNING):
        counts = prompts.write_shard(config, 0).counts
    assert (counts["unreadable"], counts["duplicate"], counts["captions"]) == (1, 1, 4)
    assert prompts.summarise(config)["left_out_captions"] == {"no_caption": 1}
    assert "picture 1 of" in caplog.text and "does not decode" in caplog.text
    rendering.write_shard(config, 0)
    assert len({row["picture"] for row in rows_of(config, "pairs")}) == 2


def as_table(folder: Path, path: Path) -> Path:
    rows = [
        {"image": (folder / f"{number}.png").read_bytes(), "text": caption}
        for number, caption in enumerate(CAPTIONS[:3])
    ]
    if path.suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist(rows), path)
        return path
    lines = [{"file_name": f"{folder.name}/{number}.png", "text": row["text"]} for number, row in enumerate(rows)]
    if path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    else:
        path.write_text("file_name,text\n" + "".join(f"{line['file_name']},{line['text']}\n" for line in lines))
    return path


@pytest.mark.parametrize("name", ["pictures.parquet", "pictures.csv", "pictures.jsonl", "metadata.jsonl"])
def test_the_same_pictures_in_any_form_make_the_same_triplets(
    config: PipelineConfig, tmp_path: Path, name: str
) -> None:
    prompts.write_shard(config, 0)
    expected = [each.id for each in read_triplets(RunFolder(config.out).shard("triplets", 0))]
    folder = tmp_path / "pictures"
    if name == "metadata.jsonl":
        folder = folder.rename(tmp_path / "set")
        write_captions = as_table(folder, folder / name)
        write_captions.write_text(write_captions.read_text().replace(f"{folder.name}/", ""))
        source = folder
    else:
        source = as_table(folder, tmp_path / name)
    other = replace(config, out=tmp_path / "other", prompts=replace(config.prompts, pictures=str(source)))
    prompts.write_shard(other, 0)
    assert [each.id for each in read_triplets(RunFolder(other.out).shard("triplets", 0))] == expected


class Failing(MakesPairs):
    """Cannot edit the pictures whose instruction has an even number of letters."""

    name = "editor"

    def __init__(self, real: MakesPairs) -> None:
        self.real, self.asked = real, list[str]()

    def make_pairs(
        self, config: RenderingConfig, candidates: Sequence[Candidate], pictures: Any
    ) -> Iterator[DrawnPair | EncodedPair | Failure]:
        self.asked += [each.triplet.id for each in candidates]
        for candidate, pair in zip(candidates, self.real.make_pairs(config, candidates, pictures), strict=True):
            yield Failure("even") if candidate.spec.seed % 2 else pair


def test_a_candidate_that_cannot_be_made_is_counted_and_not_asked_for_again(
    config: PipelineConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    failing = Failing(backends()["editor"])
    monkeypatch.setitem(backends(), "editor", failing)
    write(config)
    rows, pairs = rows_of(config, "candidates"), rows_of(config, "pairs")
    failed = {(row["triplet_id"], row["candidate"]) for row in rows if row["seed"] % 2}
    assert 0 < len(failed) < len(rows) == 6
    for row in rows:
        is_failed = (row["triplet_id"], row["candidate"]) in failed
        assert (row["reason"], row["failure"]) == (("not_rendered", "even") if is_failed else ("", ""))
    assert {(row["triplet_id"], row["candidate"]) for row in pairs}.isdisjoint(failed)
    assert len(pairs) + len(failed) == 6
    sidecar = read_sidecar(RunFolder(config.out).shard("candidates", 0))
    assert sidecar is not None and sidecar.counts["not_rendered"] == len(failed)
    asked = len(failing.asked)
    strict = replace(config, filtering=FilteringConfig(thresholds=replace(EVERYTHING, direction=0.9)))
    rendering.write_shard(strict, 0)
    rendering.write_shard(config, 0)
    assert len(failing.asked) == asked
    assert [row["reason"] for row in rows_of(config, "candidates")] == [row["reason"] for row in rows]


def test_pairs_that_were_not_kept_are_edited_again(config: PipelineConfig) -> None:
    config = replace(config, rendering=replace(config.rendering, keep_rejected_images=False))
    strict = replace(config, filtering=FilteringConfig(thresholds=replace(EVERYTHING, direction=2.0)))
    write(strict)
    assert rows_of(config, "pairs") == []
    counts = rendering.refilter(config)
    assert counts["accepted"] == len(rows_of(config, "pairs")) == 6


def test_a_picture_is_in_one_split_of_the_dataset(config: PipelineConfig, tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "many", [f"a small red circle on a white background {n}" for n in range(12)])
    config = replace(config, prompts=replace(config.prompts, pictures=str(folder), num_triplets_per_caption=2))
    for number in range(4):
        write(config, number)
    dataset.write_dataset(config)
    splits: dict[str, set[bytes]] = {}
    for path in sorted((config.out / "dataset" / "data").glob("*.parquet")):
        rows = pq.read_table(path).to_pylist()
        originals = {row["original_image"]["bytes"] for row in rows}
        assert all(row["picture"] == hash_picture(row["original_image"]["bytes"]) for row in rows)
        splits.setdefault(path.name.partition("-")[0], set()).update(originals)
    assert set(splits) == {"train", "test"} and splits["train"].isdisjoint(splits["test"])


@pytest.mark.parametrize(
    ("section", "changed", "message"),
    [
        ("prompts", {"pictures": ""}, "edits pictures, and prompts.pictures is not set"),
        ("rendering", {"backend": "p2p"}, "prompts.pictures is set, and rendering.backend p2p renders both"),
        ("rendering", {"strength": (0.1, 0.2)}, "rendering.strength is not read by the backend editor"),
        ("rendering", {"scheduler": "DDIMScheduler"}, "rendering.scheduler is not read by the backend editor"),
        ("rendering", {"model": "/nowhere"}, "rendering.model /nowhere does not exist"),
        ("prompts", {"pictures": "/nowhere"}, "prompts.pictures /nowhere does not exist"),
    ],
)
def test_a_wrong_combination_is_refused_before_any_work(
    config: PipelineConfig, section: str, changed: dict[str, Any], message: str
) -> None:
    wrong = replace(config, **{section: replace(getattr(config, section), **changed)})
    with pytest.raises(ValueError, match=message) as error:
        uses.check_inputs(wrong, "dataset")
    assert "\n" not in str(error.value)

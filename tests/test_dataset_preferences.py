"""Preferences set accepted edits against rejected ones of one original, in the columns of Diffusion-DPO trainers."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from ip2p.cli import main
from ip2p.store import RunFolder

TRIPLETS, CANDIDATES = 6, 4
LOOSE = [f"--filtering.thresholds.{name}=-1" for name in ("original", "edited", "direction", "image")]


def picture(seed: int) -> bytes:
    file = io.BytesIO()
    rough = np.random.default_rng(seed).integers(0, 256, (6, 6, 3), np.uint8)
    Image.fromarray(rough).resize((64, 64)).save(file, "PNG")
    return file.getvalue()


def cell(content: bytes) -> dict[str, Any]:
    return {"bytes": content, "path": None}


def write_run(folder: Path, clip: Path, *, own_originals: bool) -> Path:
    """Imports several edits per triplet, scores them and rejects about half."""
    rows = [
        {
            "original_prompt": f"scene {triplet}",
            "original_image": cell(picture(1000 + 10 * triplet + (number if own_originals else 0))),
            "edit_prompt": f"edit {triplet}",
            "edited_prompt": f"red scene {triplet}",
            "edited_image": cell(picture(10 * triplet + number)),
            "edit_type": "colour",
        }
        for triplet in range(TRIPLETS)
        for number in range(CANDIDATES)
    ]
    folder.mkdir()
    pq.write_table(pa.Table.from_pylist(rows), folder / "train.parquet")
    out = folder / "run"
    models = ["--scoring.clip-model", str(clip), "--scoring.clip-pretrained", "None", "--scoring.device", "cpu"]
    words = ["dataset", "import", str(folder / "train.parquet"), str(out), "--score", *models, *LOOSE]
    assert main([*words, "--dataset.test-fraction", "0.3"]) == 0
    middle = float(np.median([row["clip_image"] for row in pairs_of(out)]))
    assert main(["refilter", str(out), f"--filtering.thresholds.image={middle}"]) == 0
    return out


def pairs_of(out: Path) -> list[dict[str, Any]]:
    return [row for path in RunFolder(out).shards("pairs") for row in pq.read_table(path).to_pylist()]


def preferences(folder: Path) -> dict[str, list[dict[str, Any]]]:
    files = sorted((folder / "data").glob("*.parquet"))
    return {path.name.partition("-")[0]: pq.read_table(path).to_pylist() for path in files}


@pytest.fixture(scope="module")
def one_original(tmp_path_factory: pytest.TempPathFactory, tiny_clip: Path) -> Path:
    return write_run(tmp_path_factory.mktemp("preferences") / "one", tiny_clip, own_originals=False)


@pytest.fixture(scope="module")
def several_originals(tmp_path_factory: pytest.TempPathFactory, tiny_clip: Path) -> Path:
    return write_run(tmp_path_factory.mktemp("preferences") / "several", tiny_clip, own_originals=True)


def test_each_row_is_an_accepted_edit_against_a_rejected_one_of_the_same_original(
    one_original: Path, tmp_path: Path
) -> None:
    assert main(["dataset", "preferences", str(one_original), "--out", str(tmp_path / "out")]) == 0
    pairs = {f"{row['triplet_id']}-{row['candidate']}": row for row in pairs_of(one_original)}
    split_of = {row["triplet_id"]: name for name, rows in dataset_of(one_original).items() for row in rows}
    seen: list[str] = []
    found = preferences(tmp_path / "out")
    for split, rows in found.items():
        for row in rows:
            best = row["best_image_uid"]
            assert {row["label_0"], row["label_1"]} == {0.0, 1.0}
            for place in (0, 1):
                pair = pairs[row[f"image_{place}_uid"]]
                assert row[f"jpg_{place}"] == pair["edited_image"]["bytes"]
                assert row["original_image"]["bytes"] == pair["original_image"]["bytes"]
                assert row["caption"] == pair["edit_prompt"] and row["triplet_id"] == pair["triplet_id"]
                assert pair["accepted"] == (row[f"label_{place}"] == 1.0) == (row[f"image_{place}_uid"] == best)
                seen.append(row[f"image_{place}_uid"])
            assert row["reason"] == "low_image" and split_of[row["triplet_id"]] == split
    assert len(seen) == len(set(seen)) > 0
    by_triplet: dict[str, list[bool]] = {}
    for pair in pairs.values():
        by_triplet.setdefault(pair["triplet_id"], []).append(pair["accepted"])
    expected = sum(min(sum(verdicts), len(verdicts) - sum(verdicts)) for verdicts in by_triplet.values())
    assert len(seen) == 2 * expected
    assert {row["label_0"] for rows in found.values() for row in rows} == {0.0, 1.0}  # either side may be the better


def dataset_of(out: Path) -> dict[str, list[dict[str, Any]]]:
    files = sorted((out / "dataset" / "data").glob("*.parquet"))
    return {path.name.partition("-")[0]: pq.read_table(path).to_pylist() for path in files}


def test_edits_of_different_originals_are_compared_on_request_each_with_its_own(
    several_originals: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["dataset", "preferences", str(several_originals), "--out", str(tmp_path / "out")]
    assert main(words) == 2
    assert "can be compared with --own-originals" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
    assert main([*words, "--own-originals"]) == 0
    pairs = {f"{row['triplet_id']}-{row['candidate']}": row for row in pairs_of(several_originals)}
    rows = [row for some in preferences(tmp_path / "out").values() for row in some]
    assert rows
    for row in rows:
        assert row["image_0_uid"].partition("-")[0] == row["image_1_uid"].partition("-")[0]
        for place in (0, 1):
            pair = pairs[row[f"image_{place}_uid"]]
            assert row[f"original_image_{place}"]["bytes"] == pair["original_image"]["bytes"]


def test_writing_again_gives_the_same_files_and_datasets_opens_them(one_original: Path, tmp_path: Path) -> None:
    from datasets import load_dataset

    for _ in range(2):
        assert main(["dataset", "preferences", str(one_original), "--out", str(tmp_path / "a")]) == 0
        assert main(["dataset", "preferences", str(one_original), "--out", str(tmp_path / "b")]) == 0
        first, second = (
            {path.name: path.read_bytes() for path in (tmp_path / name / "data").iterdir()} for name in "ab"
        )
        assert first == second
    loaded = load_dataset(str(tmp_path / "a"), cache_dir=str(tmp_path / "cache"))
    found = preferences(tmp_path / "a")
    assert {split: list(rows["label_0"]) for split, rows in loaded.items()} == {
        split: [row["label_0"] for row in rows] for split, rows in found.items()
    }


def test_a_run_without_rejected_images_says_how_to_render_them(
    one_original: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    import shutil

    out = shutil.copytree(one_original, tmp_path / "run")
    for path in RunFolder(out).shards("pairs"):
        table = pq.read_table(path)
        pq.write_table(table.filter(table["accepted"]), path)
    assert main(["dataset", "preferences", str(out), "--out", str(tmp_path / "out")]) == 2
    error = capsys.readouterr().err
    assert "holds no images of rejected candidates" in error and "--rendering.keep-rejected-images" in error

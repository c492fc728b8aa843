"""Other people's pairs come over whole, upright and in one split per picture; what cannot be used is counted."""

from __future__ import annotations

import io
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from ip2p import rendering
from ip2p.cli import main
from ip2p.cli.arguments import read_columns
from ip2p.config import FilteringConfig, PipelineConfig, Thresholds
from ip2p.images import plain_file
from ip2p.sources.columns import NEEDED
from ip2p.sources.pairs import read_source
from ip2p.store import RunFolder, read_summary

COLOURS = ("red", "green", "blue", "yellow", "purple", "orange")


def picture(number: int, *, size: tuple[int, int] = (24, 16), kind: str = "JPEG") -> bytes:
    file = io.BytesIO()
    Image.new("RGB", size, COLOURS[number % len(COLOURS)]).save(file, kind)
    return file.getvalue()


def cell(content: bytes | None) -> dict[str, Any]:
    return {"bytes": content, "path": None}


def write_original(folder: Path) -> Path:
    """Three triplets as the original software leaves them, with its faults: a lost partner and a broken line."""
    for number, key in enumerate(("input", "caption", "input")):
        place = folder / f"{number:07d}"
        place.mkdir(parents=True)
        texts = {key: f"a scene {number}", "edit": "make it red", "output": f"a red scene {number}"}
        (place / "prompt.json").write_text(json.dumps(texts))
        lines = []
        for seed in (11, 12):
            for side in (0, 1):
                (place / f"{seed}_{side}.jpg").write_bytes(picture(number + side))
            lines.append(json.dumps({"seed": seed, "p2p_threshold": 0.25, "cfg_scale": 9.5, "clip_sim_0": 0.3}))
        (place / "metadata.jsonl").write_text("\n".join([*lines, '{"seed": 13, "p2p']))
    (folder / "0000001" / "12_1.jpg").unlink()
    (folder / "seeds.json").write_text(json.dumps([["0000000", [11, 12]], ["gone", [1]]]))
    return folder


def candidates(out: Path) -> list[dict[str, Any]]:
    paths = RunFolder(out).shards("candidates")
    return [row for path in paths for row in pq.read_table(path).to_pylist()]


def dataset_rows(out: Path) -> dict[str, list[dict[str, Any]]]:
    files = sorted((out / "dataset" / "data").glob("*.parquet"))
    found: dict[str, list[dict[str, Any]]] = {"train": [], "test": []}
    for file in files:
        found[file.name.partition("-")[0]] += pq.read_table(file).to_pylist()
    return found


def test_the_originals_folders_come_over_with_seed_and_settings(tmp_path: Path) -> None:
    source, out = write_original(tmp_path / "original"), tmp_path / "run"
    assert main(["dataset", "import", str(source), str(out)]) == 0
    assert read_summary(out)["prompts"] == {"rows": 6, "imported": 5, "no image": 1}
    rows = candidates(out)
    assert [(row["seed"], row["candidate"]) for row in rows] == [(11, 0), (12, 1), (11, 0), (11, 0), (12, 1)]
    assert {(row["p2p"], row["guidance_scale"]) for row in rows} == {(0.25, 9.5)}
    assert [row["original_prompt"] for row in rows[:3]] == ["a scene 0", "a scene 0", "a scene 1"]
    stored = [row for some in dataset_rows(out).values() for row in some]
    assert len(stored) == 5
    assert {row["original_image"]["bytes"] for row in stored} == {picture(number) for number in range(3)}


def test_pictures_without_captions_never_lie_in_two_splits(tmp_path: Path) -> None:
    rows = [
        {
            "img_id": str(number // 3),
            "source_img": cell(picture(number)),
            "instruction": f"edit {number % 3}",
            "target_img": cell(picture(number + 1)),
        }
        for number in range(240)
    ]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "train.parquet")
    out = tmp_path / "run"
    words = ["dataset", "import", str(tmp_path / "train.parquet"), str(out), "--dataset.test-fraction", "0.3"]
    assert main(words) == 0
    found = dataset_rows(out)
    groups = {split: {row["source"] for row in some} for split, some in found.items()}
    assert len(found["train"]) + len(found["test"]) == 240
    assert len(groups["test"]) > 10 and not groups["train"] & groups["test"]
    assert len({(row["triplet_id"], row["candidate"]) for row in candidates(out)}) == 240


def test_an_image_folder_with_two_images_a_row_is_read(tmp_path: Path) -> None:
    folder = tmp_path / "pictures"
    folder.mkdir()
    lines = []
    for number in range(3):
        for side in ("before", "after"):
            (folder / f"{number}-{side}.png").write_bytes(picture(number, kind="PNG"))
        names = {
            f"{key}_file_name": f"{number}-{side}.png"
            for key, side in (("input_image", "before"), ("edited_image", "after"))
        }
        lines.append(json.dumps({**names, "edit_prompt": f"edit {number}"}))
    (folder / "metadata.jsonl").write_text("\n".join(lines))
    rows = list(read_source(str(folder)))
    assert [row.edit_prompt for row in rows] == ["edit 0", "edit 1", "edit 2"]
    assert [row.original_image for row in rows] == [picture(number, kind="PNG") for number in range(3)]


def test_a_table_of_paths_is_imported_and_what_is_missing_is_counted(tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    for number in range(3):
        (tmp_path / "images" / f"{number}.png").write_bytes(picture(number, kind="PNG"))
    rows = [
        {"source_image": f"images/{number}.png", "edited_image": f"images/{number + 1}.png", "edit_prompt": f"{number}"}
        for number in range(3)
    ]
    (tmp_path / "pairs.jsonl").write_text("\n".join(map(json.dumps, rows)))
    assert main(["dataset", "import", str(tmp_path / "pairs.jsonl"), str(tmp_path / "run")]) == 0
    assert read_summary(tmp_path / "run")["prompts"] == {"rows": 3, "imported": 2, "no image": 1}
    stored = [row for some in dataset_rows(tmp_path / "run").values() for row in some]
    assert {row["edit_prompt"]: row["edited_image"]["bytes"] for row in stored} == {
        str(number): picture(number + 1, kind="PNG") for number in range(2)
    }


def test_other_columns_are_named_and_the_first_of_several_wordings_is_taken(tmp_path: Path) -> None:
    rows = [{"a": cell(picture(1)), "b": cell(picture(2)), "words": ["make it green", "greener"], "kind": "colour"}]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "train.parquet")
    optional = ("edit_type",)
    columns = read_columns("original_image=a,edited_image=b,edit_prompt=words,edit_type=kind", NEEDED, optional)
    (row,) = read_source(str(tmp_path / "train.parquet"), columns)
    assert (row.edit_prompt, row.edit_type) == ("make it green", "colour")
    for wrong in ("original_image", "original_image=a", "original_image=a,edited_image=b,edit_prompt=c,colour=d"):
        with pytest.raises(ValueError, match="--columns takes ours=theirs"):
            read_columns(wrong, NEEDED, optional)


def test_a_plain_picture_is_kept_byte_for_byte() -> None:
    for kind in ("JPEG", "PNG", "WEBP"):
        assert plain_file(picture(0, kind=kind)) == (picture(0, kind=kind), (24, 16))


def saved(image: Image.Image, kind: str, **options: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def test_odd_pictures_become_upright_rgb() -> None:
    pixels = np.zeros((8, 12, 3), dtype=np.uint8)
    pixels[:4, :, 0] = 255  # red above black
    upright = Image.fromarray(pixels)
    exif = Image.Exif()
    exif[0x0112] = 3  # upside down
    turned = upright.rotate(180)
    seen = {
        "exif": plain_file(saved(turned, "PNG", exif=exif)),
        "cmyk": plain_file(saved(upright.convert("CMYK"), "JPEG", quality=100)),
        "palette": plain_file(saved(upright.quantize(4), "PNG")),
    }
    for name, (content, size) in seen.items():
        found = Image.open(io.BytesIO(content))
        assert (found.mode, found.size, size) == ("RGB", (12, 8), (12, 8)), name
        assert np.abs(np.asarray(found).astype(int) - pixels).mean() < 6, name
    grey = Image.open(io.BytesIO(plain_file(saved(upright.convert("L"), "PNG"))[0]))
    assert grey.mode == "RGB"
    clear = Image.new("RGBA", (4, 4), (255, 0, 0, 0))
    assert set(Image.open(io.BytesIO(plain_file(saved(clear, "PNG"))[0])).getdata()) == {(255, 255, 255)}


def test_rows_that_cannot_be_used_are_counted_by_reason(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    good = {"original_image": cell(picture(0)), "edit_prompt": "edit it", "edited_image": cell(picture(1))}
    rows = [
        good,
        good | {"edited_image": cell(b"no picture")},
        good | {"edited_image": cell(None)},
        good | {"edit_prompt": " "},
        good | {"edited_image": cell(picture(1, size=(16, 24)))},
    ]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "train.parquet")
    assert main(["dataset", "import", str(tmp_path / "train.parquet"), str(tmp_path / "run")]) == 0
    assert read_summary(tmp_path / "run")["prompts"] == {
        "rows": 5,
        "imported": 1,
        "image does not decode": 1,
        "no image": 1,
        "no instruction": 1,
        "two shapes": 1,
    }
    capsys.readouterr()
    pq.write_table(pa.Table.from_pylist(rows[1:2]), tmp_path / "train.parquet")
    assert main(["dataset", "import", str(tmp_path / "train.parquet"), str(tmp_path / "other")]) == 2
    assert "no usable row: 1 image does not decode" in capsys.readouterr().err


def test_scored_pairs_are_filtered_and_judged_again_like_our_own(
    tmp_path: Path, tiny_clip: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source, out = write_original(tmp_path / "original"), tmp_path / "run"
    clip = ["--scoring.clip-model", str(tiny_clip), "--scoring.clip-pretrained", "None", "--scoring.device", "cpu"]
    loose = [f"--filtering.thresholds.{name}=-1" for name in ("original", "edited", "direction", "image")]
    assert main(["dataset", "import", str(source), str(out), "--score", "yes", *clip, *loose]) == 0
    rows = candidates(out)
    assert all(row["accepted"] and np.isfinite(row["clip_image"]) for row in rows)
    middle = sorted(row["clip_image"] for row in rows)[2]
    assert main(["refilter", str(out), f"--filtering.thresholds.image={middle}"]) == 0
    judged = candidates(out)
    assert [row["reason"] for row in judged] == ["" if row["clip_image"] >= middle else "low_image" for row in rows]
    assert sum(len(some) for some in dataset_rows(out).values()) == sum(row["accepted"] for row in judged)
    capsys.readouterr()
    assert main(["dataset", "inspect", str(out)]) == 0
    told = capsys.readouterr().out
    for words in ("Funnel", "low_image", "image, rejected", "make it red", "distinct of 3"):
        assert words in told


def test_an_import_can_be_trained_on(tmp_path: Path, tiny_config: PipelineConfig) -> None:
    from ip2p.training.data import open_rows
    from ip2p.training.decoding import decode_pair

    source, out = write_original(tmp_path / "original"), tmp_path / "imported"
    assert main(["dataset", "import", str(source), str(out), "--dataset.test-fraction", "0"]) == 0
    rows = open_rows(str(out), tiny_config.training)
    assert len(rows) == 5
    assert {decode_pair(pair, 16).pixels.shape for pair in rows.read()} == {(2, 16, 16, 3)}


def test_unscored_pairs_cannot_be_judged_by_thresholds(tmp_path: Path) -> None:
    source, out = write_original(tmp_path / "original"), tmp_path / "run"
    assert main(["dataset", "import", str(source), str(out)]) == 0
    strict = FilteringConfig(thresholds=Thresholds(original=-1, edited=-1, direction=-1, image=-1))
    from ip2p.config.files import read_run

    counts = rendering.refilter(replace(read_run(out), filtering=strict))
    assert counts["low_original"] == 5  # a score that is not a number is no pass


def test_images_that_differ_by_a_few_pixels_are_cropped_as_the_trainer_does(
    tmp_path: Path, tiny_config: PipelineConfig
) -> None:
    from ip2p.training.data import open_rows
    from ip2p.training.decoding import decode_pair

    rng = np.random.default_rng(0)
    rough = Image.fromarray(rng.integers(0, 256, (8, 8, 3), dtype=np.uint8)).resize((138, 102))
    sizes = {"cropped": (136, 102), "resized": (276, 204), "both": (136, 100), "rejected": (133, 102)}
    rows = [
        {"original_image": cell(saved(rough, "PNG")), "edit_prompt": name, "edited_image": cell(saved(edited, "PNG"))}
        for name, size in sizes.items()
        for edited in [rough.resize(size)]
    ]
    source, out = tmp_path / "train.parquet", tmp_path / "run"
    pq.write_table(pa.Table.from_pylist(rows), source)
    trained_directly = tmp_path / "direct.parquet"
    pq.write_table(pa.Table.from_pylist(rows[:3]), trained_directly)
    assert main(["dataset", "import", str(source), str(out), "--dataset.test-fraction", "0"]) == 0
    assert read_summary(out)["prompts"] == {"rows": 4, "imported": 3, "two shapes": 1}
    stored = {row["edit_prompt"]: row for some in dataset_rows(out).values() for row in some}
    pixels = {
        name: [np.asarray(Image.open(io.BytesIO(row[side]["bytes"]))) for side in ("original_image", "edited_image")]
        for name, row in stored.items()
    }
    assert {name: (a.shape[1::-1], b.shape[1::-1]) for name, (a, b) in pixels.items()} == {
        "cropped": ((136, 102), (136, 102)),
        "resized": ((138, 102), (138, 102)),
        "both": ((136, 100), (136, 100)),
    }
    assert np.array_equal(pixels["cropped"][0], np.asarray(rough)[:, 1:-1])
    assert stored["resized"]["original_image"]["bytes"] == saved(rough, "PNG")
    direct, imported = (
        {pair.edit_prompt: decode_pair(pair, 64).pixels for pair in open_rows(str(data), tiny_config.training).read()}
        for data in (trained_directly, out)
    )
    for name in imported:
        assert np.abs(imported[name].astype(int) - direct[name]).mean() < 1, name


def test_a_second_reference_and_a_mask_reach_the_dataset_and_go_with_the_next_import(tmp_path: Path) -> None:
    mask = Image.new("RGBA", (24, 16), (0, 0, 0, 255))
    mask.paste((0, 0, 0, 0), (0, 0, 6, 16))  # transparent where the edit is, as in MagicBrush
    pair = {"INPUT_IMG": cell(picture(0)), "OUTPUT_IMG": cell(picture(1))}
    rows = [
        pair | {"EDITING_INSTRUCTION": "edit 0", "MASK_IMG": cell(saved(mask, "PNG"))},
        pair | {"EDITING_INSTRUCTION": "edit 1", "MASK_IMG": cell(b"no picture")},
        pair | {"EDITING_INSTRUCTION": "edit 2", "MASK_IMG": cell(None)},
    ]
    rows = [row | {"reference_image_2": cell(picture(5) if number == 2 else None)} for number, row in enumerate(rows)]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "train.parquet")
    out = tmp_path / "run"
    words = ["dataset", "import", str(tmp_path / "train.parquet"), str(out), "--dataset.test-fraction", "0"]
    assert main(words) == 0
    assert read_summary(out)["prompts"] == {"rows": 3, "imported": 3, "pair without its mask_image": 1}

    def further() -> dict[str, tuple[list[list[int]] | None, bytes | None]]:
        found = {}
        for row in dataset_rows(out)["train"]:
            marked, second = row["mask_image"], row["reference_image_2"]
            shown = marked and np.asarray(Image.open(io.BytesIO(marked["bytes"]))).tolist()
            found[row["edit_prompt"]] = (shown, second and second["bytes"])
        return found

    white = [[255] * 6 + [0] * 18] * 16
    expected = {"edit 0": (white, None), "edit 1": (None, None), "edit 2": (None, picture(5))}
    assert further() == expected
    from datasets import load_dataset

    loaded = load_dataset(str(out / "dataset"), cache_dir=str(tmp_path / "cache"))["train"]
    assert {row["edit_prompt"]: row["mask_image"] is not None for row in loaded} == {
        "edit 0": True,
        "edit 1": False,
        "edit 2": False,
    }
    pq.write_table(
        pa.Table.from_pylist([{**row, "MASK_IMG": None, "reference_image_2": None} for row in rows]),
        tmp_path / "train.parquet",
    )
    assert main(words) == 0
    assert not list((out / "further").glob("*.parquet"))
    assert "mask_image" not in dataset_rows(out)["train"][0]

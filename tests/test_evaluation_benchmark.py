"""Benchmarks: published protocols against the plain computation that they describe, on fixtures in their layouts."""

from __future__ import annotations

import io
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from scipy.spatial.distance import cosine
from torch import nn
from torchvision import transforms
from transformers import ViTConfig, ViTImageProcessor, ViTModel

from ip2p.cli import main
from ip2p.config import BenchmarkConfig, EvaluationConfig, PipelineConfig
from ip2p.evaluation.benchmark import benchmark, short_names
from ip2p.evaluation.benchmark_cases import read_benchmark
from ip2p.evaluation.cases import Pixels
from ip2p.evaluation.measures.change import largest_change
from ip2p.evaluation.metrics import differences, paired
from ip2p.images import IMAGE_TYPE, encode_png, read_mask
from ip2p.report import write_benchmark
from tests.test_evaluation import trained  # noqa: F401

SESSIONS = {"11": 1, "12": 3, "13": 2}
SIZE = (80, 96)


def picture(seed: int, size: tuple[int, int] = SIZE) -> Pixels:
    """A soft random picture of (height, width)."""
    rough = np.random.default_rng(seed).integers(0, 256, (6, 6, 3), dtype=np.uint8)
    return np.asarray(Image.fromarray(rough).resize(size[::-1], Image.Resampling.BICUBIC))


def cell(pixels: Pixels) -> dict[str, Any]:
    """As a dataset's image column holds it."""
    return {"bytes": encode_png(pixels), "path": None}


def write_table(folder: Path, columns: dict[str, list[Any]], images: dict[str, list[dict[str, Any]]]) -> Path:
    """A parquet dataset with image features, split `test`."""
    table = pa.table(columns)
    for name, cells in images.items():
        table = table.append_column(name, pa.array(cells, IMAGE_TYPE))
    features = {name: {"_type": "Image"} for name in images}
    features |= {
        name: {"_type": "Value", "dtype": "string" if isinstance(values[0], str) else "int64"}
        for name, values in columns.items()
    }
    folder.mkdir(parents=True)
    meta = {"huggingface": json.dumps({"info": {"features": features}})}
    pq.write_table(table.replace_schema_metadata(meta), folder / "test-00000-of-00001.parquet")
    return folder


@pytest.fixture
def dino(tmp_path: Path) -> Path:
    """A ViT of DINO's class, in miniature."""
    torch.manual_seed(0)
    shape = ViTConfig(
        image_size=32, patch_size=8, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32
    )
    ViTModel(shape, add_pooling_layer=False).save_pretrained(tmp_path / "dino")
    ViTImageProcessor(size={"height": 32, "width": 32}).save_pretrained(tmp_path / "dino")
    return tmp_path / "dino"


@pytest.fixture
def config(trained: PipelineConfig, dino: Path, tmp_path: Path) -> BenchmarkConfig:  # noqa: F811
    """Two editors of the tiny kind: the trained one, and another with other guidances' weights."""
    return BenchmarkConfig(
        source="set by the test",
        models=(str(trained.out),),
        out=tmp_path / "benchmark",
        clip_model=trained.scoring.clip_model,
        clip_pretrained=None,
        dino_model=str(dino),
        base=trained.training.pretrained_model_name_or_path,
        evaluation=replace(trained.evaluation, sdedit_strengths=(0.5,), resolution=0),
    )


@pytest.fixture
def magicbrush(tmp_path: Path) -> Path:
    """The unpacked test split's layout: three sessions of one, three and two turns."""
    folder = tmp_path / "magicbrush"
    told: dict[str, dict[str, str]] = {}
    sessions: dict[str, list[dict[str, str]]] = {}
    for session, num in SESSIONS.items():
        (folder / "images" / session).mkdir(parents=True)
        files = [f"{session}-input.png", *(f"{session}-output{turn}.png" for turn in range(1, num + 1))]
        for number, name in enumerate(files):
            Image.fromarray(picture(int(session) * 10 + number)).save(folder / "images" / session / name)
        sessions[session] = []
        for turn in range(1, num + 1):
            mask = np.full((*SIZE, 4), 255, np.uint8)
            mask[10:30, 10:40, 3] = 0
            Image.fromarray(mask).save(folder / "images" / session / f"{session}-mask{turn}.png")
            words = {"input": files[turn - 1], "mask": f"{session}-mask{turn}.png", "output": files[turn]}
            sessions[session].append({**words, "instruction": f"make the circle {'red' if turn % 2 else 'blue'}"})
        told[session] = {name: f"a small red circle on a {name[-5]} background" for name in files[1:]}
    (folder / "edit_sessions.json").write_text(json.dumps(sessions))
    (folder / "local_descriptions.json").write_text(json.dumps(told))
    return folder


def edits_of(config: BenchmarkConfig, kind: str) -> dict[int, Pixels]:
    """The model's pictures by case."""
    files = (config.out / "edits").glob(f"{Path(config.models[0]).name}-{kind}-*.parquet")
    rows = [row for file in files for row in pq.read_table(file).to_pylist()]
    return {row["case"]: np.asarray(Image.open(io.BytesIO(row["edited_image"]["bytes"]))) for row in rows}


def plain_magicbrush(made: Image.Image, target: Image.Image, caption: str, clip: str, dino: Path) -> dict[str, float]:
    """One pair as the protocol describes it: distances at the target's size, features by each model's preparation."""
    one, other = (transforms.ToTensor()(image) for image in (made.resize(target.size), target))
    model, _, prepare = open_clip.create_model_and_transforms(f"local-dir:{clip}")
    model.eval()
    vit = ViTModel.from_pretrained(dino, add_pooling_layer=False).eval()  # type: ignore[no-untyped-call]
    dino_prepare = transforms.Compose(
        [
            transforms.Resize(37, interpolation=transforms.InterpolationMode.BICUBIC),  # 256 of 224, for 32
            transforms.CenterCrop(32),
            transforms.ToTensor(),
            transforms.Normalize((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
        ]
    )
    with torch.no_grad():
        clips = [model.encode_image(prepare(image)[None])[0].numpy() for image in (made, target)]
        text = model.encode_text(open_clip.get_tokenizer(f"local-dir:{clip}")([caption]))[0].numpy()
        dinos = [vit(dino_prepare(image)[None]).last_hidden_state[0, 0].numpy() for image in (made, target)]
    return {
        "l1": nn.L1Loss()(one, other).item(),
        "l2": nn.MSELoss()(one, other).item(),
        "clip_target": 1 - cosine(clips[0], clips[1]),
        "dino_target": 1 - cosine(dinos[0], dinos[1]),
        "clip_edited": 1 - cosine(clips[0], text),
    }


@pytest.mark.slow
def test_magicbrush_is_the_plain_computation_of_its_protocol_single_and_multi_turn(
    config: BenchmarkConfig, magicbrush: Path, dino: Path
) -> None:
    config = replace(config, source=str(magicbrush))
    found = benchmark(config)
    assert found["protocol"] == "magicbrush" and found["n"] == 6
    cases = read_benchmark(str(magicbrush)).cases
    single, chained = edits_of(config, "edit"), edits_of(config, "chain")
    figures = found["editors"][Path(config.models[0]).name]
    for part, images, numbers in (
        ("single", single, range(6)),
        ("final", chained, [number for number, case in enumerate(cases) if case.is_last]),
    ):
        plain = [
            plain_magicbrush(
                Image.fromarray(images[number]),
                Image.fromarray(np.asarray(cases[number].target_image)),
                cases[number].edited_prompt,
                config.clip_model,
                dino,
            )
            for number in numbers
        ]
        assert figures[part]["n"] == len(plain)
        for name in plain[0]:
            assert figures[part][name] == pytest.approx(np.mean([row[name] for row in plain]), abs=2e-5), (part, name)


@pytest.mark.slow
def test_later_turns_edit_the_target_before_them_alone_and_their_own_answer_in_a_session(
    config: BenchmarkConfig, magicbrush: Path
) -> None:
    config = replace(config, source=str(magicbrush))
    benchmark(config)
    cases = read_benchmark(str(magicbrush)).cases
    single, chained = edits_of(config, "edit"), edits_of(config, "chain")
    first = [number for number, case in enumerate(cases) if case.previous is None]
    later = [number for number, case in enumerate(cases) if case.previous is not None]
    assert len(first) == 3 and len(later) == 3
    assert all(np.array_equal(single[number], chained[number]) for number in first)
    assert all(not np.array_equal(single[number], chained[number]) for number in later)
    before = cases[later[0]].previous
    assert before is not None
    assert np.array_equal(cases[later[0]].original_image, np.asarray(cases[before].target_image))


def test_magicbrush_of_the_hub_has_the_same_cases_as_its_folder(magicbrush: Path, tmp_path: Path) -> None:
    folder = read_benchmark(str(magicbrush)).cases
    turns = [turn for num in SESSIONS.values() for turn in range(1, num + 1)]
    columns: dict[str, list[Any]] = {"img_id": [case.session for case in folder], "turn_index": turns}
    columns["instruction"] = [case.edit_prompt for case in folder]
    masks = [
        np.where(np.asarray(case.mask)[..., None], 255, case.original_image // 2).astype(np.uint8) for case in folder
    ]
    images = {
        "source_img": [cell(case.original_image) for case in folder],
        "mask_img": [cell(mask) for mask in masks],
        "target_img": [cell(np.asarray(case.target_image)) for case in folder],
    }
    hub = read_benchmark(
        str(write_table(tmp_path / "hub", columns, images)), captions=magicbrush / "local_descriptions.json"
    )
    assert hub.layout == "magicbrush"
    for ours, theirs in zip(hub.cases, folder, strict=True):
        texts = ("edit_prompt", "edited_prompt", "session", "previous", "is_last")
        assert [getattr(ours, name) for name in texts] == [getattr(theirs, name) for name in texts]
        for name in ("original_image", "target_image", "mask"):
            assert np.array_equal(getattr(ours, name), getattr(theirs, name))


@pytest.mark.slow
def test_emu_edit_compares_with_the_input_and_the_captions(config: BenchmarkConfig, dino: Path, tmp_path: Path) -> None:
    pictures = [picture(number, (64, 64)) for number in range(4)]
    columns = {
        "instruction": ["make the circle red"] * 4,
        "task": ["add", "local", "add", "style"],
        "input_caption": ["a small blue circle on a white background"] * 4,
        "output_caption": ["a small red circle on a white background"] * 4,
    }
    source = write_table(tmp_path / "emu", columns, {"image": [cell(each) for each in pictures]})
    config = replace(config, source=str(source))
    found = benchmark(config)
    assert found["protocol"] == "emu_edit"
    figures = found["editors"][Path(config.models[0]).name]["single"]
    assert set(figures["by_type"]) == {"add", "local", "style"}
    cases, made = read_benchmark(str(source)).cases, edits_of(config, "edit")
    plain = [
        plain_magicbrush(
            Image.fromarray(made[number]),
            Image.fromarray(case.original_image),
            case.edited_prompt,
            config.clip_model,
            dino,
        )
        for number, case in enumerate(cases)
    ]
    same = {"l1_input": "l1", "clip_image": "clip_target", "dino_input": "dino_target", "clip_edited": "clip_edited"}
    for ours, theirs in same.items():
        assert figures[ours] == pytest.approx(np.mean([row[theirs] for row in plain]), abs=2e-5), ours
    copied = found["editors"]["copy"]["single"]
    assert copied["l1_input"] == 0 and copied["no_op"] == 1 and copied["clip_direction"] == pytest.approx(0, abs=1e-6)
    assert found["editors"]["sdedit 0.5"]["single"]["n"] == 4


@pytest.mark.slow
def test_curve_sweeps_every_model_on_the_same_edits_and_noise(
    config: BenchmarkConfig,
    tmp_path: Path,
    trained: PipelineConfig,  # noqa: F811
) -> None:
    columns = {
        "edit_prompt": ["make the circle red"] * 3,
        "original_prompt": ["a small blue circle on a white background"] * 3,
        "edited_prompt": ["a small red circle on a white background"] * 3,
    }
    images = {
        name: [cell(picture(number, (64, 64))) for number in range(3)] for name in ("original_image", "edited_image")
    }
    source = write_table(tmp_path / "pairs", columns, images)
    second = tmp_path / "second" / "model"
    second.parent.mkdir()
    second.symlink_to(trained.out.resolve() / "model")
    config = replace(config, source=str(source), models=(*config.models, str(second)))
    found = benchmark(config)
    names = list(found["models"])
    assert found["protocol"] == "curve" and names == [Path(config.models[0]).name, "second"]
    one, other = (found["curves"][name] for name in names)
    assert one == other and [point["image_guidance_scale"] for point in one] == [1.0, 1.5]
    assert [point["strength"] for point in found["curves"]["sdedit"]] == [0.5]
    assert found["against_first"]["second"]["clip_direction"] == 0
    page = write_benchmark(config.out).read_text()
    assert "second" in page and page.count('class="runs"') == 3 and "http" not in page.replace("http-equiv", "")
    written = {path: path.stat().st_mtime_ns for path in config.out.rglob("*-00000.parquet")}
    assert benchmark(config) == found
    assert {path: path.stat().st_mtime_ns for path in written} == written


def test_num_takes_whole_sessions_and_edit_types_in_turn(magicbrush: Path) -> None:
    cases = read_benchmark(str(magicbrush), num=3).cases
    assert [case.session for case in cases] == ["11", "13", "13"]
    assert [case.previous for case in cases] == [None, None, 1]


@pytest.mark.slow
def test_a_list_of_pictures_needs_only_image_and_instruction(config: BenchmarkConfig, tmp_path: Path) -> None:
    Image.fromarray(picture(1)).save(tmp_path / "one.png")
    listing = tmp_path / "edits.jsonl"
    listing.write_text(json.dumps({"image": "one.png", "edit_prompt": "make it red"}) + "\n")
    for source in (listing, tmp_path):
        found = benchmark(replace(config, source=str(source)))
        assert (found["protocol"], found["n"]) == ("pictures", 1)
    figures = found["editors"]["copy"]["single"]
    assert figures["clip_image"] == pytest.approx(1, abs=1e-5) and figures["clip_direction"] is None


@pytest.mark.parametrize(
    "line, words",
    [
        ('{"image": "one.png"}', "line 1 must hold `image` and `edit_prompt`"),
        ('{"image": "gone.png", "edit_prompt": "x"}', "which is not a file"),
        ("no json", "line 1 is not valid JSON"),
    ],
)
def test_a_wrong_line_is_named(line: str, words: str, tmp_path: Path) -> None:
    Image.fromarray(picture(1)).save(tmp_path / "one.png")
    (tmp_path / "edits.jsonl").write_text(line + "\n")
    with pytest.raises(ValueError, match=words):
        read_benchmark(str(tmp_path / "edits.jsonl"))


def test_the_photographs_are_edited_as_their_captions_say() -> None:
    cases = read_benchmark("photographs").cases
    assert len(cases) == 12 and {case.original_image.shape for case in cases} == {(427, 640, 3)}
    assert all(case.edited_prompt != case.original_prompt for case in cases)
    assert len({case.original_image.tobytes() for case in cases}) == 2


def test_a_mask_marks_what_it_makes_transparent_or_else_what_is_white(tmp_path: Path) -> None:
    pixels = np.full((4, 4, 4), 255, np.uint8)
    pixels[1:3, 1:3, 3] = 0
    Image.fromarray(pixels).save(tmp_path / "through.png")
    plain = np.zeros((4, 4, 3), np.uint8)
    plain[1:3, 1:3] = 255
    Image.fromarray(plain).save(tmp_path / "white.png")
    for name in ("through.png", "white.png"):
        assert read_mask(tmp_path / name).sum() == 4 and read_mask(tmp_path / name)[1, 2]


def test_models_are_told_apart_by_as_much_of_their_paths_as_it_takes() -> None:
    assert short_names(["runs/a/model", "runs/b"]) == {"a": "runs/a/model", "b": "runs/b"}
    assert list(short_names(["x/a/model", "y/a/model"])) == ["x-a", "y-a"]
    with pytest.raises(ValueError, match="Name each once"):
        short_names(["a", "a"])


def test_paired_counts_who_alone_succeeds_and_differences_are_of_shared_cases() -> None:
    def rows(values: dict[int, tuple[bool, float]]) -> list[dict[str, Any]]:
        return [{"case": case, "success": good, "clip_direction": score} for case, (good, score) in values.items()]

    one = rows({0: (True, 0.1), 1: (False, 0.2), 2: (False, 0.3), 7: (True, 0.9)})
    other = rows({0: (False, 0.2), 1: (True, 0.2), 2: (True, 0.6), 8: (True, 0.9)})
    found = paired(one, other)
    assert (found["n"], found["lost"], found["won"], found["p"]) == (3, 1, 2, 1.0)
    assert found["difference"] == pytest.approx(0.4 / 3)
    assert differences(one, other, ["clip_direction"])["clip_direction"] == pytest.approx(0.4 / 3)


def test_change_is_that_of_the_block_that_changed_most() -> None:
    before = np.zeros((48, 48, 3), np.uint8)
    after = before.copy()
    after[4:8, 8:12] = 51  # one block of 4 x 4 pixels, by a fifth of the range
    assert largest_change(before, after) == pytest.approx(0.2)
    assert largest_change(before, before) == 0


def test_the_command_prints_a_table_and_takes_the_run_s_guidances(
    config: BenchmarkConfig, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Image.fromarray(picture(1)).save(tmp_path / "one.png")
    (tmp_path / "edits.jsonl").write_text(json.dumps({"image": "one.png", "edit_prompt": "make it red"}))
    words = ["benchmark", str(tmp_path / "edits.jsonl"), "--models", *config.models, "--out", str(config.out)]
    words += ["--clip-model", config.clip_model, "--dino-model", "None", "--evaluation.num-inference-steps", "2"]
    assert main(words) == 0
    said = capsys.readouterr().out
    assert "1 edits by the protocol pictures" in said and "copy" in said
    assert main(["benchmark", str(tmp_path / "nothing"), "--models", *config.models]) == 2
    assert EvaluationConfig().resolution is None

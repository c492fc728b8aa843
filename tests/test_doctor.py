"""The doctor finds what would stop a run, names it, and changes nothing."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from diffusers import UNet2DConditionModel
from PIL import Image

from ip2p import store, uses
from ip2p.cli import main
from ip2p.config import PipelineConfig, to_dict
from ip2p.dataset import write_dataset
from ip2p.doctor import examine
from ip2p.doctor.findings import Finding
from ip2p.doctor.inputs import denoiser_weights, examine_data, examine_model, native_side
from ip2p.doctor.machine import examine_libraries, examine_machine, free_disk, multiplies_bf16
from ip2p.images import encode_png
from ip2p.models.loading import resolve_dtype
from tests.test_dataset import write_pairs

WEIGHTS = "diffusion_pytorch_model.safetensors"


def findings(word: str | None) -> list[Finding]:
    return [finding for section in examine(word, prefect=lambda: "none") for finding in section.findings]


def wrong(found: list[Finding]) -> dict[str, str]:
    """What is not ok, by subject."""
    return {finding.subject: finding.text for finding in found if finding.status != "ok"}


def test_whole_models_of_every_kind_are_found_whole(
    tiny_sd: Path, tiny_xl: Path, tiny_clip: Path, tiny_lm: Path
) -> None:
    for folder in (tiny_sd, tiny_xl, tiny_clip, tiny_lm):
        assert {finding.status for finding in findings(str(folder))} == {"ok"}
    denoiser = UNet2DConditionModel.from_pretrained(tiny_sd, subfolder="unet")
    assert denoiser_weights(str(tiny_sd)) == sum(weights.numel() for weights in denoiser.parameters())
    assert native_side(str(tiny_sd)) == 64


def _cut(folder: Path) -> None:
    content = (folder / "unet" / WEIGHTS).read_bytes()
    (folder / "unet" / WEIGHTS).write_bytes(content[: len(content) // 2])


def _forget_a_shard(folder: Path) -> None:
    network = UNet2DConditionModel.from_pretrained(folder, subfolder="unet")
    shutil.rmtree(folder / "unet")
    network.save_pretrained(folder / "unet", max_shard_size="100KB")
    next((folder / "unet").glob("*-00002-of-*.safetensors")).unlink()


def _make_fp16(folder: Path) -> None:
    for path in folder.glob("*/*.safetensors"):
        path.rename(path.with_suffix(".fp16.safetensors"))


def _pickle(folder: Path) -> None:
    (folder / "unet" / WEIGHTS).unlink()
    torch.save({}, folder / "unet" / "diffusion_pytorch_model.bin")


def _name_another_class(folder: Path) -> None:
    index = json.loads((folder / "model_index.json").read_text())
    (folder / "model_index.json").write_text(json.dumps(index | {"_class_name": "KolorsPipeline"}))


@pytest.mark.parametrize(
    ("spoil", "subject", "text"),
    [
        (lambda folder: shutil.rmtree(folder / "tokenizer"), "tokenizer", "lists tokenizer, which is not in"),
        (lambda folder: (folder / "vae" / WEIGHTS).unlink(), "vae", "has no weights. Copy or download"),
        (lambda folder: (folder / "vae" / WEIGHTS).write_bytes(b""), "vae", "is broken"),
        (_cut, "unet", "is broken"),
        (_forget_a_shard, "unet", "which diffusion_pytorch_model.safetensors.index.json lists"),
        (_name_another_class, "pipeline", "is a KolorsPipeline, which is not supported"),
    ],
)
def test_a_model_that_is_not_whole_is_named(
    spoil: Callable[[Path], None], subject: str, text: str, tiny_sd: Path, tmp_path: Path
) -> None:
    folder = shutil.copytree(tiny_sd, tmp_path / "model")
    spoil(folder)
    assert text in wrong(findings(str(folder)))[subject]


@pytest.mark.parametrize("spoil", [_make_fp16, _pickle])
def test_a_lone_variant_and_pickled_weights_are_loaded_so_they_are_no_problem(
    spoil: Callable[[Path], None], tiny_sd: Path, tmp_path: Path
) -> None:
    folder = shutil.copytree(tiny_sd, tmp_path / "model")
    spoil(folder)
    assert wrong(list(examine_model(str(folder)))) == {}
    assert "no variant ema" in wrong(list(examine_model(str(folder), variant="ema")))["weights"]


def test_a_model_of_the_hub_that_is_not_here_is_downloaded_or_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    assert [finding.status for finding in examine_model("nobody/nothing")] == ["warning"]
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    assert [finding.status for finding in examine_model("nobody/nothing")] == ["problem"]


def _png(width: int = 64, height: int = 64) -> dict[str, Any]:
    return {"bytes": encode_png(np.zeros((height, width, 3), np.uint8)), "path": None}


def test_data_are_decoded_as_the_trainer_decodes_them(tmp_path: Path) -> None:
    row = {"before": _png(), "after": _png(), "text": "make it red"}
    rows = [row, row | {"after": _png(65, 64)}, row | {"after": _png(32, 64)}, row | {"before": None}]
    (tmp_path / "train").mkdir()
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "train" / "0.parquet")
    pq.write_table(pa.Table.from_pylist(rows[:0], pa.Table.from_pylist(rows).schema), tmp_path / "train" / "1.parquet")
    pq.write_table(pa.Table.from_pylist(rows[:1]), tmp_path / "test.parquet")
    assert "no known schema fits the columns after, before, text" in wrong(findings(str(tmp_path)))["rows"]
    config = replace(
        PipelineConfig().training,
        original_image_column="before",
        edited_image_column="after",
        edit_prompt_column="text",
    )
    found = {finding.subject: finding for finding in examine_data(str(tmp_path), config)}
    assert found["splits"].text == "test: 1 rows in 1 files; train: 4 rows in 2 files"
    assert found["sample"].status == "warning"
    assert "2 of 4 pairs can be used; left out: 1 two shapes, 1 no image" in found["sample"].text
    assert "1 pairs have two sizes" in found["sizes"].text
    assert found["resolution"].text.startswith("2 pairs are smaller than the 256 pixels")


def test_a_table_of_paths_is_data_and_the_exit_code_says_whether_it_can_be_used(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Image.new("RGB", (64, 64)).save(tmp_path / "a.png")
    path, row = (
        tmp_path / "pairs.jsonl",
        {"source_image": "a.png", "edited_image": "a.png", "edit_prompt": "make it red"},
    )
    path.write_text(json.dumps(row))
    assert main(["doctor", str(path)]) == 0
    assert "1 of 1 pairs can be used" in (text := capsys.readouterr().out) and "\033" not in text
    assert main(["doctor", str(path), "--json"]) == 0
    listed = json.loads(capsys.readouterr().out)
    assert listed["problems"] == 0 and all(finding["text"] in text for finding in listed["findings"])
    path.write_text(json.dumps(row | {"edited_image": "b.png"}))
    assert main(["doctor", str(path)]) == 1
    assert "problem  sample         0 of 1 pairs can be used; left out: 1 no image" in capsys.readouterr().out
    assert main(["doctor", str(tmp_path / "nothing")]) == 2
    assert "nothing does not exist. Give a run folder" in capsys.readouterr().err


def test_a_run_is_examined_with_all_it_reads_and_nothing_is_written(tiny_config: PipelineConfig) -> None:
    folder = tiny_config.out
    store.write_run_config(folder, to_dict(tiny_config), None)
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    found = findings(str(folder))
    assert wrong(found) == {}
    assert {"settings", "versions", "trackers", "memory", "disk", "pipeline", "weights", "dataset"} <= {
        finding.subject for finding in found
    }
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*")} == before
    uses.record_completion(tiny_config, "pipeline")
    assert {finding.text for finding in findings(str(folder))[-5:]} == {"done"}


def test_further_data_of_a_run_are_examined_as_its_data_are(tiny_config: PipelineConfig, tmp_path: Path) -> None:
    known = {"source_image": _png(), "edited_image": _png(), "edit_prompt": "make it red"}
    own = {"original_image": _png(), "edited_image": _png(), "edit_prompt": "make it red"}
    rows = {
        "known": [known, known],
        "own": [own, own | {"edited_image": _png(32, 64)}],
        "foreign": [{"before": _png(), "after": _png(), "text": "make it red"}],
    }
    for name, some in rows.items():
        pq.write_table(pa.Table.from_pylist(some), tmp_path / f"{name}.parquet")
    paths = {name: str(tmp_path / f"{name}.parquet") for name in (*rows, "gone")}
    config = replace(tiny_config, training=replace(tiny_config.training, more_data=tuple(paths.values())))
    store.write_run_config(config.out, to_dict(config), None)
    sections = {section.title: section.findings for section in examine(str(config.out), prefect=lambda: "none")}
    found = {
        name: {finding.subject: finding for finding in sections[f"training.more_data {path}"]}
        for name, path in paths.items()
    }
    assert found["known"]["columns"].text == "source_image, edit_prompt, edited_image"
    assert found["known"]["sample"].text == "2 of 2 pairs can be used"
    assert found["own"]["columns"].text == "original_image, edit_prompt, edited_image"
    assert "1 of 2 pairs can be used; left out: 1 two shapes" in found["own"]["sample"].text
    assert "has no column 'original_image'" in found["foreign"]["rows"].text
    assert "gone.parquet does not exist" in found["gone"]["rows"].text
    assert [found[name]["rows"].status for name in ("foreign", "gone")] == ["problem"] * 2


def test_a_run_that_cannot_resume_as_it_was_is_told_why(tiny_config: PipelineConfig, tmp_path: Path) -> None:
    base = replace(tiny_config.training, pretrained_model_name_or_path=str(tmp_path / "gone"))
    config = replace(tiny_config, training=base)
    store.write_run_config(config.out, to_dict(config), None)
    written = json.loads((config.out / "config.json").read_text())
    written["environment"]["libraries"]["torch"] = "1.0"
    (config.out / "config.json").write_text(json.dumps(written))
    found = wrong(findings(str(config.out)))
    assert "gone does not exist. Give an existing model folder" in found["settings"]
    assert found["versions"].startswith("made with torch 1.0, now ")
    store.write_run_config(
        config.out, to_dict(replace(tiny_config, training=replace(base, report_to="nonsense"))), None
    )
    assert wrong(findings(str(config.out)))["trackers"].startswith("report_to must be of ")


def test_secrets_are_not_shown_and_a_proxy_that_does_not_answer_is(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HTTP_PROXY", "https_proxy", "HTTPS_PROXY", "ALL_PROXY", "all_proxy", "NO_PROXY", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("http_proxy", "http://user:secret@127.0.0.1:9")
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    found = list(examine_machine(lambda: "none"))
    assert "secret" not in str(found)
    assert next(finding for finding in found if finding.subject == "tokens").text.startswith("set: HF_TOKEN")
    assert wrong(found)["proxy"].startswith("HTTP_PROXY does not answer")


def test_a_prefect_server_that_does_not_answer_is_a_problem(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PREFECT_API_URL", "http://127.0.0.1:9/api")
    from flows.server import describe_server

    with pytest.raises(ValueError, match="127.0.0.1:9/api does not answer"):
        describe_server()
    monkeypatch.setattr("ip2p.doctor._examine_settings", lambda *_: iter(()))
    monkeypatch.setattr("ip2p.doctor._model_sections", lambda *_: [])
    assert main(["doctor"]) == 1
    assert "problem  Prefect        PREFECT_API_URL http://127.0.0.1:9/api" in capsys.readouterr().out


def test_libraries_are_compared_with_what_the_package_requires(monkeypatch: pytest.MonkeyPatch) -> None:
    needed = ["torch<1", "is-not-there>=2", "numpy", 'other>1; sys_platform == "none"', 'wandb>99; extra == "wandb"']
    monkeypatch.setattr("importlib.metadata.requires", lambda name: needed)
    problems = [finding.text for finding in examine_libraries() if finding.status == "problem"]
    assert problems[0].startswith("ip2p needs torch<1, got ")
    assert (
        problems[1] == "ip2p needs is-not-there>=2, which is not installed. Install it: pip install 'is-not-there>=2'"
    )
    assert len(problems) <= 3 and "other" not in str(problems)


def test_a_disk_that_is_too_small_is_a_problem(tmp_path: Path) -> None:
    folder = tmp_path / "not" / "there yet"
    assert free_disk(folder, 1).status == "ok"
    assert free_disk(folder, 2**60).status == "problem"
    assert not folder.parent.exists()


def test_bfloat16_is_told_as_torch_tells_it() -> None:
    assert multiplies_bf16() == (resolve_dtype("auto", "cpu") == "bfloat16")


def test_the_machine_is_examined_without_torch() -> None:
    if torch.cuda.is_available():
        pytest.skip("torch is asked about the GPU")
    code = (
        "import sys; from ip2p.doctor.machine import examine_machine as e; list(e(str)); print('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


def test_a_damaged_file_of_a_run_is_found_if_all_are_read(tmp_path: Path) -> None:
    config = PipelineConfig(out=tmp_path / "run")
    write_pairs(config, num_shards=2)
    write_dataset(config)
    uses.write_config(config)

    def files_of() -> list[Finding]:
        sections = examine(str(config.out), prefect=lambda: "none", checksums=True)
        return [finding for section in sections if section.title == "files" for finding in section.findings]

    assert [(each.status, each.text) for each in files_of()] == [
        ("ok", "4 shards and the dataset are as they were written")
    ]
    shard = store.RunFolder(config.out).shard("pairs", 1)
    file = next((config.out / "dataset/data").glob("train-*.parquet"))
    for path in (shard, file):
        time = path.stat().st_mtime_ns
        path.write_bytes(b"x" * path.stat().st_size)
        os.utime(path, ns=(time, time))
    assert [each.status for each in files_of()] == ["problem", "problem"]
    assert [str(path) in each.text for path, each in zip((shard, file), files_of(), strict=True)] == [True, True]

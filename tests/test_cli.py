"""The command: instant help, one-line errors with exit codes, and runs that are killed and go on."""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from ip2p import uses
from ip2p.cli import COMMANDS, main
from ip2p.cli.arguments import NewRun
from ip2p.cli.parsing import flags_of, parse_over_base
from ip2p.config import PipelineConfig, to_dict
from ip2p.store import read_sidecar
from ip2p.store.mirror import url_of
from tests import processes

HEAVY = ("torch", "prefect", "diffusers", "transformers", "datasets", "open_clip")


def _error(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    """The one line that a command ends with; it must be its only error line, with exit code 2."""
    assert main(words) == 2
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith(("ip2p: error", "Traceback"))]
    assert len(lines) == 1
    return lines[0]


def _save(config: PipelineConfig, folder: Path) -> str:
    path = folder / "asked.json"
    path.write_text(json.dumps(to_dict(config)))
    return str(path)


@pytest.mark.parametrize(
    "words", [["--help"], ["run", "--help"], ["run", "shapes", "--help"], ["edit", "--help"], ["refilter", "-h"]]
)
def test_help_is_instant_because_nothing_heavy_is_imported(words: list[str]) -> None:
    code = (
        "import sys; from ip2p.cli import main\n"
        f"try: main({words!r})\nexcept SystemExit as end: assert not end.code\n"
        f"print('heavy:', [name for name in {HEAVY!r} if name in sys.modules])"
    )
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert shown.stdout.splitlines()[-1] == "heavy: []"
    assert len(shown.stdout) > 300


WAYS_TO_HELP = [name.split() for name in COMMANDS] + [["prompts"]]


@pytest.mark.parametrize("words", WAYS_TO_HELP, ids=" ".join)
def test_every_command_and_subcommand_answers_help(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*words, "--help"]) == 0
    shown = capsys.readouterr()
    assert shown.out.startswith(f"usage: ip2p {' '.join(words)} ")
    assert shown.err == ""


def test_help_shows_few_settings_first_and_every_one_or_a_stage_s_on_request(
    capsys: pytest.CaptureFixture[str],
) -> None:
    def lines(*words: str) -> list[str]:
        assert main(words) == 0
        return capsys.readouterr().out.splitlines()

    first, every, stage = (lines("run", "shapes", more) for more in ("--help", "--help-all", "--help-stage=rendering"))
    assert len(first) < 60 < len(every)
    flags = set(flags_of(PipelineConfig()))
    shown = {word.rstrip(",") for line in first for word in line.split() if word.rstrip(",") in flags}
    assert shown == {f"--{path}".replace("_", "-") for path in NewRun.common} and len(shown) == 10
    text = "\n".join(every)
    assert [flag for flag in flags if flag not in text] == []
    named = {
        word for line in stage for word in line.split() if word.startswith("--") and word.strip("-") not in ("", "help")
    }
    assert named and all(word.startswith("--rendering.") for word in named)


def test_help_shows_the_defaults_of_the_preset(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["run", "paper", "--help"]) == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert "Denoising steps. (default: 100)" in shown
    assert main(["run", "nosuch", "--help"]) == 0


def test_help_that_nobody_reads_to_its_end_ends_quietly() -> None:
    program = f"{sys.executable} -c 'import sys; from ip2p.cli import main; sys.exit(main())' run --help-all"
    command = ["bash", "-c", f"set -o pipefail; {program} | (exec 0<&-; sleep 1)"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


def test_explain_says_what_a_start_would_do_and_starts_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, data = tmp_path / "out", tmp_path / "data.parquet"
    pq.write_table(pa.table({"edit_prompt": ["a"]}), data)
    for command, stages in (("dataset", 3), ("train", 2), ("run", 5)):
        words = ["--data", str(data)] if command == "train" else []
        assert main([command, "shapes", *words, "--out", str(out), "--explain"]) == 0
        lines = capsys.readouterr().out.splitlines()
        assert len(lines) == stages and all(line.endswith("missing     nothing yet") for line in lines)
    assert not out.exists()


def test_the_overview_names_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 0
    said = capsys.readouterr().out
    assert all(f"  {name} " in said for name in ("run", "dataset", "train", "evaluate", "edit", "refilter", "report"))


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["rnu"], "unknown command rnu. Did you mean run?"),
        (["run"], "needs a preset or --config FILE"),
        (["run", "shaps"], "unknown preset shaps. Did you mean shapes?"),
        (["run", "shapes", "--rendering.steps", "3"], "unknown option --rendering.steps."),
        (["run", "shapes", "--rendering.num_inference_stps=3"], "Did you mean --rendering.num-inference-steps?"),
        (["run", "shapes", "--rendering.num-inference-steps", "0"], "num_inference_steps must be positive, got 0"),
        (["run", "shapes", "--rendering.num-inference-steps", "x"], "invalid literal for int() with base 10: 'x'"),
        (["run", "shapes", "--rendering.dtype", "float8"], "invalid choice 'float8'"),
        (
            ["run", "shapes", "--rendering.guidance-scale", "9", "3"],
            "guidance_scale is a range (low, high), got (9.0, 3.0)",
        ),
        (["run", "shapes", "more"], "'more' was not expected"),
        (["train", "shapes", "--dta", "x", "--data", "y"], "unknown option --dta. Did you mean --data?"),
        (["evaluate", "nowhere", "--out", "x"], "nowhere is not a run folder"),
        (["compare", "one"], "needs two run folders or more"),
        (["dataset", "import", "source"], "`ip2p dataset import` needs OUT. Run folder to write"),
        (["dataset", "imprt", "a", "b"], "unknown preset imprt"),
        (["dataset", "import", "--score", "yes", "source", "out", "--scor"], "Did you mean --score?"),
        (["run", "--config", "nowhere.json", "--scor", "1"], "unknown option --scor."),
        (["edit", "a.png", "x", "b.png", "--model", "m", "--seed", "1"], "Did you mean --seeds?"),
        (["run", "shapes", "--out"], "--out"),
        (["run", "--config", "nowhere.json"], "config file nowhere.json does not exist"),
        (["train", "shapes"], "needs --data"),
        (["train", "sd15", "--data", "/nowhere/data"], "/nowhere/data does not exist"),
        (["evaluate"], "needs RUN. A run folder"),
        (["evaluate", "nowhere"], "nowhere is not a run folder"),
        (["refilter", "nowhere"], "nowhere is not a run folder"),
        (["report", "nowhere"], "nowhere is not a run folder"),
        (["ablate"], "needs RUN. A run folder"),
        (["ablate", "nowhere"], "nowhere is not a run folder"),
        (["edit", "a.png", "make it red", "b.png"], "--model"),
        (["edit", "--model", "./nowhere", "a.png", "make it red", "b.png"], "./nowhere does not exist"),
    ],
)
def test_a_mistake_is_one_line_with_exit_code_2(
    words: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert said in _error(capsys, *words)


def test_flags_go_over_a_file_and_a_file_goes_over_a_preset(tmp_path: Path) -> None:
    file = tmp_path / "config.yaml"
    file.write_text("rendering: {num_inference_steps: 7, num_candidates: 9}\n")
    words = ["shapes", "--config", str(file), "--rendering.num-inference-steps", "8", "--out", str(tmp_path)]
    config = _parsed(*words)
    assert (config.rendering.num_inference_steps, config.rendering.num_candidates, config.out) == (8, 9, tmp_path)
    assert config.evaluation.domain == "ip2p.shapes.domain:ShapesDomain"


def _parsed(*words: str) -> PipelineConfig:
    with contextlib.ExitStack() as stack:
        return parse_over_base(NewRun, words, "ip2p run", stack)[1]


def test_a_setting_s_value_is_not_taken_for_the_preset(tmp_path: Path) -> None:
    file = tmp_path / "config.yaml"
    file.write_text("rendering: {num_inference_steps: 90}\nfiltering: {per_edit_type: {add: {image: 0.1}}}\n")
    words = ["--rendering.first-look-steps", "60", "--filtering.per-edit-type.add.image", "0.3", "--config", str(file)]
    config = _parsed(*words)
    assert (config.rendering.first_look_steps, config.filtering.per_edit_type["add"].image) == (60, 0.3)
    assert _parsed("--prompts.model", "sd15", "--config", str(file)).prompts.model == "sd15"
    assert _parsed("--rendering.seed", "3", "paper").rendering.num_inference_steps == 100


def test_flags_are_written_with_dashes_or_underscores_and_take_values_with_or_without_equals() -> None:
    spelled = _parsed("shapes", "--training.learning_rate=1e-3", "--training.no-use-ema", "--workers=4", "--out", "o")
    assert (spelled.training.learning_rate, spelled.training.use_ema) == (1e-3, False)
    assert (spelled.runner.max_workers, spelled.out) == (4, Path("o"))
    assert _parsed("shapes", "--runner.max_workers", "4").runner == spelled.runner
    assert _parsed("shapes", "--filtering.per-edit-type.size.image", "0.5").filtering.per_edit_type["size"].image == 0.5


def test_a_url_stays_one_as_run_folder() -> None:
    assert url_of(_parsed("shapes", "--out", "s3://bucket/run").out) == "s3://bucket/run"
    assert [url_of(Path(place)) for place in ("runs/a", "/data/a:/b", "memory://x")] == [
        "runs/a",
        "/data/a:/b",
        "memory://x",
    ]


@pytest.mark.parametrize(
    ("section", "changes", "said"),
    [
        ("prompts", {"captions": ""}, "prompts.captions is not set"),
        ("prompts", {"captions": "/nowhere/captions.txt"}, "captions file /nowhere/captions.txt does not exist"),
        ("prompts", {"model": "/nowhere/model"}, "prompts.model /nowhere/model does not exist"),
        ("rendering", {"model": "/nowhere/model"}, "rendering.model /nowhere/model does not exist"),
        ("scoring", {"clip_model": "/nowhere/model"}, "scoring.clip_model /nowhere/model does not exist"),
        (
            "training",
            {"pretrained_model_name_or_path": "./no"},
            "training.pretrained_model_name_or_path ./no does not exist",
        ),
    ],
)
def test_what_is_missing_is_said_before_anything_starts(
    section: str,
    changes: dict[str, str],
    said: str,
    tiny_config: PipelineConfig,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    config = dataclasses.replace(
        tiny_config, **{section: dataclasses.replace(getattr(tiny_config, section), **changes)}
    )
    assert said in _error(capsys, "run", "--config", _save(config, tmp_path))
    assert not list(config.out.iterdir())


def test_an_empty_captions_file_is_said(
    tiny_config: PipelineConfig, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Path(tiny_config.prompts.captions).write_text("\n\n")
    assert "holds no caption" in _error(capsys, "dataset", "--config", _save(tiny_config, tmp_path))


def test_a_parquet_without_a_needed_column_names_the_columns_it_has(
    tiny_config: PipelineConfig, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "data").mkdir()
    pq.write_table(pa.table({"before": ["x"], "text": ["y"]}), tmp_path / "data" / "train.parquet")
    line = _error(capsys, "train", "--config", _save(tiny_config, tmp_path), "--data", str(tmp_path / "data"))
    assert "no column 'original_image'" in line
    assert "before, text" in line


def test_refilter_changes_nothing_but_filtering(
    tiny_config: PipelineConfig, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    uses.write_config(tiny_config)
    line = _error(capsys, "refilter", str(tiny_config.out), "--rendering.seed", "5")
    assert "changes filtering and dataset, got rendering" in line
    assert "no candidates to filter" in _error(
        capsys, "refilter", str(tiny_config.out), "--filtering.thresholds.direction", "0.1"
    )


def test_an_ablation_says_which_variants_there_are_and_what_it_cannot_vary(
    tiny_config: PipelineConfig, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = str(tiny_config.out)
    uses.write_config(tiny_config)
    assert "unknown variant tneth. Did you mean tenth?" in _error(capsys, "ablate", run, "--variants", "full,tneth")
    assert "the variants cannot go to the run itself" in _error(capsys, "ablate", run, "--out", run)
    uses.write_config(tiny_config, "owner/pairs")
    assert f"{run} was trained on owner/pairs" in _error(capsys, "ablate", run)


def test_an_unreachable_prefect_server_is_said(
    tiny_config: PipelineConfig, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from flows.server import prefect_server

    monkeypatch.setenv("PREFECT_API_URL", "http://127.0.0.1:9/api")
    with pytest.raises(ValueError, match="does not answer.*unset PREFECT_API_URL"), prefect_server():
        pass


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """A user's without a Prefect server; the database of the private ones is made by the first run."""
    free = {name: value for name, value in os.environ.items() if not name.startswith("PREFECT_")}
    return free | {"XDG_CACHE_HOME": str(tmp_path_factory.mktemp("cache")), "OMP_NUM_THREADS": "1"}


@pytest.mark.slow
def test_a_killed_run_goes_on_and_a_finished_one_imports_nothing_heavy(
    tiny_config: PipelineConfig, tmp_path: Path, environment: dict[str, str]
) -> None:
    triplets = tmp_path / "triplets.jsonl"
    triplets.write_text(
        "".join(
            json.dumps({"input": f"a red circle {n}", "edit": "make it blue", "output": f"a blue circle {n}"}) + "\n"
            for n in range(32)
        )
        + "not json\n"
    )
    config = dataclasses.replace(
        tiny_config,
        prompts=dataclasses.replace(tiny_config.prompts, captions=str(triplets), shard_size=4),
        rendering=dataclasses.replace(tiny_config.rendering, num_inference_steps=20),
    )
    words = ["dataset", "--config", _save(config, tmp_path)]
    first = processes.fork(processes.command, words, tmp_path / "first.log", environment)
    processes.wait_until(lambda: len(list(config.out.glob("candidates/*.json"))) >= 2, first)
    processes.kill(first)
    done = {path: path.stat().st_mtime_ns for path in config.out.glob("candidates/*.parquet") if read_sidecar(path)}
    assert 2 <= len(done) < 9
    processes.run(processes.command, words, tmp_path / "second.log", environment)
    said = (tmp_path / "second.log").read_text()
    assert "resuming in" in said
    assert str(config.out / "dataset") in said
    assert all(path.stat().st_mtime_ns == made for path, made in done.items())
    assert len(list(config.out.glob("candidates/*.parquet"))) == 9
    code = (
        f"import sys; from ip2p.cli import main; assert main({words!r}) == 0\n"
        f"print('heavy:', [name for name in {HEAVY!r} if name in sys.modules])"
    )
    third = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert "done already" in third.stdout
    assert third.stdout.splitlines()[-1] == "heavy: []"


@pytest.mark.slow
def test_ctrl_c_is_one_line_and_exit_code_130(
    tiny_config: PipelineConfig, tmp_path: Path, environment: dict[str, str]
) -> None:
    log = tmp_path / "log"
    running = processes.fork(processes.command, ["dataset", "--config", _save(tiny_config, tmp_path)], log, environment)
    processes.wait_until(lambda: "starting a Prefect server" in log.read_text(), running)
    assert (tiny_config.out / "config.json").exists()
    assert running.pid is not None
    os.kill(running.pid, signal.SIGINT)
    running.join()
    assert running.exitcode == 130
    said = log.read_text()
    assert said.rstrip().splitlines()[-1] == "ip2p: interrupted. Run the same command again to resume."
    assert "Traceback" not in said


def test_a_full_disk_is_one_line_with_the_way_on(
    tiny_config: PipelineConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "part-00000.parquet")

    monkeypatch.setattr("ip2p.cli.runs._serve_and_run", full)
    assert main(["dataset", "--config", _save(tiny_config, tmp_path)]) == 1
    said = capsys.readouterr().err.splitlines()[-1]
    assert "no space left on the disk (part-00000.parquet)" in said
    assert "Run the same command again to resume" in said

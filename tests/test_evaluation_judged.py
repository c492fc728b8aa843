"""Benchmarks with a judge: files in their layouts, and figures against the plain computation of their scripts."""

from __future__ import annotations

import json
import math
import shutil
import statistics
from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from ip2p.cli import main
from ip2p.cli.benchmark import describe
from ip2p.config import BenchmarkConfig, PipelineConfig, VlmConfig
from ip2p.evaluation import benchmarks as package
from ip2p.evaluation.benchmark import benchmark
from ip2p.evaluation.benchmark_cases import read_benchmark
from ip2p.evaluation.benchmarks import Facts, benchmarks, facts_of
from ip2p.evaluation.benchmarks.gedit import judged_size
from ip2p.evaluation.cases import EditCase, Pixels
from ip2p.evaluation.judged import JudgeMeasure, describe_judge, set_up_judge
from ip2p.report import write_benchmark
from ip2p.sources.content import Source, content_of
from tests.test_evaluation import trained  # noqa: F401
from tests.test_evaluation_benchmark import cell, edits_of, picture, write_table
from tests.test_evaluation_vlm import Judge, judge, tiny_vlm, whole_score  # noqa: F401

SIZE = (64, 64)


@pytest.fixture
def imgedit(tmp_path: Path) -> Path:
    """Five edits of three types, one of an unknown type, and one whose picture is missing."""
    kinds = {"1082": "alter", "97": "add", "91": "add", "103": "add", "673": "style", "7": "weather", "8": "add"}
    folder, listing = tmp_path / "imgedit", dict[str, dict[str, str]]()
    (folder / "original_images" / "animal").mkdir(parents=True)
    for number, (key, kind) in enumerate(kinds.items()):
        listing[key] = {"id": f"animal/{number:09d}.png", "prompt": f"make the circle {key}", "edit_type": kind}
        if key != "8":
            Image.fromarray(picture(number, SIZE)).save(folder / "original_images" / listing[key]["id"])
    (folder / "basic_edit.json").write_text(json.dumps(listing))
    return folder


@pytest.fixture
def gedit(tmp_path: Path) -> Path:
    """Four pictures, each with an instruction in both languages, of three task types in all."""
    columns: dict[str, list[Any]] = defaultdict(list)
    for number, kind in enumerate(("color_alter", "subject-add", "subject-add", "ps_human")):
        for language, words in (("en", "make it red"), ("cn", "把它变成红色")):
            columns["task_type"].append(kind)
            columns["key"].append(f"key{number}{language}")
            columns["instruction"].append(words)
            columns["instruction_language"].append(language)
            columns["Intersection_exist"].append(number != 2)
    images = {"input_image": [cell(picture(number // 2, (48, 80))) for number in range(8)]}
    images["input_image_raw"] = images["input_image"]
    return write_table(tmp_path / "gedit", columns, images)


@pytest.fixture
def kris(tmp_path: Path) -> Path:
    """Two edits of each kind of task, and one that takes several pictures."""
    folder = tmp_path / "kris"
    further = {
        "count_change": {"gt_img": "", "explain_en": ""},
        "anomaly_correction": {"gt_img": "", "explain_en": "a dog has four legs"},
        "viewpoint_change": {"gt_img": "{}_gt.png", "explain_en": ""},
        "biology": {"gt_img": "", "explain_en": "it turns yellow"},
        "temporal_prediction": {"gt_img": "", "explain_en": ""},
    }
    for place, (category, row) in enumerate(further.items()):
        (folder / category).mkdir(parents=True)
        listing: dict[str, dict[str, Any]] = {}
        for key in ("1", "2"):
            seed = 10 * place + int(key)
            names: Any = f"{key}.png" if category != "temporal_prediction" else [f"{key}.png", f"{key}-2.png"]
            gt = row["gt_img"].format(key)
            listing[key] = {**row, "ori_img": names, "gt_img": gt, "ins_en": f"make it red, {category}"}
            Image.fromarray(picture(seed, SIZE)).save(folder / category / f"{key}.png")
            if gt:
                Image.fromarray(picture(100 + seed, SIZE)).save(folder / category / gt)
        (folder / category / "annotation.json").write_text(json.dumps(listing))
    return folder


@pytest.fixture
def config(trained: PipelineConfig, judge: Judge, tmp_path: Path) -> BenchmarkConfig:  # noqa: F811
    return BenchmarkConfig(
        source="set by the test",
        models=(str(trained.out),),
        out=tmp_path / "benchmark",
        clip_model=trained.scoring.clip_model,
        clip_pretrained=None,
        dino_model=None,
        evaluation=replace(trained.evaluation, sdedit_strengths=(), resolution=0, vlm=judge.config),
    )


def level(pixels: Pixels) -> float:
    """What the judge sees in a picture."""
    return round(float(pixels.mean()) / 25.5, 1)


def published(found: Mapping[str, Any], name: str) -> dict[str, Any]:
    """An editor's figures by the benchmark's own rules."""
    return {figure["label"]: figure for figure in found["editors"][name]["published"]}


def pairs(config: BenchmarkConfig) -> list[tuple[EditCase, Pixels]]:
    """The editor's cases and pictures."""
    edited = edits_of(config, "edit")
    return [(case, edited[number]) for number, case in enumerate(read_benchmark(config.source).cases)]


@pytest.mark.slow
def test_imgedit_is_the_mean_of_three_scores_by_type_and_overall_with_the_deviation_over_repeats(
    config: BenchmarkConfig,
    imgedit: Path,
    judge: Judge,  # noqa: F811
) -> None:
    judge.drifts, judge.served = True, "judge-of-may"
    config = replace(config, source=str(imgedit), repeats=3, export=True)
    found = benchmark(config)
    assert (found["protocol"], found["n"]) == ("imgedit", 5)
    name, rows = Path(config.models[0]).name, pairs(config)
    plain: list[dict[str, float]] = []
    for times in range(3):
        by_type: dict[str, list[float]] = defaultdict(list)
        for case, edited in rows:
            scores = [whole_score(each, level(edited), times) for each in ("compliance", "naturalness", "detail")]
            by_type[case.edit_type].append(sum(scores) / 3)
        types = {kind: sum(values) / len(values) for kind, values in by_type.items()}
        every = [value for values in by_type.values() for value in values]
        plain.append(types | {"mean over edits": sum(every) / 5, "mean over types": sum(types.values()) / 3})
    figures = published(found, name)
    assert list(figures) == ["mean over edits", "mean over types", "add", "alter", "style"]
    for label, figure in figures.items():
        values = [row[label] for row in plain]
        assert figure["repeats"] == pytest.approx(values)
        assert figure["mean"] == pytest.approx(statistics.mean(values))
        assert figure["sd"] == pytest.approx(statistics.stdev(values))
    assert figures["mean over edits"]["sd"] > 0 and figures["add"]["n"] == 3
    single = found["editors"][name]["single"]
    assert single["imgedit"] == pytest.approx(figures["mean over edits"]["mean"])
    assert single["by_type"]["add"]["imgedit"] == pytest.approx(figures["add"]["mean"])
    assert found["editors"][name]["answers"] == {"asked": 15, "refused": 0, "without_scores": 0}
    assert found["judge"]["served_as"] == {"judge-of-may": 30} and found["judge"]["repeats"] == 3
    outputs = {path.name: np.asarray(Image.open(path)) for path in (config.out / "outputs" / name).iterdir()}
    assert sorted(outputs) == sorted(facts_of(case).output for case, _ in rows)
    assert all(np.array_equal(outputs[facts_of(case).output], edited) for case, edited in rows)
    page = write_benchmark(config.out).read_text()
    assert "mean over types" in page and "judge-of-may" in page and "±" in page


@pytest.mark.slow
def test_gedit_is_viescore_averaged_over_task_types_by_language_and_set(config: BenchmarkConfig, gedit: Path) -> None:
    config = replace(config, source=str(gedit), export=True)
    found = benchmark(config)
    assert (found["protocol"], found["n"]) == ("gedit", 8)
    name = Path(config.models[0]).name
    groups: dict[str, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    for case, edited in pairs(config):
        size = judged_size(*case.original_image.shape[1::-1])
        before, after = (
            level(np.asarray(Image.fromarray(pixels).resize(size))) for pixels in (case.original_image, edited)
        )
        semantics, quality = min(before, after), min(after, round(10 - after, 1))
        values = {"G_SC": semantics, "G_PQ": quality, "G_O": math.sqrt(semantics * quality)}
        texts = facts_of(case).texts
        for which in ["full set", *(["intersection"] if texts["intersection"] == "True" else [])]:
            for title, value in values.items():
                groups[f"{texts['language']}, {which}, {title}"][case.edit_type].append(value)
    figures = published(found, name)
    headlines = [label for label, figure in figures.items() if figure["is_headline"]]
    assert sorted(headlines) == sorted(groups) and len(groups) == 12
    for label, by_type in groups.items():
        means = {kind: sum(values) / len(values) for kind, values in by_type.items()}
        assert figures[label]["mean"] == pytest.approx(sum(means.values()) / 3), label
        assert figures[label]["sd"] is None
        for kind, value in means.items():
            assert figures[f"{label}, {kind}"]["mean"] == pytest.approx(value)
    full, shared = (figures[f"en, {which}, G_O"]["n"] for which in ("full set", "intersection"))
    assert (full, shared) == (4, 3)
    outputs = config.out / "outputs" / name / "fullset" / "subject-add" / "cn"
    assert sorted(path.name for path in outputs.iterdir()) == [
        *("key1cn.png", "key1cn_SRCIMG.png", "key2cn.png", "key2cn_SRCIMG.png")
    ]


@pytest.mark.parametrize("size", [(512, 512), (640, 416), (300, 1200), (1200, 301)])
def test_the_judge_of_gedit_sees_pictures_of_one_area(size: tuple[int, int]) -> None:
    width, height = judged_size(*size)
    assert 0 <= 512 * 512 - width * height < width + height and width / height == pytest.approx(size[0] / size[1], 0.01)


def test_edits_of_kris_that_take_several_pictures_are_counted_and_alone_refused(
    kris: Path, caplog: pytest.LogCaptureFixture
) -> None:
    listing = kris / "biology" / "annotation.json"
    rows = json.loads(listing.read_text())
    rows |= {"3": rows["1"] | {"ori_img": ["1.png", "2.png"]}, "4": rows["1"] | {"ori_img": "gone.png"}}
    listing.write_text(json.dumps(rows | {"5": rows["1"] | {"ins_en": ""}, "6": rows["1"] | {"ori_img": ["1.png"]}}))
    assert len(read_benchmark(str(kris)).cases) == 9
    several = "with several pictures, where an editor takes one"
    assert f"edits left out: 3 {several}, 1 with no picture, 1 with no instruction" in caplog.text
    for folder in kris.iterdir():
        if folder.name != "temporal_prediction":
            shutil.rmtree(folder)
    with pytest.raises(ValueError, match=f"kris holds no edit that can be made: 2 {several}. Add other tasks"):
        read_benchmark(str(kris))


@pytest.mark.slow
def test_kris_averages_every_single_score_by_dimension_level_and_overall(
    config: BenchmarkConfig,
    kris: Path,
    judge: Judge,  # noqa: F811
) -> None:
    config = replace(config, source=str(kris), export=True)
    found = benchmark(config)
    assert (found["protocol"], found["n"]) == ("kris", 8)
    name = Path(config.models[0]).name
    scores: dict[str, list[tuple[str, float]]] = defaultdict(list)
    for case, edited in pairs(config):
        truth = facts_of(case).files.get("truth")
        seen = np.asarray(Image.open(truth)) if truth else edited
        single = {"VC": ("consistency", edited), "VQ": ("quality", edited), "IF": ("instruction", seen)}
        single |= {"KP": ("knowledge", edited)} if case.edit_type == "biology" else {}
        scores[case.edit_type] += [
            (title, (whole_score(word, level(pixels)) - 1) * 25.0) for title, (word, pixels) in single.items()
        ]
    attribute, spatial = scores["count_change"] + scores["anomaly_correction"], scores["viewpoint_change"]
    natural = scores["biology"]
    plain = {
        "overall": attribute + spatial + natural,
        "factual knowledge": attribute + spatial,
        "conceptual knowledge": natural,
        "attribute perception": attribute,
        "spatial perception": spatial,
        "natural science": natural,
    }
    figures = published(found, name)
    assert [label for label, figure in figures.items() if figure["is_headline"]] == list(plain)
    for label, chosen in plain.items():
        values = [score for _, score in chosen]
        assert (figures[label]["mean"], figures[label]["n"]) == (pytest.approx(sum(values) / len(values)), len(values))
        for title in ("VC", "VQ", "IF", "KP") if label in ("attribute perception", "natural science") else ():
            of_kind = [score for kind, score in chosen if kind == title]
            expected = pytest.approx(sum(of_kind) / len(of_kind)) if of_kind else None
            assert figures[f"{label}, {title}"]["mean"] == expected
    assert len(plain["overall"]) == 6 * 3 + 2 * 4
    asked = " ".join(judge.questions)
    assert "a dog has four legs" in asked and "it turns yellow" in asked
    assert sorted(path.name for path in (config.out / "outputs" / name / "biology").iterdir()) == ["1.jpg", "2.jpg"]


@pytest.mark.slow
def test_a_benchmark_that_was_stopped_asks_only_for_what_is_missing_and_more_repeats_only_for_those(
    config: BenchmarkConfig,
    imgedit: Path,
    judge: Judge,  # noqa: F811
) -> None:
    judge.drifts, judge.answers_left = True, 7
    config = replace(config, source=str(imgedit), repeats=2)
    with pytest.raises(RuntimeError, match="Earlier answers are stored"):
        benchmark(config)
    kept = sum(judge.answered.values())
    assert kept == 7
    judge.answers_left, before = None, len(judge.questions)
    found = benchmark(config)
    assert len(judge.questions) - before == 2 * 2 * 5 - kept
    assert set(judge.answered.values()) == {2}
    assert benchmark(config)["editors"] == found["editors"]
    assert sum(judge.answered.values()) == 20
    again = benchmark(replace(config, repeats=3))
    assert set(judge.answered.values()) == {3}
    name = Path(config.models[0]).name
    for label, figure in published(again, name).items():
        assert figure["repeats"][:2] == published(found, name)[label]["repeats"]


@pytest.mark.slow
def test_a_refused_question_and_an_answer_without_scores_are_left_out_and_counted(
    config: BenchmarkConfig,
    imgedit: Path,
    judge: Judge,  # noqa: F811
) -> None:
    faults = {"circle 91": "400", "circle 673": "nonsense"}
    judge.fault = lambda question: next((fault for words, fault in faults.items() if words in question), "")
    config = replace(config, source=str(imgedit))
    found = benchmark(config)
    name = Path(config.models[0]).name
    assert found["editors"][name]["answers"] == {"asked": 5, "refused": 1, "without_scores": 1}
    means = {
        case.edit_prompt: statistics.mean(
            whole_score(each, level(edited)) for each in ("compliance", "naturalness", "detail")
        )
        for case, edited in pairs(config)
        if not any(words in case.edit_prompt for words in faults)
    }
    figures = published(found, name)
    assert figures["mean over edits"]["mean"] == pytest.approx(statistics.mean(means.values()))
    assert (figures["add"]["n"], figures["style"]["n"], figures["style"]["mean"]) == (2, 0, None)
    asked = len(judge.questions)
    benchmark(replace(config, protocol="imgedit"))
    assert len(judge.questions) == asked


def judged_by(config: VlmConfig, source: Path, folder: Path) -> JudgeMeasure:
    """The measure of a source's benchmark."""
    read = read_benchmark(str(source))
    measure = set_up_judge(benchmarks()[read.layout], config, read.cases, 1, folder)
    assert measure is not None
    return measure


def test_a_judge_that_refuses_everything_is_an_error_and_is_asked_again_when_it_is_put_right(
    imgedit: Path,
    judge: Judge,  # noqa: F811
    tmp_path: Path,
) -> None:
    judge.fault = lambda question: "400"
    cases = read_benchmark(str(imgedit)).cases
    pictures = [case.original_image for case in cases]
    measure = judged_by(judge.config, imgedit, tmp_path)
    with pytest.raises(ValueError, match="refused every question"):
        measure(cases, pictures, pictures)
    judge.fault = lambda question: ""
    rows = measure(cases, pictures, pictures)
    assert [row["judge_refused"] for row in rows] == [0] * 5 and None not in [row["imgedit"] for row in rows]


def test_a_local_judge_is_named_by_its_content_and_its_nonsense_is_counted(
    tiny_vlm: Path,  # noqa: F811
    imgedit: Path,
    tmp_path: Path,
) -> None:
    config = VlmConfig(model=str(tiny_vlm), backend="local", device="cpu", dtype="float32", max_new_tokens=4)
    cases = read_benchmark(str(imgedit)).cases[:2]
    pictures = [case.original_image for case in cases]
    measure = judged_by(config, imgedit, tmp_path)
    rows = measure(cases, pictures, pictures)
    assert [(row["judge_without_scores"], row["imgedit"]) for row in rows] == [(1, None)] * 2
    described = describe_judge(measure)
    assert described["content"] == content_of(Source("evaluation.vlm.model", str(tiny_vlm)))
    assert described["content"] and described["served_as"] == {}
    assert described["questions"] != describe_judge(replace(measure, benchmark=benchmarks()["kris"]))["questions"]


INVENTED = """
from ip2p.evaluation.benchmark_cases import file_loaders
from ip2p.evaluation.benchmarks import Aggregate, Benchmark, Facts, Question, SourceEdit
from ip2p.evaluation.measures import Column


class Invented(Benchmark):
    name = "invented"
    order = 1
    words = "an invented protocol"
    columns = (Column("invented_fun", "Fun", "higher", "mean"),)
    published = {"invented_fun": "Fun"}
    takes = ()
    needs = "needs fun"
    questions = ("How much fun is it?",)

    def read(self, asked):
        if not (asked.path / "fun.png").is_file():
            return None
        facts = Facts(output="fun-edited.png")
        loaders = file_loaders({"original_image": asked.path / "fun.png"})
        return [SourceEdit({"edit_prompt": "make it fun"}, loaders, facts)]

    def ask(self, case, before, after):
        return [Question(pictures=[], text=self.questions[0] + ' {"fun": 1}', scores=("fun",), low=1, high=5)]

    def values(self, case, answers):
        return {"invented_fun": answers[0] and answers[0][0]}

    def aggregate(self, edits):
        return [Aggregate(label="most fun", value=max(values["invented_fun"] for _, values in edits), n=len(edits))]
"""


@pytest.fixture
def invented(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Data of a benchmark whose only trace is a file in the folder of benchmarks."""
    (tmp_path / "plug-in").mkdir()
    (tmp_path / "plug-in" / "invented.py").write_text(INVENTED)
    monkeypatch.setattr(package, "__path__", [*package.__path__, str(tmp_path / "plug-in")])
    benchmarks.cache_clear()
    (tmp_path / "fun").mkdir()
    Image.fromarray(picture(1, SIZE)).save(tmp_path / "fun" / "fun.png")
    yield tmp_path / "fun"
    benchmarks.cache_clear()


@pytest.mark.slow
def test_a_file_in_the_folder_adds_a_benchmark_to_the_command_the_figures_the_page_and_the_outputs(
    invented: Path,
    config: BenchmarkConfig,
    judge: Judge,  # noqa: F811
) -> None:
    judge.scores = lambda question, levels: {"fun": 4}  # type: ignore[method-assign]
    found = benchmark(replace(config, source=str(invented), export=True))
    name = Path(config.models[0]).name
    assert found["protocol"] == "invented" and published(found, name)["most fun"]["mean"] == 4
    assert found["editors"][name]["single"]["invented_fun"] == 4
    assert "most fun" in "\n".join(describe(found)) and "Fun ↑" in "\n".join(describe(found))
    page = write_benchmark(config.out).read_text()
    assert "an invented protocol" in page and "most fun" in page
    assert (config.out / "outputs" / name / "fun-edited.png").is_file()


@pytest.mark.slow
def test_without_a_judge_the_edits_are_made_for_the_benchmark_s_own_script(
    config: BenchmarkConfig, imgedit: Path, caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["benchmark", str(imgedit), "--models", *config.models, "--out", str(config.out), "--export"]
    words += ["--clip-model", config.clip_model, "--dino-model", "None", "--evaluation.num-inference-steps", "2"]
    assert main(words) == 0
    said = capsys.readouterr()
    assert "5 edits by the protocol imgedit" in said.out and "judged by" not in said.out
    assert "no judge" in said.err + caplog.text and "left out 2 of 7 edits" in said.err + caplog.text
    assert len(list((config.out / "outputs" / Path(config.models[0]).name).glob("*.png"))) == 5


@pytest.mark.slow
def test_the_command_prints_who_judged_and_the_benchmark_s_own_figures(
    config: BenchmarkConfig,
    kris: Path,
    judge: Judge,  # noqa: F811
    capsys: pytest.CaptureFixture[str],
) -> None:
    words = ["benchmark", str(kris), "--models", *config.models, "--out", str(config.out), "--repeats", "2"]
    words += ["--clip-model", config.clip_model, "--dino-model", "None", "--evaluation.num-inference-steps", "2"]
    words += ["--evaluation.vlm.model", "judge", "--evaluation.vlm.server.base-url", judge.config.server.base_url]
    assert main(words) == 0
    said = capsys.readouterr().out
    assert "judged by judge, served as judge" in said and "each asked 2 times" in said
    assert "factual knowledge" in said and "±" in said and "questions without scores" in said


@pytest.mark.parametrize(("listing", "place"), [("basic_edit.json", "singleturn"), ("singleturn.json", ".")])
def test_imgedit_is_read_as_its_repository_and_its_archive_lay_it_out(imgedit: Path, listing: str, place: str) -> None:
    wanted = [case.original_image for case in read_benchmark(str(imgedit)).cases]
    (imgedit / "basic_edit.json").rename(imgedit / listing)
    (imgedit / place).mkdir(exist_ok=True)
    (imgedit / "original_images" / "animal").rename(imgedit / place / "animal")
    for source in (imgedit, imgedit / listing):
        read = read_benchmark(str(source))
        assert read.layout == "imgedit"
        assert all(np.array_equal(case.original_image, pixels) for case, pixels in zip(read.cases, wanted, strict=True))


def test_files_that_are_not_a_listing_are_named(tmp_path: Path) -> None:
    for text, words in (("[]", "must hold a JSON object"), ("{", "is not valid JSON"), ("{}", "holds no edits")):
        (tmp_path / "basic_edit.json").write_text(text)
        with pytest.raises(ValueError, match=words):
            read_benchmark(str(tmp_path))


def test_an_output_stays_in_its_folder() -> None:
    for name in ("../x.png", "/x.png", "a/../../x.png"):
        with pytest.raises(ValueError, match="outside its folder"):
            Facts(output=name)


def test_a_judged_protocol_is_refused_for_other_data_and_repeats_for_a_local_judge(
    config: BenchmarkConfig, tmp_path: Path
) -> None:
    Image.fromarray(picture(1)).save(tmp_path / "one.png")
    (tmp_path / "edits.jsonl").write_text(json.dumps({"image": "one.png", "edit_prompt": "make it red"}))
    judged = [name for name, benchmark in benchmarks().items() if benchmark.questions]
    assert judged == ["imgedit", "gedit", "kris"]
    for name in judged:
        with pytest.raises(ValueError, match="Leave --protocol out"):
            benchmark(replace(config, source=str(tmp_path), protocol=name))
    with pytest.raises(ValueError, match="Choose from: auto, magicbrush"):
        benchmark(replace(config, source=str(tmp_path), protocol="vibes"))
    local = replace(config.evaluation.vlm, backend="local")
    with pytest.raises(ValueError, match="local judge gives the same answer"):
        replace(config, repeats=2, evaluation=replace(config.evaluation, vlm=local))

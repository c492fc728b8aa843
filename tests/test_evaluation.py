"""Evaluation: figures against closed forms, editors against a domain whose truth is one number."""

from __future__ import annotations

import math
import random
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import scipy.stats
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from ip2p import store
from ip2p.config import EvaluationConfig, PipelineConfig
from ip2p.evaluation import EditCase, EditJudgement, evaluate, load_domain, oracle_precision
from ip2p.evaluation.cases import Pixels, balanced_subset, hold_out_cases
from ip2p.evaluation.editors import Setting, sdedit_source
from ip2p.evaluation.metrics import bootstrap_interval, curve, summarise, wilson_interval
from ip2p.evaluation.parts import Part, Plan, noise_seed, session_slices, write_edits
from ip2p.evaluation.run import plan_parts, run_editors
from ip2p.images import IMAGE_TYPE, encode_png, open_pixels
from ip2p.records import Candidate, EditTriplet, PairScores, RenderSpec, ScoredCandidate, Verdict
from ip2p.rendering.table import as_row
from ip2p.report import write_report

GREYS = {"black": 20, "white": 230}


class GreyDomain:
    """Plain grey pictures, dark or bright; an edit asks for the other one. The left edge must stay as it was."""

    def edit_types(self) -> tuple[str, ...]:
        return ("brighten", "darken")

    def draw_cases(self, num: int, seed: int) -> list[EditCase]:
        rng = random.Random(seed)
        return [self._case(rng, self.edit_types()[number % 2]) for number in range(num)]

    def _case(self, rng: random.Random, kind: str) -> EditCase:
        before, after = ("black", "white") if kind == "brighten" else ("white", "black")
        return EditCase(
            original_image=np.full((64, 64, 3), GREYS[before] + rng.randrange(5), np.uint8),
            edit_prompt=f"make the background {after}",
            original_prompt=f"an empty {before} background",
            edited_prompt=f"an empty {after} background",
            edit_type=kind,
            payload=GREYS[after],
        )

    def judge_case(self, case: EditCase, edited_image: Pixels) -> EditJudgement:
        done = abs(float(edited_image[:, 8:].mean()) - case.payload) < 20
        kept = bool(np.abs(edited_image[:, :8].astype(int) - case.original_image[:, :8]).max() < 20)
        return EditJudgement(done=done, kept=kept, legible=True)

    def judge_pair(self, triplet: EditTriplet, original_image: Pixels, edited_image: Pixels) -> EditJudgement:
        wanted = GREYS[triplet.edited_prompt.split()[2]]
        done = abs(float(edited_image.mean()) - wanted) < 20
        return EditJudgement(done=done, kept=True, legible=True)


def with_domain(config: PipelineConfig, **changes: object) -> PipelineConfig:
    """The config judged by `GreyDomain`."""
    knobs = replace(config.evaluation, domain=f"{__name__}:GreyDomain", **changes)  # type: ignore[arg-type]
    return replace(config, evaluation=knobs)


@pytest.fixture
def trained(tiny_config: PipelineConfig) -> PipelineConfig:
    """A run whose editor is the tiny base model, widened, with random weights for what it sees of the picture."""
    import torch
    from diffusers import StableDiffusionInstructPix2PixPipeline, StableDiffusionPipeline

    from ip2p.models.stable_diffusion import widen_conv_in

    base = StableDiffusionPipeline.from_pretrained(tiny_config.rendering.model)
    unet = widen_conv_in(base.unet, 8)
    torch.manual_seed(3)
    torch.nn.init.normal_(unet.conv_in.weight[:, 4:], std=0.1)
    parts = {**base.components, "unet": unet, "safety_checker": None, "feature_extractor": None, "image_encoder": None}
    StableDiffusionInstructPix2PixPipeline(**parts, requires_safety_checker=False).save_pretrained(
        tiny_config.out / "model"
    )
    return tiny_config


def part_files(config: PipelineConfig) -> dict[str, int]:
    """When each part was last written."""
    files = [path for name in ("edits", "parts") for path in (config.out / "evaluation" / name).glob("*.parquet")]
    return {f"{path.parent.name}/{path.name}": path.stat().st_mtime_ns for path in files}


@pytest.mark.parametrize("successes, trials", [(0, 1), (0, 70), (1, 3), (35, 70), (421, 490), (490, 490)])
@pytest.mark.parametrize("level", [0.8, 0.95, 0.99])
def test_the_ends_of_the_wilson_interval_are_where_the_score_test_turns(
    successes: int, trials: int, level: float
) -> None:
    share, z = successes / trials, scipy.stats.norm.ppf(0.5 + level / 2)
    low, high = wilson_interval(successes, trials, level)
    for bound in (low, high):
        assert (share - bound) ** 2 == pytest.approx(z**2 * bound * (1 - bound) / trials, abs=1e-12)
    assert 0 <= low <= share <= high <= 1 and low < high


def test_wilson_interval_of_nothing_is_everything() -> None:
    assert wilson_interval(0, 0) == (0.0, 1.0)


def test_wilson_interval_refuses_more_successes_than_trials() -> None:
    with pytest.raises(ValueError, match=r"0\.\.3, got 4"):
        wilson_interval(4, 3)


def test_bootstrap_interval_agrees_with_scipy_and_the_normal_limit() -> None:
    values = np.random.default_rng(7).normal(2.0, 3.0, 400)
    ours = bootstrap_interval(values, num_resamples=8000)
    theirs = scipy.stats.bootstrap(
        (values,), np.mean, method="percentile", n_resamples=8000, rng=np.random.default_rng(1)
    ).confidence_interval
    half = 1.959964 * values.std() / math.sqrt(values.size)
    assert ours == pytest.approx((theirs.low, theirs.high), abs=0.1 * half)
    assert ours == pytest.approx((values.mean() - half, values.mean() + half), abs=0.1 * half)


def test_bootstrap_interval_is_the_same_every_time_and_a_point_for_equal_values() -> None:
    assert bootstrap_interval([1.0, 2.0, 5.0]) == bootstrap_interval([1.0, 2.0, 5.0])
    assert bootstrap_interval([0.25] * 9) == (0.25, 0.25)
    assert all(math.isnan(bound) for bound in bootstrap_interval([]))


def record(
    kind: str, done: bool | None, kept: bool | None, scale: float = 1.5, direction: float = 0.1
) -> dict[str, object]:
    """One judged edit."""
    success = None if done is None else done and kept
    judged = {"success": success, "done": done, "kept": kept, "legible": kept}
    clip = {"clip_original": 0.3, "clip_edited": 0.3, "clip_direction": direction, "clip_image": 1.0 - direction}
    return {"edit_type": kind, "image_guidance_scale": scale, **judged, **clip}


def test_summary_counts_by_type_in_the_given_order() -> None:
    records = [record("add", True, True), record("add", True, False), record("colour", False, True)]
    found = summarise(records, ("colour", "size", "add"))
    assert (found["n"], found["success"], found["done"], found["kept"]) == (3, 1 / 3, 2 / 3, 2 / 3)
    assert list(found["by_type"]) == ["colour", "add"]
    assert found["by_type"]["add"]["success"] == 0.5
    assert found["by_type"]["add"]["success_interval"] == list(wilson_interval(1, 2))


def test_summary_without_a_domain_has_clip_figures_only() -> None:
    found = summarise([record("add", None, None)])
    assert found["success"] is None and found["success_interval"] is None
    assert found["clip_direction"] == 0.1


def test_curve_has_one_point_per_scale_in_rising_order() -> None:
    points = curve(
        [record("a", True, True, scale, direction) for scale, direction in ((2.0, 0.1), (1.0, 0.4), (1.0, 0.2))]
    )
    assert [point["image_guidance_scale"] for point in points] == [1.0, 2.0]
    assert points[0]["clip_direction"] == pytest.approx(0.3) and points[0]["n"] == 2


def test_balanced_subset_takes_turns_between_edit_types() -> None:
    cases = [
        replace(case, edit_type=kind) for case, kind in zip(GreyDomain().draw_cases(9, 0), "aaaaaabbc", strict=True)
    ]
    assert balanced_subset(cases, 5) == [0, 1, 6, 7, 8]
    assert balanced_subset(cases, 99) == list(range(9))


@pytest.mark.parametrize(
    "name, words",
    [
        ("nothing", "module:Class"),
        ("no.such.module:X", "no"),
        ("ip2p.records:NoSuchClass", "no class NoSuchClass"),
        (":X", "module:Class"),
    ],
)
def test_wrong_domain_name_says_which_half_is_wrong(name: str, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        load_domain(name)


def test_same_cases_and_noise_at_every_scale_of_the_sweep(tiny_config: PipelineConfig) -> None:
    config = with_domain(tiny_config)
    sweep = [part for part in plan_parts(config, GreyDomain().draw_cases(7, 0)) if part.kind == "sweep"]
    scales = [part.setting.image_guidance_scale for part in sweep if part.model == "model"]
    assert scales == list(config.evaluation.image_guidance_scales)
    assert len({part.cases for part in sweep}) == 1
    assert noise_seed(1, 3) == noise_seed(1, 3) != noise_seed(1, 4)


@pytest.mark.slow
def test_evaluation_judges_the_editor_and_its_baselines_and_never_works_twice(
    trained: PipelineConfig,
) -> None:
    config = with_domain(trained)
    found = evaluate(config)
    assert found["n"] == 7 and set(found["by_type"]) == {"brighten", "darken"}
    copied = found["baselines"]["copy"]
    assert (copied["done"], copied["kept"], copied["success"]) == (0.0, 1.0, 0.0)
    assert copied["clip_image"] == pytest.approx(1.0, abs=1e-5)
    assert found["baselines"]["untrained"]["n"] == 7
    assert [point["n"] for point in found["curve"]] == [2, 2]

    records = pq.read_table(config.out / "evaluation" / "scores.parquet").to_pylist()
    assert len(records) == 7 * 3 + 2 * 2 + 2 + 2
    assert {record["seed"] for record in records if record["case"] == 0} == {noise_seed(config.evaluation.seed, 0)}
    write_report(config)
    with Image.open(config.out / "evaluation" / "images" / "model-brighten.png") as sheet:
        assert sheet.width == 6 + 4 * (2 * 64 + 6)  # four edits side by side

    written = part_files(config)
    assert evaluate(config) == found
    assert part_files(config) == written


@pytest.mark.slow
def test_evaluation_goes_on_with_the_parts_that_are_missing(trained: PipelineConfig) -> None:
    config = with_domain(trained, num_edits=4)
    found = evaluate(config)
    written = part_files(config)
    name = "model-edit-t7.5-i1.5-00000.parquet"
    (config.out / "evaluation" / "parts" / name).unlink()
    assert evaluate(config)["by_type"] == found["by_type"]
    assert changed(config, written) == {f"parts/{name}"}  # measured again, not edited again
    (config.out / "evaluation" / "edits" / name).unlink()
    assert evaluate(config)["by_type"] == found["by_type"]
    assert changed(config, written) == {f"parts/{name}", f"edits/{name}"}


def changed(config: PipelineConfig, written: dict[str, int]) -> set[str]:
    """Names of the parts that were written since."""
    return {name for name, when in part_files(config).items() if when != written[name]}


@pytest.mark.slow
def test_another_judge_measures_anew_and_edits_nothing(trained: PipelineConfig, tmp_path: Path) -> None:
    config = with_domain(trained, num_edits=4)
    found, written = evaluate(config), part_files(config)
    assert found["judge"]["same_as_filter"]
    other = tmp_path / "judge"
    shutil.copytree(config.scoring.clip_model, other)
    weights = load_file(other / "open_clip_model.safetensors")
    weights["text_projection"] = weights["text_projection"].flip(0).contiguous()
    save_file(weights, other / "open_clip_model.safetensors")
    again = evaluate(with_domain(trained, num_edits=4, judge_clip_model=str(other)))
    assert again["judge"] == {"model": "judge", "filter": Path(config.scoring.clip_model).name, "same_as_filter": False}
    assert {name.split("/")[0] for name in changed(config, written)} == {"parts"}
    assert again["clip_image"] == pytest.approx(found["clip_image"], abs=1e-6)  # the picture tower is the same
    assert again["clip_edited"] != pytest.approx(found["clip_edited"], abs=1e-3)


def plan_of(folder: Path, cases: list[EditCase], part: Part, batch_size: int) -> Plan:
    knobs = EvaluationConfig(seed=1, batch_size=batch_size)
    return Plan(folder=folder, knobs=knobs, cases=cases, editors={}, parts=[part], measures=[])


def test_a_killed_part_goes_on_from_its_last_batch_and_ends_in_the_same_pictures(
    trained: PipelineConfig, tmp_path: Path
) -> None:
    config = with_domain(trained)
    cases = GreyDomain().draw_cases(7, 1)
    part = next(part for part in plan_parts(config, cases) if part.model == "model" and part.kind == "edit")
    editor = run_editors(config)["model"].load()
    asked: list[int] = []

    def counted(images: Any, some: Any, seeds: Any, setting: Any) -> list[Pixels]:
        asked.append(len(images))
        return editor(images, some, seeds, setting)

    def dying(images: Any, some: Any, seeds: Any, setting: Any) -> list[Pixels]:
        if sum(asked) >= 4:
            raise KeyboardInterrupt
        return counted(images, some, seeds, setting)

    whole, killed = (plan_of(tmp_path / name, cases, part, 2) for name in ("whole", "killed"))
    write_edits(whole, part, editor, "abc", lambda _: None)
    with pytest.raises(KeyboardInterrupt):
        write_edits(killed, part, dying, "abc", lambda _: None)
    journal = next(tmp_path.rglob("*.journal"))
    journal.write_bytes(journal.read_bytes()[:-5])  # the kill came while the second batch was written
    asked.clear()
    write_edits(killed, part, counted, "abc", lambda _: None)
    assert sum(asked) == 5 and not list(tmp_path.rglob("*.journal"))
    assert pq.read_table(killed.edits(part)).equals(pq.read_table(whole.edits(part)))


def test_a_chain_gives_each_edit_the_answer_before_it(tmp_path: Path) -> None:
    first, *_ = GreyDomain().draw_cases(1, 1)
    cases = [
        replace(first, session="a", previous=None, is_last=False),
        replace(first, session="b", previous=None),
        replace(first, session="a", previous=0, is_last=False, original_image=first.original_image + 90),
        replace(first, session="a", previous=2),
    ]
    setting = Setting(guidance_scale=2.0, image_guidance_scale=1.5)
    (part,) = session_slices("model", setting, cases)
    plan = plan_of(tmp_path, cases, part, 8)
    write_edits(plan, part, lambda images, *_: [image + 1 for image in images], "abc", lambda _: None)
    rows = pq.read_table(plan.edits(part)).to_pylist()
    levels = {row["case"]: open_pixels(row["edited_image"]["bytes"]).max() for row in rows}
    start = int(first.original_image.max())
    assert levels == {0: start + 1, 1: start + 1, 2: start + 2, 3: start + 3}


@pytest.mark.slow
def test_another_sweep_scale_edits_that_scale_only(trained: PipelineConfig) -> None:
    config = with_domain(trained, num_edits=4)
    evaluate(config)
    written = part_files(config)
    found = evaluate(with_domain(trained, num_edits=4, image_guidance_scales=(1.0, 1.5, 2.0)))
    kept = {name: when for name, when in part_files(config).items() if name in written}
    assert kept == written
    assert [point["image_guidance_scale"] for point in found["curve"]] == [1.0, 1.5, 2.0]


@pytest.mark.slow
def test_results_do_not_depend_on_the_batch_size(trained: PipelineConfig) -> None:
    config = with_domain(trained, num_edits=4)
    evaluate(config)
    path = config.out / "evaluation" / "edits" / "model-edit-t7.5-i1.5-00000.parquet"
    before = [open_pixels(row["edited_image"]["bytes"]) for row in pq.read_table(path).to_pylist()]
    shutil.rmtree(config.out / "evaluation")
    evaluate(with_domain(trained, num_edits=4, batch_size=3))
    after = [open_pixels(row["edited_image"]["bytes"]) for row in pq.read_table(path).to_pylist()]
    assert max(np.abs(one.astype(int) - other).max() for one, other in zip(before, after, strict=True)) <= 1


def test_untrained_editor_cannot_see_the_picture_and_the_trained_one_can(trained: PipelineConfig) -> None:
    pictures = [np.full((64, 64, 3), level, np.uint8) for level in (10, 240)]
    cases = [replace(case, edit_prompt="add a ring") for case in GreyDomain().draw_cases(2, 0)]
    setting = Setting(guidance_scale=7.5, image_guidance_scale=1.5)
    editors = run_editors(trained)
    seen = {name: editors[name].load()(pictures, cases, [5, 5], setting) for name in ("model", "untrained")}
    assert np.abs(seen["untrained"][0].astype(int) - seen["untrained"][1]).max() <= 1
    assert np.abs(seen["model"][0].astype(int) - seen["model"][1]).max() > 1


def test_untrained_baseline_leaves_the_text_to_image_model_as_it_was(trained: PipelineConfig) -> None:
    from ip2p.evaluation.editors import load_untrained
    from ip2p.models.pipelines import load_text_to_image

    base = trained.training
    load_untrained(base, "cpu")
    pipeline = load_text_to_image(
        base.pretrained_model_name_or_path, revision=None, variant=None, dtype="float32", device="cpu"
    )
    assert pipeline.unet.conv_in.in_channels == 4


def test_evaluation_without_a_model_says_how_to_get_one(tiny_config: PipelineConfig) -> None:
    with pytest.raises(RuntimeError, match="ip2p train"):
        evaluate(with_domain(tiny_config))


def write_test_split(folder: Path, images: list[bytes], **texts: str) -> None:
    """A dataset's test split in which every row has these texts."""
    cells = pa.array([{"bytes": content, "path": None} for content in images], IMAGE_TYPE)
    columns = {name: [text] * len(images) for name, text in texts.items()}
    folder.mkdir(parents=True)
    pq.write_table(pa.table(columns).append_column("original_image", cells), folder / "test-00000-of-00001.parquet")


@pytest.mark.slow
def test_without_a_domain_the_test_split_is_judged_by_clip_alone(trained: PipelineConfig) -> None:
    cases = GreyDomain().draw_cases(3, 0)
    images = [encode_png(case.original_image) for case in cases] + [b"no picture"]
    write_test_split(trained.out / "dataset" / "data", images, edit_prompt="make it green", edit_type="colour")
    found = evaluate(trained)
    assert found["n"] == 3 and found["success"] is None
    assert found["clip_image"] is not None and found["clip_direction"] is None  # the split has no captions


def test_without_domain_and_test_split_the_evaluation_is_skipped_with_a_reason(trained: PipelineConfig) -> None:
    assert "evaluation.domain" in evaluate(trained)["skipped"]


def test_test_split_without_a_needed_column_names_those_it_has(tiny_config: PipelineConfig) -> None:
    write_test_split(tiny_config.out / "dataset" / "data", [encode_png(np.zeros((8, 8, 3), np.uint8))], words="x")
    with pytest.raises(ValueError, match="edit_prompt.*words, original_image"):
        hold_out_cases(tiny_config, None)


def test_num_edits_caps_the_test_split(tiny_config: PipelineConfig) -> None:
    image = encode_png(np.zeros((8, 8, 3), np.uint8))
    write_test_split(tiny_config.out / "dataset" / "data", [image] * 100, edit_prompt="x")
    config = replace(tiny_config, evaluation=EvaluationConfig(num_edits=70))
    assert len(hold_out_cases(config, None)) == 70


def write_pairs(config: PipelineConfig, *, rejected: bool, number: int = 0) -> None:
    """Ten candidates: five accepted of which four are right, five rejected of which one is."""
    right = [True] * 4 + [False] + [True] + [False] * 4
    case = GreyDomain().draw_cases(1, 0)[0]
    rows, images = [], []
    for place, good in enumerate(right):
        spec = RenderSpec(triplet_id=case.triplet.id, candidate=place, seed=0, guidance_scale=1.0, p2p=0.5)
        scores = PairScores(original=0.3, edited=0.3, direction=0.3, image=0.3)
        verdict = Verdict(reason="" if place < 5 else "low_image")
        rows.append(
            as_row(
                ScoredCandidate(candidate=Candidate(triplet=case.triplet, spec=spec), scores=scores, verdict=verdict)
            )
        )
        images.append(np.full((8, 8, 3), case.payload if good else 128, np.uint8))
    run, kept = store.RunFolder(config.out), len(rows) if rejected else 5
    store.write_shard(run.shard("candidates", number), pa.Table.from_pylist(rows), fingerprint="x", seconds=0.0)
    table = pa.Table.from_pylist(rows[:kept])
    for name in ("original_image", "edited_image"):
        cells = [{"bytes": encode_png(image), "path": None} for image in images[:kept]]
        table = table.append_column(name, pa.array(cells, IMAGE_TYPE))
    store.write_shard(run.shard("pairs", number), table, fingerprint="x", seconds=0.0)


def test_oracle_precision_is_the_share_of_right_pairs_among_accepted_and_all(tiny_config: PipelineConfig) -> None:
    config = with_domain(tiny_config)
    write_pairs(config, rejected=True)
    found = oracle_precision(config)
    assert (found["oracle_precision"], found["oracle_precision_all"]) == (0.8, 0.5)
    assert found["oracle_precision_interval"] == list(wilson_interval(4, 5))
    assert found["oracle_precision_by_type"] == {
        "brighten": {"n": 5, "value": 0.8, "interval": list(wilson_interval(4, 5))}
    }


@pytest.mark.slow
def test_shards_judged_in_processes_come_out_as_one_judged_here(tiny_config: PipelineConfig) -> None:
    config = with_domain(tiny_config)
    for number in range(3):
        write_pairs(config, rejected=True, number=number)
    found = oracle_precision(config)
    assert (found["oracle_precision"], found["oracle_precision_n"]) == (0.8, 15)
    assert (found["oracle_precision_all"], found["oracle_precision_all_n"]) == (0.5, 30)
    verdicts = [config.out / "evaluation" / "oracle" / f"part-0000{number}.parquet" for number in range(3)]
    assert len({path.read_bytes() for path in verdicts}) == 1


def test_oracle_precision_of_all_is_unknown_where_rejected_images_were_not_kept(tiny_config: PipelineConfig) -> None:
    config = with_domain(tiny_config)
    write_pairs(config, rejected=False)
    found = oracle_precision(config)
    assert (found["oracle_precision"], found["oracle_precision_all"]) == (0.8, None)


def test_oracle_precision_is_not_judged_twice_but_again_for_new_pairs(tiny_config: PipelineConfig) -> None:
    config = with_domain(tiny_config)
    write_pairs(config, rejected=True)
    oracle_precision(config)
    verdicts = config.out / "evaluation" / "oracle" / "part-00000.parquet"
    written = verdicts.stat().st_mtime_ns
    oracle_precision(config)
    assert verdicts.stat().st_mtime_ns == written
    write_pairs(config, rejected=False)
    assert oracle_precision(config)["oracle_precision_n"] == 5
    assert verdicts.stat().st_mtime_ns > written


def test_oracle_precision_without_a_domain_is_none(tiny_config: PipelineConfig) -> None:
    write_pairs(tiny_config, rejected=True)
    assert oracle_precision(tiny_config) == {"oracle_precision": None, "oracle_precision_all": None}


@pytest.mark.slow
def test_a_run_that_started_from_an_editor_is_evaluated_without_sdedit(trained: PipelineConfig) -> None:
    base = store.RunFolder(trained.out).model.rename(trained.out / "earlier")
    shutil.copytree(base, store.RunFolder(trained.out).model)
    training = replace(trained.training, pretrained_model_name_or_path=str(base))
    figures = evaluate(with_domain(replace(trained, training=training), sdedit_strengths=(0.5,)))
    assert set(figures["baselines"]) == {"copy", "untrained"} and figures["n"] == trained.evaluation.num_edits
    assert "sdedit" not in figures["curves"]


def test_sdedit_is_diffusers_own_pipeline_and_does_not_depend_on_the_batch(tiny_config: PipelineConfig) -> None:
    from diffusers import StableDiffusionImg2ImgPipeline

    base = tiny_config.training
    knobs = replace(tiny_config.evaluation, num_inference_steps=4, sdedit_guidance_scale=3.0)
    cases, setting = GreyDomain().draw_cases(3, 0), Setting(guidance_scale=3.0, image_guidance_scale=1.0, strength=0.5)
    edit = sdedit_source(base, knobs, tiny_config.out).load()
    made = edit([case.original_image for case in cases], cases, [5, 6, 7], setting)
    pipeline = StableDiffusionImg2ImgPipeline.from_pretrained(base.pretrained_model_name_or_path, safety_checker=None)
    for number, case in enumerate(cases):
        (image,) = pipeline(
            prompt=case.edited_prompt,
            image=Image.fromarray(case.original_image),
            strength=0.5,
            num_inference_steps=4,
            guidance_scale=3.0,
            generator=torch.Generator().manual_seed(5 + number),
        ).images
        assert np.abs(np.asarray(image).astype(int) - made[number]).max() <= 1

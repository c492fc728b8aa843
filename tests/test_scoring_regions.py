"""The frame and the regions of pairs as scores and as measures: what they say, and how the filter takes them."""

from __future__ import annotations

import math

import lpips
import numpy as np
import pytest
import torch
from PIL import Image
from skimage.color import deltaE_ciede2000, rgb2lab

from ip2p.comparing import changed_area, find_frame
from ip2p.config import ScoringConfig, Thresholds
from ip2p.evaluation.cases import EditCase
from ip2p.evaluation.measures.frame import FrameMeasure
from ip2p.evaluation.measures.regions import RegionsMeasure
from ip2p.filtering import judge
from ip2p.records import EditTriplet, PairScores
from ip2p.scoring import SCORES
from ip2p.scoring.frame import frame_of
from ip2p.scoring.regions import area_of, compare_regions
from ip2p.scoring.score import Batch
from tests.test_comparing import Motion, moved_pair

GOOD = {"original": 1.0, "edited": 1.0, "direction": 1.0, "image": 1.0}


def measured(
    *pairs: tuple[np.ndarray, np.ndarray], setting: str, config: ScoringConfig | None = None
) -> dict[str, list[float]]:
    """The scores of a setting, without a CLIP, which they do not need."""
    originals, edited = zip(*([Image.fromarray(side) for side in pair] for pair in pairs), strict=True)
    triplet = EditTriplet(original_prompt="a", edit_prompt="b", edited_prompt="c")
    batch = Batch([triplet] * len(pairs), originals, edited, clip=None)  # type: ignore[arg-type]
    wanted = {name: score for name, score in SCORES.items() if score.setting == setting}
    return {
        name: list(score.prepare(config or ScoringConfig())(batch)) for name, score in wanted.items() if score.prepare
    }


def test_a_grown_picture_is_rejected_as_such_and_one_without_a_frame_passes() -> None:
    kept, grown = (moved_pair(0, 64, Motion(scale=scale), edited=0.2) for scale in (1, 1.04))
    flat = np.full((64, 64, 3), 200, np.uint8)
    scores = measured(kept, grown, (flat, flat), setting="frame")
    assert scores["frame_scale"][:2] == pytest.approx([1, 1.04], abs=0.004)
    assert scores["frame_drift"][1] == pytest.approx(0.04 * math.sqrt(0.5), abs=0.004)
    assert all(math.isnan(values[2]) for values in scores.values())
    rows = [{name: values[number] for name, values in scores.items()} for number in range(3)]
    bounds = Thresholds(max_frame_drift=0.01), Thresholds(max_frame_scale=1.02), Thresholds(ssim=0.1)
    pairs = [PairScores.from_values([*GOOD.items(), *row.items()]) for row in rows]
    assert [[judge(scores, limits).reason for scores in pairs] for limits in bounds] == [
        ["", "high_frame_drift", ""],
        ["", "high_frame_scale", ""],
        ["low_ssim"] * 3,  # any other score that was not measured rejects
    ]


def test_regions_are_the_plain_means_over_the_changed_area_and_the_rest() -> None:
    before, after = moved_pair(1, 64, Motion(), edited=0.2)
    frame = find_frame(before, after)
    assert frame is not None and frame.drift(64, 64) < 0.005
    changed = changed_area(before, frame.align(after))
    colours = deltaE_ciede2000(rgb2lab(before), rgb2lab(after))
    pair = Image.fromarray(before), Image.fromarray(after)
    regions = compare_regions(*pair, area_of(*pair, frame_of(*pair)))
    assert regions.changed_share == changed.mean() == pytest.approx(0.2, abs=0.08)
    assert regions.colour_inside == pytest.approx(colours[changed].mean(), abs=1e-9)
    assert regions.colour_outside == pytest.approx(colours[~changed].mean(), abs=1e-9)
    assert regions.colour_outside < 5 < regions.colour_inside
    assert regions.ssim_inside < 0.5 < regions.ssim_outside


def test_an_empty_area_has_no_similarity() -> None:
    before, after = moved_pair(0, 64, Motion(), edited=0)
    scores = measured((before, before), (before, 255 - before), setting="regions")
    assert scores["changed_share"][0] == 0 and math.isnan(scores["ssim_inside"][0])
    assert scores["changed_share"][1] > 0.9 and scores["ssim_outside"][0] > 0.8
    assert all(math.isnan(value) for (value,) in measured((before, after[:-1]), setting="regions").values())


def test_lpips_of_the_regions_is_the_mean_of_its_authors_map_over_each_and_a_filter_reads_it(squeezenet: str) -> None:
    before, after = moved_pair(1, 64, Motion(), edited=0.2)
    frame = find_frame(before, after)
    assert frame is not None
    changed = changed_area(before, frame.align(after))
    one, other = (torch.tensor(each).permute(2, 0, 1)[None].float() / 127.5 - 1 for each in (before, after))
    with torch.no_grad():
        found = lpips.LPIPS(net=squeezenet, spatial=True, verbose=False)(one, other)[0, 0].numpy()
    pairs = (before, after), (before, before), (before, after[:-1]), (before[:31], after[:31])
    config = ScoringConfig(lpips="squeeze", device="cpu")
    scores = measured(*pairs, setting="lpips", config=config)
    assert scores["lpips_inside"][0] == pytest.approx(found[changed].mean(), rel=1e-5)
    assert scores["lpips_outside"][0] == pytest.approx(found[~changed].mean(), rel=1e-5)
    assert math.isnan(scores["lpips_inside"][1]) and scores["lpips_outside"][1] == 0
    assert all(math.isnan(value) for values in scores.values() for value in values[2:])
    inside, outside = (values[0] for values in scores.values())
    scored = PairScores.from_values([*GOOD.items(), ("lpips_inside", inside), ("lpips_outside", outside)])
    limits = Thresholds(lpips_inside=inside * 1.01), Thresholds(max_lpips_outside=outside * 0.99)
    assert [judge(scored, each).reason for each in limits] == ["low_lpips_inside", "high_lpips_outside"]
    assert judge(scored, Thresholds(lpips_inside=inside, max_lpips_outside=outside)).accepted


def test_an_edit_is_measured_against_its_input_whatever_its_size() -> None:
    before, after = moved_pair(0, 64, Motion(dx=3), edited=0.1)
    flat = np.full((64, 64, 3), 200, np.uint8)
    case = EditCase(original_image=before, edit_prompt="x", original_prompt="", edited_prompt="", edit_type="")
    large = np.asarray(Image.fromarray(after).resize((128, 128)))
    moved, plain, same = FrameMeasure()([case] * 3, [before, flat, before], [large, flat, before])
    assert moved["frame_drift"] == pytest.approx(3 / 64, abs=0.01) and moved["frame_moved"] is True
    assert plain == {"frame_drift": None, "frame_moved": None}
    assert same == {"frame_drift": pytest.approx(0, abs=1e-6), "frame_moved": False}
    (row,) = RegionsMeasure()([case], [before], [before])
    assert row == {"ssim_outside": pytest.approx(1), "colour_outside": 0, "changed_share": 0}

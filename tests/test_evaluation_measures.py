"""Measures of the area that an edit must not touch, against the libraries' own words."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import lpips
import numpy as np
import pytest
import torch
import torchvision
from skimage.metrics import structural_similarity

from ip2p.evaluation.cases import EditCase, Pixels
from ip2p.evaluation.measures import ChangeMeasure, TruthMeasure
from ip2p.evaluation.measures.models import LpipsMeasure
from ip2p.shapes.domain import ShapesDomain

SIDE = 96


def noise(seed: int) -> Pixels:
    """A picture without structure."""
    return np.random.default_rng(seed).integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8)


@pytest.fixture
def case() -> EditCase:
    """The left third may change."""
    mask = np.zeros((SIDE, SIDE), bool)
    mask[:, : SIDE // 3] = True
    texts = dict.fromkeys(("edit_prompt", "original_prompt", "edited_prompt", "edit_type"), "")
    return EditCase(original_image=noise(0), mask=mask, target_image=noise(1), **texts)  # type: ignore[arg-type]


def test_ssim_outside_the_mask_is_the_mean_of_the_library_s_map_there(case: EditCase) -> None:
    after = noise(2)
    _, similar = structural_similarity(
        case.original_image,
        after,
        channel_axis=-1,
        full=True,
        gaussian_weights=True,
        sigma=1.5,
        use_sample_covariance=False,
        data_range=255,
    )
    (row,) = TruthMeasure()([case], [case.original_image], [after])
    assert row["ssim_kept"] == pytest.approx(similar[:, SIDE // 3 :].mean())


def test_a_change_inside_the_mask_costs_nothing_outside_it(case: EditCase) -> None:
    after = case.original_image.copy()
    after[:, : SIDE // 3 - 8] = 0
    (row,) = TruthMeasure()([case], [case.original_image], [after])
    assert row["ssim_kept"] == pytest.approx(1.0)
    (changed,) = ChangeMeasure()([case], [case.original_image], [after])
    assert not changed["no_op"] and changed["change"] > 0.3


def test_distances_to_the_target_are_none_without_one_and_zero_at_it(case: EditCase) -> None:
    at_target, without = TruthMeasure()(
        [case, replace(case, target_image=None, mask=None)],
        [case.original_image] * 2,
        [noise(1)] * 2,
    )
    assert at_target["l1"] == at_target["l2"] == 0
    assert without == {"l1": None, "l2": None, "ssim_kept": None}


def test_lpips_outside_the_mask_is_the_mean_of_its_authors_map_there(
    case: EditCase, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(0)
    weights = torchvision.models.squeezenet1_1(weights=None).state_dict()
    (tmp_path / "checkpoints").mkdir()
    torch.save(weights, tmp_path / "checkpoints" / "squeezenet1_1-b8a52dc0.pth")
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    measure, after = LpipsMeasure("squeeze", "cpu"), noise(2)
    (row,) = measure([case], [case.original_image], [after])
    model = lpips.LPIPS(net="squeeze", spatial=True, verbose=False)
    one, other = (
        torch.tensor(each).permute(2, 0, 1)[None].float() / 127.5 - 1 for each in (case.original_image, after)
    )
    with torch.no_grad():
        found = model(one, other)[0, 0].numpy()
    assert row["lpips_kept"] == pytest.approx(found[:, SIDE // 3 :].mean(), rel=1e-5)
    assert measure([replace(case, mask=None)], [case.original_image], [after]) == [{"lpips_kept": None}]


def test_the_domain_knows_the_right_picture_and_where_it_differs_but_for_what_may_go_anywhere() -> None:
    domain = ShapesDomain()
    for case in domain.draw_cases(70, 3):
        if case.edit_type == "add":
            assert case.target_image is None and case.mask is None
            continue
        assert case.target_image is not None and case.mask is not None
        assert domain.judge_case(case, case.target_image).success
        outside = ~case.mask
        assert np.array_equal(case.target_image[outside], case.original_image[outside]) and case.mask.any()

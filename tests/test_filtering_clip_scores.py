"""The four similarities are open_clip's own numbers on open_clip's own transforms."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import open_clip
import pytest
import torch
from PIL import Image

from ip2p.models.loading import ClipModel, load_clip
from ip2p.records import EditTriplet
from ip2p.scoring.scorer import PairScorer, similarities

TRIPLETS = [
    EditTriplet(
        original_prompt="a small red circle on a white background",
        edit_prompt="make the circle blue",
        edited_prompt="a small blue circle on a white background",
    ),
    EditTriplet(
        original_prompt="a large green square on a black background",
        edit_prompt="remove the square",
        edited_prompt="an empty black background",
    ),
    EditTriplet(
        original_prompt="an empty black background", edit_prompt="-", edited_prompt="an empty black background"
    ),
]


@pytest.fixture(scope="module")
def clip(tiny_clip: Path) -> ClipModel:
    return load_clip(str(tiny_clip), None, device="cpu")


def pictures(seed: int, num: int = 3) -> list[Image.Image]:
    rng = np.random.default_rng(seed)
    return [Image.fromarray(rng.integers(0, 256, (48, 80, 3), dtype=np.uint8)) for _ in range(num)]


def test_scores_equal_open_clips_own_encoders(clip: ClipModel, tiny_clip: Path) -> None:
    originals, edited = pictures(0), pictures(1)
    model, _, transform = open_clip.create_model_and_transforms(f"local-dir:{tiny_clip}")
    tokenize = open_clip.get_tokenizer(f"local-dir:{tiny_clip}")
    model.eval()
    found = PairScorer(clip, batch_size=4).score(TRIPLETS, originals, edited)
    for triplet, original, other, scores in zip(TRIPLETS, originals, edited, found, strict=True):
        with torch.no_grad():
            image_0, image_1 = model.encode_image(torch.stack([transform(original), transform(other)])).double()
            text_0, text_1 = model.encode_text(tokenize([triplet.original_prompt, triplet.edited_prompt])).double()
        image_0, image_1, text_0, text_1 = (each / each.norm() for each in (image_0, image_1, text_0, text_1))
        assert scores.original == pytest.approx(float(image_0 @ text_0), abs=1e-5)
        assert scores.edited == pytest.approx(float(image_1 @ text_1), abs=1e-5)
        assert scores.image == pytest.approx(float(image_0 @ image_1), abs=1e-5)
        step, words = image_1 - image_0, text_1 - text_0
        if float(words.norm()) > 0:
            expected = float(step @ words / (step.norm() * words.norm()))
            assert scores.direction == pytest.approx(expected, abs=1e-4)


def test_scores_do_not_depend_on_the_batch(clip: ClipModel) -> None:
    originals, edited = pictures(2), pictures(3)
    together = PairScorer(clip, batch_size=64).score(TRIPLETS, originals, edited)
    alone = PairScorer(clip, batch_size=1)
    for index, expected in enumerate(together):
        (found,) = alone.score([TRIPLETS[index]], [originals[index]], [edited[index]])
        assert found.image == pytest.approx(expected.image, abs=1e-5)
        assert found.original == pytest.approx(expected.original, abs=1e-5)
        assert found.direction == pytest.approx(expected.direction, abs=1e-4)


def test_a_pair_that_did_not_change_has_no_direction(clip: ClipModel) -> None:
    (image,) = pictures(4, 1)
    (scores,) = PairScorer(clip, batch_size=4).score(TRIPLETS[:1], [image], [image])
    assert scores.direction == pytest.approx(0.0, abs=1e-3)
    assert scores.image == pytest.approx(1.0, abs=1e-5)


def test_equal_texts_have_direction_zero_and_no_nan() -> None:
    images = torch.nn.functional.normalize(torch.randn(2, 4, 8), dim=-1)
    texts = torch.nn.functional.normalize(torch.randn(4, 8), dim=-1)
    found = similarities(images[0], images[1], texts, texts)
    assert torch.equal(found[:, 2], torch.zeros(4))
    assert found.isfinite().all()


def test_nothing_to_score_gives_nothing(clip: ClipModel) -> None:
    assert PairScorer(clip, batch_size=4).score([], [], []) == []
